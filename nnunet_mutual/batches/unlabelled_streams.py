"""Streams with unlabelled images: two kinds of patches in a batch, and what students see of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.annotation.label_groups import LabelGroup
from nnunet_mutual.annotation.modality_groups import ModalityGroups
from nnunet_mutual.batches.batch import Batch, Patterns, Sight, Views
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.loading import PooledLoader
from nnunet_mutual.batches.streams import Stream, pools_of
from nnunet_mutual.batches.transforms import SoftChannels, marking, split_mark
from nnunet_mutual.batches.two_streams import Locations, TwoStreamDataset, TwoStreamLoader
from nnunet_mutual.batches.views import exchanged, strengthen
from nnunet_mutual.settings import Partners

COMPLETE = (
    "every case annotates every label, and there are no unlabelled images; train nnUNetTrainer, or put further images "
    "into imagesUn"
)
NO_IMAGES = (
    "there are no unlabelled images that this fold may use (in imagesUn, or cases that annotate nothing); put images "
    "into imagesUn, run nnunet_mutual preprocess_unlabelled, and train anew"
)
AGAIN = "seen a second time, since there are no unlabelled images that this fold may use"


@dataclass(frozen=True)
class StreamSizes:
    """Patches of each kind in a batch of one process, and the share of unlabelled ones that hold foreground."""

    labelled: int
    unlabelled: int
    forced: float = 0.0
    foreground_epochs: int = 0

    @classmethod
    def of(cls, planned: int, labelled: int | None, unlabelled: int | None, **more: Any) -> StreamSizes:
        """Divides a batch, half and half where nothing else is said.

        Args:
            planned: the plans' batch of this process; counts as two at least.
            labelled: as the settings say, if they do.
            unlabelled: likewise.
            more: attributes.
        """
        whole = max(2, planned)
        number = unlabelled or max(1, whole - (labelled or ceil(whole / 2)))
        return cls(labelled or max(1, whole - number), number, **more)


def nowhere(key: str) -> None:
    """Says that nothing was predicted in an image; loaders take it to their processes."""


class TwoStreams(Stream):
    """Batches hold unlabelled patches, then labelled ones.

    Unlabelled are the images of imagesUn, except those of validation patients, and training cases that annotate
    nothing. Without any, everything is as in :class:`Stream`.

    Args:
        fold: its training cases.
        labels: nnU-Net's.
        images: dataset of the unlabelled images, None without any.
        sizes: of a batch.
        undrawn: whether training cases that annotate nothing are of use, without anything but the image.
        predicted: places of predicted labels in unlabelled images.
        again: whether, without any, labelled images are seen a second time, as if nobody had drawn them.

    Attributes:
        labelled_keys: training cases with labels.
        unlabelled_keys: images without any drawing that are learnt from.
        again: whether labelled cases take their place.
        stream_keys: the unlabelled stream: these or those.
        unlabelled: number of patches of this stream in a batch, 0 without any images.
    """

    def __init__(
        self,
        fold: Fold,
        labels: LabelManager,
        images: Any,
        sizes: StreamSizes,
        *,
        undrawn: bool = True,
        predicted: Locations = nowhere,
        again: bool = False,
    ):
        self.table = fold.table
        self.labels = labels
        self.images = images
        self.sizes = sizes
        self.predicted = predicted
        self.labelled_keys = [key for key in fold.training if fold.table.case(key).drawn]
        self.further = () if images is None else list(images.identifiers)
        without = sorted({*fold.training} - {*self.labelled_keys}) if undrawn else []
        self.unlabelled_keys = [*without, *self.further]
        self.again = again and not self.unlabelled_keys
        self.stream_keys = self.labelled_keys if self.again else self.unlabelled_keys
        self.unlabelled = sizes.unlabelled if self.stream_keys else 0
        self.idle = "" if self.unlabelled else NO_IMAGES
        self.foreground_epochs = sizes.foreground_epochs if self.unlabelled and sizes.forced else 0

    def describe(self, planned: int) -> str:
        """Says for the log what is in a batch.

        Args:
            planned: the plans' batch size.
        """
        if not self.unlabelled:
            return "A batch holds labelled cases alone"
        images = AGAIN if self.again else f"{len(self.unlabelled_keys)} unlabelled images"
        return (
            f"{len(self.labelled_keys)} cases with labels, {images}; a batch "
            f"holds {self.sizes.labelled} and {self.unlabelled} of them (the plans' batch size is {planned})"
        )

    def batch_size(self, planned: int) -> int | None:
        """See :meth:`Stream.batch_size`."""
        return self.sizes.labelled if self.unlabelled else None

    @property
    def _mark(self) -> int:
        """Value of the background inside of images, in the training loader."""
        return int(max(self.labels.all_labels)) + 2  # one more may be the ignore label

    def datasets(self, training: Any, validation: Any) -> tuple[Any, Any]:
        """See :meth:`Stream.datasets`."""
        if not self.unlabelled:
            return training, validation
        return TwoStreamDataset(training, self.images, self.labelled_keys, self.predicted), validation

    def loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """Adds the unlabelled stream."""
        if not self.unlabelled:
            return super().loader(keys)
        return partial(TwoStreamLoader, unlabelled=self.stream_keys, number=self.unlabelled, forced=self.sizes.forced)

    def transforms(self, transforms: Any) -> Any:
        """Marks where the images are."""
        return marking(self._mark, transforms) if self.unlabelled else transforms

    def regions(self, regions: Any) -> Any:
        """One more region: the image."""
        if regions is None or not self.unlabelled:
            return regions
        return [*regions, tuple(range(1, self._mark + 1))]

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Reads the mark."""
        moved = super().batch(raw, patterns, device)
        if not self.unlabelled:
            return moved
        regions = len(self.table.labels) if self.labels.has_regions else None
        target, inside = split_mark(moved.target, self._mark, regions)
        return replace(moved, target=target, views=Views(self.unlabelled, inside))


class TaughtStreams(TwoStreams):
    """The student's view of the unlabelled images is a stronger one than its teacher's.

    Args:
        arguments: of :class:`TwoStreams`.
        intensity: whether with other intensities.
        partners: samples of which boxes are pasted into it.
        pose: whether it is turned and scaled.
        views: how many students see one of their own.
        named: of :class:`TwoStreams`.
    """

    def __init__(
        self, *arguments: Any, intensity: bool, partners: Partners, pose: bool = False, views: int = 1, **named: Any
    ):
        super().__init__(*arguments, **named)
        self.strong: dict[str, Any] = {"intensity": intensity, "partners": partners, "pose": pose, "views": views}

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """See :meth:`Stream.batch`."""
        moved = super().batch(raw, patterns, device)
        if not self.unlabelled:
            return moved
        return strengthen(moved, **self.strong)


class ExchangedStreams(TwoStreams):
    """Networks see mixtures of all cases, across sources, their teachers the cases themselves; an image draws nothing.

    Args:
        arguments: of :class:`TwoStreams`.
        groups: of which a batch holds labelled cases.
        views: options of :func:`~nnunet_mutual.batches.views.exchanged`.
    """

    def __init__(self, *arguments: Any, groups: Sequence[LabelGroup], **views: Any):
        super().__init__(*arguments)
        self.groups = list(groups) if len(groups) > 1 else []
        self.views = views
        complete = all(self.table.case(key).annotated == frozenset(self.table.labels) for key in self.labelled_keys)
        self.idle = COMPLETE if complete and not self.unlabelled else ""

    def batch_size(self, planned: int) -> int | None:
        """A batch needs room for two sources, or for one and an image."""
        return super().batch_size(planned) if self.unlabelled else 2 if self.groups and planned < 2 else None

    def loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """See :meth:`Stream.loader`."""
        loader = super().loader(keys)
        if not self.groups:
            return loader
        pools = pools_of(self.table, self.groups, self.labelled_keys if self.unlabelled else keys)
        return partial(loader if self.unlabelled else PooledLoader, pools=pools)

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """See :meth:`Stream.batch`."""
        return exchanged(super().batch(raw, patterns, device), **self.views)


class SoftStreams(TwoStreams):
    """Unlabelled images come with soft labels, in further channels.

    Args:
        arguments: of :class:`TwoStreams`.
        channels: of the images.
        outputs: soft labels.
    """

    def __init__(self, *arguments: Any, channels: int, outputs: int):
        super().__init__(*arguments, undrawn=False)
        self.channels = channels
        self.outputs = outputs

    def transforms(self, transforms: Any) -> Any:
        """Moves soft labels with their images."""
        return SoftChannels(super().transforms(transforms), self.channels, self.outputs)

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Takes the soft labels out of the images."""
        moved = super().batch(raw, patterns, device)
        data = moved.data[:, : self.channels]
        if moved.views is None:
            return replace(moved, data=data)
        soft = moved.data[: moved.views.unlabelled, self.channels :]
        return replace(moved, data=data, views=replace(moved.views, soft=soft))


class ModalityStreams(TwoStreams):
    """Each network sees the channels of its modality group, of cases that have them.

    Networks that see different channels have something to tell each other about labelled images, too.

    Args:
        arguments: of :class:`TwoStreams`.
        groups: a network for each.
        all_take_part: whether processes gather Dice statistics, so that all must take one path.
        views: options of :func:`~nnunet_mutual.batches.views.strengthen`, where networks see stronger views of
            unlabelled images than their teachers; of channels of their own, other intensities are others for each.
    """

    def __init__(
        self,
        *arguments: Any,
        groups: ModalityGroups,
        all_take_part: bool,
        views: Mapping[str, Any] | None = None,
    ):
        super().__init__(*arguments, again=True)
        self.groups = groups
        self.views = views
        complete = all(all(groups.available(case)) for case in self.table.cases.values())
        self._gathers_of_some = all_take_part and not complete

    def masked(self, flags: Sequence[bool]) -> Sequence[bool]:
        """Channels are stored group after group; one may be in several groups, or in none."""
        return [flags[number] for numbers in self.groups.channels.values() for number in numbers]

    def seen_by(self, network: int, images: Tensor) -> Tensor:
        """Puts the stored channels of a group where dataset.json has them, zeros elsewhere."""
        name = self.groups.names[network]
        seen = images.new_zeros(len(images), len(self.groups.all_channels), *images.shape[2:])
        channels = images[:, self.groups.stored[name]].unbind(1)
        for place, channel in zip(self.groups.channels[name], channels, strict=True):
            seen[:, place] = channel  # a list of places would be copied to the device, and waited for
        return seen

    def can_see(self, network: int, key: str) -> bool:
        """Whether a case has all channels of a group; an image that the table does not list has."""
        if key not in self.table.cases:
            return True
        return self.groups.available(self.table.cases[key])[network]

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Makes the stronger views; no box goes into or out of a batch in which a sample lacks a channel."""
        moved = super().batch(raw, patterns, device)
        if self.views is None or moved.views is None:
            return moved
        return strengthen(moved, **{**self.views, **({} if moved.sight is None else {"partners": "off"})})

    def validation_batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Notes who sees what, and takes noise out of channels that are missing."""
        moved = super().validation_batch(raw, patterns, device)
        host = [[self.can_see(n, key) for n in range(len(self.groups.names))] for key in moved.keys]
        if all(all(row) for row in host) and not self._gathers_of_some:
            return moved
        sight = Sight(host, torch.tensor(host).to(device, non_blocking=True))
        stored = self.groups.stored.values()
        there = torch.cat([sight.device[:, n : n + 1].expand(-1, s.stop - s.start) for n, s in enumerate(stored)], 1)
        data = moved.data * there.view(*there.shape, *[1] * (moved.data.ndim - 2))
        return replace(moved, data=data, sight=sight)
