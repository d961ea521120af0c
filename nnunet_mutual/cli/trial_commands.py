"""The sub-command of ``nnunet_mutual`` that compares trainers; nothing heavy is imported before its handler runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_dataset

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-command.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    command = add(
        "trial",
        _trial,
        "find out which trainer pays on your own data",
        "Trains the trainers that make sense on a dataset, scores them on patients that none has seen, and writes a\n"
        "page with Dice, differences with intervals and the trainer to take. Before training it says how long it\n"
        "takes and what differences it can show. All is kept in a folder of its own; the same command goes on where\n"
        "it was stopped. What a fully drawn dataset has can be hidden, as simulate hides it.",
        "nnunet_mutual trial 111 3d_fullres --test 112 --budget 12h\n"
        "  nnunet_mutual trial 111 3d_fullres --keep A:liver,liver_tumour --keep B:spleen -o hidden_labels\n"
        "  nnunet_mutual trial 111 3d_fullres --labelled 4 8 16 -o learning_curve\n"
        "  nnunet_mutual trial 111 3d_fullres --list-jobs",
    )
    add_dataset(command)
    command.add_argument("configuration", metavar="CONFIGURATION", help="configuration that all of them train")
    command.add_argument("-p", dest="plans", help="plans identifier (nnUNetPlans)")
    command.add_argument("-o", dest="output", metavar="FOLDER", help="of the trial (trial_DATASET_CONFIGURATION)")
    command.add_argument("--test", metavar="DATASET", help="score on the cases of this dataset, which draw every label")
    command.add_argument(
        "-f", dest="fold", metavar="FOLD", type=cli_types.fold, help="without --test: whose validation patients (0)"
    )
    command.add_argument(
        "--arms", metavar="TRAINER", nargs="+", help="from simple to elaborate (default: those that fit the dataset)"
    )
    command.add_argument("--seeds", metavar="NUMBER", type=cli_types.at_least(2), help="trainings of each (3)")
    command.add_argument("--budget", metavar="TIME", type=_seconds, help="such as 12h: shorten all of them alike")
    command.add_argument(
        "--equal", choices=("updates", "minutes"), help="what all of them have alike (updates; minutes are shown)"
    )
    command.add_argument(
        "--keep", metavar="SITE:LABEL[,LABEL]", action="append", help="hide labels, as simulate does (repeatable)"
    )
    command.add_argument(
        "--labelled",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        nargs="+",
        help="cases that keep a label map; several numbers make a learning curve",
    )
    command.add_argument(
        "--missing", metavar="CHANNEL=SHARE", action="append", help="share of cases without a channel (repeatable)"
    )
    command.add_argument("-device", choices=("cuda", "cpu", "mps"), help="where (cuda)")
    command.add_argument(
        "--side-by-side",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        help="runs at a time (default: one on each GPU; on a CPU one)",
    )
    command.add_argument(
        "--list-jobs", action="store_true", help="print an independent command for each run, for any scheduler"
    )
    command.add_argument("--job", metavar="NAME", help="do this run only, as --list-jobs prints it")
    command.add_argument("--with-names", action="store_true", help="show names of cases in the tables")


def _seconds(text: str) -> float:
    """Reads 90m, 12h or 2d."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 90m, 12h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def _trial(options: argparse.Namespace) -> int:
    if options.job is not None:
        from nnunet_mutual.trial.jobs import end_with_parent

        end_with_parent()
    from nnunet_mutual.trial.command import trial

    names = ("dataset", "configuration", "plans", "fold", "test", "arms", "seeds", "equal", "budget", "device")
    hiding = ("keep", "labelled", "missing")
    trial(
        {name: getattr(options, name) for name in (*names, *hiding)},
        output=options.output,
        job=options.job,
        list_jobs=options.list_jobs,
        side_by_side=options.side_by_side,
        with_names=options.with_names,
    )
    return 0
