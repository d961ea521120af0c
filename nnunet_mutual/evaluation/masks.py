"""Dice of predictions, scored only where the reference says something about the label.

What a case does not annotate is left out, not counted as absent: in a reference that lacks the liver because nobody
drew it, a correct liver would otherwise be a false positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_mutual.annotation.table import AnnotationTable, Case
from nnunet_mutual.disk.images import read_label_map
from nnunet_mutual.errors import MutualError, shorten


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases.

    Attributes:
        labels: all labels of the dataset, in its order.
        cases: case -> label -> Dice in [0, 1]. A label that the case does not annotate has no entry; one that is
            annotated and absent in both prediction and reference is NaN.
    """

    labels: tuple[str, ...]
    cases: Mapping[str, Mapping[str, float]]

    def values(self, label: str) -> list[float]:
        """Returns the scores of a label that are not NaN, in the order of the cases."""
        return [s[label] for s in self.cases.values() if label in s and not math.isnan(s[label])]

    @property
    def n(self) -> dict[str, int]:
        """Number of scored cases per label."""
        return {label: len(self.values(label)) for label in self.labels}

    @property
    def mean(self) -> dict[str, float]:
        """Mean over cases per label; NaN where no case is scored."""
        return {label: _mean(self.values(label)) for label in self.labels}

    @property
    def overall(self) -> float:
        """Mean over labels of the mean over cases, labels without a scored case left out; NaN if none is left."""
        return _mean([value for value in self.mean.values() if not math.isnan(value)])

    def as_json(self) -> dict[str, Any]:
        """Returns the scores in what JSON can hold: NaN becomes None."""
        return {
            "mean": _without_nan({**self.mean}),
            "n": self.n,
            "overall": None if math.isnan(self.overall) else self.overall,
            "cases": {key: _without_nan(scores) for key, scores in self.cases.items()},
        }


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    r"""Returns the Dice coefficient of two masks.

    .. math:: 2 |P \cap R| / (|P| + |R|)

    Args:
        prediction: (*spatial) bool.
        reference: (*spatial) bool.

    Returns:
        0 to 1; NaN if both are empty, so that an absent label neither raises nor lowers a mean (as nnU-Net's).

    Raises:
        MutualError: the shapes differ.
    """
    _require_same_shape(prediction, reference)
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / size if size else math.nan


@dataclass(frozen=True)
class Masks:
    """One annotated label of one case.

    Attributes:
        label: its name.
        predicted: (*spatial) bool, what counts as predicted.
        drawn: (*spatial) bool, the reference.
    """

    label: str
    predicted: np.ndarray
    drawn: np.ndarray


def annotated_masks(
    prediction: np.ndarray,
    reference: np.ndarray,
    table: AnnotationTable,
    case: Case,
    *,
    ignore: int | None = None,
) -> Iterator[Masks]:
    """Yields the masks of each annotated label of one case, in the order of the table.

    A predicted label that the case does not annotate counts as what the reference would have called it: the annotated
    label that contains it in this source, or, where the reference has a label that it may overlap, that label. Where
    the reference has a label that the case does not annotate (drawn by a model), it says that none of the annotated
    ones was drawn there, except those that it may hide: these are in no mask there.

    Args:
        prediction: label map (*spatial) integers.
        reference: label map (*spatial) integers.
        table: labels, regions, and how they contain or overlap each other.
        case: what the reference annotates.
        ignore: integer of nnU-Net's ignore label; its voxels in the reference are in no mask.

    Raises:
        MutualError: the shapes differ.
    """
    _require_same_shape(prediction, reference)
    contained = table.contained(case)
    for label in table.labels:
        if label not in case.annotated:
            continue
        drawn = np.isin(reference, table.values[label])
        inner = contained.get(label, frozenset()) - case.annotated
        predicted = np.isin(prediction, _integers(table, {label, *inner}))
        partners = table.overlap_partners(label) - case.annotated
        if partners:
            predicted |= drawn & np.isin(prediction, _integers(table, partners))
        if not table.is_regions:
            hiding = {a for a in table.labels if a not in case.annotated and label in table.beneath(case, a)}
            if hiding:
                predicted &= ~np.isin(reference, _integers(table, hiding))
        if ignore is not None:
            predicted &= reference != ignore
        yield Masks(label, predicted, drawn)


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    table: AnnotationTable,
    case: Case,
    *,
    ignore: int | None = None,
) -> dict[str, float]:
    """Returns the Dice of each annotated label of one case, NaN where it is absent in both.

    The arguments are those of :func:`annotated_masks`.

    Raises:
        MutualError: the shapes differ.
    """
    masks = annotated_masks(prediction, reference, table, case, ignore=ignore)
    return {one.label: dice(one.predicted, one.drawn) for one in masks}


def evaluate_folders(
    predictions: Path, references: Path, dataset_json: Mapping[str, Any], *, keys: Sequence[str] | None = None
) -> Evaluation:
    """Scores a folder of predictions.

    Args:
        predictions: folder of label maps ``<case><file ending>``.
        references: folder of reference label maps of the same names.
        dataset_json: labels, file ending, and the annotation table; without a table every reference is complete.
        keys: the cases; by default all of the folder of references.

    Raises:
        MutualError: a prediction or reference is missing, lies on another grid, or its case is not in the table.
    """
    table = AnnotationTable.from_dataset_json(dataset_json)
    ending = dataset_json["file_ending"]
    found = sorted(path.name.removesuffix(ending) for path in Path(references).glob(f"*{ending}"))
    wanted = found if keys is None else list(keys)
    if not wanted:
        raise MutualError(f"{references} holds no label maps (*{ending}); give the folder of the reference label maps")
    table.require(wanted)
    for folder in (references, predictions):
        absent = [key for key in wanted if not (Path(folder) / (key + ending)).is_file()]
        if absent:
            raise MutualError(
                f"{folder} lacks {len(absent)} of {len(wanted)} cases: {shorten(absent)}; predict all of them first"
            )
    example = str(Path(references) / (wanted[0] + ending))
    reader = determine_reader_writer_from_dataset_json(dict(dataset_json), example, verbose=False)()
    ignore = dataset_json["labels"].get("ignore")
    scores = {}
    for key in wanted:
        prediction, reference = (_read(reader, Path(f) / (key + ending)) for f in (predictions, references))
        try:
            scores[key] = score_case(prediction, reference, table, table.case(key), ignore=ignore)
        except MutualError as error:
            raise MutualError(f"{key}: {error}") from None
    return Evaluation(table.labels, scores)


def _require_same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise MutualError(
            f"a prediction of shape {prediction.shape} cannot be compared with a reference of shape {reference.shape}; "
            "both must lie on the grid of the image"
        )


def _read(reader: BaseReaderWriter, path: Path) -> np.ndarray:
    return read_label_map(reader, path)[0]


def _integers(table: AnnotationTable, labels: Iterable[str]) -> list[int]:
    return [value for label in labels for value in table.values[label]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _without_nan(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {label: None if math.isnan(value) else value for label, value in scores.items()}
