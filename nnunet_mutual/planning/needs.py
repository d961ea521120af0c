"""What a method holds in memory beside one stock network: what its trainer tells a planner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.settings import Settings

Memory = Literal["joint", "sequential"]
LEAST_BATCH = 2  # of nnU-Net's planning


@dataclass(frozen=True)
class Needs:
    """Networks, streams and loss terms of a training. The defaults are those of stock nnU-Net.

    Attributes:
        networks: of the plans' architecture that learn together.
        auxiliary: whether one more learns along, with attention across images.
        averages: moving averages of networks (teachers).
        memory: how the networks share the GPU; means nothing for one.
        labelled: the least number of labelled patches in a batch.
        unlabelled: likewise, of unlabelled ones; 0 without that stream.
        partial: whether cases annotate different labels, which takes another supervised loss than nnU-Net's.
        terms: of the loss, beside supervision; names of :data:`nnunet_mutual.planning.terms.TERMS`.
        features: strides of the decoder features that networks show each other.
        prototypes: whether prototypes learn beside the network.
        held: whether what the networks say of unlabelled patches is held as probabilities, too.
        optimizer_values: what the optimiser keeps per parameter: 1 (momentum) or 2 (AdamW).
    """

    networks: int = 1
    auxiliary: bool = False
    averages: int = 0
    memory: Memory = "sequential"
    labelled: int = 2
    unlabelled: int = 0
    partial: bool = False
    terms: tuple[str, ...] = ()
    features: tuple[int, ...] = ()
    prototypes: bool = False
    held: bool = False
    optimizer_values: int = 1

    @property
    def trained(self) -> int:
        """Number of networks with gradients."""
        return self.networks + self.auxiliary

    @property
    def least_batch(self) -> int:
        """Patches in the smallest batch, labelled and unlabelled."""
        return self.labelled + self.unlabelled

    def split(self, batch: int) -> tuple[int, int]:
        """Returns labelled and unlabelled patches of a batch, half and half as far as the least numbers allow."""
        if not self.unlabelled:
            return batch, 0
        labelled = max(self.labelled, min(-(-batch // 2), batch - self.unlabelled))
        return labelled, batch - labelled

    @property
    def as_stock(self) -> bool:
        """Whether one network learns alone, so that nnU-Net's own planning is right."""
        return self.trained == 1 and not self.averages and not self.prototypes and self.least_batch <= LEAST_BATCH

    def describe(self) -> str:
        """Says in words what is held."""
        number = self.trained
        parts = ["1 network" if number == 1 else f"{number} networks"]
        if self.auxiliary:
            parts[0] += " (one with attention)"
        if number > 1:
            parts.append("all graphs at once" if self.memory == "joint" else "one graph at a time")
        if self.averages:
            parts.append("a moving average" if self.averages == 1 else f"{self.averages} moving averages")
        if self.prototypes:
            parts.append("prototypes")
        if self.unlabelled:
            parts.append(f"at least {self.labelled} labelled and {self.unlabelled} unlabelled patch(es) in a batch")
        return ", ".join(parts)


def one_network(settings: Settings, table: AnnotationTable, cases: Iterable[str]) -> Needs:
    """Returns the needs of one network, and of its moving average if the settings ask for one.

    Args:
        settings: of a trainer.
        table: the annotation table.
        cases: of the training.
    """
    everything = frozenset(table.labels)
    return Needs(
        averages=int(getattr(settings, "ema", 0) > 0),
        partial=any(case.drawn and case.annotated != everything for case in map(table.case, cases)),
        optimizer_values=2 if settings.optimizer == "adamw" else 1,
    )
