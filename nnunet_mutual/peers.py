"""The networks that learn together: one forward, one backward, one clipped optimiser step each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

CLIP_NORM = 12.0  # nnU-Net's


def unwrap(network: nn.Module) -> nn.Module:
    """Returns the plain network behind DDP and torch.compile, whose state-dict keys stock nnU-Net knows."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


class Peers:
    """Networks of the plans' architecture with an optimiser each; all graphs are alive during a step.

    Args:
        networks: as built, compiled and wrapped by the trainer.
        optimizers: one per network.
        schedulers: one per optimiser, nnU-Net's interface ``step(epoch)``.
        scaler: shared gradient scaler (float16 on CUDA) or None.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: torch.amp.GradScaler | None,
    ):
        self.networks = list(networks)
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)
        self.scaler = scaler

    def __repr__(self) -> str:
        return f"Peers({len(self.networks)} x {type(unwrap(self.networks[0])).__name__})"

    def set_epoch(self, epoch: int) -> None:
        """Puts the networks into training mode and the learning rates to those of an epoch."""
        for network, scheduler in zip(self.networks, self.schedulers, strict=True):
            network.train()
            scheduler.step(epoch)

    def eval(self) -> None:
        """Puts the networks into evaluation mode."""
        for network in self.networks:
            network.eval()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def forward(self, data: Tensor) -> list[Sequence[Tensor]]:
        """Returns, per network, its logits as a list of deep-supervision levels."""
        outputs = (network(data) for network in self.networks)
        return [output if isinstance(output, (list, tuple)) else [output] for output in outputs]

    def backward(self, total: Tensor) -> Tensor:
        """Backpropagates and clips each network's gradients at nnU-Net's norm of 12.

        Returns:
            (P,) gradient norms before clipping.
        """
        if self.scaler is None:
            total.backward()
        else:
            self.scaler.scale(total).backward()
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        return torch.stack([nn.utils.clip_grad_norm_(n.parameters(), CLIP_NORM) for n in self.networks])

    def step(self) -> None:
        """Lets all optimisers step, after all backward passes."""
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Returns all networks, optimisers and the scaler."""
        return {
            "networks": [unwrap(network).state_dict() for network in self.networks],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        for network, weights in zip(self.networks, state["networks"], strict=True):
            unwrap(network).load_state_dict(weights)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
