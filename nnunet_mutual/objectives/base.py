"""The seam between the one training loop and the many methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    Attributes:
        data: (B, M, *spatial) images.
        target: per deep-supervision level, highest resolution first, (B, 1, *spatial) labels or (B, R[+1], *spatial)
            regions.
        keys: case of each sample.
        patterns: annotation pattern of each sample, on the host.
        pattern_index: the same as (B,) tensor on the device.
    """

    data: Tensor
    target: Sequence[Tensor]
    keys: Sequence[str]
    patterns: Sequence[int]
    pattern_index: Tensor


@dataclass(frozen=True)
class Progress:
    """Where the training is, as fractions, so that ramps do not depend on its length."""

    step: int
    total_steps: int

    @property
    def fraction(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / max(1, self.total_steps)


@dataclass(frozen=True)
class Term:
    """A scalar loss and the weight with which it enters the sum."""

    value: Tensor
    weight: float = 1.0


class Objective(ABC):
    """Turns what the networks say about a batch into named, weighted terms.

    An objective owns no loop, no loader, no optimiser step and no checkpoint file. State that must survive a resumed
    training goes through :meth:`state_dict`.
    """

    @property
    @abstractmethod
    def term_names(self) -> tuple[str, ...]:
        """Names of all terms that :meth:`terms` ever returns; each is logged once per epoch."""

    @abstractmethod
    def terms(self, outputs: Sequence[Sequence[Tensor]], batch: Batch, progress: Progress) -> dict[str, Term]:
        """Computes the terms of one step.

        Args:
            outputs: per network, the logits of its deep-supervision levels, highest resolution first,
                (B, C, *spatial) each.
            batch: the batch that they saw.
            progress: where the training is.

        Returns:
            One term per entry of :attr:`term_names`.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins that a resumed training needs; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # optional: most objectives hold no state
        """Restores what :meth:`state_dict` returned."""


def collect_terms(
    objectives: Sequence[Objective], outputs: Sequence[Sequence[Tensor]], batch: Batch, progress: Progress
) -> dict[str, Term]:
    """Returns the terms of all objectives, in the order of their ``term_names``.

    Raises:
        MutualError: an objective returned other terms than it declares, which would be left out of the sum.
    """
    collected = {}
    for objective in objectives:
        terms = objective.terms(outputs, batch, progress)
        if terms.keys() != set(objective.term_names):
            raise MutualError(
                f"{type(objective).__name__} returned the terms {sorted(terms)}, its term_names are "
                f"{sorted(objective.term_names)}; make them the same"
            )
        collected.update({name: terms[name] for name in objective.term_names})
    return collected
