"""Poses of patches: how students see them turned and scaled, drawn on the host and sampled on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor

ANGLE = math.radians(30)  # at most, around each axis; nnU-Net's own for patches of about equal sides
SCALE = (0.7, 1.4)  # nnU-Net's own


def draw_poses(samples: int, size: Sequence[int]) -> Tensor:
    """Draws a rotation around each axis and one scale for each sample.

    Args:
        samples: number of them.
        size: of a patch, whose voxels are taken for cubes; where its first axis is short, as nnU-Net judges that, it
            is turned and scaled in the plane of the others only.

    Returns:
        (samples, *size, axes) where each voxel comes from, as in :func:`torch.nn.functional.grid_sample`.
    """
    axes, sides = len(size), np.array(size[::-1], dtype=float)  # grid_sample counts from the last axis
    moved = range(axes - 1 if axes == 3 and max(size) / size[0] > ANISO_THRESHOLD else axes)
    poses = []
    for _ in range(samples):
        turned = np.eye(axes)
        for first, second in ((a, b) for a in moved for b in moved if a < b):
            turned = turned @ _rotation(axes, first, second, np.random.uniform(-ANGLE, ANGLE))
        turned[:, moved] *= math.exp(np.random.uniform(*np.log(SCALE)))
        in_shares = turned * sides[None] / sides[:, None]  # grid_sample counts from -1 to 1 on every axis
        poses.append(np.concatenate([in_shares, np.zeros((axes, 1))], 1))
    return F.affine_grid(torch.tensor(np.stack(poses)).float(), [samples, 1, *size], align_corners=False)


def _rotation(axes: int, first: int, second: int, angle: float) -> Any:
    turned = np.eye(axes)
    turned[[first, second], [first, second]] = math.cos(angle)
    turned[first, second], turned[second, first] = -math.sin(angle), math.sin(angle)
    return turned


def posed(values: Tensor, poses: Tensor) -> Tensor:
    """Returns images or probabilities (B, C, *spatial) in other poses; what lies outside is as at the border."""
    return F.grid_sample(values, poses, padding_mode="border", align_corners=False)


def posed_counts(counts: Tensor, poses: Tensor) -> Tensor:
    """Returns how much voxels count, (B, C, *spatial), in other poses; nothing where they come from outside."""
    return F.grid_sample(counts.float(), poses, align_corners=False)
