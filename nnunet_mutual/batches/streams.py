"""Which data a training sees: its cases, their loader, and what a loader's batch becomes on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.label_groups import LabelGroup, home
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.batch import Batch, Patterns, to_device
from nnunet_mutual.batches.loading import PooledLoader
from nnunet_mutual.batches.pseudo import PseudoDataset, PseudoStore


class Stream:
    """The labelled cases of a fold, as nnU-Net loads them; other streams change what differs.

    Attributes:
        unlabelled: number of unlabelled patches in a batch.
        unlabelled_keys: images without any drawing that are learnt from.
        again: whether, for want of these, labelled images are seen a second time, for the loss of the method.
        idle: why a method that needs more than labels finds nothing to learn from, and what to do; empty if it does.
        further: identifiers of cases that are no training cases of nnU-Net.
        foreground_epochs: epochs after which it shall be predicted anew where unlabelled images have foreground; 0 for
            never.
    """

    unlabelled: int = 0
    unlabelled_keys: Sequence[str] = ()
    again: bool = False
    idle: str = ""
    further: Sequence[str] = ()
    foreground_epochs: int = 0

    def batch_size(self, planned: int) -> int | None:
        """Returns the number of labelled patches in a batch of this process, None for nnU-Net's.

        Args:
            planned: nnU-Net's.
        """
        return None

    def datasets(self, training: Any, validation: Any) -> tuple[Any, Any]:
        """Returns what the loaders read, from nnU-Net's datasets."""
        return training, validation

    def loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """Returns what makes the loader of the training cases from nnU-Net's arguments."""
        return nnUNetDataLoader

    def transforms(self, transforms: Any) -> Any:
        """Changes nnU-Net's transforms of training patches."""
        return transforms

    def masked(self, flags: Sequence[bool]) -> Sequence[bool]:
        """Returns which channels of the loader's images are 0 outside of nnU-Net's mask.

        Args:
            flags: likewise, of each channel of dataset.json.
        """
        return flags

    def regions(self, regions: Any) -> Any:
        """Returns the regions into which the loader turns training labels, from nnU-Net's (None for plain labels)."""
        return regions

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Moves a batch of the training loader to the device."""
        return self.validation_batch(raw, patterns, device)

    def validation_batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Moves a batch of the validation loader to the device: never a strong view."""
        return to_device(raw, patterns, device)

    def seen_by(self, network: int, images: Tensor) -> Tensor:
        """Returns what a network sees of images (B, M, *spatial)."""
        return images

    def can_see(self, network: int, key: str) -> bool:
        """Whether a case has what a network needs to see."""
        return True


class PooledStream(Stream):
    """Batches hold cases of different groups, where a network of each group learns.

    Args:
        table: who drew what.
        groups: labels of each network; none for one network.
    """

    def __init__(self, table: AnnotationTable, groups: Sequence[LabelGroup]):
        self.table = table
        self.groups = list(groups)

    def batch_size(self, planned: int) -> int | None:
        """A batch needs room for two groups."""
        return 2 if self.groups and planned < 2 else None

    def loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """See :meth:`Stream.loader`."""
        if not self.groups:
            return super().loader(keys)
        return partial(PooledLoader, pools=pools_of(self.table, self.groups, keys))


def pools_of(table: AnnotationTable, groups: Sequence[LabelGroup], keys: Sequence[str]) -> list[list[str]]:
    """Returns cases by the group to which they belong; those of none are a pool of their own."""
    pools: dict[int | None, list[str]] = {}
    for key in keys:
        pools.setdefault(home(groups, table.case(key).annotated), []).append(key)
    return list(pools.values())


class PseudoStream(PooledStream):
    """Training cases with true and pseudo labels.

    Args:
        table: who drew what.
        groups: see :class:`PooledStream`.
        store: the pseudo labels.
        codes: drawn and decided values in one map.
        labels: nnU-Net's.
    """

    def __init__(
        self,
        table: AnnotationTable,
        groups: Sequence[LabelGroup],
        *,
        store: PseudoStore,
        codes: PseudoCodes,
        labels: LabelManager,
    ):
        super().__init__(table, groups)
        self.store = store
        self.codes = codes
        self.labels = labels
        self.in_part = frozenset[str]().union(*(case.incomplete for case in table.cases.values()))

    def datasets(self, training: Any, validation: Any) -> tuple[Any, Any]:
        """See :meth:`Stream.datasets`."""
        return PseudoDataset(training, self.store), validation

    def regions(self, regions: Any) -> Any:
        """The regions of true and decided values, and where each that was not drawn was decided.

        One map says this for all regions, unless cases draw a part of some.
        """
        if regions is None:
            return None
        coded = list(enumerate(self.codes.pairs, self.codes.offset))
        values = [region if isinstance(region, (list, tuple)) else (region,) for region in regions]
        truth = [(*region, *(code for code, (_, z) in coded if z in region)) for region in values]
        hidden = [self.table.values[name] if name in self.in_part else () for name in self.table.labels]
        decided = [tuple(code for code, (y, _) in coded if y not in drawn) for drawn in hidden]
        return [*truth, *(decided if self.in_part else decided[:1])]

    def batch(self, raw: dict, patterns: Patterns, device: torch.device) -> Batch:
        """Splits off where regions were decided."""
        moved = super().batch(raw, patterns, device)
        if not self.labels.has_regions:
            return moved
        first = len(self.table.labels)
        end = 2 * first if self.in_part else first + 1
        decided = [level[:, first:end].bool() for level in moved.target]
        target = [torch.cat([level[:, :first], level[:, end:]], 1) for level in moved.target]
        return replace(moved, target=target, decided=decided)
