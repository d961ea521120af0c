r"""Means over cases with their uncertainty.

Per label: mean, median and standard deviation (n - 1) over the cases that are scored. Overall: the mean over labels of
their means, so that every label counts the same, however many cases annotate it; median and standard deviation are of
the label means, and n is the number of labels.

The interval is a 95 % percentile bootstrap of the mean (SciPy's). Patients are drawn with replacement, each with all
cases, since two scans of one patient are not two observations; where the table names no patient, a case is one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Statistic:
    """A distribution in a few numbers; NaN where there are too few values.

    Attributes:
        n: number of values.
        mean: of them.
        median: of them.
        sd: standard deviation with n - 1.
        low: lower end of the interval of the mean.
        high: its upper end.
    """

    n: int
    mean: float
    median: float
    sd: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Returns the numbers by name."""
        return asdict(self)


def describe(
    values: Mapping[str, Mapping[str, float]], labels: Sequence[str], patients: Mapping[str, str], *, seed: int
) -> dict[str, Statistic]:
    """Describes one metric.

    Args:
        values: case -> label -> value; a label that is not annotated has no entry, NaN is left out.
        labels: of the dataset.
        patients: case -> patient.
        seed: of the bootstrap.

    Returns:
        Label -> statistic, and "overall".
    """
    table = np.array([[scores.get(label, math.nan) for label in labels] for scores in values.values()])
    groups = np.unique([patients[case] for case in values], return_inverse=True)[1]
    result = {label: _statistic(table[:, [n]], groups, seed) for n, label in enumerate(labels)}
    means = np.array([result[label].mean for label in labels])
    scored = means[~np.isnan(means)]
    result["overall"] = Statistic(
        len(scored), _mean(scored), _median(scored), _sd(scored), *_interval(table, groups, seed)
    )
    return result


def _statistic(column: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> Statistic:
    values = column[~np.isnan(column)]
    return Statistic(len(values), _mean(values), _median(values), _sd(values), *_interval(column, groups, seed))


def _interval(table: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Interval of the mean over columns of the mean over rows; rows of one group are drawn together.

    Args:
        table: (cases, labels), NaN where nothing is scored.
        groups: (cases,) number of the patient.
        seed: of the draws.
    """
    scored = ~np.isnan(table)
    sums, counts = (np.zeros((groups.max() + 1, table.shape[1])) for _ in range(2))
    np.add.at(sums, groups, np.where(scored, table, 0))
    np.add.at(counts, groups, scored)
    filled = counts.any(axis=1)
    sums, counts = sums[filled], counts[filled]
    if len(sums) < 2:
        return math.nan, math.nan

    def statistic(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        total, number = sums[drawn].sum(axis=-2), counts[drawn].sum(axis=-2)
        with np.errstate(invalid="ignore"):
            return np.nanmean(total / number, axis=-1)

    with warnings.catch_warnings():  # equal values in all cases: the interval is that value
        warnings.simplefilter("ignore")
        found = bootstrap(
            (np.arange(len(sums)),),
            statistic,
            n_resamples=RESAMPLES,
            batch=200,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _sd(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan
