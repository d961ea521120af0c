"""Loaders: nnU-Net's own, with cases drawn so that a small source is not drowned by a large one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_mutual.annotation.table import AnnotationTable

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer

Augmenter: TypeAlias = SingleThreadedAugmenter | NonDetMultiThreadedAugmenter


def case_probabilities(table: AnnotationTable, identifiers: Sequence[str]) -> np.ndarray | None:
    """Returns the probability of drawing each case, proportional to 1/sqrt(cases of its source).

    Args:
        table: the annotation table.
        identifiers: the training cases, in the order of the loader.

    Returns:
        (len(identifiers),) summing to 1, or None with a single source: nnU-Net then draws uniformly, by its own
        random stream.
    """
    sources = [table.case(key).source for key in identifiers]
    count = Counter(sources)
    if len(count) == 1:
        return None
    weights = np.array([1 / np.sqrt(count[source]) for source in sources])
    return weights / weights.sum()


class PooledLoader(nnUNetDataLoader):
    """nnU-Net's loader, but a batch holds cases of as many pools as it has samples.

    A pool is drawn with the probability of its cases; no pool twice before every pool was drawn once. The order is
    random, so no pool is always the one whose patch must hold foreground.

    Args:
        pools: identifiers, in groups.
        arguments: nnU-Net's.
    """

    def __init__(self, *arguments: Any, pools: Sequence[Sequence[str]], **options: Any):
        super().__init__(*arguments, **options)
        given = self.sampling_probabilities
        weights = np.full(len(self.indices), 1 / len(self.indices)) if given is None else np.asarray(given)
        of_case = dict(zip(self.indices, weights, strict=True))
        self.pools = [list(pool) for pool in pools if pool]
        within = [np.array([of_case[key] for key in pool]) for pool in self.pools]
        self.of_pool = np.array([weights.sum() for weights in within])
        self.of_pool /= self.of_pool.sum()
        self.within_pool = [weights / weights.sum() for weights in within]

    def get_indices(self) -> list[str]:
        """Draws the cases of a batch."""
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            number = min(self.batch_size - len(chosen), len(self.pools))
            chosen += np.random.choice(len(self.pools), number, replace=False, p=self.of_pool).tolist()
        order = np.random.permutation(chosen)
        return [str(np.random.choice(self.pools[pool], p=self.within_pool[pool])) for pool in order]


def start_loader(loader: nnUNetDataLoader, *, training: bool, pin_memory: bool, seed: int | None) -> Augmenter:
    """Starts the worker processes of a loader as nnU-Net does, and draws one batch so that errors show at once.

    Args:
        loader: what yields the batches.
        training: validation gets half the processes.
        pin_memory: for CUDA.
        seed: seeds the workers; None leaves them unseeded, as nnU-Net.
    """
    processes = get_allowed_n_proc_DA()
    augmenter: Augmenter
    if processes == 0:
        augmenter = SingleThreadedAugmenter(loader, None)
    else:
        workers = processes if training else max(1, processes // 2)
        augmenter = NonDetMultiThreadedAugmenter(
            data_loader=loader,
            transform=None,
            num_processes=workers,
            num_cached=max(6, processes // 2) if training else max(3, processes // 4),
            seeds=None if seed is None else [seed + i for i in range(workers)],
            pin_memory=pin_memory,
            wait_time=0.002,
        )
    next(augmenter)
    return augmenter


def start_loaders(trainer: MutualTrainer) -> tuple[Augmenter, Augmenter] | tuple[None, None]:
    """Starts the training and the validation loader of a trainer, with nnU-Net's patches and transforms.

    Returns:
        Both, or neither where another process loads.
    """
    scales = trainer._get_deep_supervision_scales()
    patch_size = trainer.configuration_manager.patch_size
    labels = trainer.label_manager
    rotation, dummy_2d, initial_patch_size, mirror_axes = (
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    shared = {
        "is_cascaded": trainer.is_cascaded,
        "foreground_labels": labels.foreground_labels,
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }
    mask = trainer.configuration_manager.use_mask_for_norm
    shared_training = {**shared, "regions": trainer.training_regions(shared["regions"])}
    transforms = trainer.get_training_transforms(
        patch_size, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=mask, **shared_training
    )
    transforms = trainer.training_transforms(transforms)
    training, validation = trainer.get_tr_and_val_datasets()
    if not trainer.ranks.loads:
        return None, None
    balanced = case_probabilities(trainer.table, training.identifiers) if trainer.settings.balance_sources else None
    return (
        _start(trainer, training, initial_patch_size, transforms, balanced, is_training=True),
        _start(
            trainer,
            validation,
            patch_size,
            trainer.get_validation_transforms(scales, **shared),
            None,
            is_training=False,
        ),
    )


def stop_loaders(trainer: MutualTrainer) -> None:
    """Ends the processes of the loaders, if there are any."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()


def restart_loaders(trainer: MutualTrainer) -> None:
    """Ends the loaders, whose processes hold the old dataset, and starts new ones."""
    stop_loaders(trainer)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()


def _start(
    trainer: MutualTrainer,
    dataset: Any,
    size: Any,
    transforms: Any,
    probabilities: np.ndarray | None,
    *,
    is_training: bool,
) -> Augmenter:
    make = trainer.training_loader(dataset.identifiers) if is_training else nnUNetDataLoader
    loader = make(
        dataset,
        trainer.batch_size if is_training else trainer.validation_batch_size,
        size,
        trainer.configuration_manager.patch_size,
        trainer.label_manager,
        oversample_foreground_percent=trainer.oversample_foreground_percent,
        sampling_probabilities=probabilities,
        transforms=transforms,
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
    seed = trainer.settings.seed
    if seed is not None:
        seed = 1000 * (10 * seed + trainer.local_rank) + 500 * is_training
    return start_loader(loader, training=is_training, pin_memory=trainer.device.type == "cuda", seed=seed)
