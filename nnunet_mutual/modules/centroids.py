"""What labelled voxels of each class look like: a few running centroids, of fixed size and on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.losses.numerics import unit


class ClassCentroids:
    """R running centroids of each class on the unit sphere; a vector belongs to the nearest one.

    Args:
        classes: K.
        number: R.
        size: D, of a vector.
        momentum: of the running means.
        device: where they lie.

    Source: the prototypes of arXiv 2502.11456, kept in the space in which voxels are compared [E].
    """

    def __init__(self, classes: int, number: int, size: int, *, momentum: float, device: torch.device):
        self.vectors = torch.zeros(classes, number, size, device=device)
        self.filled = torch.zeros(classes, dtype=torch.bool, device=device)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, vectors: Tensor, usable: Tensor) -> None:
        """Moves the centroids; those of a class begin at its first vectors. Nothing is random: processes stay alike.

        Args:
            vectors: (K, N, D).
            usable: (K, N) bool.
        """
        v, number = unit(vectors.float(), 2), self.vectors.shape[1]
        usable = usable & torch.isfinite(v).all(2)  # a step that overflowed in float16 must not stay in the means
        v = v.masked_fill(~usable[..., None], 0)
        order = usable.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # the usable ones first
        rank = torch.arange(number, device=v.device) % usable.sum(1, keepdim=True).clamp_min(1)
        start = order.gather(1, rank)
        begun = v.gather(1, start[..., None].expand(-1, -1, v.shape[2]))
        before = torch.where(self.filled[:, None, None], self.vectors, begun)
        nearest = (v @ before.transpose(1, 2)).argmax(2)
        members = (nearest[..., None] == torch.arange(number, device=v.device)) & usable[..., None]  # (K, N, R)
        count = members.sum(1)[..., None]
        mean = members.to(v).transpose(1, 2) @ v / count.clamp_min(1)
        moved = unit(self.momentum * before + (1 - self.momentum) * mean, 2)
        seen = usable.any(1)
        self.vectors = torch.where(seen[:, None, None] & (count > 0), moved, before)
        self.filled = self.filled | seen

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors for a checkpoint."""
        return {"vectors": self.vectors.clone(), "filled": self.filled.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.vectors.copy_(state["vectors"])
        self.filled.copy_(state["filled"])
