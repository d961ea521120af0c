"""What a reader should see first: what forbids to use the model, what the log warned of, what gives reason to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.disk.trainings import FINAL, plans_option, validated_checkpoint
from nnunet_mutual.errors import shorten
from nnunet_mutual.report.blocks import Notice
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import Alarm, stage_borders
from nnunet_mutual.report.scores import validations
from nnunet_mutual.report.training import Training

FEW = 5  # cases, below which a mean says little
GAP, COMPARABLE = 0.1, 3  # Dice between sources, and the cases that each must have
FALL = 0.05  # Dice below its peak at the end
NOTHING = 0.2  # mean Dice below which a label is hardly found
STILL, PARTS = 0.1, 5  # share of the whole fall of the loss that the last fifth of the epochs adds
named = partial(shorten, most=20)  # labels in a sentence; tables have all


def findings(
    training: Training,
    alarms: Sequence[Alarm],
    scores: pd.DataFrame,
    curves: pd.DataFrame,
    decisions: Sequence[Decision],
    names: Identities,
) -> list[Notice]:
    """Returns alarms first, then warnings of the log, then notes, each in the order of their weight."""
    idle = training.acted.idle if training.acted else ""
    red = [Notice("alarm", _sentence(idle))] if idle else []
    red += [*_not_learnt(training, scores, curves), *_still_falling(training, curves)]
    said = [
        Notice("warning", names.clean(training.named(alarm.text)), alarm.when) for alarm in alarms if alarm.text != idle
    ]
    notes = [*_state(training, scores), *_scores(training, scores), *_course(curves), *_pseudo(decisions)]
    return [*red, *said, *(Notice("note", text) for text in notes)]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _not_learnt(training: Training, scores: pd.DataFrame, curves: pd.DataFrame) -> Iterator[Notice]:
    """Labels that the model does not find, by whole cases, or else by the last patches."""
    longer = f"train longer, or with more cases that annotate it (nnunet_mutual check {training.folders.number})."
    for network, own in scores.groupby("network", sort=False):
        of = f" by the network of {network}" if network else ""
        missed, hardly = [], []
        for label in training.table.labels:
            rows = own[(own.label == label) & (own.voxels_drawn > 0)]
            if len(rows) and (rows.voxels_predicted == 0).all():
                missed.append(f"{label} (n = {len(rows)})")
            elif len(rows) and rows.dice.mean() < NOTHING:
                hardly.append(f"{label} {rows.dice.mean():.2f} (n = {len(rows)})")
        if missed:
            yield Notice("alarm", f"Missed{of} in every case in which it was drawn: {named(missed)}.", do=longer)
        if hardly:
            text = f"Hardly found{of}, by the mean Dice: {named(hardly)}."
            yield Notice(
                "alarm",
                text,
                do="look at the slices for images and drawings in different orientations, exchanged label numbers or "
                f"another scale of intensities; if there is none, {longer}",
            )
    judged = scores.empty and training.finished
    last = curves[curves.kind == "dice"].groupby("name").value.last() if judged else {}
    found = [f"{label} {last[label]:.2f}" for label in training.table.labels if label in last and last[label] < NOTHING]
    if found:
        yield Notice(
            "alarm",
            f"Hardly found, by the Dice on the last validation patches: {named(found)}.",
            do=longer,
        )


def _still_falling(training: Training, curves: pd.DataFrame) -> Iterator[Notice]:
    """A loss that falls to the end, in the last stage: the training was too short."""
    begin = max([0, *stage_borders(curves)])
    losses = curves[(curves.kind == "loss") & (curves.epoch >= begin)].sort_values("epoch")
    falls = {}
    for name, rows in losses.groupby("name"):
        values = rows.value.dropna().to_numpy(float)
        part = max(1, len(values) // PARTS)
        if len(values) > 2:
            first, before, end = values[:part].mean(), values[-2 * part : -part].mean(), values[-part:].mean()
            falls[name] = (before - end) / (first - end) if first > end else 0.0
    share = falls.get("training", 0.0)
    if training.finished and share > STILL and falls.get("validation", share) > 0:
        plan = f"nnunet_mutual plan -d {training.folders.number} -c {training.configuration}"
        plan += f"{plans_option(training.plans)} --name long"
        how = "" if training.settings is None else f": {plan} --set num_epochs={4 * training.epochs_asked}"
        yield Notice(
            "alarm",
            f"The loss was still falling when the training ended: the last fifth of the epochs brought {share:.0%} of "
            "the whole fall.",
            do=f"train longer before you judge the model{how}",
        )


def _state(training: Training, scores: pd.DataFrame) -> Iterator[str]:
    if not training.finished:
        yield f"The training is not finished. Go on with: {training.how_on}"
    acted = training.acted
    if acted is not None and not acted.idle and not acted.unlabelled and training.unlabelled:
        yield (
            f"{len(training.unlabelled)} unlabelled images are at hand, and {training.trainer} did not learn from "
            "them; MeanTeacherTrainer does."
        )
    folders = validations(training.folder, training.table.modality_groups)
    validated = {validated_checkpoint(folder) for folder in folders.values()} - {None, FINAL}
    if training.finished and validated:
        said = " and ".join(sorted(map(str, validated)))
        yield f"Whole cases were validated with {said}: their results are not those of {FINAL}."
    if scores.empty:
        yield "Whole cases were not validated: nothing is known about how good the model is."
    missing = sorted({*training.table.modality_groups} - {*folders}) if folders and "" not in folders else []
    if missing:  # killed after the first ones
        yield f"Whole cases were not validated by the networks of {named(missing)}: nothing is known about these."
    if not scores.empty and training.fold == "all":
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
        of = f"{network}: " if network else ""
        for what, judge in kinds:
            said = [f"{label} ({found})" for label, rows in by_label.items() if (found := judge(rows))]
            if said:
                yield f"{of}{what}: {named(said)}."


def _few(rows: pd.DataFrame) -> str | None:
    number = int(rows.dice.notna().sum())
    return str(number) if number < FEW else None


def _missed(rows: pd.DataFrame) -> str | None:
    there = rows[rows.voxels_drawn > 0]
    number = int((there.voxels_predicted == 0).sum())
    return f"{number} of {len(there)}" if 0 < number < len(there) else None  # all of them are an alarm


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
