"""Two sets of predictions of the same cases, case by case.

A difference is B - A. Where a label is absent in the reference and in one of the two predictions, that one counts as
perfect (1, or 0 mm), so that a new false positive is a worsening and not a gap; absent in both, it is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnunet_mutual.evaluation.cases import LabelScores
from nnunet_mutual.evaluation.metrics import HD95, PERFECT
from nnunet_mutual.evaluation.statistics import Statistic, describe

MARGIN = 0.01  # of Dice, IoU and surface Dice
IMPROVED, STABLE, WORSENED = "improved", "stable", "worsened"
VERDICTS = (IMPROVED, STABLE, WORSENED)


@dataclass(frozen=True)
class Paired:
    """One label of one case in one metric.

    Attributes:
        case: the case.
        label: the label.
        metric: Dice, IoU, surface_dice or hd95_mm.
        a: value of the first predictions.
        b: value of the second ones.
        margin: differences up to it are stable.
    """

    case: str
    label: str
    metric: str
    a: float
    b: float
    margin: float

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a

    @property
    def gain(self) -> float:
        """How much better B is: the difference, of a distance its negative."""
        return -self.difference if self.metric == HD95 else self.difference

    @property
    def verdict(self) -> str:
        """Improved or worsened by more than the margin, or stable."""
        if abs(self.gain) <= self.margin + 1e-12:  # 0.81 - 0.80 is a little more than 0.01
            return STABLE
        return IMPROVED if self.gain > 0 else WORSENED


@dataclass(frozen=True)
class Comparison:
    """A metric of one label: differences and verdicts."""

    difference: Statistic
    verdicts: Mapping[str, int]


def pair_scores(
    a: Mapping[str, LabelScores], b: Mapping[str, LabelScores], *, margin: float, tolerances: Mapping[str, float]
) -> list[Paired]:
    """Pairs what was measured of two sets of predictions.

    Args:
        a: case -> label -> metric -> value.
        b: the same cases and labels.
        margin: of Dice, IoU and surface Dice.
        tolerances: in mm by label, the margin of HD95.
    """
    rows = []
    for case, labels in a.items():
        for label in labels:
            for metric, perfect in PERFECT.items():
                values = [found[case][label].get(metric, math.nan) for found in (a, b)]
                if all(math.isnan(value) for value in values):
                    continue
                first, second = (perfect if math.isnan(value) else value for value in values)
                bound = tolerances[label] if metric == HD95 else margin
                rows.append(Paired(case, label, metric, first, second, bound))
    return rows


def compare(
    rows: Sequence[Paired], labels: Sequence[str], patients: Mapping[str, str], *, seed: int
) -> dict[str, dict[str, Comparison]]:
    """Returns metric -> label (and "overall") -> differences and verdicts.

    Args:
        rows: from :func:`pair_scores`.
        labels: of the dataset.
        patients: case -> patient.
        seed: of the bootstrap.
    """
    result = {}
    for metric in PERFECT:
        chosen = [row for row in rows if row.metric == metric]
        if not chosen:
            continue
        values: dict[str, dict[str, float]] = {}
        for row in chosen:
            values.setdefault(row.case, {})[row.label] = row.difference
        differences = describe(values, labels, patients, seed=seed)
        verdicts = {label: Counter(row.verdict for row in chosen if row.label == label) for label in labels}
        verdicts["overall"] = sum(verdicts.values(), Counter())
        result[metric] = {
            name: Comparison(statistic, {word: verdicts[name][word] for word in VERDICTS})
            for name, statistic in differences.items()
        }
    return result


def worst(rows: Sequence[Paired], metric: str, number: int) -> list[Paired]:
    """Returns what became worse by more than the margin, the largest loss first."""
    lost = [row for row in rows if row.metric == metric and row.verdict == WORSENED]
    return sorted(lost, key=lambda row: row.gain)[:number]
