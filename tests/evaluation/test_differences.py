"""Whether one way of training is better than another one: by hand and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation import differences
from nnunet_mutual.evaluation.differences import Interval, compare_draws, pool, t_interval, verdict

PATIENTS = {"p1_ED": "p1", "p1_ES": "p1", "p2_ED": "p2", "p2_ES": "p2"}


def scores(*values: float | None, label: str = "LV") -> dict[str, dict[str, float | None]]:
    """Scores of one label of the four cases."""
    return {case: {label: value} for case, value in zip(PATIENTS, values, strict=True)}


def test_t_interval_by_hand() -> None:
    found = t_interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1 / math.sqrt(3)  # t of 2 degrees of freedom, SD 1
    assert found.mean == 2 and found.low == pytest.approx(2 - half) and found.high == pytest.approx(2 + half)


def test_one_draw_shows_nothing() -> None:
    found = compare_draws({0: scores(0.9, 0.9, 0.9, 0.9)}, {0: scores(0.1, 0.1, 0.1, 0.1)}, PATIENTS)
    assert found.over_draws.mean == pytest.approx(0.8) and math.isnan(found.over_draws.low)
    assert found.verdict == "level"


def test_a_difference_is_paired_by_draw_and_the_mean_of_labels_of_means_of_cases() -> None:
    first = {d: {c: {"LV": 0.8 + 0.01 * d, "RV": 0.5} for c in PATIENTS} for d in (0, 1, 2)}
    second = {d: {c: {"LV": 0.7, "RV": 0.5} for c in PATIENTS} for d in (1, 2, 3)}
    for found in (first, second):
        for draw in found.values():
            draw["p2_ES"] = {"LV": draw["p2_ES"]["LV"], "RV": None}  # no RV there, in reference and prediction
    result = compare_draws(first, second, PATIENTS)
    assert result.by_draw == pytest.approx({1: 0.055, 2: 0.06})  # half of LV's differences, RV has none
    assert result.over_draws.high == pytest.approx(t_interval([0.11 / 2, 0.12 / 2]).high)
    ends = (result.over_patients.mean, result.over_patients.low, result.over_patients.high)
    assert ends == pytest.approx((0.0575, 0.0575, 0.0575))  # the same in every patient


def test_a_false_positive_is_worse_than_an_absent_prediction() -> None:
    first, second = scores(None, 0.8, 0.8, 0.8), scores(0.0, 0.8, 0.8, 0.8)
    assert compare_draws({0: first}, {0: second}, PATIENTS).over_draws.mean == pytest.approx(1 / 4)
    assert compare_draws({0: second}, {0: first}, PATIENTS).over_draws.mean == pytest.approx(-1 / 4)


def test_patients_with_nothing_to_score_are_not_drawn() -> None:
    """A resample of none but these would have no mean, and no interval."""
    patients = {f"p{n}": f"p{n}" for n in range(5)}
    empty = {"p0": {"lesion": None}}
    first = empty | {key: {"lesion": 0.8} for key in patients if key != "p0"}
    second = empty | {key: {"lesion": 0.5} for key in patients if key != "p0"}
    found = compare_draws(dict.fromkeys(range(3), first), dict.fromkeys(range(3), second), patients)
    assert (found.over_patients.low, found.over_patients.high) == (pytest.approx(0.3), pytest.approx(0.3))
    assert found.verdict == "better"
    only = {"p0": {"lesion": 0.8}} | {key: {"lesion": None} for key in patients if key != "p0"}
    assert math.isnan(compare_draws({0: only}, {0: only}, patients).over_patients.low), (
        "of one patient nothing is known"
    )


def test_both_phases_of_a_heart_are_drawn_together() -> None:
    first = {0: scores(0.2, 0.2, 0.0, 0.0), 1: scores(0.2, 0.2, 0.0, 0.0)}
    found = compare_draws(first, {d: scores(0.0, 0.0, 0.0, 0.0) for d in (0, 1)}, PATIENTS)
    assert set(np.round(found.resampled, 6)) == {0.0, 0.1, 0.2}  # none, one or two of the first patient
    assert np.mean(np.isclose(found.resampled, 0.1)) == pytest.approx(0.5, abs=0.02)
    assert (found.over_patients.low, found.over_patients.high) == (0.0, pytest.approx(0.2))
    assert found.by_patient == pytest.approx({"p1": 0.2, "p2": 0.0})


@pytest.mark.parametrize(
    ("over_draws", "over_patients", "word"),
    [
        ((0.001, 0.02), (0.002, 0.03), "better"),
        ((0.001, 0.02), (-0.001, 0.03), "not below"),  # other patients could undo it
        ((-0.009, 0.001), (-0.001, 0.002), "not below"),
        ((-0.009, -0.001), (-0.008, -0.002), "not below"),  # below by less than counts
        ((-0.010, 0.001), (-0.001, 0.002), "level"),  # not above the margin
        ((-0.03, 0.02), (0.001, 0.002), "level"),
        ((-0.03, -0.02), (-0.03, -0.01), "worse"),
        ((-0.03, -0.02), (-0.03, 0.01), "level"),
        ((math.nan, math.nan), (0.1, 0.2), "level"),
    ],
)
def test_verdicts(over_draws: tuple[float, float], over_patients: tuple[float, float], word: str) -> None:
    ends = [Interval(sum(both) / 2, *both) for both in (over_draws, over_patients)]
    assert verdict(*ends) == word


def test_pooled_in_shares_of_the_gaps() -> None:
    zero = {d: scores(0.0, 0.0, 0.0, 0.0) for d in range(3)}
    small = compare_draws({d: scores(*[0.01 * (d + 1)] * 4) for d in range(3)}, zero, PATIENTS)
    large = compare_draws({d: scores(*[0.04 * (d + 1)] * 4) for d in range(3)}, zero, PATIENTS)
    found = pool([small, large], [0.05, 0.1])
    assert found.over_draws.mean == pytest.approx((0.02 / 0.05 + 0.08 / 0.1) / 2)
    spreads = np.array([0.01 / 0.05, 0.04 / 0.1]) ** 2 / 3
    free = spreads.sum() ** 2 / (spreads**2 / 2).sum()  # Welch and Satterthwaite
    half = stats.t.ppf(0.975, free) * math.sqrt(spreads.sum()) / 2
    assert found.over_draws.high - found.over_draws.mean == pytest.approx(half)
    assert found.margin == pytest.approx((0.01 / 0.05 + 0.01 / 0.1) / 2)
    assert pool([small], [1.0]).over_draws == small.over_draws
    assert np.array_equal(pool([large], [1.0]).resampled, large.resampled)
    with pytest.raises(MutualError, match="above 0, found -0.1"):
        pool([small], [-0.1])


def test_benchmarks_with_the_same_patients_draw_them_together() -> None:
    values = [np.random.default_rng(1).normal(size=4), np.zeros(4)]
    first, other = ({0: scores(*v), 1: scores(*v)} for v in values)
    found = compare_draws(first, other, PATIENTS)
    back = compare_draws(other, first, PATIENTS)
    assert np.allclose(pool([found, back], [1.0, 1.0]).resampled, 0)


def test_other_cases_are_refused() -> None:
    with pytest.raises(MutualError, match="p2_ES"):
        compare_draws({0: scores(1, 1, 1, 1)}, {0: {c: {"LV": 1.0} for c in list(PATIENTS)[:3]}}, PATIENTS)
    with pytest.raises(MutualError, match="no draw in common"):
        compare_draws({0: scores(1, 1, 1, 1)}, {1: scores(1, 1, 1, 1)}, PATIENTS)


def simulated(rng: np.random.Generator, effect: float, draws: int = 6, patients: int = 20) -> tuple[Any, float, float]:
    """Compares a method with its control: effects of draws and patients, and what is common to both methods.

    Returns:
        The comparison, and the true means: with these patients and any draws, with these draws and any patients.
    """
    names = {f"{p}_{phase}": str(p) for p in range(patients) for phase in ("ED", "ES")}
    common, of_patient = rng.normal(0.7, 0.1, patients), rng.normal(0, 0.02, patients)
    of_draw, level = rng.normal(0, 0.01, draws), rng.normal(0, 0.05, draws)
    first, second = (
        {
            d: {
                c: {"LV": common[int(p)] + level[d] + on * (effect + of_draw[d] + of_patient[int(p)])}
                for c, p in names.items()
            }
            for d in range(draws)
        }
        for on in (1, 0)
    )
    return compare_draws(first, second, names), effect + of_patient.mean(), effect + of_draw.mean()


def test_intervals_cover_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "RESAMPLES", 400)
    rng = np.random.default_rng(2207)
    found = [simulated(rng, 0.0) for _ in range(400)]
    over_draws = np.mean([f.over_draws.low <= true <= f.over_draws.high for f, true, _ in found])
    over_patients = np.mean([f.over_patients.low <= true <= f.over_patients.high for f, _, true in found])
    assert over_draws == pytest.approx(0.95, abs=0.03)
    assert over_patients == pytest.approx(0.93, abs=0.04)  # percentiles of 20 patients are a little narrow
    # Each interval keeps the other's source of chance fixed: both together err more often than 1 in 40, not 1 in 15.
    assert np.mean([f.verdict == "better" for f, *_ in found]) < 1 / 15


def test_a_real_gain_is_found_and_a_pooled_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "RESAMPLES", 400)
    rng = np.random.default_rng(2208)
    found = [simulated(rng, 0.03)[0] for _ in range(100)]
    assert np.mean([f.verdict == "better" for f in found]) > 0.9
    pooled = [pool(pair, [0.1, 0.05]) for pair in zip(found[::2], found[1::2], strict=True)]
    assert np.mean([f.over_draws.mean for f in pooled]) == pytest.approx((0.03 / 0.1 + 0.03 / 0.05) / 2, abs=0.02)
    assert np.mean([f.verdict == "better" for f in pooled]) > 0.9
    lost = [simulated(rng, -0.03)[0] for _ in range(100)]
    assert np.mean([f.verdict == "worse" for f in lost]) > 0.9
