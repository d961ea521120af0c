"""How the samples or the networks of a training are divided among processes, and what these tell each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from nnunet_mutual.objectives.base import Objective, Output

T = TypeVar("T")


class Ranks:
    """The one process of an ordinary training: it runs all networks and has nobody to tell anything.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank = 0
    size = 1

    # Objects on the host

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes."""
        return [value]

    def first(self, value: T) -> T:
        """Returns the value of the first process."""
        return value

    def barrier(self) -> None:
        """Waits for all processes."""

    def share(self, keys: Sequence[T]) -> Sequence[T]:
        """Returns the cases that this process predicts when processes share the work."""
        return keys[self.rank :: self.size]

    # Weights and gradients

    def equalise(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have in the first process, in place."""

    def combine(self, gradients: Sequence[Tensor]) -> None:
        """Makes the gradients of modules that all processes train, in place, those of the loss of all processes."""

    # Networks, where they are divided among processes

    def runs(self, network: int) -> bool:
        """Whether a network is trained in this process."""
        return True

    def randomness(self, network: int, drawing: Sequence[bool]) -> AbstractContextManager:
        """Context of a network's forward pass that says which random numbers it draws.

        Args:
            network: its number.
            drawing: which networks draw any.
        """
        return nullcontext()

    def exchange(self, own: Mapping[int, Output], levels: frozenset[int] | None) -> list[Output]:
        """Returns the recorded outputs of all networks from those that ran here.

        Args:
            own: by network.
            levels: of the logits that networks learn from each other; None for all.
        """
        return list(own.values())

    def answer(self, network: int, ask: Callable[[], Tensor]) -> Tensor:
        """Returns what a network that may run elsewhere says, without a graph."""
        return ask()

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over processes of values that are zero where another process computes them."""
        return values

    def from_owners(self, values: Sequence[T]) -> list[T]:
        """Returns a value of each network, each from the process that trains it; further values are this process's."""
        return list(values)

    def collect(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Gives the tensors of each network the values that they have where it is trained, in place."""

    def remind(self, objectives: Sequence[Objective]) -> None:
        """Gives objectives the state that they have in the first process."""

    # Batches and the log

    @property
    def loads(self) -> bool:
        """Whether this process loads batches."""
        return True

    def batch(self, draw: Callable[[], dict], device: torch.device) -> dict:
        """Returns the next batch of this process."""
        return draw()

    def report(self) -> str | None:
        """Returns a sentence for the log about the epoch that ends, if there is anything to say."""
        return None


class DataParallelRanks(Ranks):
    """The processes of nnU-Net's distributed training (DDP): each has all networks and samples of its own."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def gather(self, value: T) -> list[T]:
        """See :meth:`Ranks.gather`."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """See :meth:`Ranks.first`."""
        found = [value]
        distributed.broadcast_object_list(found)
        return found[0]

    def barrier(self) -> None:
        """See :meth:`Ranks.barrier`."""
        distributed.barrier()

    def equalise(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.equalise`."""
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)

    def combine(self, gradients: Sequence[Tensor]) -> None:
        """The mean, as DDP makes it of the networks' gradients: each loss is a mean over the samples of a process."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        scatter(flat / self.size, gradients)


def scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copies one vector into tensors, one after the other."""
    for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(part.view_as(tensor))


def ranks_of_process(is_ddp: bool) -> Ranks:
    """Returns the ranks of nnU-Net's own ways to train."""
    return DataParallelRanks() if is_ddp else Ranks()
