"""A moving average of a network's weights: steadier than the network itself, at the cost of one more copy of them."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

TURN = 10  # steps, of the mean length of an average's turn


class MovingAverage:
    r"""A copy of a plain network that follows it: :math:`\bar\theta \leftarrow d \bar\theta + (1 - d) \theta`.

    The copy is in evaluation mode, outside of DDP and torch.compile, and never gets a gradient. Early on the average is
    over few steps: :math:`d = \min(\text{decay}, (1 + t) / (10 + t))`.

    Args:
        network: plain, as nnU-Net builds it.
        decay: d in the long run, below 1.

    Source: Tarvainen & Valpola, NeurIPS 2017.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after an optimiser step; buffers that are no floating numbers are copied."""
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine, theirs = (_by_kind(module) for module in (self.network, network))
        torch._foreach_lerp_(mine[0], theirs[0], weight)
        for own, other in zip(mine[1], theirs[1], strict=True):
            own.copy_(other)
        self.steps += 1

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Begins anew at the weights of a network."""
        self.network.load_state_dict(network.state_dict())
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins for a checkpoint."""
        return {"weights": self.network.state_dict(), "steps": self.steps, "decay": self.decay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.network.load_state_dict(state["weights"])
        self.steps = state["steps"]
        self.decay = state.get("decay", self.decay)  # version 0.1.0 did not save it


def decay_of(age: float, updates: float) -> float:
    """Returns the decay of a moving average.

    Args:
        age: mean age of the averaged weights, as a share of all updates; d / (1 - d) updates in the long run.
        updates: of the average in the training.
    """
    mean = age * updates
    return mean / (1 + mean)


def whose_turn(step: int) -> int:
    """Returns which of two averages of one network follows it in a step: they take turns for random lengths.

    Known from the step alone, so that a resumed training and all processes agree.

    Source: AD-MT of Zhao et al., ECCV 2024, arXiv 2311.17325, which draws the lengths as the training goes on.
    """
    period, place = divmod(step, 2 * TURN)
    return int(place >= random.Random(period).randint(TURN // 2, TURN + TURN // 2))


def _by_kind(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what is averaged, and what is copied."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor in [*network.parameters(), *network.buffers()]:
        found[not tensor.is_floating_point()].append(tensor.detach())
    return found
