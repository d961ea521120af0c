r"""Which (case, label) to draw next: by what it would teach for a minute, and never ten alike.

Pairs are chosen one after another, each time the one with the highest

.. math:: \frac{u \, s \, n}{m}

where u says how much independent predictions disagree, s how large the structure is, n how unlike it is to those of the
same label that were chosen before, and m the minutes that drawing it takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 0.01  # disagreement of predictions that are equal, so that size and variety still tell them apart
MISSED = 0.1  # size of what was not found though every drawn case has it: more often outside of the image than missed
_SAMPLE = 500  # pairs of a label from whose distances the usual one is taken


@dataclass(frozen=True)
class Pair:
    """A label of a case that nobody has drawn there.

    Attributes:
        case: the case.
        label: the label.
        source: of the case in dataset.json.
        patient: of the case; None if unknown.
        agreement: smallest Dice between independent predictions, 0 to 1; None if there was only one.
        size: volume of the prediction as a multiple of the median of the drawn ones.
        expected: whether every drawn case has the label.
        look: what the place looks like, numbers in the same order for all pairs of a label.
    """

    case: str
    label: str
    source: str
    patient: str | None
    agreement: float | None
    size: float
    expected: bool
    look: tuple[float, ...]

    @property
    def missed(self) -> bool:
        """Whether nothing was found where something was expected."""
        return self.expected and self.size == 0


@dataclass(frozen=True)
class Suggestion:
    """A pair in its place.

    Attributes:
        pair: what to draw.
        disagreement: u, from 0.01 (equal predictions) to 1.
        size: s, 0 to 1.
        variety: n, from 0 (one like it was chosen before) to 1.
        minutes: m.
    """

    pair: Pair
    disagreement: float
    size: float
    variety: float
    minutes: float

    @property
    def score(self) -> float:
        """What it would teach for a minute, for comparison only."""
        return self.disagreement * self.size * self.variety / self.minutes


def rank(pairs: Sequence[Pair], minutes: Mapping[str, float], most: int | None = None) -> list[Suggestion]:
    """Orders pairs greedily; of equal ones, the one that would teach more without variety, then the earlier one.

    Args:
        pairs: in the order of their cases.
        minutes: that drawing a label takes.
        most: at most so many.

    Returns:
        The first ``most`` (all by default), best first.

    Fails when: predictions are wrong and agree, as of a network that has never seen such a structure.
    """
    worth = np.array([_disagreement(pair) * _size(pair) / minutes[pair.label] for pair in pairs])
    unlike, chosen = np.ones(len(pairs)), np.zeros(len(pairs), bool)
    of_label: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        of_label[pair.label].append(number)
    looks = {label: _Looks([pairs[n] for n in members]) for label, members in of_label.items()}
    found = []
    for _ in range(len(pairs) if most is None else min(most, len(pairs))):
        best = int(np.lexsort((-np.arange(len(pairs)), worth, worth * unlike, ~chosen))[-1])
        pair, members = pairs[best], of_label[pairs[best].label]
        found.append(Suggestion(pair, _disagreement(pair), _size(pair), float(unlike[best]), minutes[pair.label]))
        chosen[best] = True
        unlike[members] = np.minimum(unlike[members], looks[pair.label].unlike(members.index(best)))
    return found


def _disagreement(pair: Pair) -> float:
    return 1.0 if pair.missed or pair.agreement is None else max(1 - pair.agreement, LEAST)


def _size(pair: Pair) -> float:
    return MISSED if pair.missed else min(1.0, pair.size)


class _Looks:
    """How unlike the pairs of a label are, as a share of their median distance.

    The distance is the root mean square over the numbers of ``look``, each divided by its standard deviation; a pair of
    another source is 1 further away, and those of one patient are alike.
    """

    def __init__(self, pairs: Sequence[Pair]):
        looks = np.array([pair.look for pair in pairs], float)
        spread = looks.std(axis=0)
        self._looks = looks[:, spread > 0] / spread[spread > 0]
        self._sources = np.array([pair.source for pair in pairs])
        self._patients = np.array([pair.patient or "" for pair in pairs])
        sample = np.unique(np.linspace(0, len(pairs) - 1, _SAMPLE).round().astype(int))
        rows = [np.delete(self._distances(n)[sample], np.flatnonzero(sample == n)) for n in sample]
        self._usual = float(np.median(np.concatenate(rows))) if len(sample) > 1 else 0.0

    def unlike(self, number: int) -> NDArray[np.float64]:
        """Returns, for each pair, 0 (alike) to 1 (at least the median distance away from pair ``number``)."""
        distances = self._distances(number)
        return np.minimum(1.0, distances / self._usual) if self._usual else (distances > 0).astype(float)

    def _distances(self, number: int) -> NDArray[np.float64]:
        squares = (self._looks - self._looks[number]) ** 2
        distances = np.sqrt(squares.sum(axis=1) / max(1, squares.shape[1]))
        distances += self._sources != self._sources[number]
        patient = self._patients[number]
        alike = (self._patients == patient) if patient else np.arange(len(distances)) == number
        return np.where(alike, 0.0, distances)
