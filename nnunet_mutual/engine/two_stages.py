"""How a training proceeds that makes pseudo labels between two stages: with which networks, and how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nnunet_mutual.annotation.label_groups import LabelGroup, choose_label_groups, describe_label_groups
from nnunet_mutual.annotation.table import AnnotationTable


@dataclass(frozen=True)
class TwoStages:
    """Groups and epochs of both stages.

    Attributes:
        epochs: of both stages.
        first_epochs: of stage 1; 0 where it is left out, since there is nothing to label.
        groups: of cases that annotate the same labels, whether they have networks of their own or not.
        first: groups of which each has a network in stage 1; none for a single network.
        second: likewise in stage 2.
        asked: whether either was to have a network per group.
        given: whether pseudo labels of other tools take the place of stage 1.
    """

    epochs: int
    first_epochs: int
    groups: Sequence[LabelGroup]
    first: Sequence[LabelGroup]
    second: Sequence[LabelGroup]
    asked: bool
    given: bool = False

    @classmethod
    def of(
        cls,
        table: AnnotationTable,
        cases: Iterable[str],
        *,
        epochs: int,
        share: float,
        grouped: tuple[bool, bool],
        given: bool = False,
    ) -> TwoStages:
        """Plans the stages of a training.

        Args:
            table: who drew what.
            cases: training cases.
            epochs: of one network; a stage of P networks has its share of them divided by P.
            share: of the network updates for stage 1.
            grouped: whether each stage shall have a network per group.
            given: whether pseudo labels of other tools take the place of stage 1.
        """
        cases = list(cases)
        groups = choose_label_groups(table, cases)
        first, second = (groups if asked and len(groups) > 1 else [] for asked in grouped)
        complete = all(table.case(key).annotated == frozenset(table.labels) for key in cases)
        first_epochs = 0 if complete or given else max(1, round(share * epochs / max(1, len(first))))
        rest = (1 - share) * epochs if first_epochs else epochs
        epochs = first_epochs + max(1, round(rest / max(1, len(second))))
        return cls(epochs, first_epochs, groups, first, second, any(grouped), given and not complete)

    def groups_of(self, stage: int) -> Sequence[LabelGroup]:
        """Returns the groups of which each has a network in a stage, 1 or 2; none for a single network."""
        return self.first if stage == 1 else self.second

    def span(self, stage: int) -> tuple[int, int]:
        """Returns the first epoch of a stage, 1 or 2, and the one after its last."""
        return (0, self.first_epochs) if stage == 1 else (self.first_epochs, self.epochs)

    @property
    def most_networks(self) -> int:
        """Of either stage."""
        return max(1, len(self.first), len(self.second))

    def describe(self, table: AnnotationTable, cases: Iterable[str], iterations: int) -> str:
        """Says in words what is trained, and how long, in epochs of so many iterations."""
        if not self.first_epochs and not self.given:
            return "Every case annotates every label: there is nothing to be mutual about; trained as by PartialTrainer"
        said = "One network for all labels in both stages, with a round of pseudo labels between them"
        if self.first or self.second:
            said = describe_label_groups(table, cases, self.groups)
        elif self.asked:
            said = f"One annotated set covers all labels, so there are no groups. {said}"
        first, second = max(1, len(self.first)), max(1, len(self.second))
        if self.given:
            return (
                f"Begins with pseudo labels of other tools instead of stage 1: {self.epochs} epochs of {second} "
                f"network(s); {self.epochs * second * iterations} network updates in all"
            )
        later = self.epochs - self.first_epochs
        updates = (self.first_epochs * first + later * second) * iterations
        return (
            f"{said}\nStage 1: {self.first_epochs} epochs of {first} network(s); stage 2: {later} epochs of {second}; "
            f"{updates} network updates in all"
        )
