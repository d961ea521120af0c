"""What a reader should see first: alarms of the training, and what its numbers give reason to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from nnunet_mutual.pseudo_labels.audit import Decision
from nnunet_mutual.report.blocks import Finding
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import Alarm
from nnunet_mutual.report.results import FEW
from nnunet_mutual.report.training import Training

GAP = 0.1  # Dice between sources
FALL = 0.05  # Dice below its peak at the end


def findings(
    training: Training,
    alarms: Sequence[Alarm],
    scores: pd.DataFrame,
    curves: pd.DataFrame,
    decisions: Sequence[Decision],
    names: Identities,
) -> list[Finding]:
    """Returns alarms first, then notes in the order of their weight."""
    found = [Finding("alarm", names.clean(alarm.text), alarm.when) for alarm in alarms]
    notes = [*_state(training, scores), *_scores(training, scores), *_course(curves), *_pseudo(decisions)]
    return found + [Finding("note", text) for text in notes]


def _state(training: Training, scores: pd.DataFrame) -> Iterator[str]:
    if not training.finished:
        yield f"The training is not finished. Go on with: {training.command} --c"
    if scores.empty:
        yield "Whole cases were not validated: nothing is known about how good the model is."
    elif training.fold == "all":
        yield (
            "Fold all holds no case out: the results below are on cases that the model was trained on, and say nothing "
            "about new patients."
        )


def _scores(training: Training, scores: pd.DataFrame) -> Iterator[str]:
    for network, own in scores.groupby("network", sort=False):
        of = f" (network {network})" if network else ""
        for label in training.table.labels:
            yield from _label(own[own.label == label], label, of)


def _label(rows: pd.DataFrame, label: str, of: str) -> Iterator[str]:
    scored = rows[rows.dice.notna()]
    if scored.empty:
        yield f"{label}{of} is scored on no validation case: nothing is known about it."
        return
    if len(scored) < FEW:
        yield f"{label}{of} is scored on only {len(scored)} validation case(s)."
    there, absent = rows[rows.voxels_drawn > 0], rows[rows.voxels_drawn == 0]
    missed, invented = int((there.voxels_predicted == 0).sum()), int((absent.voxels_predicted > 0).sum())
    if missed:
        yield f"{label}{of} is missed entirely in {missed} of {len(there)} cases in which it was drawn."
    if invented:
        yield f"{label}{of} is found in {invented} of {len(absent)} cases in which it is absent."
    sources = scored.groupby("source").dice.agg(["mean", "size"])
    sources = sources[sources["size"] >= 3].sort_values("mean")
    if len(sources) > 1 and sources["mean"].iloc[-1] - sources["mean"].iloc[0] > GAP:
        low, high = sources.iloc[0], sources.iloc[-1]
        yield (
            f"{label}{of} has a Dice of {low['mean']:.2f} on cases of {sources.index[0]} (n = {low['size']:.0f}), of "
            f"{high['mean']:.2f} on cases of {sources.index[-1]} (n = {high['size']:.0f})."
        )


def _course(curves: pd.DataFrame) -> Iterator[str]:
    means = curves[curves.kind == "mean dice"].sort_values("epoch").value.dropna()
    if len(means) and means.max() - means.iloc[-1] > FALL:
        yield (
            f"The Dice on validation patches fell from {means.max():.2f} at its peak to {means.iloc[-1]:.2f} at the "
            "end: checkpoint_best may be better than checkpoint_final."
        )


def _pseudo(decisions: Sequence[Decision]) -> Iterator[str]:
    for label in dict.fromkeys(decision.label for decision in decisions):
        own = [decision for decision in decisions if decision.label == label]
        accepted = sum(decision.accepted for decision in own)
        if accepted < len(own) / 2:
            yield f"Of {len(own)} pseudo labels of {label} only {accepted} were accepted."
