"""A memory of what labelled voxels look like to the networks, of fixed size and on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FeatureBank:
    """Embeddings of voxels of each class in each labelled case.

    Args:
        classes: K.
        cases: number of labelled cases.
        slots: embeddings per class and case.
        size: D, of an embedding.
        device: where the bank lies; 16 cases of 2 classes with 64 embeddings of 32 numbers take 128 KiB.

    Source: the bank of arXiv 2307.06312, which keeps every voxel; of a fixed size [E].
    """

    def __init__(self, classes: int, cases: int, slots: int, size: int, device: torch.device):
        self.vectors = torch.zeros(classes, cases, slots, size, dtype=torch.float16, device=device)
        self.filled = torch.zeros(classes, cases, slots, dtype=torch.bool, device=device)

    def put(self, cases: Tensor, vectors: Tensor, usable: Tensor) -> None:
        """Replaces embeddings of some cases.

        Args:
            cases: (N,) long, which ones; of equal ones the last counts.
            vectors: (N, K, slots, D).
            usable: (N, K, slots) bool; the others are left as they were.
        """
        for n in range(len(cases)):
            case = cases[n : n + 1]
            fresh = torch.where(usable[n, ..., None], vectors[n].to(self.vectors), self.vectors[:, case][:, 0])
            self.vectors[:, case] = fresh[:, None]
            self.filled[:, case] = (self.filled[:, case][:, 0] | usable[n])[:, None]

    def draw(self, per_class: int) -> tuple[Tensor, Tensor]:
        """Draws embeddings at random among the filled ones, with repetition.

        Returns:
            (K * per_class, D) float32, class by class, and which of them are filled, (K * per_class,) bool: a class
            of which nothing is known yet gives none.
        """
        filled, vectors = self.filled.flatten(1), self.vectors.flatten(1, 2)
        chosen = torch.multinomial(filled.float() + 1e-12, per_class, replacement=True)
        drawn = vectors.gather(1, chosen[..., None].expand(-1, -1, vectors.shape[2]))
        return drawn.flatten(0, 1).float(), filled.gather(1, chosen).flatten()

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors for a checkpoint."""
        return {"vectors": self.vectors.clone(), "filled": self.filled.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.vectors.copy_(state["vectors"])
        self.filled.copy_(state["filled"])
