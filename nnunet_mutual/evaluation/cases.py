"""Reads a prediction and its reference, and measures every label that the case annotates."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.case_voxels import count_labels
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.volumes import Finding, Volume, compare_grids, read_volume
from nnunet_mutual.disk.workers import Workers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.masks import annotated_masks
from nnunet_mutual.evaluation.metrics import measure

CASES_PER_PROCESS = 4  # starting a process takes as long as measuring a few cases
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")  # nnU-Net's own words
T = TypeVar("T")
LabelScores = dict[str, dict[str, float]]  # label -> metric -> value


@dataclass(frozen=True)
class Pair:
    """One case: the two label maps to compare."""

    key: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Rules:
    """How cases are measured.

    Attributes:
        table: labels, and which of them each case annotates.
        reader: nnU-Net's reader of the files.
        tolerances: of surface Dice in mm by label; None leaves the surface metrics out.
    """

    table: AnnotationTable
    reader: BaseReaderWriter
    tolerances: Mapping[str, float] | None

    def of(self, key: str) -> Rules:
        """Returns the rules with the table of one case alone, which travels to another process quickly."""
        cases = {key: self.table.cases[key]} if self.table.declared else {}
        return replace(self, table=replace(self.table, cases=cases))


def measure_cases(pairs: Sequence[Pair], rules: Rules, *, processes: int) -> dict[str, LabelScores]:
    """Measures cases in several processes; with one, in this process.

    Args:
        pairs: the cases.
        rules: how.
        processes: at most; never more than cores, nor than pay off.

    Returns:
        Case -> label -> metric -> value, in the order of the cases, for the labels that each annotates.

    Raises:
        MutualError: a file cannot be read, lies on another grid or holds unknown values; names the file.
    """
    processes = max(1, min(processes, len(pairs) // CASES_PER_PROCESS, os.cpu_count() or 1))
    if processes == 1:
        found = {pair.key: measure_case(pair, rules) for pair in _shown(pairs, len(pairs))}
    else:
        with Workers(processes) as workers:
            jobs = {workers.submit(measure_case, pair, rules.of(pair.key)): pair.key for pair in pairs}
            found = {jobs[job]: job.result() for job in _shown(as_completed(jobs), len(pairs))}
    return {pair.key: found[pair.key] for pair in pairs}


def measure_case(pair: Pair, rules: Rules) -> LabelScores:
    """Returns label -> metric -> value of one case; besides the metrics, nnU-Net's counts of voxels.

    Raises:
        MutualError: as :func:`measure_cases`.
    """
    prediction, reference = _read(pair, rules)
    scored = reference.voxels[0] != rules.table.ignore
    scores: LabelScores = {}
    for one in annotated_masks(prediction.voxels[0], reference.voxels[0], rules.table, rules.table.case(pair.key)):
        tolerance = None if rules.tolerances is None else rules.tolerances[one.label]
        scores[one.label] = measure(
            one.predicted, one.drawn, reference.spacing, tolerance=tolerance, voxel_ml=reference.voxel_ml
        )
        both, predicted, drawn = (
            int(np.count_nonzero(mask)) for mask in (one.predicted & one.drawn, one.predicted, one.drawn)
        )
        union = predicted + drawn - both
        counts = (both, predicted - both, drawn - both, int(np.count_nonzero(scored)) - union, predicted, drawn)
        scores[one.label] |= dict(zip(COUNTS, counts, strict=True))
    return scores


def _read(pair: Pair, rules: Rules) -> tuple[Volume, Volume]:
    finding = Finding()
    reference = read_volume(pair.reference, rules.reader, finding, is_label=True)
    prediction = read_volume(pair.prediction, rules.reader, finding, is_label=True)
    if prediction is not None and reference is not None:
        compare_grids(reference, prediction, "the prediction", finding, of="the reference")
        count_labels(reference, rules.table, finding)
        count_labels(prediction, replace(rules.table, ignore=None), finding)  # which nothing predicts
    errors = [problem for problem in finding.problems if problem.severity == ERROR]
    if prediction is None or reference is None or errors:
        raise MutualError(f"{errors[0].place}: {errors[0].text}")
    return prediction, reference


def _shown(items: Iterable[T], total: int) -> Iterator[T]:
    """A progress bar in a terminal, elsewhere a line for every tenth of the cases."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc="measuring", unit="case", file=sys.stderr, leave=False)
        return
    step = -(-total // 10)
    for number, item in enumerate(items, 1):
        yield item
        if number % step == 0 or number == total:
            print(f"measured {number} of {total} cases", file=sys.stderr)
