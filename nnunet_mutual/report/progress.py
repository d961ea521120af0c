"""The section on how the training went: losses, terms and their weights, Dice, what a method reports about itself."""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pandas as pd

from nnunet_mutual.report import plots
from nnunet_mutual.report.blocks import Block, Figure, Missing, Section
from nnunet_mutual.report.logs import stage_borders
from nnunet_mutual.report.plots import Frame, Series, series_of
from nnunet_mutual.report.training import Training

# What to look for in what the methods report, by the beginning of its name; docs/ explains each where its method is.
HINTS = {
    "share of unlabelled voxels of which the teacher is sure": "it should rise; below one half little is learnt from "
    "unlabelled images, at 1 from the first epochs on the teacher is too sure.",
    "share of unlabelled voxels of …": "it should rise; near 0 hardly anything is learnt about this label from "
    "unlabelled images.",
    "share of unlabelled voxels on which the networks agree": "it should rise and stay; if it falls, the networks "
    "drift apart.",
    "share of the bank": "it should fill within the first epochs; near 0, no voxel is predicted correctly by both "
    "networks.",
    "row entropy": "it should stay between 0.05 and 0.98; outside, the correlation teaches nothing.",
    "mu of": "near 0 prototypes correct the teacher fully, near 1 not at all.",
    "volume of": "it should stay near 1; below 0.5 a network learns that other sources' images lack its organs.",
    "soft Dice of": "networks far apart: the better one teaches; all low: nobody does.",
    "organs per step": "above 0; at 0 the contrast is inactive.",
    "Dice of": "whether what teaches is better than what is deployed, whether one of several networks falls, and "
    "whether a source lies below the others: images like its are segmented worse.",
}
_UNIT = re.compile(r"\bDice\b|^share\b")
_NETWORK = re.compile(r"^(.*)\[(\d+)\]$")


def progress(training: Training, curves: pd.DataFrame) -> Section:
    """Returns the section."""
    section = Section("progress", "How the training went")
    if curves.empty:
        text = "Neither mutual_log.jsonl nor a readable checkpoint is in the folder, so there are no curves."
        section.blocks.append(Missing(text, training.how_on))
        return section
    frame = Frame(int(curves.epoch.max()), stage_borders(curves), training.table.labels)
    dotted = " The dotted line is the border between stages." if frame.borders else ""
    section.blocks += [*_dice(training, curves, frame, dotted), *_losses(training, curves, frame, dotted)]
    section.blocks += _diagnostics(training, curves, frame)
    return section


def _dice(training: Training, curves: pd.DataFrame, frame: Frame, dotted: str) -> list[Block]:
    by_label = series_of(curves, "dice")
    mean = series_of(curves, "mean dice")
    if not by_label and not mean:
        text = "Dice over time is kept in checkpoints, and none that can be read is in the folder."
        return [Missing(text, training.how_on)]
    pictures = plots.line_plots("Dice by label", by_label, frame=frame, limits=plots.UNIT, smooth=True)
    pictures += plots.line_plots("Mean Dice, moving average", mean, frame=frame, limits=plots.UNIT)
    return [
        Figure(
            "Dice on patches of validation cases during training (nnU-Net's pseudo Dice), thick: smoothed. A label "
            "counts only where it is annotated. The best checkpoint is the one with the highest moving average."
            f"{dotted}",
            "curves that still rise at the end (train longer), that fall after a peak (the training cases are being "
            "learnt by heart), or that stay at 0 (the label is not learnt).",
            pictures,
        )
    ]


def _losses(training: Training, curves: pd.DataFrame, frame: Frame, dotted: str) -> list[Block]:
    pictures = plots.line_plots("Loss", series_of(curves, "loss"), frame=frame)
    weights = _by_term(training, series_of(curves, "weight"))
    idle = []
    for term, series in _by_term(training, series_of(curves, "term")).items():
        if any(np.any(one.y != 0) for one in series):
            pictures += plots.line_plots(term, series, frame=frame, weights=weights.get(term, ()))
        else:
            idle.append(term)
    if not pictures:
        return []
    unused = f" Always 0 and not drawn: {', '.join(idle)}." if idle else ""
    known = "" if weights else " This log is older than the one that also holds weights."
    return [
        Figure(
            "The loss and its terms, mean of each epoch before weighting; below a term, the weight with which it "
            f"enters the sum, where that changes.{unused}{known}{dotted}",
            "a term that rises without end, jumps, or is 0 although its weight is not; training falling while "
            "validation rises.",
            pictures,
        )
    ]


def _by_term(training: Training, series: list[Series]) -> dict[str, list[Series]]:
    """Groups the curves of several networks by their term, 'seg[0]' and 'seg[1]', and names the networks."""
    found: dict[str, list[Series]] = {}
    for one in series:
        match = _NETWORK.match(one.name)
        term, name = (match[1], training.named(f"network {match[2]}")) if match else (one.name, one.name)
        found.setdefault(term, []).append(Series(name, one.x, one.y))
    return found


def _diagnostics(training: Training, curves: pd.DataFrame, frame: Frame) -> list[Block]:
    blocks: list[Block] = []
    for kind, what in (("diagnostic", "while it learnt"), ("validation", "on validation patches")):
        figures: dict[str, list[str]] = {}
        for family, series in plots.families(series_of(curves, kind), training.table.labels).items():
            named = [Series(training.named(one.name), one.x, one.y) for one in series]
            title = family.replace(" of …,", ",")
            title = textwrap.fill(title, 46)
            limits = plots.UNIT if _UNIT.search(family) else None
            pictures = plots.line_plots(title, named, frame=frame, limits=limits, smooth=True)
            about = "Dice of each label, by source or by what predicts" if family.startswith("Dice of") else family
            figures.setdefault(about, []).extend(pictures)
        for about, pictures in figures.items():
            hint = next((text for start, text in HINTS.items() if about.startswith(start)), None)
            shows = f"{about[0].upper()}{about[1:]}: what the method reports of itself {what}."
            blocks.append(Figure(shows, hint or "sudden changes.", pictures))
    return blocks
