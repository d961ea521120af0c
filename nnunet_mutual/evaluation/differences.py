r"""Whether one way of training is better than another one, from trainings that were repeated.

Both were trained on the same draws (of labelled patients, with the same seed) and scored on the same patients. A score
is the mean over labels of the mean over cases; a difference is first - second of one draw. Two intervals of its mean:

.. math:: \bar d \pm t_{0.975, n - 1} \, s / \sqrt n

over the n draws says what another draw and seed would have changed, with the patients as they are; a bootstrap over
patients, each with all cases, says what other patients would have changed, with the trainings as they are. A claim
needs both; each keeps the other's chance fixed, so of two equal trainings one is found better somewhat more often than
by a single interval (about 1 in 25 where draws and patients vary alike). Several benchmarks are pooled after division
by the gap that each leaves: the mean over benchmarks, each of which counts the same, with Welch and Satterthwaite's
degrees of freedom.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.statistics import CONFIDENCE, RESAMPLES

MARGIN = 0.010  # of Dice: what "not below" may lose
BETTER, NOT_BELOW, WORSE, LEVEL = "better", "not below", "worse", "level"

Scores = Mapping[str, Mapping[str, "float | None"]]  # case -> label -> Dice; None: absent in reference and prediction


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval, of 95 % unless said; NaN where there are too few values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the first of two ways of training is.

    Attributes:
        by_draw: first - second of each draw; pooled, of all draws of all benchmarks, numbered anew.
        by_patient: first - second of each patient, the mean of all that is scored of the patient; empty if pooled.
        over_draws: mean of these and its t interval.
        over_patients: the same mean and its bootstrap interval.
        resampled: (RESAMPLES,) means of the bootstrap.
        margin: what "not below" may lose.
    """

    by_draw: Mapping[int, float]
    by_patient: Mapping[str, float]
    over_draws: Interval
    over_patients: Interval
    resampled: NDArray[np.float64]
    margin: float = MARGIN

    @property
    def verdict(self) -> str:
        """See :func:`verdict`."""
        return verdict(self.over_draws, self.over_patients, self.margin)


def compare_draws(
    first: Mapping[int, Scores],
    second: Mapping[int, Scores],
    patients: Mapping[str, str],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Compares two ways of training, paired by draw, case and label.

    Args:
        first: draw -> case -> label -> Dice.
        second: the same; draws that only one of them has are left out.
        patients: case -> patient.
        seed: of the bootstrap.
        confidence: of both intervals; more than the usual one where several comparisons are made at once.

    Raises:
        MutualError: no draw in common, or one draw has other cases than the other ones.
    """
    draws = sorted({*first} & {*second})
    if not draws:
        raise MutualError("the two trainings have no draw in common; compare those of the same seeds")
    cases = sorted(first[draws[0]])
    for scores in (found[draw] for found in (first, second) for draw in draws):
        if odd := sorted({*scores} ^ {*cases}):
            raise MutualError(
                f"case {odd[0]} is not scored in every draw of both trainings; score all on the same cases"
            )
    labels = list(first[draws[0]][cases[0]])
    table = np.array([[_cell(first[d][c][n], second[d][c][n]) for d in draws for n in labels] for c in cases])
    scored = ~np.isnan(table)
    if not scored.any(axis=0).all():
        raise MutualError("a label is absent in the reference and the predictions of every case; leave it out")
    by_draw = np.nanmean(table, axis=0).reshape(len(draws), len(labels)).mean(axis=1)
    owners = [patients[case] for case in cases]
    means = _resampled(table, owners, seed)
    return Difference(
        dict(zip(draws, by_draw.tolist(), strict=True)),
        _of_patients(table, owners),
        t_interval(by_draw.tolist(), confidence),
        _percentiles(float(by_draw.mean()), means, confidence),
        means,
    )


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Returns the mean of independent values and its t interval, of 95 % unless another confidence is given."""
    return _stratified([values], confidence)


def pool(differences: Sequence[Difference], gaps: Sequence[float]) -> Difference:
    """Pools a comparison over benchmarks, in shares of their gaps.

    Args:
        differences: of each benchmark; their draws must be independent of each other.
        gaps: what could be gained in each, in Dice, above 0.

    Raises:
        MutualError: a gap that is not above 0.
    """
    for gap in gaps:
        if not gap > 0:
            raise MutualError(
                f"the gap of a benchmark must be above 0, found {gap}; leave a benchmark without room out"
            )
    shares = [[d / gap for d in found.by_draw.values()] for found, gap in zip(differences, gaps, strict=True)]
    means = np.mean([found.resampled / gap for found, gap in zip(differences, gaps, strict=True)], axis=0)
    over_draws = _stratified(shares)
    return Difference(
        dict(enumerate(value for values in shares for value in values)),
        {},
        over_draws,
        _percentiles(over_draws.mean, means),
        means,
        float(np.mean([found.margin / gap for found, gap in zip(differences, gaps, strict=True)])),
    )


def verdict(over_draws: Interval, over_patients: Interval, margin: float = MARGIN) -> str:
    """Returns "better" where both intervals are above 0, "not below" where both are above -margin.

    Otherwise "worse" where both are below 0, else "level": nothing was shown. Unknown ends show nothing.
    """
    low = min(over_draws.low, over_patients.low) if not math.isnan(over_draws.low + over_patients.low) else -math.inf
    if low > 0:
        return BETTER
    if low > -margin:
        return NOT_BELOW
    return WORSE if over_draws.high < 0 and over_patients.high < 0 else LEVEL


def _cell(first: float | None, second: float | None) -> float:
    """Difference of one label of one case; absent in the reference, a prediction without it is perfect."""
    if first is None and second is None:
        return math.nan
    return (1.0 if first is None else first) - (1.0 if second is None else second)


def _stratified(groups: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Interval:
    """Mean over groups of the mean of each, with its t interval."""
    mean = float(np.mean([np.mean(values) for values in groups]))
    if any(len(values) < 2 for values in groups):
        return Interval(mean, math.nan, math.nan)
    parts = np.array([np.var(values, ddof=1) / len(values) for values in groups]) / len(groups) ** 2
    free = np.array([len(values) - 1 for values in groups])
    if not parts.any():
        return Interval(mean, mean, mean)
    half = float(student.ppf((1 + confidence) / 2, parts.sum() ** 2 / (parts**2 / free).sum()) * np.sqrt(parts.sum()))
    return Interval(mean, mean - half, mean + half)


def _resampled(table: NDArray[np.float64], patients: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Means over columns of the means over rows, of patients drawn with replacement.

    The same patients are drawn in every table of the same patients, so that benchmarks which share them can be pooled.

    Args:
        table: (cases, columns), NaN where nothing is scored.
        patients: of each row.
        seed: of the draws.
    """
    known, number = np.unique(patients, return_inverse=True)
    sums, counts = (np.zeros((len(known), table.shape[1])) for _ in range(2))
    np.add.at(sums, number, np.nan_to_num(table))
    np.add.at(counts, number, ~np.isnan(table))
    found = np.full(RESAMPLES, np.nan)
    if counts.any(axis=1).sum() < 2:
        return found
    rng = np.random.default_rng([seed, zlib.crc32("\n".join(known).encode())])
    times = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), RESAMPLES)
    scored = times @ counts
    means = np.divide(times @ sums, scored, out=np.full(scored.shape, np.nan), where=scored > 0)
    some = scored.any(axis=1)  # the others hold nobody with a score
    found[some] = np.nanmean(means[some], axis=1)
    return found


def _of_patients(table: NDArray[np.float64], patients: Sequence[str]) -> dict[str, float]:
    """Mean of each patient's rows; a patient of whom nothing is scored has no entry."""
    rows = {name: table[[owner == name for owner in patients]] for name in dict.fromkeys(patients)}
    return {name: float(np.nanmean(values)) for name, values in rows.items() if not np.isnan(values).all()}


def _percentiles(mean: float, resampled: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of a bootstrap."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Interval(mean, math.nan, math.nan)
    low, high = np.percentile(known, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Interval(mean, float(low), float(high))
