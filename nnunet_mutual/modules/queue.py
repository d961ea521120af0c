"""A queue of maps that networks agreed on, as opposites for small batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MapQueue:
    """The last maps of each class, on the device.

    Args:
        classes: K.
        length: Q, maps that are kept.
        voxels: V, of a map.
        device: where it lies; 32 maps of 4 classes with 32³ voxels take 8 MiB.

    Source: [E], after the queue of MoCo (He et al., CVPR 2020).
    """

    def __init__(self, classes: int, length: int, voxels: int, device: torch.device):
        self.maps = torch.zeros(classes, length, voxels, dtype=torch.float16, device=device)
        self.filled = torch.zeros(classes, length, dtype=torch.bool, device=device)
        self._next = 0

    def put(self, maps: Tensor, usable: Tensor) -> None:
        """Replaces the oldest maps.

        Args:
            maps: (N, K, V) probabilities.
            usable: (N, K) bool; of the others, the place stays empty.
        """
        length = self.maps.shape[1]
        for entry, use in zip(maps[-length:], usable[-length:], strict=True):
            self.maps[:, self._next] = entry.to(self.maps).masked_fill(~use[:, None], 0)  # 0 * NaN would be a gradient
            self.filled[:, self._next] = use
            self._next = (self._next + 1) % length

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins for a checkpoint."""
        return {"maps": self.maps.clone(), "filled": self.filled.clone(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.maps.copy_(state["maps"])
        self.filled.copy_(state["filled"])
        self._next = state["next"]
