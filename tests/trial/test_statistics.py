"""What a trial of few patients and seeds errs and finds, by simulation with fixed seeds, 2,000 trials at a time."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from nnunet_mutual.evaluation import differences
from nnunet_mutual.evaluation.differences import Difference, Scores, compare_draws
from nnunet_mutual.trial.power import PATIENT_SD, POWER, SEED_SD, power, smallest_difference
from nnunet_mutual.trial.results import verdict

TRIALS = 2000
SIZES = [(8, 3), (24, 3), (20, 5)]  # patients, seeds


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "RESAMPLES", 999)


def compared(found: NDArray[np.float64], confidence: float = 0.95) -> Difference:
    """Compares two arms whose differences are given, (seeds, patients), as a trial does."""
    names = {f"case_{n}": f"case_{n}" for n in range(found.shape[1])}
    first, second = (
        {s: {c: {"liver": float(v)} for c, v in zip(names, row, strict=True)} for s, row in enumerate(values)}
        for values in (0.5 + found, np.full(found.shape, 0.5))
    )
    return compare_draws(first, second, names, confidence=confidence)


@functools.cache
def weights(patients: int) -> NDArray[np.float64]:
    """(resamples, patients): how much of each bootstrap mean is each patient's, asked of the comparison itself."""
    return np.stack([compared(np.eye(patients)[[n] * 2]).resampled for n in range(patients)], axis=1)


def simulated(effect: float, patients: int, seeds: int) -> NDArray[np.float64]:
    """(trials, seeds, patients): differences of an arm that is better by an effect; seeds and patients vary."""
    rng = np.random.default_rng([patients, seeds, round(1e6 * effect)])
    of_seed = rng.normal(0, SEED_SD, (TRIALS, seeds, 1))
    return effect + of_seed + rng.normal(0, PATIENT_SD, (TRIALS, 1, patients))


def lowest_ends(found: NDArray[np.float64], confidence: float = 0.95) -> NDArray[np.float64]:
    """(trials,): the lower one of the lower ends of both intervals, for all trials at once."""
    _, seeds, patients = found.shape
    of_seeds, of_patients = found.mean(axis=2), found.mean(axis=1)
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * of_seeds.std(axis=1, ddof=1) / np.sqrt(seeds)
    resampled = of_patients @ weights(patients).T
    return np.minimum(of_seeds.mean(axis=1) - half, np.percentile(resampled, 50 * (1 - confidence), axis=1))


def test_all_trials_at_once_are_what_the_comparison_says() -> None:
    found = simulated(0.015, 8, 3)
    ends = lowest_ends(found)
    for one, end in zip(found[:20], ends[:20], strict=True):
        difference = compared(one)
        assert min(difference.over_draws.low, difference.over_patients.low) == pytest.approx(end, abs=1e-12)
        assert (verdict(difference) == "better") == (end > 0)
        assert verdict(compared(-one)) == {"better": "worse", "level": "level"}[verdict(difference)]
    assert 0 < (ends[:20] > 0).sum() < 20


@pytest.mark.parametrize(("patients", "seeds"), SIZES)
def test_false_better_and_power(patients: int, seeds: int) -> None:
    for same in (simulated(0.0, patients, seeds), -simulated(0.0, patients, seeds)):
        assert (lowest_ends(same) > 0).mean() <= 0.06
        assert (lowest_ends(same, 0.975) > 0).mean() <= 0.03  # of each of two further comparisons
    least = smallest_difference(patients, seeds)
    assert power(least, patients, seeds) == pytest.approx(POWER)
    for effect in (0.6 * least, least, 1.3 * least):
        found = (lowest_ends(simulated(effect, patients, seeds)) > 0).mean()
        assert found == pytest.approx(power(effect, patients, seeds), abs=0.05)


EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"


def evidence(place: str) -> dict[int, Scores]:
    """seed -> scores of trainings on real images."""
    found = [json.loads(file.read_text()) for file in EVIDENCE.glob(f"{place}_seed*.json")]
    return {one["seed"]: one["dice"] for one in found}


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("hippocampus_two/stock", "hippocampus_unlabelled/stock", "worse"),  # 2 of the 4 labelled cases
        ("hippocampus_unlabelled/stock", "hippocampus_unlabelled/oracle", "worse"),  # 4 of 84
        ("hippocampus/stock_background", "hippocampus/full", "worse"),  # what is not drawn taken for background
        ("hippocampus/partial", "hippocampus/full", "level"),  # half of the labels, known as such
    ],
)
def test_on_real_images(first: str, second: str, word: str) -> None:
    arms = [evidence(place) for place in (first, second)]
    assert [len(arm) for arm in arms] == [3, 3]
    cases = {*arms[0][0]} & {*arms[1][0]}  # that both were scored on
    a, b = ({seed: {case: rows[case] for case in cases} for seed, rows in arm.items()} for arm in arms)
    assert verdict(compare_draws(a, b, {case: case for case in cases})) == word


def test_more_patients_and_seeds_show_smaller_differences() -> None:
    table = [[smallest_difference(patients, seeds) for seeds in (2, 3, 5)] for patients in (5, 20, 80)]
    assert np.all(np.diff(table, axis=0) < 0) and np.all(np.diff(table, axis=1) < 0)
    assert smallest_difference(20, 3, confidence=0.975) > smallest_difference(20, 3)
    assert smallest_difference(20, 3, seed_sd=0.0, patient_sd=0.0) == 0.0
    assert 1 < smallest_difference(2, 2, seed_sd=1.4, patient_sd=1.4) < 100  # no Dice can differ more
