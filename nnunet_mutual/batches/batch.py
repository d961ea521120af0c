"""What a training step gets: a batch on the device, and how networks see its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nnunet_mutual.batches.poses import posed_counts

Patterns: TypeAlias = Callable[[Sequence[str]], list[int]]  # of cases: which annotation pattern each has


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    Attributes:
        data: (B, M, *spatial) images.
        target: per deep-supervision level, highest resolution first, (B, 1, *spatial) labels or (B, R[+1], *spatial)
            regions.
        decided: per level, (B, R or 1, *spatial) bool of regions: where a pseudo label is known and, of a region drawn
            in part, nothing was drawn; None without any.
        keys: case of each sample; of the two streams, unlabelled cases come first.
        patterns: annotation pattern of each sample, on the host.
        pattern_index: the same as (B,) tensor on the device.
        views: of batches with unlabelled samples, what their loader and augmentation know; None otherwise.
        sight: which networks see which samples; None where all see all.
        exchange: of batches whose samples are mixtures of each other, how; None otherwise.
    """

    data: Tensor
    target: Sequence[Tensor]
    keys: Sequence[str]
    patterns: Sequence[int]
    pattern_index: Tensor
    decided: Sequence[Tensor] | None = None
    views: Views | None = None
    sight: Sight | None = None
    exchange: Exchange | None = None

    @property
    def weak(self) -> Tensor:
        """The unlabelled images as the loader gave them, (unlabelled, M, *spatial)."""
        assert self.views is not None
        return self.data[: self.views.unlabelled] if self.views.weak is None else self.views.weak

    def seen_by(self, network: int) -> Tensor:
        """Returns the images as a network sees them: ``data``, unless it has a view of its own."""
        holder = self.exchange or self.views
        own = () if holder is None else holder.further
        return own[network - 1] if 0 < network <= len(own) else self.data


def by_hand(target: Tensor, decided: Tensor | None, in_part: Tensor | None) -> Tensor:
    """Returns a target of regions without what was decided of those that a case draws in part.

    Args:
        target: (B, R[+1], *spatial).
        decided: (B, R, *spatial) bool, as in :class:`Batch`; None without any.
        in_part: (B, R) bool; None where there are none.
    """
    if decided is None or in_part is None:
        return target
    regions = in_part.shape[1]
    guessed = decided & in_part.view(*in_part.shape, *[1] * (target.ndim - 2))
    return torch.cat([target[:, :regions].masked_fill(guessed, 0), target[:, regions:]], 1)


@dataclass(frozen=True)
class Exchange:
    """How samples of a batch were mixed: ``data`` holds the mixtures, labels are as the loader gave them.

    Attributes:
        weak: (B, M, *spatial) images as the loader gave them.
        origins: per deep-supervision level, (B, 1, *spatial) sample from which each voxel comes; None: its own.
        further: ``data`` as the networks after the first one see it.
    """

    weak: Tensor
    origins: Sequence[Tensor] | None = None
    further: Sequence[Tensor] = ()

    def mixed(self, values: Tensor) -> Tensor:
        """Mixes what is known of the voxels of all samples, (B, C, *spatial), as their images were mixed."""
        return values if self.origins is None else mixed(values, self.origins[0])


def mixed(values: Tensor, origin: Tensor) -> Tensor:
    """Takes each voxel from the sample from which it comes.

    Args:
        values: (B, C, *spatial).
        origin: (B, 1, *spatial) number of the sample.
    """
    return values.gather(0, origin.expand_as(values))


@dataclass(frozen=True)
class Sight:
    """Which networks see which samples of a batch, where each has channels of its own and cases may lack some.

    Attributes:
        host: of each sample, of each network.
        device: the same, (B, P) bool.
    """

    host: Sequence[Sequence[bool]]
    device: Tensor


@dataclass(frozen=True)
class Views:
    """What a batch of a labelled and an unlabelled stream says beyond its images and labels.

    Attributes:
        unlabelled: number of unlabelled samples, which come first.
        inside: (B, 1, *spatial) bool, where the image is: neither padded nor outside of nnU-Net's mask of it.
        weak: (unlabelled, M, *spatial) images as the loader gave them, where ``data`` holds a stronger view of them.
        further: ``data`` as the networks after the first one see it, where each has a stronger view of its own.
        pasted: which boxes were pasted into all of these, the same for what is said about these voxels.
        pose: (unlabelled, *spatial, axes) where each voxel of these is in ``weak``, boxes pasted, as in
            :func:`torch.nn.functional.grid_sample`; None where it is in the same place.
        soft: (unlabelled, C, *spatial) soft labels that came with the images, 0 where there are none.
    """

    unlabelled: int
    inside: Tensor
    weak: Tensor | None = None
    further: Sequence[Tensor] = ()
    pasted: Sequence[Paste] = ()
    pose: Tensor | None = None
    soft: Tensor | None = None

    @property
    def inside_as_seen(self) -> Tensor:
        """(unlabelled, 1, *spatial) bool, where the image is in what networks see of unlabelled samples."""
        own = self.inside[: self.unlabelled]
        return own if self.pose is None else posed_counts(own, self.pose) > 0.5


@dataclass(frozen=True)
class Paste:
    """A box of one sample of a batch that replaced the same box of an unlabelled one, or all around that box."""

    into: int
    origin: int
    box: tuple[slice, ...]
    around: bool = False

    def taken(self, values: Tensor) -> Tensor:
        """Returns what is taken from the origin's part of (B, C, *spatial): (C, *box), or (C, *spatial) if around."""
        return values[self.origin] if self.around else within(values, self.origin, self.box)

    def put(self, shown: Tensor, values: Tensor) -> None:
        """Puts what was taken into (B, C, *spatial), in place."""
        if not self.around:
            within(values, self.into, self.box).copy_(shown)
            return
        kept = within(values, self.into, self.box).clone()
        values[self.into].copy_(shown)
        within(values, self.into, self.box).copy_(kept)


def within(values: Tensor, sample: int, box: tuple[slice, ...]) -> Tensor:
    """Returns the part of one sample of (B, C, *spatial) that a box covers, (C, *box), as a view."""
    place: tuple[Any, ...] = (sample, slice(None), *box)
    return values[place]


def to_device(raw: dict, patterns: Patterns, device: torch.device) -> Batch:
    """Moves a batch of nnU-Net's loader to the device and looks up what its cases annotate.

    Args:
        raw: ``data``, ``target`` and ``keys``.
        patterns: annotation pattern of each case.
        device: of the networks.
    """
    target = raw["target"] if isinstance(raw["target"], list) else [raw["target"]]
    found = patterns(raw["keys"])
    return Batch(
        data=raw["data"].to(device, non_blocking=True),
        target=[level.to(device, non_blocking=True) for level in target],
        keys=[str(key) for key in raw["keys"]],
        patterns=found,
        pattern_index=torch.tensor(found).to(device, non_blocking=True),
    )
