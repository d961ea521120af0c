"""Batches of unlabelled and labelled patches, from one loader with nnU-Net's worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_mutual.batches.loading import Pools

Locations: TypeAlias = Callable[[str], dict[Any, np.ndarray] | None]


class TwoStreamDataset:
    """Labelled and unlabelled cases behind nnU-Net's interface of a dataset.

    Args:
        labelled: nnU-Net's dataset of the training cases.
        unlabelled: of the unlabelled images, if there are any.
        keys: the labelled cases; only these are listed.
        predicted: gives the places of each label in a case without any, None where nothing was predicted yet.
    """

    def __init__(self, labelled: Any, unlabelled: Any, keys: Sequence[str], predicted: Locations):
        self.labelled = labelled
        self.unlabelled = unlabelled
        self.parts = [part for part in (labelled, unlabelled) if part is not None]
        self.identifiers = list(keys)
        self.predicted = predicted
        self._listed = frozenset(keys)
        self._elsewhere = frozenset() if unlabelled is None else frozenset(unlabelled.identifiers)

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Returns data, labels, previous stage and properties of a case."""
        data, seg, previous, properties = self.holding(identifier).load_case(identifier)
        if identifier not in self._listed and (predicted := self.predicted(identifier)) is not None:
            properties = {**properties, "class_locations": {**properties["class_locations"], **predicted}}
        return data, seg, previous, properties

    def holding(self, identifier: str) -> Any:
        """Returns nnU-Net's dataset that holds a case."""
        return self.unlabelled if identifier in self._elsewhere else self.labelled


class TwoStreamLoader(nnUNetDataLoader):
    """nnU-Net's loader with unlabelled patches before the labelled ones.

    Labelled patches are forced to hold foreground as often as without the others, a single one by chance.

    Args:
        data: lists the labelled cases and loads all.
        batch_size: labelled patches.
        arguments: nnU-Net's.
        unlabelled: the unlabelled cases.
        number: unlabelled patches.
        forced: share of the unlabelled patches that shall hold what was predicted as foreground.
        pools: groups of labelled cases of which a batch shall hold different ones; none: drawn independently.
        options: nnU-Net's.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *arguments: Any,
        unlabelled: Sequence[str],
        number: int,
        forced: float = 0.0,
        pools: Sequence[Sequence[str]] = (),
        **options: Any,
    ):
        super().__init__(data, batch_size + number, *arguments, **options)
        self.unlabelled = list(unlabelled)
        self.number = number
        self.forced = forced
        self.pools = Pools(pools, self.indices, self.sampling_probabilities) if pools else None
        self.forces_by_chance = batch_size == 1 or options.get("probabilistic_oversampling", False)
        self.get_do_oversample = self._force_labelled

    def _force_labelled(self, sample: int) -> bool:
        if sample < self.number:
            return self.forced > 0 and np.random.uniform() < self.forced
        if self.forces_by_chance:
            return self._probabilistic_oversampling(sample)
        labelled = self.batch_size - self.number
        return sample - self.number >= round(labelled * (1 - self.oversample_foreground_percent))

    def get_indices(self) -> list[str]:
        """Draws the cases of a batch, the unlabelled ones without repetition where there are enough."""
        samples = self.batch_size - self.number
        if self.pools is None:
            labelled = np.random.choice(self.indices, samples, p=self.sampling_probabilities).tolist()
        else:
            labelled = self.pools.draw(samples)
        repeated = self.number > len(self.unlabelled)
        unlabelled = np.random.choice(self.unlabelled, self.number, replace=repeated)
        return [*map(str, unlabelled), *map(str, labelled)]

    def get_bbox(self, data_shape: Any, force_fg: bool, class_locations: dict, *arguments: Any, **options: Any) -> Any:
        """Chooses a patch; with an ignore label, nnU-Net looks for annotated voxels: an image may have none."""
        ignore: bool = self.has_ignore
        self.has_ignore: bool = ignore and len(class_locations[self.annotated_classes_key]) > 0
        try:
            return super().get_bbox(data_shape, force_fg, class_locations, *arguments, **options)
        finally:
            self.has_ignore = ignore
