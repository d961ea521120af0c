"""The section on what was learnt from: coverage, sources, folds, unlabelled images, pseudo labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision, read_decisions, tools_of
from nnunet_mutual.batches.pseudo import CSV
from nnunet_mutual.datasets.coverage import coverage
from nnunet_mutual.report import plots
from nnunet_mutual.report.blocks import Block, Figure, Missing, Section, Table, Text
from nnunet_mutual.report.training import Training

PSEUDO_TRAINER = "MutualPartialTrainer"


def coverage_table(training: Training) -> pd.DataFrame:
    """Returns how many cases of each part of the fold annotate each label, or draw it in part.

    Columns: label, source, part, annotated, incomplete, cases.
    """
    table, split = training.table, training.split
    parts: dict[str, list[Case]] = {"training": [], "validation": []}
    if split.known:
        parts = {
            "training": [table.case(k) for k in split.training],
            "validation": [table.case(k) for k in split.validation],
        }
    elif table.declared:
        parts = {"dataset": [case for case in table.cases.values() if case.drawn]}
    sizes = {part: Counter(case.source for case in cases) for part, cases in parts.items()}
    rows = [
        (cell.label, cell.source, part, cell.annotated, cell.incomplete, sizes[part][cell.source])
        for part, cases in parts.items()
        for cell in coverage(table, cases)
    ]
    return pd.DataFrame(rows, columns=["label", "source", "part", "annotated", "incomplete", "cases"])


def decisions_of(training: Training) -> list[Decision]:
    """Returns the decisions about pseudo labels that this training made, none without the file."""
    file = training.folder / "pseudo_labels" / CSV
    return read_decisions(file) if file.is_file() else []


def data(training: Training, covered: pd.DataFrame, decisions: Sequence[Decision]) -> Section:
    """Returns the section."""
    section = Section("data", "What it was trained on")
    split = training.split
    if split.known and training.fold != "all":
        text = (
            f"Fold {training.fold} of {training.folders.name}: {len(split.training)} training and "
            f"{len(split.validation)} validation cases of {len(training.table.sources)} source(s)."
        )
    elif split.known:
        text = f"All {len(split.training)} cases of {training.folders.name}, none of them held out."
    else:
        text = (
            f"{training.folders.name}. Which cases were trained on is not known here: splits_final.json of "
            "nnUNet_preprocessed is not at hand, or was changed since. The table counts all cases of the dataset."
        )
    section.blocks += [Text(text), _coverage(covered)]
    section.blocks.append(Text(_unlabelled(training)))
    section.blocks += _outlines(training.table)
    if training.trainer == PSEUDO_TRAINER or decisions:
        section.blocks += pseudo_labels(training, decisions)
    return section


def _coverage(covered: pd.DataFrame) -> Table | Missing:
    if covered.empty:
        return Missing("No case of the dataset is known here, so there is no coverage to show.")
    sources = list(dict.fromkeys(covered.source[covered.cases > 0]))
    labels, parts = (list(dict.fromkeys(column)) for column in (covered.label, covered.part))
    numbers: Counter[tuple[str, str | None, str | None, str]] = Counter()  # of all labels (cases) and sources: None
    for row in covered.itertuples():
        for source in (row.source, None):
            numbers["annotated", row.label, source, row.part] += row.annotated
            numbers["in part", row.label, source, row.part] += row.incomplete
            numbers["annotated", None, source, row.part] += row.cases * (row.label == labels[0])

    def cell(label: str | None, source: str | None) -> str | None:
        annotated, in_part = (
            _joined([numbers[kind, label, source, part] for part in parts]) for kind in ("annotated", "in part")
        )
        return f"{annotated or '–'} ({in_part})" if in_part else annotated

    rows = [[label or "cases", *(cell(label, source) for source in (*sources, None))] for label in (None, *labels)]
    in_part = "; in brackets: cases in which it is drawn in part, so that what is not drawn is unknown"
    return Table(
        f"Cases in which somebody looked for the label ({' + '.join(parts)}), by source; empty: not annotated "
        f"there, so unknown, not absent{in_part if covered.incomplete.any() else ''}.",
        ["label", *sources, "all"],
        rows,
        "labels that only one source annotates, on images unlike yours; labels with few cases.",
    )


def _outlines(table: AnnotationTable) -> list[Block]:
    if not table.outlines:
        return []
    rows = [[one.label, one.by or "a network", f"{one.weight:g}", str(number)] for one, number in table.outlines]
    return [
        Table(
            "Labels that a tool outlined and a reader accepted, in all cases of the dataset; weight: how much "
            "trainings believe them, 1 as a drawn label.",
            ["label", "outlined by", "weight", "cases"],
            rows,
            "labels of which most cases are a tool's: their scores tell how well the tool is imitated.",
        )
    ]


def _joined(numbers: Sequence[int]) -> str | None:
    return " + ".join(map(str, numbers)) if any(numbers) else None


def _unlabelled(training: Training) -> str:
    number, acted = len(training.unlabelled), training.acted
    if acted is not None and acted.unlabelled:
        return f"{acted.unlabelled} unlabelled images were learnt from, too; those of validation patients are left out."
    if not number:
        return "No unlabelled images are at hand."
    return f"{number} unlabelled images are at hand; this training did not learn from them."


def pseudo_labels(training: Training, decisions: Sequence[Decision]) -> list[Block]:
    """Returns what became of pseudo labels, and why."""
    if not decisions:
        if not training.finished:
            return [Missing("No pseudo labels were made yet: the first stage is not over.", training.how_on)]
        none = "There is no record of pseudo labels: none were needed, or the folder pseudo_labels was removed."
        return [Missing(none)]
    counts = pd.DataFrame([(d.label, d.accepted) for d in decisions], columns=["label", "good"])
    counts = counts.groupby("label", sort=False).good.agg(accepted="sum", number="size").reset_index()
    counts["rejected"] = counts.number - counts.accepted
    reasons = Counter((d.label, d.accepted, d.reason.partition(":")[0]) for d in decisions)
    rows = [
        [label, "accepted" if accepted else "rejected", reason, str(number)]
        for (label, accepted, reason), number in sorted(
            reasons.items(), key=lambda item: (item[0][0], item[0][1], -item[1])
        )
    ]
    return [
        Figure(
            f"Pseudo labels: what {_makers(decisions)} said about labels that a training case does not annotate, and "
            "whether the second stage learnt from it.",
            "labels of which most were rejected (the second stage gained little there), and labels of which all were "
            "accepted although they are hard: look at some of them.",
            [plots.decisions_plot(counts, training.table.labels)],
        ),
        Table("Reasons, by label and number of cases.", ["label", "pseudo label", "reason", "cases"], rows),
        *([] if tools_of(decisions) else [Missing("To look at pseudo labels as label maps:", _look(training))]),
    ]


def _makers(decisions: Sequence[Decision]) -> str:
    return ", ".join(tools_of(decisions)) or "the first stage"


def _look(training: Training) -> str:
    return f"{training.pseudo_label_command} -chk checkpoint_stage1.pth -o LOOK_AT_THESE"
