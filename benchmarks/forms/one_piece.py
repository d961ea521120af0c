"""The teacher's labels keep their largest piece in each patch; what it found elsewhere is taught as background."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer, TaughtPartialTrainer

GROWN = 1.5  # times the longest side of a patch: steps from voxel to voxel after which pieces are known


def largest_pieces(mask: Tensor) -> Tensor:
    """Returns the largest piece of each mask, without waiting for the device.

    Each voxel takes the highest number of its neighbours in the mask, again and again, until a piece has one number.

    Args:
        mask: (B, K, *spatial) bool.

    Returns:
        (B, K, *spatial) bool; voxels that touch, also at a corner, are one piece.
    """
    pool = F.max_pool2d if mask.ndim == 4 else F.max_pool3d
    size, voxels = mask.shape[2:], mask[0, 0].numel()
    inside = mask.float()
    numbers = torch.arange(1, voxels + 1, device=mask.device, dtype=torch.float32).view(size) * inside
    for _ in range(int(GROWN * max(size))):
        numbers = pool(numbers, 3, stride=1, padding=1) * inside
    flat = numbers.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], voxels + 1, device=mask.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.float32))
    counts[..., 0] = 0
    return mask & (flat == counts.argmax(2, keepdim=True)).view(mask.shape)


def in_one_piece(said: Tensor) -> Tensor:
    """Moves the probability of labels away from their largest pieces to the background, where they are the likeliest.

    Args:
        said: (B, C, *spatial) probabilities, background first.
    """
    pool = F.max_pool2d if said.ndim == 4 else F.max_pool3d
    decided = F.one_hot(said.argmax(1), said.shape[1]).movedim(-1, 1)[:, 1:].bool()
    pieces = largest_pieces(pool(decided.float(), 2, ceil_mode=True) > 0)  # half of the resolution, less time
    kept = F.interpolate(pieces.float(), size=said.shape[2:], mode="nearest") > 0
    moved = said[:, 1:] * (decided & ~kept)
    return torch.cat([said[:, :1] + moved.sum(1, keepdim=True), said[:, 1:] - moved], 1)


class OnePieceTeaching(Teaching):
    """Lessons of labels in one piece each.

    Source: [E], on the device, of the largest components of Bai et al., CVPR 2023 (arXiv 2305.00673).
    """

    def common(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        """See :meth:`Teaching.common`."""
        return super().common([in_one_piece(torch.stack([*said]).mean(0))], batch)


class OnePieceTrainer(MeanTeacherTrainer):
    """The mean teacher, of labels in one piece each."""

    teaching = OnePieceTeaching


class OnePieceCorrelationTrainer(MutualCorrelationTrainer):
    """Two networks and their averages, of labels in one piece each."""

    teaching = OnePieceTeaching


class OnePieceTaughtTrainer(TaughtPartialTrainer):
    """Learns what cases do not draw from averages, of labels in one piece each; not of regions."""

    def _ask(self, teacher: int, images: Tensor) -> Tensor:
        said = in_one_piece(super()._ask(teacher, images).softmax(1))
        return said.clamp_min(torch.finfo(said.dtype).tiny).log()
