"""Two values of a voxel in one integer map: what was drawn there, and what the networks decided.

nnU-Net's loaders and augmentation carry one label map. The drawn value must survive in it, because only the drawn value
says what is known for certain; so a decision never replaces it, it is coded beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.possible import fitting_pairs, left_open
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError

UNDECIDED = -1
_OUTSIDE = -1  # nnU-Net's value for voxels outside the body of the image; it becomes background in augmentation
_FORBIDDEN = -2


class PseudoCodes:
    r"""Codes of pairs (drawn value y, decided value z), the same for every case of a dataset.

    .. math:: c(y, \text{undecided}) = y, \qquad c(y, z) = o + \operatorname{index}(y, z)

    where :math:`o` is the offset, one more than the largest value that can be drawn.

    Args:
        pairs: the pairs (y, z) that may occur, each once.
        offset: the first code; larger than every value of the pairs and than the ignore label.
        ignore_label: voxels of this value are never decided.

    Attributes:
        pairs: pair ``pairs[i]`` has the code ``offset + i``.
        offset: codes below it are drawn values of undecided voxels.
        size: number of codes, the rows that a look-up table over them needs.

    Source: [E], methods after arXiv 2407.12611.
    Fails when: dataset.json changes after codes were written; they are then those of another dataset.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], offset: int, ignore_label: int | None = None):
        self.pairs = tuple(pairs)
        self.offset = offset
        self.size = offset + len(self.pairs)
        if self.size - 1 > np.iinfo(np.int16).max:
            raise MutualError(
                f"the labels of dataset.json need {self.size} codes for drawn and decided values, a label map holds "
                f"{np.iinfo(np.int16).max + 1}; use fewer labels or regions"
            )
        # The last row and column of each table belong to -1, which NumPy's indexing reaches by itself.
        self._true = np.append(np.arange(self.size), _OUTSIDE).astype(np.int16)
        self._decided = np.full(self.size + 1, UNDECIDED, np.int16)
        self._code = np.full((offset + 1, offset + 1), _FORBIDDEN, np.int16)
        self._code[:, UNDECIDED] = np.append(np.arange(offset), _OUTSIDE)
        for code, (y, z) in enumerate(self.pairs, offset):
            self._true[code], self._decided[code], self._code[y, z] = y, z, code
        self._code[_OUTSIDE] = _OUTSIDE
        if ignore_label is not None:
            self._code[ignore_label] = ignore_label

    @classmethod
    def from_table(cls, table: AnnotationTable) -> PseudoCodes:
        """Makes the codes of a dataset.

        Plain labels: where nothing is drawn, any label and background may be decided; where b is drawn, b itself and
        what b contains in some source or may overlap. Regions: every pair of integers of the label map.

        Args:
            table: the annotation table; the order of its sources does not matter.

        Raises:
            MutualError: more pairs than an int16 label map can hold.
        """
        values = sorted({0}.union(*table.values.values()))
        if table.is_regions:
            pairs = [(y, z) for y in values for z in values]
        else:
            pairs = [(0, z) for z in values]
            for b, inner in sorted((table.values[label][0], _within(table, label)) for label in table.labels):
                pairs += [(b, z) for z in [b, *inner] if inner]
        return cls(pairs, 1 + max([*values, table.ignore or 0]), table.ignore)

    def encode(self, true: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """Puts drawn and decided values into one map.

        Args:
            true: (*spatial) integers as drawn; -1, nnU-Net's value outside the image's non-zero part, is kept.
            decided: (*spatial) integers, -1 where undecided.

        Returns:
            (*spatial) int16. Voxels of the ignore label or of -1 stay undecided.

        Raises:
            MutualError: names a pair that the dataset does not allow.
        """
        if true.shape != decided.shape:
            raise MutualError(
                f"the label map has the shape {true.shape} and its decisions {decided.shape}; they must be of one image"
            )
        for values, what in ((true, "drawn"), (decided, "decided")):
            if values.size and not (values.min() >= -1 and values.max() < self.offset):
                wrong = int(values.min() if values.min() < -1 else values.max())
                raise MutualError(
                    f"a voxel is {what} as {wrong}, which is no value of dataset.json (largest: {self.offset - 1}); "
                    "preprocess the dataset again"
                )
        codes = self._code[true, decided]
        forbidden = codes == _FORBIDDEN
        if forbidden.any():
            place = np.unravel_index(int(forbidden.argmax()), forbidden.shape)
            y, z = int(true[place]), int(decided[place])
            open_values = ", ".join(str(b) for a, b in self.pairs if a == y) or "nothing"
            raise MutualError(
                f"a voxel drawn as {y} was decided as {z}: the pair ({y}, {z}) is not allowed, {y} leaves open: "
                f'{open_values}; declare the relation in "contains" or "may_overlap" of dataset.json, or make the '
                "pseudo labels again"
            )
        return codes

    def fits(self, true: np.ndarray, decided: np.ndarray, table: AnnotationTable, case: Case) -> np.ndarray:
        """Where a decision leaves what is annotated as it is, (*spatial) bool: other grids round borders differently.

        Args:
            true: (*spatial) integers as drawn.
            decided: (*spatial) integers, -1 where undecided, which never fits.
            table: of the dataset.
            case: what was drawn.
        """
        pairs = [y * self.offset + z for y, z in fitting_pairs(table, case)]
        found: np.ndarray = np.isin(true * self.offset + decided, pairs) & (decided != UNDECIDED)
        return found

    def true_values(self, codes: np.ndarray) -> np.ndarray:
        """Returns what was drawn, (*spatial) int16, voxel for voxel as it was given to :meth:`encode`.

        Raises:
            MutualError: the map holds something that is no code of this dataset.
        """
        return self._look_up(self._true, codes)

    def decided_values(self, codes: np.ndarray) -> np.ndarray:
        """Returns what was decided, (*spatial) int16, -1 where undecided.

        Raises:
            MutualError: the map holds something that is no code of this dataset.
        """
        return self._look_up(self._decided, codes)

    def _look_up(self, table: np.ndarray, codes: np.ndarray) -> np.ndarray:
        if codes.size and not (codes.min() >= _OUTSIDE and codes.max() < self.size):
            wrong = int(codes.min() if codes.min() < _OUTSIDE else codes.max())
            raise MutualError(
                f"a map of pseudo labels holds {wrong}, the codes of dataset.json end at {self.size - 1}; "
                "the labels were changed after it was written, so make the pseudo labels again"
            )
        return table[codes]


def _within(table: AnnotationTable, label: str) -> list[int]:
    """Values that a voxel of a label may also have, in a case of any source."""
    value, names = table.values[label][0], frozenset[str]()
    for source in table.sources:
        names |= left_open(table, Case("", source, frozenset({label})))[value]
    return sorted(table.values[name][0] for name in names)
