"""What an annotation says about a voxel, as look-up tables for the losses.

Cases with the same annotated set and the same ``contains`` share one *pattern*; a batch is described by one pattern
index per sample, and everything else is a look-up on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nnunet_mutual.annotation import AnnotationTable, Case
from nnunet_mutual.losses.partial import RegionRelations
from nnunet_mutual.restriction import restriction_for


class Knowledge:
    """Patterns of a set of cases.

    Attributes:
        annotated: (patterns, C) bool, C = outputs of the network; of plain labels, class 0 (background) is False.
        possible: (patterns, C, C) bool for plain labels, S(v) of methods/partial: row = drawn value, column = class.
        heirs: (patterns, C, C) bool for plain labels: row = predicted class, column = classes that such a voxel
            may count as when the prediction is scored.
        relations: (patterns, R, R) for regions.
    """

    def __init__(self, table: AnnotationTable, keys: Iterable[str], num_outputs: int):
        self.table = table
        self.channel = (
            {label: i for i, label in enumerate(table.labels)}
            if table.is_regions
            else {label: table.values[label][0] for label in table.labels}
        )
        self._pattern_of: dict[str, int] = {}
        members: dict[tuple, int] = {}
        examples: list[Case] = []
        for key in keys:
            case = table.case(key)
            contained = table.contained(case)
            identity = (
                case.annotated,
                tuple(sorted((outer, tuple(sorted(inner))) for outer, inner in contained.items())),
            )
            if identity not in members:
                members[identity] = len(examples)
                examples.append(case)
            self._pattern_of[key] = members[identity]
        self.is_full = [case.annotated == frozenset(table.labels) for case in examples]
        self.annotated = torch.zeros(len(examples), num_outputs, dtype=torch.bool)
        for i, case in enumerate(examples):
            self.annotated[i, [self.channel[label] for label in case.annotated]] = True
        self.possible: Tensor | None = None
        self.heirs: Tensor | None = None
        self.relations: RegionRelations | None = None
        if table.is_regions:
            self.relations = _stack([self._relations(case) for case in examples])
        else:
            self.possible = torch.stack([self._possible(case, num_outputs) for case in examples])
            self.heirs = torch.stack([self._heirs(case, num_outputs) for case in examples])

    def to(self, device: torch.device) -> Knowledge:
        """Moves the look-up tables to the device of the loss, in place."""
        self.annotated = self.annotated.to(device)
        if self.possible is not None:
            self.possible = self.possible.to(device)
        if self.heirs is not None:
            self.heirs = self.heirs.to(device)
        if self.relations is not None:
            self.relations = self.relations.to(device)
        return self

    def patterns(self, keys: Sequence[str]) -> list[int]:
        """Returns the pattern of each case of a batch."""
        return [self._pattern_of[str(key)] for key in keys]

    def scoring(self, pattern: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns ``annotated`` and ``heirs`` of each case of a batch."""
        return self.annotated[pattern], None if self.heirs is None else self.heirs[pattern]

    def _possible(self, case: Case, num_outputs: int) -> Tensor:
        """S(v): classes that a voxel may have, given the value drawn there."""
        contained = self.table.contained(case)
        unannotated = set(self.table.labels) - case.annotated
        excluded = {inner for outer in case.annotated for inner in contained.get(outer, ())}
        possible = torch.eye(num_outputs, dtype=torch.bool)
        possible[0, [self.channel[a] for a in unannotated - excluded]] = True
        for b in case.annotated:
            partners = (contained.get(b, frozenset()) | self.table.overlap_partners(b)) & unannotated
            possible[self.channel[b], [self.channel[a] for a in partners]] = True
        return possible

    def _heirs(self, case: Case, num_outputs: int) -> Tensor:
        """The rule by which the files in validation/ are restricted, as a table."""
        heirs = torch.eye(num_outputs, dtype=torch.bool)
        restriction = restriction_for(self.table, case.key)
        for channel, inheriting in restriction.removed if restriction is not None else ():
            heirs[channel] = False
            heirs[channel, list(inheriting)] = True
        return heirs

    def _relations(self, case: Case) -> tuple[Tensor, Tensor, Tensor]:
        """Relations of unannotated regions (rows) to annotated ones (columns), from the integers of the regions."""
        size = len(self.table.labels)
        absent_if_present, absent_if_absent, present_if_present = (torch.zeros(size, size) for _ in range(3))
        for a in set(self.table.labels) - case.annotated:
            for b in case.annotated:
                asked, drawn = set(self.table.values[a]), set(self.table.values[b])
                place = self.channel[a], self.channel[b]
                absent_if_present[place] = float(not asked & drawn)
                absent_if_absent[place] = float(asked <= drawn)
                present_if_present[place] = float(drawn <= asked)
        return absent_if_present, absent_if_absent, present_if_present


def _stack(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> RegionRelations:
    return RegionRelations(*(torch.stack(column) for column in zip(*parts, strict=True)))
