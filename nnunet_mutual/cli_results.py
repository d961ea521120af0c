"""The sub-commands of ``nnunet_mutual`` about results; nothing heavy is imported before a handler runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnunet_mutual.errors import MutualError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    _add_report(add)


def _add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "report",
        _report,
        "one page about a training, to decide whether its model can be used",
        "Writes a page (HTML that loads nothing, for browser and printer) about one fold of a training: alarms,\n"
        "results of whole validation cases with slices of the worst ones, what was trained on, all curves; tidy CSV\n"
        "tables go beside it. Cases are numbered unless --with-names. With --evidence, a page about a benchmark.",
        "nnunet_mutual report 111 3d_fullres -tr MutualPartialTrainer -f 0",
    )
    command.add_argument("dataset", metavar="DATASET", nargs="?", help="dataset name or number")
    command.add_argument("configuration", metavar="CONFIGURATION", nargs="?", help="configuration of the training")
    command.add_argument("-tr", dest="trainer", metavar="TRAINER", help="trainer of the training")
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")
    command.add_argument("-f", dest="fold", metavar="FOLD", default="0", help="fold, or 'all' (%(default)s)")
    command.add_argument("-o", dest="output", metavar="FILE", help="page to write (default: report.html in the fold)")
    command.add_argument(
        "--compare",
        metavar="FOLDER",
        help="another training, or its validation of the same cases; with --evidence, the arm to compare with",
    )
    command.add_argument("--with-names", action="store_true", help="show names of cases, for the group itself")
    command.add_argument("--no-images", action="store_true", help="leave out slices of patients' images")
    command.add_argument("--evidence", metavar="FOLDER", help="evidence files of a benchmark, instead of a training")


def _report(options: argparse.Namespace) -> int:
    if options.evidence is not None:
        if options.dataset is not None:
            raise MutualError("--evidence is about a benchmark, DATASET about a training; give one of them")
        from nnunet_mutual.report.evidence import report_evidence

        report_evidence(options.evidence, output=options.output, against=options.compare, with_names=options.with_names)
        return 0
    if None in (options.dataset, options.configuration, options.trainer):
        raise MutualError(
            "report needs DATASET, CONFIGURATION and -tr TRAINER, for example: nnunet_mutual report 111 3d_fullres "
            "-tr PartialTrainer -f 0"
        )
    from nnunet_mutual.report.command import report

    report(
        options.dataset,
        options.configuration,
        trainer=options.trainer,
        plans=options.plans,
        fold=options.fold,
        output=options.output,
        compare=options.compare,
        with_names=options.with_names,
        images=not options.no_images,
    )
    return 0
