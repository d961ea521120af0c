"""model_card.md of an export: what a user must know about the model, without names of cases, patients or sources."""

from __future__ import annotations

import json
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.annotation.travelling import settings_of
from nnunet_mutual.batches.decisions import Decision, tools_of
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.plugin.find import resolve, training_names

NNUNET_PAPER = (
    "Isensee et al.: nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Nature "
    "Methods 18, 203-211 (2021). doi:10.1038/s41592-020-01008-z"
)
PEERS = """
## Ensemble

This folder holds the {number} networks of one training that learnt together; fold_p is network p, not a fold of a
cross-validation, and prediction averages them. The validation above is that of the one network that is deployed alone.
"""
GROUP = """
## Input

This is the network of the modality group {group}. It takes images of {channels}, in this order as channels 0000,
0001 and so on, and of nothing else: nnU-Net cannot tell whether another sequence is fed to it. Look at images of
doubtful origin with: nnunet_mutual check_images MODEL_FOLDER IMAGES
"""
_LIMITS = """
## Limits

- The validation cases come from the sources of the training. Nothing was measured on other scanners, protocols, ages or
  diseases: measure on cases of your own first.
- The model always answers: on another body part, sequence or orientation its answer means nothing.
- A label that few validation cases were scored on is uncertain, whatever its mean.
- Masks that readers drew, and what they overlooked, are taken for the truth.
"""


@dataclass(frozen=True)
class TrainedFold:
    """What is known about one exported fold.

    Attributes:
        summary: nnU-Net's summary.json of its validation.
        settings: of the training.
        epochs: that it trained.
        decisions: about pseudo labels; empty where the training made none.
        acted: what of the method was at work; None of a checkpoint that does not know.
        validated: the checkpoint that the validation is of, if that is not the exported one.
    """

    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    epochs: int
    decisions: Sequence[Decision] = ()
    acted: Acted | None = None
    validated: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: folder name of the export.
        trainer: the true trainer.
        configuration: that was trained.
        spacing: voxels of the network's input in mm (Z, Y, X); of pictures, in their pixels.
        folds: in the export.
        checkpoint: that was exported.
        channels: names of the input channels.
        cases: number of training cases of the dataset.
        unit: of the spacing.
    """

    name: str
    trainer: str
    configuration: str
    spacing: Sequence[float]
    folds: Sequence[str]
    checkpoint: str
    channels: Sequence[str]
    cases: int
    unit: str = "mm"


def model_card(origin: Origin, table: AnnotationTable, trained: Sequence[TrainedFold]) -> str:
    """Returns the card as Markdown.

    Args:
        origin: of the model.
        table: of the training dataset, training cases only.
        trained: one entry per exported fold.
    """
    settings = _by_fold(origin.folds, ([json.dumps(settings_of(one.settings), indent=2)] for one in trained))
    methods = [name for one in trained for name in (one.acted.methods if one.acted else (origin.trainer,))]
    known = set(training_names())
    cited = (resolve("trainers", name).paper for name in methods if name in known)
    papers = dict.fromkeys([NNUNET_PAPER, *(paper for paper in cited if paper)])
    sections = [
        f"# {origin.name}\n\nNot a medical device. For research; results need the eyes of a physician.",
        _model(origin, trained),
        _intended_use(origin, table),
        _data(origin, table, max((one.acted.unlabelled for one in trained if one.acted), default=0)),
        _validation(table, origin, trained),
        *([_outlines(table)] if table.outlines else []),
        *([_pseudo_labels(table, origin.folds, trained)] if any(one.decisions for one in trained) else []),
        _LIMITS.strip(),
        *(f"## Settings{_if_several(settings, folds)}\n\n```json\n{text}\n```" for text, folds in settings.items()),
        "\n".join(["## Please cite", "", *(f"- {paper}" for paper in papers)]),
    ]
    return "\n\n".join(sections) + "\n"


def _model(origin: Origin, trained: Sequence[TrainedFold]) -> str:
    spacing = " x ".join(f"{size:.3g}" for size in origin.spacing)
    packages = ", ".join(f"{name} {version(name)}" for name in ("nnunet_mutual", "nnunetv2", "torch"))
    epochs = _by_fold(origin.folds, ([f"{one.epochs} epochs"] for one in trained))
    return "\n".join(
        [
            "## Model",
            "",
            f"- Trained with {origin.trainer}, configuration {origin.configuration} ({spacing} {origin.unit}), "
            f"{', '.join(text + _if_several(epochs, folds) for text, folds in epochs.items())}.",
            *_acted(origin.folds, trained),
            f"- Folds {', '.join(origin.folds)}, from {origin.checkpoint}.",
            f"- Exported with {packages}, Python {platform.python_version()}.",
            "- It predicts in stock nnU-Net; nnunet_mutual is not needed.",
        ]
    )


def _acted(folds: Sequence[str], trained: Sequence[TrainedFold]) -> list[str]:
    """What was trained, and what of the method did nothing; folds that say the same share a line."""
    said = _by_fold(folds, ([one.acted.trained, one.acted.idle] if one.acted else [] for one in trained))
    return [f"- {text[0].upper()}{text[1:]} (fold {', '.join(of)})." for text, of in said.items()]


def _by_fold(folds: Sequence[str], texts: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """Returns what is said of folds, each text once, with the folds of which it is true."""
    found: dict[str, list[str]] = {}
    for fold, said in zip(folds, texts, strict=False):  # of peers, one fold for all
        for text in filter(None, said):
            found.setdefault(text, []).append(fold)
    return found


def _if_several(found: Mapping[str, Sequence[str]], folds: Sequence[str]) -> str:
    return f" (fold {', '.join(folds)})" if len(found) > 1 else ""


def _intended_use(origin: Origin, table: AnnotationTable) -> str:
    return f"""## Intended use

Research on images like those of the training: input {", ".join(origin.channels)}, output {", ".join(table.labels)}.
Not for diagnosis, therapy or triage."""


def _data(origin: Origin, table: AnnotationTable, unlabelled: int) -> str:
    """Annotated sets with their numbers of cases; sources may be named after hospitals and stay unnamed."""
    also = f" Beside them, {unlabelled} images without any drawing." if unlabelled else ""
    if not table.declared:
        return f"## Data\n\n{origin.cases} cases in training and validation, each annotated completely.{also}"
    sets = Counter(_drawn(case, table) for case in table.cases.values())
    rows = [f"| {cell(', '.join(labels)) or 'nothing'} | {number} |" for labels, number in sets.most_common()]
    sources = f"{len(table.sources)} sources" if len(table.sources) > 1 else "one source"
    return "\n".join(
        [
            "## Data",
            "",
            f"{origin.cases} cases of {sources}, in training and validation. What a case does not annotate was "
            f"unknown to the training, not background.{also}",
            "",
            "| annotated labels | cases |",
            "|---|---|",
            *rows,
        ]
    )


def _drawn(case: Case, table: AnnotationTable) -> tuple[str, ...]:
    labels = (label for label in table.labels if label in case.drawn)
    return tuple(f"{label} (in part)" if label in case.incomplete else label for label in labels)


def _validation(table: AnnotationTable, origin: Origin, trained: Sequence[TrainedFold]) -> str:
    lines = [
        "## Validation",
        "",
        "Dice, on validation cases in which the label is annotated and present in the drawing or the prediction.",
        "",
        "| label | cases that annotate it | mean Dice | standard deviation | cases scored (n) |",
        "|---|---|---|---|---|",
    ]
    held_out = [one for fold, one in zip(origin.folds, trained, strict=False) if fold != "all"]  # of peers, one fold
    scored = held_out or trained
    for label in table.labels:
        annotated = str(sum(label in case.annotated for case in table.cases.values())) if table.declared else "all"
        dice = _dice(table, label, [one.summary for one in scored])
        mean = f"{statistics.fmean(dice):.3f}" if dice else "not scored"
        deviation = f"{statistics.stdev(dice):.3f}" if len(dice) > 1 else "-"
        lines.append(f"| {cell(label)} | {annotated} | {mean} | {deviation} | {len(dice)} |")
    if others := sorted({one.validated for one in scored if one.validated}):
        lines += ["", f"These numbers are of {' and '.join(others)}; those of {origin.checkpoint} were not measured."]
    if "all" in origin.folds:
        found = "it is left out of these numbers" if held_out else "these numbers are too good"
        lines += ["", f"Fold all was validated on its own training cases: {found}."]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Returns a name for a table in Markdown."""
    return text.replace("|", r"\|")


def _dice(table: AnnotationTable, label: str, summaries: Sequence[Mapping[str, Any]]) -> list[float]:
    values = table.values[label]
    keys = (str(tuple(values)), str(values[0]))
    found = [
        case["metrics"][key]["Dice"]
        for summary in summaries
        for case in summary["metric_per_case"]
        for key in keys[: 1 if keys[0] in case["metrics"] else 2]
        if key in case["metrics"]
    ]
    return [value for value in found if value is not None and value == value]


def _outlines(table: AnnotationTable) -> str:
    rows = [
        f"| {cell(one.label)} | {cell(one.by or 'a network')} | {one.weight:g} | {number} |"
        for one, number in table.outlines
    ]
    return "\n".join(
        [
            "## Outlines of tools",
            "",
            "These labels were outlined by a tool and accepted by a reader, in training and validation. The weight is "
            "how much the training believed them; a drawn label has 1.",
            "",
            "| label | outlined by | weight | cases |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _pseudo_labels(table: AnnotationTable, folds: Sequence[str], trained: Sequence[TrainedFold]) -> str:
    tools = tools_of(decision for one in trained for decision in one.decisions)
    made = f"taken from masks of {', '.join(tools)}" if tools else "predicted in training"
    lines = [
        "## Pseudo labels",
        "",
        f"Labels that a case does not annotate were {made}, filtered, and learnt from where accepted.",
        "",
        "| label | " + " | ".join(f"fold {fold}: accepted of judged cases" for fold in folds) + " |",
        "|---|" + "---|" * len(folds),
    ]
    for label in table.labels:
        judged = [[decision.accepted for decision in one.decisions if decision.label == label] for one in trained]
        if any(judged):
            lines.append(f"| {cell(label)} | " + " | ".join(f"{sum(one)} of {len(one)}" for one in judged) + " |")
    return "\n".join(lines)
