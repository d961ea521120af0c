"""The sub-commands of ``nnunet_mutual`` about results of trainings; nothing heavy is imported before a handler runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_dataset, add_training, names_training
from nnunet_mutual.errors import MutualError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    _add_suggest(add)
    _add_review(add)
    _add_accept(add)
    _add_evaluate(add)
    _add_report(add)


def _add_suggest(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "suggest",
        _suggest,
        "where to draw next: what would teach most for a minute of a reader",
        "Ranks images of imagesUn and partly drawn cases, structure by structure, by what drawing them would teach:\n"
        "how much networks (or mirrored views) disagree, size, and variety, so that no ten are alike. Never patients\n"
        "of validation or test. Writes a folder as review does: a page, a table to fill in, a mask for each;\n"
        "'nnunet_mutual accept' reads it. A run that was interrupted goes on where it stopped.",
        "nnunet_mutual suggest 111 3d_fullres -tr PartialTrainer -o next_111 --minutes spleen=3 liver=20 --max 30",
    )
    add_training(command)
    command.add_argument(
        "-f",
        dest="folds",
        metavar="FOLD",
        nargs="+",
        default=["0"],
        type=cli_types.fold,
        help="folds whose networks are asked; their validation patients are left out (0)",
    )
    command.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    command.add_argument("-o", dest="output", metavar="FOLDER", required=True, help="a new folder")
    command.add_argument(
        "--minutes",
        metavar="[LABEL=]MINUTES",
        nargs="+",
        default=[],
        help="that drawing takes: 1, unless said; others for single labels: --minutes 5 liver=20",
    )
    command.add_argument(
        "--max",
        dest="most",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        default=20,
        help="at most so many (%(default)s)",
    )
    command.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where (%(default)s)")


def _add_review(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "review",
        _review,
        "show doubtful pseudo labels to a reader",
        "Writes a folder with one page (no network needed) of every pseudo label that the filter rejected, accepted\n"
        "near one of its limits or could not judge; a table review.csv to fill in; and a mask for each, to correct in\n"
        "any viewer. 'nnunet_mutual accept' reads the table. Without a training, of the masks of other tools that\n"
        "'nnunet_mutual pseudo_label --from' has read.",
        "nnunet_mutual review 111 3d_fullres 0 -tr MutualPartialTrainer -o review_111\n"
        "  nnunet_mutual review 111 -o review_111",
    )
    add_training(command, fold=True, optional=True)
    command.add_argument(
        "-chk", dest="checkpoint", help="that pseudo_label was asked for (default: those of the training)"
    )
    command.add_argument("-o", dest="output", metavar="FOLDER", required=True, help="a new folder")
    command.add_argument("--all", dest="everything", action="store_true", help="also what is not doubtful")
    command.add_argument(
        "--max",
        dest="most",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        help="at most so many, the most doubtful ones",
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
    command.add_argument(
        "--weight",
        type=cli_types.positive,
        default=1.0,
        help="how much trainings believe accepted masks, up to 1 as a drawing (%(default)g); corrected ones count 1",
    )


def _add_evaluate(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "evaluate",
        _evaluate,
        "Dice, surface distances and volumes of segmentations, only where a label is annotated",
        "Measures a folder of segmentations against reference label maps: Dice, IoU, surface Dice, HD95 and volumes\n"
        "of each label in the cases that annotate it, with means and bootstrap intervals. With --compare, two folders\n"
        "of the same cases against each other. REFERENCES is a folder with a dataset.json in it or above it; without\n"
        "it, the label maps of the dataset that -d names.",
        "nnunet_mutual evaluate SEGMENTATIONS -d 111\n  nnunet_mutual evaluate SEGMENTATIONS REFERENCES\n"
        "  nnunet_mutual evaluate --compare SEGMENTATIONS_A SEGMENTATIONS_B REFERENCES --margin 0.02",
    )
    command.usage = (
        "nnunet_mutual evaluate SEGMENTATIONS [REFERENCES] [-d DATASET] [options]\n"
        "       nnunet_mutual evaluate --compare A B [REFERENCES] [-d DATASET] [options]"
    )
    command.add_argument("folders", metavar="FOLDER", nargs="*", help="SEGMENTATIONS, REFERENCES")
    command.add_argument("--compare", metavar=("A", "B"), nargs=2, help="compare two folders of segmentations: B - A")
    command.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset whose table says what is annotated")
    command.add_argument("-djfile", dest="dataset_json", metavar="FILE", help="another dataset.json to read that from")
    command.add_argument(
        "-f", dest="fold", metavar="FOLD", type=cli_types.fold, help="only the validation cases of this fold of -d"
    )
    command.add_argument(
        "--complete", action="store_true", help="the references draw every label, whatever the table says"
    )
    command.add_argument("--chill", action="store_true", help="leave out cases without a segmentation")
    command.add_argument("--no-surface", action="store_true", help="no surface Dice and HD95, which takes less time")
    command.add_argument(
        "--tolerance",
        metavar="[LABEL=]MM",
        nargs="+",
        default=[],
        help="of surface Dice: 1 mm, unless said; others for single labels: --tolerance 2 liver=5",
    )
    command.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="with --compare: smaller differences of Dice are stable (%(default)s)",
    )
    command.add_argument("-o", dest="output", metavar="FOLDER", help="default: 'evaluation' in SEGMENTATIONS or B")
    command.add_argument(
        "-np", dest="processes", metavar="NUMBER", type=cli_types.at_least(1), help="processes (default: as in nnU-Net)"
    )
    command.add_argument("--seed", type=cli_types.seed, default=0, help="of the bootstrap (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


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
    command.add_argument(
        "-f", dest="fold", metavar="FOLD", type=cli_types.fold, default="0", help="fold, or 'all' (%(default)s)"
    )
    command.add_argument("-o", dest="output", metavar="FILE", help="page to write (default: report.html in the fold)")
    command.add_argument(
        "--compare",
        metavar="FOLDER",
        help="another training, or its validation of the same cases; with --evidence, the arm to compare with",
    )
    command.add_argument("--with-names", action="store_true", help="show names of cases, for the group itself")
    command.add_argument("--no-images", action="store_true", help="leave out slices of patients' images")
    command.add_argument("--evidence", metavar="FOLDER", help="evidence files of a benchmark, instead of a training")


def _suggest(options: argparse.Namespace) -> int:
    from nnunet_mutual.pseudo_labels.suggest.command import suggest

    suggest(
        options.dataset,
        options.configuration,
        options.folds,
        trainer=options.trainer,
        plans=options.plans,
        checkpoint=options.checkpoint,
        output=options.output,
        minutes=options.minutes,
        most=options.most,
        device=options.device,
    )
    return 0


def _review(options: argparse.Namespace) -> int:
    from nnunet_mutual.disk.trainings import NamedTraining
    from nnunet_mutual.pseudo_labels.review.make import review

    named = names_training(options, "review")
    if not named and options.checkpoint is not None:
        raise MutualError("-chk belongs to a training; name it (CONFIGURATION FOLD -tr TRAINER), or leave -chk out")
    words = options.dataset, options.configuration, options.fold, options.trainer, options.plans
    review(
        NamedTraining(*words) if named else options.dataset,
        checkpoint=options.checkpoint,
        output=options.output,
        everything=options.everything,
        most=options.most,
    )
    return 0


def _accept(options: argparse.Namespace) -> int:
    from nnunet_mutual.pseudo_labels.review.accept import accept

    accept(
        options.dataset, options.table, dry_run=options.dry_run, keep_drawn=options.keep_drawn, weight=options.weight
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    folders = list(options.folders)
    predictions = options.compare or folders[:1]
    rest = folders if options.compare else folders[1:]
    if not predictions or len(rest) > 1:
        raise MutualError(
            "name one folder of segmentations, or two after --compare, and at most one of references; found "
            f"{' '.join(folders) or 'none'}"
        )
    from nnunet_mutual.evaluation.command import EvaluateOptions, compare_predictions, evaluate

    answers = EvaluateOptions(
        references=rest[0] if rest else None,
        dataset=options.dataset,
        dataset_json=options.dataset_json,
        fold=options.fold,
        complete=options.complete,
        chill=options.chill,
        tolerance=tuple(options.tolerance),
        surface=not options.no_surface,
        processes=options.processes,
        seed=options.seed,
        output=options.output,
        as_json=options.json,
    )
    if options.compare:
        compare_predictions(predictions[0], predictions[1], answers, margin=options.margin)
    else:
        evaluate(predictions[0], answers)
    return 0


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
