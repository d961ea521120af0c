"""The seam between the one training loop and the many methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast

from torch import Tensor, nn

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class Output:
    """What one network says about a batch.

    Attributes:
        levels: logits (B, C, *spatial) per deep-supervision level, highest resolution first.
        features: (B, F, *spatial) of decoder stages, by the stride for which objectives asked.
    """

    levels: Sequence[Tensor]
    features: Mapping[int, Tensor] = field(default_factory=dict)

    def detach(self) -> Output:
        """Returns the same values without their graph."""
        features = {stride: values.detach() for stride, values in self.features.items()}
        return Output([level.detach() for level in self.levels], features)


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


@dataclass(frozen=True)
class Step:
    """What the terms of all networks share in one step; a method adds fields of its own in a subclass.

    Attributes:
        batch: what the networks saw.
        progress: where the training is.
    """

    batch: Batch
    progress: Progress


S = TypeVar("S", bound=Step)
Said: TypeAlias = Mapping["Objective[Any]", Any]


class Objective(ABC, Generic[S]):
    """Turns what the networks say about a batch into named, weighted terms, network by network.

    An objective owns no loop, no loader, no optimiser step and no checkpoint file. Nothing of one step stays in it:
    what :meth:`ask` and :meth:`prepare` return is handed on. What must survive a resumed training (banks, running
    means) goes through :meth:`state_dict`.

    Attributes:
        feature_strides: of the decoder features that the networks shall return, too: the finest stage at each stride
            or, where an axis skips it, the next finer one.
        heads: modules that are trained with the networks and never deployed.
        partner_levels: of the logits of other networks that are read, 0 being the highest resolution; None for any.
            Where networks run in processes of their own, the rest is not sent.
    """

    feature_strides: Sequence[int] = ()
    heads: nn.Module | None = None
    partner_levels: Sequence[int] | None = None

    @property
    @abstractmethod
    def term_names(self) -> tuple[str, ...]:
        """Names of all terms that :meth:`terms` ever returns; each is logged once per epoch."""

    def ask(self, batch: Batch, progress: Progress) -> Any:
        """Asks teachers, once per step and before a network has a graph, which would lie in memory meanwhile.

        Args:
            batch: the batch that the networks are going to see.
            progress: where the training is.

        Returns:
            What they said, for :meth:`prepare`; None, as most objectives have no teacher.
        """
        return None

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> S:
        """Does once per step what the terms of all networks share: random draws, masks, choices of teachers.

        Args:
            outputs: of all networks, detached.
            batch: the batch that they saw.
            progress: where the training is.
            said: what :meth:`ask` of every objective of this step returned.

        Returns:
            What :meth:`terms` and :meth:`update` of this step get.
        """
        return cast(S, Step(batch, progress))

    @abstractmethod
    def terms(self, peer: int, outputs: Sequence[Output], step: S) -> dict[str, Term]:
        """Computes the terms of one network in one step.

        Args:
            peer: whose terms; only ``outputs[peer]`` has a graph, the others are what this network learns from.
            outputs: of all networks.
            step: what :meth:`prepare` returned.

        Returns:
            One term per entry of :attr:`term_names`.
        """

    def update(self, outputs: Sequence[Output], step: S) -> None:  # noqa: B027
        """Updates banks and running means, once per step and without gradients.

        What is kept for later steps must be a copy: the next outputs may be written to the same memory.

        Args:
            outputs: of all networks, detached.
            step: what :meth:`prepare` returned.
        """

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Returns named numbers about the epoch that ends, and warnings, for the log."""
        return {}, []

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins that a resumed training needs; heads are saved by the loop."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # optional: most objectives hold no state
        """Restores what :meth:`state_dict` returned."""


def ask_all(objectives: Sequence[Objective], batch: Batch, progress: Progress) -> Said:
    """Returns what the teachers of all objectives say."""
    return {objective: objective.ask(batch, progress) for objective in objectives}


def collect_terms(
    objectives: Sequence[Objective], peer: int, outputs: Sequence[Output], steps: Sequence[Step]
) -> dict[str, Term]:
    """Returns one network's terms of all objectives, in the order of their ``term_names``.

    Args:
        objectives: all of this stage.
        peer: whose terms.
        outputs: of all networks.
        steps: what each objective prepared.

    Raises:
        MutualError: an objective returned other terms than it declares, which would be left out of the sum.
    """
    collected = {}
    for objective, step in zip(objectives, steps, strict=True):
        terms = objective.terms(peer, outputs, step)
        if terms.keys() != set(objective.term_names):
            raise MutualError(
                f"{type(objective).__name__} returned the terms {sorted(terms)}, its term_names are "
                f"{sorted(objective.term_names)}; make them the same"
            )
        collected.update({name: terms[name] for name in objective.term_names})
    return collected
