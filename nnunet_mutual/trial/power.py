r"""What a trial of so many patients and seeds can show, before it has run and afterwards.

An arm is found better where both intervals of :mod:`nnunet_mutual.evaluation.differences` are above 0. With standard
deviation A of the differences of the seeds and B of those of the patients, the mean is normal with variance
A^2/S + B^2/P, and has to be above the larger half of the two intervals:

.. math:: \max(t_{S-1} \, \hat A / \sqrt S, \; z \, \hat B \sqrt{P - 1} / P)

whose estimates vary as chi-squared; the power is the mean over these.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student

from nnunet_mutual.evaluation.statistics import CONFIDENCE

# Medians over 188 pairs of trainings of benchmarks/evidence, to forecast with.
SEED_SD, PATIENT_SD = 0.006, 0.018
POWER = 0.8
_GRID = (np.arange(100) + 0.5) / 100


def power(
    difference: float,
    patients: int,
    seeds: int,
    *,
    seed_sd: float = SEED_SD,
    patient_sd: float = PATIENT_SD,
    confidence: float = CONFIDENCE,
) -> float:
    """Returns how probably an arm that is better by a difference is found better.

    Args:
        difference: of mean Dice.
        patients: that are scored, 2 or more.
        seeds: 2 or more.
        seed_sd: standard deviation of the paired differences over seeds.
        patient_sd: likewise, over patients.
        confidence: of the intervals.
    """
    upper = (1 + confidence) / 2
    of_seeds = np.sqrt(chi2.ppf(_GRID, seeds - 1) / (seeds - 1)) * seed_sd / np.sqrt(seeds)
    of_patients = np.sqrt(chi2.ppf(_GRID, patients - 1)) * patient_sd / patients
    halves = np.maximum(
        student.ppf(upper, seeds - 1) * of_seeds[:, None],
        norm.ppf(upper) * of_patients[None, :],
    )
    spread = np.hypot(seed_sd / np.sqrt(seeds), patient_sd / np.sqrt(patients))
    return float(norm.cdf((difference - halves) / spread).mean()) if spread > 0 else float(difference > 0)


def smallest_difference(patients: int, seeds: int, **spreads: float) -> float:
    """Returns the difference of mean Dice that is found with a power of 80 %; arguments as of :func:`power`."""
    if all(spreads.get(name, 1.0) == 0 for name in ("seed_sd", "patient_sd")):
        return 0.0
    return float(brentq(lambda d: power(d, patients, seeds, **spreads) - POWER, 0.0, 100.0))
