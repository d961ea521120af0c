"""The sub-commands of ``nnunet_mutual`` about results of trainings; nothing heavy is imported before a handler runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnunet_mutual.cli_datasets import add_dataset


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    _add_review(add)
    _add_accept(add)


def _add_review(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "review",
        _review,
        "show doubtful pseudo labels to a reader",
        "Writes a folder with one page (no network needed) of every pseudo label that the filter rejected, accepted\n"
        "near one of its limits or could not judge; a table review.csv to fill in; and a mask for each, to correct in\n"
        "any viewer. 'nnunet_mutual accept' reads the table.",
        "nnunet_mutual review 111 3d_fullres 0 -tr MutualPartialTrainer -o review_111",
    )
    add_dataset(command)
    command.add_argument("configuration", metavar="CONFIGURATION", help="configuration of the training")
    command.add_argument("fold", metavar="FOLD", help="fold of the training, or 'all'")
    command.add_argument("-tr", dest="trainer", metavar="TRAINER", required=True, help="trainer of the training")
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")
    command.add_argument(
        "-chk", dest="checkpoint", help="that pseudo_label was asked for (default: those of the training)"
    )
    command.add_argument("-o", dest="output", metavar="FOLDER", required=True, help="a new folder")
    command.add_argument("--all", dest="everything", action="store_true", help="also what is not doubtful")
    command.add_argument(
        "--max", dest="most", metavar="NUMBER", type=int, help="at most so many, the most doubtful ones"
    )


def _add_accept(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "accept",
        _accept,
        "make reviewed pseudo labels true labels",
        "Reads the table that a reader has filled in. Masks that were accepted or corrected go into labelsTr, the\n"
        "annotation table says so, and the preprocessed data of these cases are made anew: the next training learns\n"
        "from them as drawn by a person. Old label maps are kept in labelsTr_before_<number>. All or nothing.",
        "nnunet_mutual accept 111 review_111/review.csv --dry-run",
    )
    add_dataset(command)
    command.add_argument("table", metavar="TABLE", help="the filled review.csv, in the folder that review has written")
    command.add_argument("--dry-run", action="store_true", help="say what would change and change nothing")
    command.add_argument(
        "--keep-drawn",
        action="store_true",
        help="where a mask contradicts what was drawn, keep what was drawn (default: refuse)",
    )


def _review(options: argparse.Namespace) -> int:
    from nnunet_mutual.review.make import review
    from nnunet_mutual.review.training import Training

    review(
        Training(options.dataset, options.configuration, options.fold, options.trainer, options.plans),
        checkpoint=options.checkpoint,
        output=options.output,
        everything=options.everything,
        most=options.most,
    )
    return 0


def _accept(options: argparse.Namespace) -> int:
    from nnunet_mutual.review.accept import accept

    accept(options.dataset, options.table, dry_run=options.dry_run, keep_drawn=options.keep_drawn)
    return 0
