"""What a voxel of a label map says, and whether two label maps can both be right about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nnunet_mutual.annotation.possible import agreeing_integers, unseen_labels
from nnunet_mutual.datasets.merge.sources import BACKGROUND, IGNORE

Word = str | int  # a label name, or for regions the integer itself


class View(Protocol):
    """How one dataset speaks about one case."""

    @property
    def annotated(self) -> frozenset[str]:
        """Labels that somebody looked for."""

    def read(self, integer: int) -> Word:
        """What an integer of its label map says; IGNORE where it says nothing."""

    def write(self, word: Word) -> int:
        """The integer of the merged label map."""

    def name(self, word: Word) -> str:
        """For a reader of the report."""

    def possible(self, word: Word) -> frozenset[Word]:
        """What may truly be at a voxel of which this case says ``word``."""

    def open(self, labels: frozenset[str], allowed: frozenset[Word], chosen: Word) -> bool:
        """Whether ``allowed`` leaves open if one of ``labels`` is there, beside what was chosen."""


@dataclass(frozen=True)
class PlainView:
    """Labels that exclude each other."""

    annotated: frozenset[str]
    contained: Mapping[str, frozenset[str]]  # at any depth
    overlaps: Mapping[str, frozenset[str]]
    meaning: Mapping[int, str]
    values: Mapping[str, int] = field(repr=False)  # of the merged labels, with background and ignore

    def read(self, integer: int) -> Word:
        """The label name."""
        return self.meaning[integer]

    def write(self, word: Word) -> int:
        """The integer of a name."""
        return self.values[str(word)]

    def name(self, word: Word) -> str:
        """The name itself."""
        return str(word)

    def possible(self, word: Word) -> frozenset[Word]:
        """See :func:`~nnunet_mutual.annotation.possible.unseen_labels`."""
        drawn, labels = None if word == BACKGROUND else str(word), self.values.keys() - {BACKGROUND, IGNORE}
        return frozenset[Word]({word}) | unseen_labels(drawn, labels, self.annotated, self.contained, self.overlaps)

    def open(self, labels: frozenset[str], allowed: frozenset[Word], chosen: Word) -> bool:
        """Whether one of the labels is still possible."""
        return bool((allowed - {chosen}) & labels)


@dataclass(frozen=True)
class RegionView:
    """Labels that are sets of integers: an integer says for each annotated region whether it is there."""

    annotated: frozenset[str]
    regions: Mapping[str, frozenset[int]]
    ignore: int | None
    new_ignore: int | None
    incomplete: frozenset[str] = frozenset()

    def read(self, integer: int) -> Word:
        """The integer, which means the same in all datasets."""
        return IGNORE if integer == self.ignore else integer

    def write(self, word: Word) -> int:
        """The integer."""
        return int(word) if word != IGNORE else int(self.new_ignore or 0)

    def name(self, word: Word) -> str:
        """The annotated regions that hold the integer."""
        if word == IGNORE:
            return IGNORE
        return "+".join(name for name in self.regions if word in self.regions[name]) or BACKGROUND

    def possible(self, word: Word) -> frozenset[Word]:
        """All integers that agree about every annotated region, and about those drawn in part where they are drawn."""
        return frozenset[Word](agreeing_integers(int(word), self.regions, self.annotated, self.incomplete))

    def open(self, labels: frozenset[str], allowed: frozenset[Word], chosen: Word) -> bool:
        """Whether the allowed integers disagree about one of the regions."""
        regions = [self.regions[name] for name in labels]
        return any((i in region) != (chosen in region) for i in allowed for region in regions)


@dataclass(frozen=True)
class Agreed:
    """What is written at a voxel.

    Attributes:
        word: the label.
        contradicted: label maps of the image exclude each other there.
        decided: every label map that was overruled contradicts one that was to be preferred to it.
    """

    word: Word
    contradicted: bool
    decided: bool


def resolve(drawn: Sequence[Word], views: Sequence[View], ranks: Sequence[int]) -> Agreed:
    """Finds the label of a voxel that agrees with what all label maps of the image say about it.

    Args:
        drawn: what each label map says.
        views: how to understand it.
        ranks: where they contradict each other, a smaller rank wins; among equals the first one.
    """
    order = sorted(range(len(drawn)), key=ranks.__getitem__)
    speaking = [i for i in order if drawn[i] != IGNORE]
    if not speaking:
        return Agreed(IGNORE, False, True)
    believed, decided = speaking, True
    found = _common(speaking, drawn, views)  # two may fit by what a third one says
    if found is None:
        believed, decided = _believed(speaking, drawn, views, ranks)
        found = _common(believed, drawn, views)
    assert found is not None
    allowed, chosen = found
    # where one drawing says nothing, what only it looked for stays unknown
    known = frozenset[str]().union(*(views[i].annotated for i in speaking))
    silent = frozenset[str]().union(*(view.annotated for view in views)) - known
    if silent and views[speaking[0]].open(silent, allowed, chosen):
        chosen = IGNORE
    return Agreed(chosen, len(believed) < len(speaking), decided)


def _believed(
    speaking: Sequence[int], drawn: Sequence[Word], views: Sequence[View], ranks: Sequence[int]
) -> tuple[list[int], bool]:
    """Returns label maps that fit together, the preferred ones first, and whether ranks decide against all others."""
    believed, decided = list(speaking[:1]), True
    for i in speaking[1:]:
        if _common([*believed, i], drawn, views) is not None:
            believed.append(i)
            continue
        better = [j for j in believed if ranks[j] < ranks[i]]
        decided = decided and bool(better) and _common([*better, i], drawn, views) is None
    return believed, decided


def _common(
    indices: Sequence[int], drawn: Sequence[Word], views: Sequence[View]
) -> tuple[frozenset[Word], Word] | None:
    """Returns all that these label maps allow and the one of their words that fits all, None if none does."""
    allowed = frozenset.intersection(*(views[i].possible(drawn[i]) for i in indices))
    fitting = [drawn[i] for i in indices if drawn[i] in allowed]
    # integers that agree about all regions are equally right; two names at one voxel are not
    if not fitting or (isinstance(fitting[0], str) and len(set(fitting)) > 1):
        return None
    return allowed, fitting[0]
