"""Hides parts of a label, as where of many lesions some were drawn and others were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pieces = Literal["components", "slices"]


@dataclass(frozen=True)
class Hiding:
    """What is hidden of labels that are drawn in part.

    Attributes:
        shares: of the pieces of each label that are hidden; one piece is always left.
        pieces: connected components (over faces, edges and corners), or slices: across the axis of the largest spacing.
        seed: with the names of case and label, of the draw.
    """

    shares: Mapping[str, float]
    pieces: Pieces
    seed: int

    def hidden(self, mask: NDArray[np.bool_], spacing: Sequence[float], case: str, label: str) -> NDArray[np.bool_]:
        """Returns which voxels of a label are hidden.

        Args:
            mask: (*spatial), where the label is.
            spacing: of the axes of the mask.
            case: name of the case.
            label: name of the label.
        """
        numbers = self._numbered(mask, spacing)
        found = np.unique(numbers[mask]).tolist()
        count = min(len(found) - 1, round(self.shares[label] * len(found)))
        if count < 1:
            return np.zeros_like(mask)
        return mask & np.isin(numbers, Random(f"{self.seed} {case} {label}").sample(found, count))

    def _numbered(self, mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[Any]:
        if self.pieces == "components":
            return ndimage.label(mask, np.ones((3,) * mask.ndim))[0]
        return np.indices(mask.shape, sparse=True)[int(np.argmax(spacing))] * np.ones(mask.shape, int)
