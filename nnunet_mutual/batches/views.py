"""Stronger views of unlabelled images, made on the device without waiting for it.

All random numbers are drawn on the host, so that no transform asks the device which of its branches to take (nnU-Net's
own transforms do, which costs nothing in its loader but would stop a GPU at every step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, Exchange, Paste, mixed
from nnunet_mutual.batches.poses import draw_poses, posed
from nnunet_mutual.settings import Partners

PROBABILITY = 0.5  # of each transform
BOX_SHARE = (0.05, 0.4)  # of the voxels of a patch


def strengthen(batch: Batch, *, intensity: bool, partners: Partners, pose: bool = False, views: int = 1) -> Batch:
    """Replaces the unlabelled images of a batch by stronger views: other intensities, boxes of other samples, a pose.

    Args:
        batch: of two streams.
        intensity: whether to change brightness, contrast, gamma, noise and resolution.
        partners: the samples from which boxes may come. From unlabelled ones this is CutMix (Yun et al., ICCV 2019) in
            3D; from labelled ones the copy-paste of Bai et al., CVPR 2023, in the direction of unlabelled images, or
            ("every") in both.
        pose: whether to turn and scale what then is seen.
        views: how many networks see intensities of their own, and the same boxes and poses.

    Returns:
        The batch with ``views.weak``, ``views.pasted``, ``views.pose`` and, of several views, ``views.further``.
    """
    assert batch.views is not None
    number = batch.views.unlabelled
    weak, labelled = batch.data[:number], batch.data[number:]
    strong = [torch.stack([change_intensity(x) for x in weak]) if intensity else weak for _ in range(views)]
    pasted = draw_boxes(number, len(batch.data), batch.data.shape[2:], partners)
    seen = [_pasted(torch.cat([images, labelled]), pasted) for images in strong]
    drawn = None
    if pose:
        drawn = draw_poses(number, batch.data.shape[2:]).to(weak.device, non_blocking=True)
        seen = [torch.cat([posed(images[:number], drawn), labelled]) for images in seen]
    known = replace(batch.views, weak=weak, further=seen[1:], pasted=pasted, pose=drawn)
    return replace(batch, data=seen[0], views=known)


def _pasted(data: Tensor, pasted: Sequence[Paste]) -> Tensor:
    before = data.clone() if pasted else data
    for paste in pasted:
        paste.put(paste.taken(before), data)
    return data


def exchanged(batch: Batch, *, intensity: bool, boxes: bool, views: int = 1) -> Batch:
    """Replaces the images of a batch by stronger views: other intensities, and a box of another sample in each.

    A box comes with what is known of it, so that a network that sees where a voxel comes from learns nothing about what
    was drawn there.

    Args:
        batch: of labelled samples.
        intensity: as in :func:`strengthen`.
        boxes: whether samples exchange boxes.
        views: as in :func:`strengthen`.

    Source: CutMix (Yun et al., ICCV 2019) across sources, as LTUDA does for partial labels; in 3D and with tri-state
        supervision of each voxel [E].
    """
    weak, origins = batch.data, None
    if boxes and len(weak) > 1:
        origin = _origins(len(weak), weak.shape[2:]).to(weak.device, non_blocking=True)
        origins = [_nearest(origin, level.shape[2:]) for level in batch.target]
    strong = [torch.stack([change_intensity(x) for x in weak]) if intensity else weak for _ in range(views)]
    seen = strong if origins is None else [mixed(images, origins[0]) for images in strong]
    return replace(batch, data=seen[0], exchange=Exchange(weak, origins, seen[1:]))


def _origins(samples: int, size: Sequence[int]) -> Tensor:
    """Draws for each sample a box and another sample from which it comes, (samples, 1, *size) on the host."""
    origin = torch.arange(samples).view(-1, 1, *[1] * len(size)).expand(-1, 1, *size).clone()
    for sample in range(samples):
        others = [other for other in range(samples) if other != sample]
        place: tuple[Any, ...] = (sample, 0, *_box(size))
        origin[place] = int(np.random.choice(others))
    return origin


def _nearest(origin: Tensor, size: Sequence[int]) -> Tensor:
    """Of a lower resolution, as nnU-Net downsamples labels for deep supervision."""
    return F.interpolate(origin.float(), size=size, mode="nearest-exact").long()


def draw_boxes(unlabelled: int, samples: int, size: Sequence[int], partners: Partners) -> list[Paste]:
    """Draws, for about half of the unlabelled samples or for every one, a box and the sample from which it comes.

    Args:
        unlabelled: number of unlabelled samples, the first ones.
        samples: of the batch.
        size: of a patch.
        partners: see :func:`strengthen`.
    """
    if partners == "every":
        return [_box_for(sample, unlabelled, samples, size) for sample in range(unlabelled)]
    allowed = {
        "any": range(samples),
        "unlabelled": range(unlabelled),
        "labelled": range(unlabelled, samples),
        "off": range(0),
    }[partners]
    found = []
    for sample in range(unlabelled):
        others = [other for other in allowed if other != sample]
        if others and np.random.uniform() < PROBABILITY:
            found.append(Paste(sample, int(np.random.choice(others)), _box(size)))
    return found


def _box_for(sample: int, unlabelled: int, samples: int, size: Sequence[int]) -> Paste:
    """Half of the partners are labelled; of these, half give a box and half take one, as what is left around it."""
    others = [other for other in range(unlabelled) if other != sample]
    labelled = not others or np.random.uniform() < 0.5
    origin = int(np.random.choice(range(unlabelled, samples) if labelled else others))
    return Paste(sample, origin, _box(size), around=labelled and bool(np.random.uniform() < 0.5))


def _box(size: Sequence[int]) -> tuple[slice, ...]:
    """A box of random proportions somewhere in a patch; axes of one voxel are taken whole."""
    axes = [n for n in size if n > 1]
    logs = np.random.uniform(0.5, 1.5, len(axes))
    exponents = iter(logs / logs.sum() * np.log(np.random.uniform(*BOX_SHARE)))
    slices = []
    for n in size:
        length = max(1, round(n * float(np.exp(next(exponents))))) if n > 1 else 1
        start = int(np.random.randint(0, n - length + 1))
        slices.append(slice(start, start + length))
    return tuple(slices)


def change_intensity(image: Tensor) -> Tensor:
    """Returns an image of other contrast, brightness, gamma, noise and resolution; about half of them change.

    Args:
        image: (M, *spatial), normalised as by nnU-Net: of about unit variance.
    """
    x = image
    for transform in (_contrast, _brightness, _gamma, _blur, _noise):
        if np.random.uniform() < PROBABILITY:
            x = transform(x)
    return x


def _each_channel(x: Tensor, low: float, high: float) -> list[float]:
    return [float(np.random.uniform(low, high)) for _ in x]


def _contrast(x: Tensor) -> Tensor:
    return torch.stack([(c - c.mean()) * f + c.mean() for c, f in zip(x, _each_channel(x, 0.6, 1.5), strict=True)])


def _brightness(x: Tensor) -> Tensor:
    return torch.stack([c + f for c, f in zip(x, _each_channel(x, -0.5, 0.5), strict=True)])


def _gamma(x: Tensor) -> Tensor:
    """Bends the grey scale between minimum and maximum, mean and spread kept."""
    changed = []
    for channel, log_gamma in zip(x, _each_channel(x, -0.7, 0.7), strict=True):
        low, high = torch.aminmax(channel)
        width = (high - low).clamp_min(1e-7)
        bent = ((channel - low) / width) ** float(np.exp(log_gamma)) * width
        spread = channel.std().clamp_min(1e-7) / bent.std().clamp_min(1e-7)
        changed.append((bent - bent.mean()) * spread + channel.mean())
    return torch.stack(changed)


def _blur(x: Tensor) -> Tensor:
    """Lower resolution and back."""
    factor = float(np.random.uniform(0.4, 0.9))
    size = [max(1, round(n * factor)) for n in x.shape[1:]]
    mode = "trilinear" if x.ndim == 4 else "bilinear"
    small = F.interpolate(x[None], size=size, mode="area")
    return F.interpolate(small, size=x.shape[1:], mode=mode)[0]


def _noise(x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * float(np.random.uniform(0, 0.3))
