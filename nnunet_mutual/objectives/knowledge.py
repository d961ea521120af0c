"""What an annotation says about a voxel, as look-up tables for the losses.

Cases that draw the same labels, with the same ``contains``, share one *pattern*; a batch is described by one pattern
index per sample, and everything else is a look-up on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.possible import left_open, output_channels
from nnunet_mutual.annotation.restriction import Restriction, restriction_for
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.losses.partial import RegionRelations


@dataclass(frozen=True)
class Tables:
    """What a loss looks up: V values of the target (C of them without pseudo labels), C outputs of the network.

    Attributes:
        annotated: (patterns, C) bool, labels that are scored by Dice; of plain labels, class 0 (background) is False.
        is_full: per pattern, whether nnU-Net's own loss applies.
        possible: (patterns, V, C) bool for plain labels, S(v) of methods/partial: row = value, column = class.
        relations: (patterns, R, R) for regions.
        drawn: (V,) class of each value with pseudo labels, None where the value is the class.
        by_hand: (V,) the class that somebody drew, where ``drawn`` is what was decided; None where they are the same.
        decided: (patterns, R) bool for regions, labels whose decided voxels count as known.
        open: (patterns, V, C) bool for plain labels, annotated labels that a voxel drawn as something else may be as
            well; None where there is no such voxel.
        incomplete: (patterns, C) bool, labels that are drawn in part; None where there is no such case.
        weights: (patterns, C) how much each label counts; background, and what only other labels say, their mean. None
            where all of them are 1.
    """

    annotated: Tensor
    is_full: Sequence[bool]
    possible: Tensor | None = None
    relations: RegionRelations | None = None
    drawn: Tensor | None = None
    by_hand: Tensor | None = None
    decided: Tensor | None = None
    open: Tensor | None = None
    incomplete: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Tables:
        """Returns the same tables on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Tables(**{name: v if v is None or name == "is_full" else v.to(device) for name, v in moved.items()})


class Knowledge:
    """Patterns of a set of cases, and the tables of what each says.

    Args:
        table: the annotation table.
        keys: all cases that will be asked about.
        num_outputs: C of the network.
        codes: pairs of drawn and decided values, if the target holds them.
        accepted: labels of each case whose pseudo label is used.
        unlabelled: further cases, which annotate nothing; the table need not list them.
        weight: of accepted pseudo labels.

    Attributes:
        tables: supervision by true labels.
        pseudo_tables: by true and accepted pseudo labels; the same without them.
        heirs: for plain labels, what a voxel of a predicted class counts as when the prediction is scored:
            (patterns, C) long, the class; or, if overlaps leave a choice, (patterns, C, C) bool, row = predicted class,
            column = classes among which the likeliest is taken.
        cases: an example of each pattern.
    """

    def __init__(
        self,
        table: AnnotationTable,
        keys: Iterable[str],
        num_outputs: int,
        codes: PseudoCodes | None = None,
        accepted: Mapping[str, frozenset[str]] | None = None,
        unlabelled: Iterable[str] = (),
        weight: float = 1.0,
    ):
        self.table = table
        self.weight = weight
        self.num_outputs = num_outputs
        self.codes = codes
        self.channel = output_channels(table)
        self.device = torch.device("cpu")
        self._pattern_of: dict[str, int] = {}
        self.cases: list[Case] = []
        self.accepted: list[frozenset[str]] = []
        members: dict[tuple, int] = {}
        any_source = next(iter(table.sources))  # which draws nothing here
        cases = [*(table.case(key) for key in keys), *(Case(key, any_source, frozenset()) for key in unlabelled)]
        for case in cases:
            pseudo = (accepted or {}).get(case.key, frozenset())
            contained = table.contained(case)
            relation = tuple(sorted((outer, tuple(sorted(inner))) for outer, inner in contained.items()))
            identity = (case.annotated, case.incomplete, relation, pseudo, case.outlined_weights)
            if identity not in members:
                members[identity] = len(self.cases)
                self.cases.append(case)
                self.accepted.append(pseudo)
            self._pattern_of[case.key] = members[identity]
        known = [case.annotated for case in self.cases]
        self.tables = self._weighted(self._true_tables(), known)
        self.pseudo_tables = self.tables
        if codes is not None:
            known = [labels | pseudo for labels, pseudo in zip(known, self.accepted, strict=True)]
            self.pseudo_tables = self._weighted(self._pseudo_tables(codes), known)
        self.heirs: Tensor | None = None
        if not table.is_regions:
            heirs = torch.stack([self._heirs(case) for case in self.cases])
            self.heirs = heirs if (heirs.sum(2) > 1).any() else heirs.long().argmax(2)

    @property
    def is_full(self) -> Sequence[bool]:
        """Per pattern, whether every label is annotated."""
        return self.tables.is_full

    def to(self, device: torch.device) -> Knowledge:
        """Moves the look-up tables to the device of the loss, in place."""
        self.device = device
        self.tables = self.tables.to(device)
        self.pseudo_tables = self.pseudo_tables.to(device)
        self.heirs = None if self.heirs is None else self.heirs.to(device)
        return self

    def patterns(self, keys: Sequence[str]) -> list[int]:
        """Returns the pattern of each case of a batch."""
        return [self._pattern_of[str(key)] for key in keys]

    def scoring(self, pattern: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns ``annotated``, ``heirs`` and ``open`` of each case of a batch."""
        heirs, left_open = (None if t is None else t[pattern] for t in (self.heirs, self.tables.open))
        return self.tables.annotated[pattern], heirs, left_open

    def mask(self, sets: Iterable[Iterable[str]]) -> Tensor:
        """Returns label sets as (number of sets, C) bool on the device."""
        return self._mask(sets).to(self.device)

    def _mask(self, sets: Iterable[Iterable[str]]) -> Tensor:
        sets = [list(labels) for labels in sets]
        mask = torch.zeros(len(sets), self.num_outputs, dtype=torch.bool)
        for i, labels in enumerate(sets):
            mask[i, [self.channel[label] for label in labels]] = True
        return mask

    def _weighted(self, tables: Tables, sets: Iterable[Iterable[str]]) -> Tables:
        """Adds how much labels count: what a person drew 1, tools' outlines and pseudo labels as table and setting say.

        Args:
            tables: of some supervision.
            sets: of each pattern, the labels about which it says everything.
        """
        weights = torch.ones(len(self.cases), self.num_outputs)
        for i, (case, names) in enumerate(zip(self.cases, sets, strict=True)):
            own = {name: case.weight(name) if name in case.annotated else self.weight for name in names}
            weights[i] = sum(own.values()) / len(own) if own else 1.0
            for name, weight in {**dict.fromkeys(case.incomplete, 1.0), **own}.items():
                weights[i, self.channel[name]] = weight
        return tables if (weights == 1).all() else replace(tables, weights=weights)

    def limited(self, labels: frozenset[str]) -> Tables:
        """Supervision of a network that segments only these labels and calls the rest background.

        What a case annotates beyond them says nothing here; see :meth:`rivals`.
        """
        own = [case.annotated & labels for case in self.cases]
        annotated = self._mask(own)
        is_full, in_part = [False] * len(self.cases), self._in_part(labels)
        if self.table.is_regions:
            relations = _stack([self._relations(case, labels) for case in self.cases])
            tables = Tables(annotated, is_full, relations=relations, incomplete=in_part)
            return self._weighted(tables, own).to(self.device)
        possible = torch.stack([self._possible_to(case, labels) for case in self.cases])
        left_open = _left_open(possible, annotated)
        tables = Tables(annotated, is_full, possible=possible, open=left_open, incomplete=in_part)
        return self._weighted(tables, own).to(self.device)

    def rivals(self, labels: frozenset[str]) -> Tensor:
        """Labels of a network that cannot be where another label was drawn.

        Returns:
            (patterns, C, C) bool: row = drawn label b that the network does not segment, column = label of the network
            that the case does not annotate and that shares no voxel with b.
        """
        found = torch.zeros(len(self.cases), self.num_outputs, self.num_outputs, dtype=torch.bool)
        for i, case in enumerate(self.cases):
            for b in case.drawn - labels:
                for a in labels - case.annotated:
                    found[i, self.channel[b], self.channel[a]] = self.exclusive(a, b)
        return found.to(self.device)

    def exclusive(self, a: str, b: str) -> bool:
        """See :meth:`AnnotationTable.exclusive`."""
        return self.table.exclusive(a, b)

    def _true_tables(self) -> Tables:
        everything = frozenset(self.table.labels)
        full = [case.annotated == everything and not case.outlined_weights for case in self.cases]
        annotated, in_part = self.mask(case.annotated for case in self.cases), self._in_part()
        if self.table.is_regions:
            relations = _stack([self._relations(case, frozenset(self.table.labels)) for case in self.cases])
            return Tables(annotated, full, relations=relations, incomplete=in_part)
        possible = torch.stack([self._possible(case) for case in self.cases])
        left_open = _left_open(possible, annotated)
        if self.codes is None:
            return Tables(annotated, full, possible=possible, open=left_open, incomplete=in_part)
        # A value above the labels is a code: here only what was drawn counts.
        drawn = torch.tensor(self.codes.true_values(np.arange(self.codes.size))).long()
        rows = drawn.clamp_max(self.num_outputs - 1)  # the ignore label is masked before it is looked up
        left_open = None if left_open is None else left_open[:, rows]
        return Tables(annotated, full, possible=possible[:, rows], drawn=drawn, open=left_open, incomplete=in_part)

    def _in_part(self, labels: frozenset[str] | None = None) -> Tensor | None:
        sets = [case.incomplete if labels is None else case.incomplete & labels for case in self.cases]
        return self._mask(sets) if any(sets) else None

    def _pseudo_tables(self, codes: PseudoCodes) -> Tables:
        known = [case.annotated | pseudo for case, pseudo in zip(self.cases, self.accepted, strict=True)]
        annotated, full, in_part = self.mask(known), self.tables.is_full, self.tables.incomplete
        if self.table.is_regions:
            decided, relations = self.mask(self.accepted), self.tables.relations
            return Tables(annotated, full, relations=relations, decided=decided, incomplete=in_part)
        assert self.tables.possible is not None and self.tables.drawn is not None
        possible, drawn = self.tables.possible.clone(), self.tables.drawn.clone()
        within = torch.zeros(self.num_outputs, self.num_outputs, dtype=torch.bool)
        for y, z in codes.pairs:
            within[y, z] = y > 0
        for code, (y, z) in enumerate(codes.pairs, codes.offset):
            drawn[code] = z
            # None of the accepted labels but z; a label that is not accepted may be where it could be if z was drawn.
            possible[:, code] = self.tables.possible[:, y] & ~annotated
            if y != z:
                possible[:, code] &= within[z]
            possible[:, code, 0] = False
            possible[:, code, z] = True
        by_hand = self.tables.drawn
        return Tables(annotated, full, possible=possible, drawn=drawn, by_hand=by_hand, incomplete=in_part)

    def _possible(self, case: Case) -> Tensor:
        """S(v): classes that a voxel may have, given the value drawn there.

        The value of a label that nobody drew in the case (but a model) says as much as 0 does, and less where it may
        hide a drawn label.
        """
        possible = torch.eye(self.num_outputs, dtype=torch.bool)
        for drawn, labels in left_open(self.table, case).items():
            possible[drawn, [self.channel[a] for a in labels]] = True
        for a in set(self.table.labels) - case.drawn:
            hidden = [self.channel[b] for b in self.table.beneath(case, a)]
            possible[self.channel[a]] = possible[[0, *hidden]].any(0)
        return possible

    def _possible_to(self, case: Case, labels: frozenset[str]) -> Tensor:
        """S(v) for a network that segments only some labels: the others are background to it."""
        possible = self._possible(case)
        others = [self.channel[label] for label in set(self.table.labels) - labels]
        unknown = [self.channel[label] for label in labels - case.annotated]
        possible[:, others] = False
        for b in others:
            possible[b] |= possible[0]
            possible[b, unknown] = True
        possible[:, others] = possible[:, :1]
        return possible

    def _heirs(self, case: Case) -> Tensor:
        """The rule by which the files in validation/ are restricted, as a table.

        A label that is drawn in part counts as one that is not drawn, where it was not drawn.
        """
        heirs = torch.eye(self.num_outputs, dtype=torch.bool)
        restriction = restriction_for(self.table, replace(case, incomplete=frozenset()))
        for channel, inheriting in restriction.removed if isinstance(restriction, Restriction) else ():
            heirs[channel] = False
            heirs[channel, list(inheriting)] = True
        return heirs

    def _relations(self, case: Case, labels: frozenset[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Relations of these regions, as far as unknown (rows), to drawn ones of them (columns), from their integers.

        A region that is drawn in part says of no voxel that it is absent there.
        """
        size = len(self.table.labels)
        absent_if_present, absent_if_absent, present_if_present = (torch.zeros(size, size) for _ in range(3))
        for a in labels - case.annotated:
            for b in labels & case.drawn:
                asked, drawn = set(self.table.values[a]), set(self.table.values[b])
                place = self.channel[a], self.channel[b]
                absent_if_present[place] = float(not asked & drawn)
                absent_if_absent[place] = float(asked <= drawn and b in case.annotated)
                present_if_present[place] = float(drawn <= asked)
        return absent_if_present, absent_if_absent, present_if_present


def _left_open(possible: Tensor, annotated: Tensor) -> Tensor | None:
    left_open = possible & annotated[:, None] & ~torch.eye(possible.shape[2], dtype=torch.bool)
    return left_open if left_open.any() else None


def _stack(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> RegionRelations:
    return RegionRelations(*(torch.stack(column) for column in zip(*parts, strict=True)))
