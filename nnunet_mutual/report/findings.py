"""What a reader should see first: alarms of the training, and what its numbers give reason to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.report.blocks import Notice
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import Alarm
from nnunet_mutual.report.training import Training

FEW = 5  # cases, below which a mean says little
GAP, COMPARABLE = 0.1, 3  # Dice between sources, and the cases that each must have
FALL = 0.05  # Dice below its peak at the end


def findings(
    training: Training,
    alarms: Sequence[Alarm],
    scores: pd.DataFrame,
    curves: pd.DataFrame,
    decisions: Sequence[Decision],
    names: Identities,
) -> list[Notice]:
    """Returns alarms first, then notes in the order of their weight."""
    found = [Notice("alarm", names.clean(alarm.text), alarm.when) for alarm in alarms]
    notes = [*_state(training, scores), *_scores(training, scores), *_course(curves), *_pseudo(decisions)]
    return found + [Notice("note", text) for text in notes]


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
        by_label = {label: own[own.label == label] for label in training.table.labels}
        kinds = (
            (f"Scored on fewer than {FEW} validation cases, which says little", _few),
            ("Missed entirely, of the cases in which it was drawn", _missed),
            ("Found where it is absent, of such cases", _invented),
            ("Mean Dice differs between sources", _gap),
        )
        of = f"Network {network}: " if network else ""
        for what, judge in kinds:
            said = [f"{label} ({found})" for label, rows in by_label.items() if (found := judge(rows))]
            if said:
                yield f"{of}{what}: {', '.join(said)}."


def _few(rows: pd.DataFrame) -> str | None:
    number = int(rows.dice.notna().sum())
    return str(number) if number < FEW else None


def _missed(rows: pd.DataFrame) -> str | None:
    there = rows[rows.voxels_drawn > 0]
    number = int((there.voxels_predicted == 0).sum())
    return f"{number} of {len(there)}" if number else None


def _invented(rows: pd.DataFrame) -> str | None:
    absent = rows[rows.voxels_drawn == 0]
    number = int((absent.voxels_predicted > 0).sum())
    return f"{number} of {len(absent)}" if number else None


def _gap(rows: pd.DataFrame) -> str | None:
    sources = rows[rows.dice.notna()].groupby("source").dice.agg(["mean", "size"])
    means = sources["mean"][sources["size"] >= COMPARABLE].sort_values()
    if len(means) < 2 or means.iloc[-1] - means.iloc[0] <= GAP:
        return None
    return f"{means.iloc[0]:.2f} in {means.index[0]}, {means.iloc[-1]:.2f} in {means.index[-1]}"


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
            yield f"{len(own) - accepted} of {len(own)} pseudo labels of {label} were rejected."
