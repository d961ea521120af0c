"""The section on validation: numbers, plots, slices, and another model on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunet_mutual.report import overlays, plots
from nnunet_mutual.report.blocks import Block, Figure, Missing, Section, Table, Text, short
from nnunet_mutual.report.findings import FEW
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.scores import MEASURED, ModelDifference, compare, first_network, paired
from nnunet_mutual.report.training import Training

MOST_PAIRED = 12


def results(
    training: Training,
    scores: pd.DataFrame,
    folders: Mapping[str, Path],
    other: tuple[str, pd.DataFrame] | None,
    names: Identities,
    *,
    images: bool,
) -> Section:
    """Returns the section.

    Args:
        training: the training.
        scores: of its validation.
        folders: of the predictions, by network.
        other: name and scores of a second model.
        names: of the cases.
        images: whether slices of patients' images may be shown.
    """
    section = Section("results", "Results on validation cases")
    if scores.empty:
        section.blocks.append(
            Missing(
                "This training has no validation of whole cases yet, so nothing is known about how good the model is.",
                f"{training.command} --val" if training.finished else training.how_on,
            )
        )
        return section
    labels, sources = list(training.table.labels), list(training.table.sources)
    for network, own in scores.groupby("network", sort=False):
        of = _of(network)
        section.blocks += [_by_label(own, labels, of), *_distances(own, labels, of), _plot(own, labels, sources, of)]
        if own.source.nunique() > 1:
            section.blocks.append(_by_source(own, labels, sources, of))
    if other is not None:
        section.blocks += comparison(first_network(scores), other, labels)
    if images:
        section.blocks += [
            _slices(training, own, folders[str(network)], names)
            for network, own in scores.groupby("network", sort=False)
        ]
    else:
        section.blocks.append(Text("Slices of images are left out, as --no-images asked."))
    return section


def _of(network: object) -> str:
    return f", modality group {network}" if network else ""


def _by_label(scores: pd.DataFrame, labels: Sequence[str], of: str) -> Table:
    rows = []
    for label in labels:
        own = scores[scores.label == label]
        dice = own.dice.dropna()
        there, absent = own[own.voxels_drawn > 0], own[own.voxels_drawn == 0]
        missed, invented = int((there.voxels_predicted == 0).sum()), int((absent.voxels_predicted > 0).sum())
        spread = f"{dice.quantile(0.25):.2f} to {dice.quantile(0.75):.2f}" if len(dice) >= FEW else None
        numbers = [f"{dice.mean():.3f}", f"{dice.median():.3f}", spread, f"{dice.min():.3f}"]
        scored = numbers if len(dice) else [None] * 4
        ratios = [_mean(own.precision), _mean(own.recall)]
        gone = [
            f"{missed} of {len(there)}" if len(there) else None,
            f"{invented} of {len(absent)}" if len(absent) else None,
        ]
        rows.append([label, str(len(dice)), *scored, *ratios, *gone])
    head = ["label", "n", "mean Dice", "median", "middle half", "worst", "precision", "recall"]
    return Table(
        f"Whole validation cases{of}: n cases in which the label is annotated and scored. Precision: share of the "
        "predicted voxels that were drawn; recall: share of the drawn voxels that were predicted.",
        [*head, "missed entirely", "found where absent"],
        rows,
        f"small n (below {FEW} a mean says little), a worst case far below the median, organs missed entirely or found "
        "where nobody drew them.",
    )


def _distances(scores: pd.DataFrame, labels: Sequence[str], of: str) -> list[Block]:
    """Surface distances and volumes, where they were measured."""
    if scores[list(MEASURED)].isna().all(axis=None):
        return []
    rows: list[list[str | None]] = []
    for label in labels:
        own = scores[scores.label == label]
        distance = own.hd95_mm.dropna()
        error = (own.volume_ml - own.reference_volume_ml)[own.reference_volume_ml > 0].dropna()
        share = (100 * error / own.reference_volume_ml[error.index]).abs()
        rows.append(
            [
                label,
                str(len(distance)),
                *([f"{distance.median():.1f}", f"{distance.max():.1f}"] if len(distance) else [None, None]),
                _mean(own.surface_dice),
                *(
                    [short(own.loc[error.index, name].median()) for name in ("reference_volume_ml", "volume_ml")]
                    if len(error)
                    else [None, None]
                ),
                f"{share.median():.0f} %" if len(share) else None,
            ]
        )
    head = ["label", "n", "HD95 mm, median", "worst", "surface Dice", "drawn ml, median", "predicted ml"]
    return [
        Table(
            f"Distances and volumes of the same cases{of}. HD95: 95 % of the outline lies within this distance of the "
            "other outline (missed organs count as the image's diagonal). Surface Dice: share of the outlines that lie "
            "within 1 mm of each other, unless evaluate was told otherwise. Volume error: median of its size.",
            [*head, "volume error"],
            rows,
            "a worst distance of many centimetres (an island far away), a good Dice with a poor surface Dice (small "
            "structures), volumes that are too large or too small throughout.",
        )
    ]


def _plot(scores: pd.DataFrame, labels: list[str], sources: list[str], of: str) -> Figure:
    return Figure(
        f"Dice of every validation case{of}; the bar is the median. A label appears only for cases that annotate it.",
        "points far to the left of the bar (look at these cases below), and one source (marker) that lies left of the "
        "others: images like these are segmented worse.",
        plots.score_plots("Dice by label", scores, labels, sources),
    )


def _by_source(scores: pd.DataFrame, labels: Sequence[str], known: Sequence[str], of: str) -> Table:
    sources = [source for source in known if (scores.source == source).any()]
    found = scores[scores.dice.notna()].groupby(["label", "source"]).dice.agg(["mean", "size"])
    cells = {row.Index: f"{row.mean:.3f} (n = {row.size})" for row in found.itertuples()}
    rows: list[list[str | None]] = [[label, *(cells.get((label, source)) for source in sources)] for label in labels]
    return Table(
        f"Mean Dice by source{of}; empty: no validation case of this source annotates the label.",
        ["label", *sources],
        rows,
        "empty cells of a source whose images you work with: there nothing is known about the label.",
    )


def comparison(scores: pd.DataFrame, other: tuple[str, pd.DataFrame], labels: Sequence[str]) -> list[Block]:
    """Returns a table and paired lines against a second model."""
    name, theirs = other
    network = str(scores.network.iloc[0])
    of = f" (here: modality group {network})" if network else ""
    both = paired(scores, theirs)
    chosen = {label: both[both.label == label].dropna(subset=["dice", "dice_other"]) for label in labels}
    found = {label: _difference(label, rows) for label, rows in chosen.items() if len(rows)}
    if not found:
        return [Missing(f"No case has a Dice with both this model and the other one, {name}.")]
    rows = [
        [
            label,
            str(d.n),
            f"{d.first:.3f}",
            f"{d.second:.3f}",
            f"{d.mean:+.3f}",
            None if d.low is None else f"{d.low:+.3f} to {d.high:+.3f}",
            f"{d.better} / {d.worse}",
        ]
        for label, d in found.items()
    ]
    head = ["label", "pairs", "this model", "other model", "difference", "95 % interval", "better / worse"]
    table = Table(
        f"The same cases with another model: {name}{of}. The interval is over resampled cases and knows nothing of "
        "other trainings of the same method.",
        head,
        rows,
        "intervals that contain 0: the two models cannot be told apart on these cases. Other cases, or another seed, "
        "may turn a small difference around.",
    )
    largest = sorted(found, key=lambda label: -abs(found[label].mean))[:MOST_PAIRED]
    pictures = [
        plots.paired_plot(n, rows.dice.to_numpy(float), rows.dice_other.to_numpy(float), found[label])
        for n, (label, rows) in enumerate(chosen.items())
        if label in largest
    ]
    lines = Figure(
        "A line is one case: left the other model, right this one; solid where this one is better, dashed where it "
        "is worse, thick the means.",
        "a few cases that make the whole difference, and lines that fall steeply: cases that this model loses.",
        pictures,
        size="small",
    )
    return [table, lines]


def _difference(label: str, rows: pd.DataFrame) -> ModelDifference:
    return compare(label, rows.dice.to_numpy(float), rows.dice_other.to_numpy(float))


def _slices(training: Training, scores: pd.DataFrame, validation: Path, names: Identities) -> Figure | Missing:
    network = str(scores.network.iloc[0])
    of = _of(network)
    chosen = overlays.picks(scores, list(training.table.labels))
    drawn = list(overlays.overlays(training, chosen, validation, names, network))
    if not drawn:
        return Missing(
            "No slices are shown: they need the images in nnUNet_raw, the drawn label maps and the predictions in "
            "validation/, all of the same cases. With them in place, the same command adds the slices."
        )
    return Figure(
        f"A typical case of each label (Dice nearest to the median) and the worst one{of}, in the axial slice with "
        "most wrong voxels, and in the plane of the acquisition where that is another. White: drawn; dashed, in the "
        "colour of the label: predicted. Only the named label is outlined. R and L are the patient's right and left; "
        "slices are counted from 1, as they lie in the file.",
        "whether the worst case is an error that you would see and correct, whether it is an unusual patient, or "
        "whether the drawing itself is in doubt.",
        [picture for picture, _ in drawn],
        [caption for _, caption in drawn],
        size="images",
    )


def _mean(values: pd.Series) -> str | None:
    known = values.dropna()
    return f"{known.mean():.3f}" if len(known) else None
