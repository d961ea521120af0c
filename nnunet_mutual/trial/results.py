"""What the runs of a trial say: scores of each arm, differences with intervals, and which trainer to take."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_mutual.disk.files import read_object
from nnunet_mutual.evaluation.differences import BETTER, LEVEL, WORSE, Difference, Interval, Scores, compare_draws
from nnunet_mutual.evaluation.statistics import CONFIDENCE
from nnunet_mutual.trial.jobs import Run
from nnunet_mutual.trial.protocol import Options, TrialFolder

LEAST = 0.05  # of Dice; a label below it has not been learnt
VAGUE = 0.05  # of Dice; a trial that could not show that much has hardly asked
CHEAPER = 0.9  # of the minutes; less of a difference is noise of the machine


@dataclass(frozen=True)
class Outcome:
    """All runs of the arms with one number of labelled cases.

    Attributes:
        labelled: that number; None: all.
        scores: metric -> arm -> seed -> case -> label -> value.
        minutes: arm -> mean over its runs.
        gigabytes: arm -> most of its runs.
        updates: arm -> of each run.
        patients: case -> patient.
        labels: that some case scores.
    """

    labelled: int | None
    scores: Mapping[str, Mapping[str, Mapping[int, Scores]]]
    minutes: Mapping[str, float]
    gigabytes: Mapping[str, float]
    updates: Mapping[str, int]
    patients: Mapping[str, str]
    labels: Sequence[str]

    def mean(self, arm: str, metric: str = "dice", label: str | None = None) -> float | None:
        """Returns the mean over cases, then labels, then seeds; None where nothing was scored."""
        found = [self.of_run(arm, seed, metric, label) for seed in self.scores[metric][arm]]
        means = [mean for mean in found if mean is not None]
        return statistics.fmean(means) if means else None

    def of_run(self, arm: str, seed: int, metric: str = "dice", label: str | None = None) -> float | None:
        """Returns the mean of one run over cases, then labels; None where nothing was scored."""
        scores, labels = self.scores[metric][arm][seed], self.labels if label is None else [label]
        values = [[value for row in scores.values() if (value := row[name]) is not None] for name in labels]
        means = [statistics.fmean(found) for found in values if found]
        return statistics.fmean(means) if means else None

    def not_learnt(self) -> dict[str, list[tuple[str, int]]]:
        """Returns label -> arm and seed of the runs that have not learnt it."""
        found: dict[str, list[tuple[str, int]]] = {}
        for arm, runs in self.scores["dice"].items():
            for seed, label in itertools.product(runs, self.labels):
                mean = self.of_run(arm, seed, label=label)
                if mean is not None and mean < LEAST:
                    found.setdefault(label, []).append((arm, seed))
        return found


@dataclass(frozen=True)
class ArmComparison:
    """Two arms.

    Attributes:
        first: arm.
        second: arm that it is compared with.
        primary: whether this is the one comparison that the trial was made for.
        confidence: of its intervals: higher where it is one of several.
        difference: first - second, of the mean over labels.
        by_label: the same of each label; descriptive.
    """

    first: str
    second: str
    primary: bool
    confidence: float
    difference: Difference
    by_label: Mapping[str, Difference]

    @property
    def verdict(self) -> str:
        """Better, worse or level: whether both intervals say so."""
        return verdict(self.difference)

    @property
    def least_shown(self) -> float:
        """The smallest difference that these runs could have shown, as much as they vary; NaN of one seed."""
        ends = self.difference.over_draws, self.difference.over_patients
        return float(np.max([(one.high - one.low) / 2 for one in ends]))

    @property
    def swapped_verdict(self) -> str:
        """The same, of the second arm."""
        return {BETTER: WORSE, WORSE: BETTER}.get(self.verdict, LEVEL)


@dataclass(frozen=True)
class Choice:
    """The answer.

    Attributes:
        arm: to take; None where nothing can be concluded.
        because: why, in sentences.
    """

    arm: str | None
    because: Sequence[str]


def verdict(found: Difference) -> str:
    """Returns "better" or "worse" where both intervals leave out 0, else "level": nothing was shown."""
    ends = found.over_draws, found.over_patients
    if all(one.low > 0 for one in ends):
        return BETTER
    return WORSE if all(one.high < 0 for one in ends) else LEVEL


def collect(folder: TrialFolder, options: Options, runs: Sequence[Run], patients: Mapping[str, str]) -> list[Outcome]:
    """Reads what finished runs have kept, for each number of labelled cases; arms without a run are left out."""
    found: list[Outcome] = []
    for number in options.numbers:
        own = [run for run in runs if run.labelled == number and folder.run_file(run.name).is_file()]
        kept: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in options.arms}
        for run in own:
            kept[run.arm][run.seed] = read_object(folder.run_file(run.name))
        kept = {arm: of_arm for arm, of_arm in kept.items() if of_arm}
        scores = {
            metric: {arm: {seed: one[metric] for seed, one in of_arm.items()} for arm, of_arm in kept.items()}
            for metric in ("dice", "surface_dice")
        }
        found.append(
            Outcome(
                number,
                scores,
                {arm: statistics.fmean(one["minutes"] for one in runs.values()) for arm, runs in kept.items()},
                {arm: max(one["gigabytes"] for one in runs.values()) for arm, runs in kept.items()},
                {arm: next(iter(runs.values()))["total_updates"] for arm, runs in kept.items()},
                patients,
                _scored_in_all([one for of_arm in scores["dice"].values() for one in of_arm.values()]),
            )
        )
    return found


def _scored_in_all(runs: Sequence[Scores]) -> list[str]:
    """Returns the labels of which every run has a score; one that no case shows has one only where it is invented."""
    labels = next(iter(runs[0].values())) if runs else ()
    return [label for label in labels if all(any(row[label] is not None for row in run.values()) for run in runs)]


def compare_arms(outcome: Outcome, arms: Sequence[str]) -> list[ArmComparison]:
    """Compares all pairs of arms that have runs in common, the later one in the list against the earlier one.

    The primary comparison is of the last arm with the one before it: 95 %. The others are made beside it; their
    intervals are wider, by Bonferroni's rule, so that all of them together err in 5 % at most.
    """
    scores = outcome.scores["dice"]
    there = [arm for arm in arms if arm in scores]
    pairs = [(b, a) for a, b in itertools.combinations(there, 2)]
    others = max(1, len(pairs) - 1)
    found = []
    for first, second in pairs:
        primary = (second, first) == tuple(arms[-2:])
        confidence = CONFIDENCE if primary else 1 - (1 - CONFIDENCE) / others
        runs = [scores[arm] for arm in (first, second)]
        if not {*runs[0]} & {*runs[1]}:
            continue
        found.append(
            ArmComparison(
                first,
                second,
                primary,
                confidence,
                compare_runs(runs, outcome, outcome.labels, confidence),
                {label: compare_runs(runs, outcome, [label]) for label in outcome.labels},
            )
        )
    return sorted(found, key=lambda one: not one.primary)


def compare_runs(
    runs: Sequence[Mapping[int, Scores]], outcome: Outcome, labels: Sequence[str], confidence: float = CONFIDENCE
) -> Difference:
    """Compares two arms, or one with two numbers of labelled cases.

    Args:
        runs: of both: seed -> case -> label -> score.
        outcome: whose patients these are.
        labels: that count.
        confidence: of the intervals.
    """
    first, second = (
        {seed: {c: {n: row[n] for n in labels} for c, row in scores.items()} for seed, scores in run.items()}
        for run in runs
    )
    return compare_draws(first, second, outcome.patients, confidence=confidence)


def choose(outcome: Outcome, arms: Sequence[str], comparisons: Sequence[ArmComparison]) -> Choice:
    """Returns the arm to take: from simple to elaborate, one that is better than the last taken, or level and cheaper.

    Args:
        outcome: of the runs.
        arms: from simple to elaborate.
        comparisons: of all pairs.
    """
    of_pair = {(one.first, one.second): one for one in comparisons}
    taken = arms[0]
    for arm in arms[1:]:
        found = of_pair[(arm, taken)].verdict
        cheaper = outcome.minutes[arm] < CHEAPER * outcome.minutes[taken]
        if found == BETTER or (found == LEVEL and cheaper):
            taken = arm
    because = []
    for arm in arms:
        if arm != taken:
            one = of_pair.get((taken, arm)) or of_pair[(arm, taken)]
            mine = one.verdict if one.first == taken else one.swapped_verdict
            because.append(_reason(outcome, taken, one, mine))
    return Choice(taken, because)


def too_vague(choice: Choice, comparisons: Sequence[ArmComparison]) -> list[str]:
    """Returns why nothing can be concluded where runs vary so much that level says nothing; of the worst pair."""
    level = [one for one in comparisons if choice.arm in (one.first, one.second) and one.verdict == LEVEL]
    worst = max(level, key=lambda one: one.least_shown, default=None)
    if worst is None or worst.least_shown <= VAGUE:
        return []
    if math.isnan(worst.least_shown):
        return ["a single patient shows what is scored; choose another fold, or name more patients with --test"]
    return [
        f"runs of {worst.first} and {worst.second} vary so much with the seed that a difference below "
        f"{worst.least_shown:.2f} could not be shown; train longer, or with more --seeds, in another folder (-o)"
    ]


def _reason(outcome: Outcome, taken: str, one: ArmComparison, found: str) -> str:
    other, sign = (one.second, 1) if one.first == taken else (one.first, -1)
    mean = sign * one.difference.over_draws.mean
    times = outcome.minutes[taken] / outcome.minutes[other] if outcome.minutes[other] else 1.0
    if CHEAPER <= times <= 1 / CHEAPER:
        cost = "at about the same minutes"
    elif times > 1:
        cost = f"at {times:.1f} times its minutes"
    else:
        cost = f"which takes {1 / times:.1f} times the minutes"
    if found == LEVEL:
        least = one.least_shown
        return f"it is level with {other} ({mean:+.3f}, less than {least:.3f} could not be shown), {cost}"
    return f"it is {found} than {other} ({mean:+.3f}), {cost}"


def shown(interval: Interval) -> str:
    """Returns both ends as text."""
    return "not known" if interval.low != interval.low else f"{interval.low:+.3f} to {interval.high:+.3f}"
