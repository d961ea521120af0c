"""The sub-commands of ``nnunet_mutual`` about datasets; nothing heavy is imported before a handler runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_dataset


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    command = add(
        "annotate",
        _annotate,
        "declare which labels are annotated in which case",
        "Writes the annotation table into dataset.json of a raw nnU-Net dataset, from a file that lists the annotated\n"
        "labels of every training case. A label that is not listed for a case counts as unknown there, not as absent.\n"
        "CSV or .xlsx: a column 'case' and one column per label (yes/no, or partly: some of it is drawn), or one\n"
        "column 'labels' (a;b); columns 'source', 'patient', 'missing' (channels) and 'incomplete' (labels drawn in\n"
        "part) may follow. JSON: {case: [label, ...]}. Images of imagesUn may be listed, with no labels. Where you\n"
        "know which voxels nobody looked at (slices, all but scribbles), use nnU-Net's ignore label instead.",
        "nnunet_mutual annotate Dataset111_Abdomen cases.csv --contains liver=liver_tumour --single liver",
    )
    add_dataset(command)
    command.add_argument("table", metavar="TABLE", help="CSV, .xlsx or JSON file: case -> annotated labels")
    command.add_argument("--sheet", metavar="NAME", help="of a workbook (.xlsx) with several")
    command.add_argument("--source", metavar="NAME", help="name of the one source of all cases")
    command.add_argument(
        "--contains",
        metavar="[SOURCE:]LABEL=INNER[,INNER]",
        action="append",
        default=[],
        help="where LABEL is annotated, INNER was drawn as part of it (repeatable)",
    )
    command.add_argument(
        "--may-overlap",
        metavar="LABEL,LABEL",
        action="append",
        default=[],
        help="two labels that may cover the same voxel (repeatable)",
    )
    command.add_argument(
        "--single", metavar="LABEL", action="append", default=[], help="an organ that is one piece (repeatable)"
    )
    command.add_argument("--force", action="store_true", help="replace an annotation table that is already there")

    _add_merge(add)
    _add_simulate(add)

    command = add(
        "check",
        _check,
        "show who annotated what, and find problems before a training does",
        "Prints the coverage matrix (label x source: cases annotated, cases in which the label is present) and every\n"
        "problem of the dataset. Exit status 0: no error, 2: errors.",
        "nnunet_mutual check Dataset111_Abdomen",
    )
    add_dataset(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of the matrix")
    command.add_argument(
        "--headers", action="store_true", help="compare tables, names and headers only, and read no voxel (fast)"
    )

    command = add(
        "check_images",
        _check_images,
        "look whether images are of the sequence that a model needs",
        "Compares images with the sequences of the training of an exported modality group. It is a guess from where\n"
        "the edges of an image are, good for sequences that differ much. Exit status 0: no doubt, 1: look at some.",
        "nnunet_mutual check_images nnUNetTrainer__nnUNetPlansGroups_MutualCrossModal_T1__3d_fullres T1_IMAGES",
    )
    command.add_argument("model", metavar="MODEL", help="folder that nnunet_mutual export wrote")
    command.add_argument("images", metavar="IMAGES", help="folder of images, as for nnUNetv2_predict")

    command = add(
        "sync",
        _sync,
        "copy the annotation table of the raw dataset to the preprocessed one",
        "nnU-Net copies dataset.json only when it plans. After a later change of the annotation table this command\n"
        "brings the preprocessed copy up to date; images and plans are not touched.",
        "nnunet_mutual sync Dataset111_Abdomen",
    )
    add_dataset(command)


def _add_merge(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "merge",
        _merge,
        "make one dataset of several that label different structures",
        "Makes a new dataset in nnUNet_raw: labels are united by name, images linked, label maps renumbered, and the\n"
        "annotation table says which dataset drew what. An image that is in two datasets becomes one case. Everything\n"
        "is verified first; what cannot be decided from the files stops the merge and names the option that decides.",
        "nnunet_mutual merge Dataset011_Liver Dataset012_Spleen Dataset111_Abdomen --rename Spleen:Milz=spleen",
    )
    command.add_argument("datasets", metavar="SRC", nargs="+", help="datasets to merge, name or number")
    command.add_argument("output", metavar="OUT", help="name of the new dataset, such as Dataset111_Abdomen")

    def repeatable(option: str, metavar: str, text: str) -> None:
        command.add_argument(option, metavar=metavar, action="append", default=[], help=text + " (repeatable)")

    repeatable("--rename", "SRC:OLD=NEW", "name that a label of a dataset gets in the new one")
    repeatable("--contains", "SRC:LABEL=INNER", "LABEL was drawn with INNER as part of it in this dataset")
    repeatable("--no-contains", "SRC:LABEL=INNER", "INNER was left out of LABEL")
    repeatable("--prefer", "SRC", "whose drawing counts where two of the same image contradict each other")
    command.add_argument(
        "--patients", choices=("same", "separate"), help="patient names in two datasets: the same person or not"
    )
    command.add_argument(
        "--reorient", action="store_true", help="let nnU-Net turn all images into one orientation when it reads them"
    )
    command.add_argument("--accept-intensities", action="store_true", help="intensities far apart are right")
    command.add_argument("--accept-empty", action="store_true", help="empty label maps: the structures are absent")
    command.add_argument("--ending", help="file ending of the new dataset (default: that of the first one)")
    command.add_argument("--copy", action="store_true", help="copy images instead of linking them")


def _add_simulate(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "simulate",
        _simulate,
        "make a dataset that lacks labels, label maps or channels, to test a method",
        "Makes a new dataset in nnUNet_raw from a labelled one: sites that draw only some labels, labels of which\n"
        "only some pieces are drawn, cases without label map (imagesUn), cases that lack a channel. Patients stay\n"
        "together, the draws are seeded, and the full truth is kept in the folder 'truth', which no training reads.",
        "nnunet_mutual simulate Dataset111_Abdomen Dataset112_TwoSites --keep A:liver,liver_tumour --keep B:spleen",
    )
    command.add_argument("dataset", metavar="SRC", help="labelled dataset, name or number")
    command.add_argument("output", metavar="OUT", help="name of the new dataset, such as Dataset112_TwoSites")
    command.add_argument(
        "--keep",
        metavar="SITE:LABEL[,LABEL]",
        action="append",
        default=[],
        help="labels that a site draws; cases are divided among the sites (repeatable)",
    )
    command.add_argument(
        "--labelled", metavar="NUMBER", type=cli_types.at_least(1), help="cases that keep a label map (default: all)"
    )
    command.add_argument(
        "--test", metavar="NUMBER", type=cli_types.at_least(0), default=0, help="cases set aside in imagesTs"
    )
    command.add_argument(
        "--missing",
        metavar="CHANNEL=SHARE",
        action="append",
        default=[],
        help="share of the cases that lacks this channel (repeatable)",
    )
    command.add_argument(
        "--incomplete",
        metavar="LABEL=SHARE",
        action="append",
        default=[],
        help="share of the pieces of this label that is hidden, in all labelled cases but --complete (repeatable)",
    )
    command.add_argument("--pieces", choices=("components", "slices"), help="of --incomplete (components)")
    command.add_argument(
        "--complete",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        help="cases in which a label of --incomplete stays complete (5)",
    )
    command.add_argument("--seed", type=cli_types.seed, default=0, help="of the draws (%(default)s)")
    command.add_argument("--copy", action="store_true", help="copy images instead of linking them")


def _annotate(options: argparse.Namespace) -> int:
    from nnunet_mutual.datasets.annotate import annotate

    annotate(
        options.dataset,
        options.table,
        sheet=options.sheet,
        source=options.source,
        contains=options.contains,
        may_overlap=options.may_overlap,
        single=options.single,
        force=options.force,
    )
    return 0


def _merge(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from nnunet_mutual.datasets.merge.command import MergeOptions, merge

    answers = {field.name: getattr(options, field.name) for field in fields(MergeOptions)}
    merge(options.datasets, options.output, MergeOptions(**answers))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from nnunet_mutual.datasets.simulate.command import SimulateOptions, simulate
    from nnunet_mutual.errors import MutualError

    given = {field.name: getattr(options, field.name) for field in fields(SimulateOptions)}
    answers = {name: value for name, value in given.items() if value is not None}
    for name in {"pieces", "complete"} & {*answers}:
        if not options.incomplete:
            raise MutualError(f"--{name} is of labels that are drawn in part; name these with --incomplete LABEL=SHARE")
    simulate(options.dataset, options.output, SimulateOptions(**answers))
    return 0


def _check(options: argparse.Namespace) -> int:
    from nnunet_mutual.datasets.check import check

    return check(options.dataset, as_json=options.json, headers_only=options.headers)


def _check_images(options: argparse.Namespace) -> int:
    from nnunet_mutual.export.sequences import check_images

    return check_images(options.model, options.images)


def _sync(options: argparse.Namespace) -> int:
    from nnunet_mutual.datasets.sync import sync

    sync(options.dataset)
    return 0
