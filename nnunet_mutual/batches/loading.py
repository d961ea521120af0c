"""Loaders: nnU-Net's own, with cases drawn so that a small source is not drowned by a large one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.case_files import damage_named

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


class Pools:
    """Cases in groups, of which a batch holds as many as it has samples.

    A pool is drawn with the probability of its cases; no pool twice before every pool was drawn once. The order is
    random, so no pool is always the one whose patch must hold foreground.

    Args:
        pools: identifiers, in groups.
        keys: of the cases that have a probability.
        probabilities: of each of them; None for equal ones.
    """

    def __init__(self, pools: Sequence[Sequence[str]], keys: Sequence[str], probabilities: Any = None):
        weights = np.full(len(keys), 1 / len(keys)) if probabilities is None else np.asarray(probabilities)
        of_case = dict(zip(keys, weights, strict=True))
        self.pools = [list(pool) for pool in pools if pool]
        within = [np.array([of_case[key] for key in pool]) for pool in self.pools]
        self.of_pool = np.array([weights.sum() for weights in within])
        self.of_pool /= self.of_pool.sum()
        self.within_pool = [weights / weights.sum() for weights in within]

    def draw(self, samples: int) -> list[str]:
        """Draws the cases of a batch."""
        chosen: list[int] = []
        while len(chosen) < samples:
            number = min(samples - len(chosen), len(self.pools))
            chosen += np.random.choice(len(self.pools), number, replace=False, p=self.of_pool).tolist()
        order = np.random.permutation(chosen)
        return [str(np.random.choice(self.pools[pool], p=self.within_pool[pool])) for pool in order]


class PooledLoader(nnUNetDataLoader):
    """nnU-Net's loader, but a batch holds cases of as many pools as it has samples; see :class:`Pools`.

    Args:
        pools: identifiers, in groups.
        arguments: nnU-Net's.
    """

    def __init__(self, *arguments: Any, pools: Sequence[Sequence[str]], **options: Any):
        super().__init__(*arguments, **options)
        self.pools = Pools(pools, self.indices, self.sampling_probabilities)

    def get_indices(self) -> list[str]:
        """Draws the cases of a batch."""
        return self.pools.draw(self.batch_size)


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


def parts_of(*datasets: Any) -> list[Any]:
    """Returns nnU-Net's datasets, of which those of this package consist."""
    return [part for dataset in datasets for part in getattr(dataset, "parts", [dataset])]


def loader_seed(seed: int | None, rank: int, epoch: int, iteration: int) -> int | None:
    """Returns the seed of a process's workers: a training that goes on draws other batches than at its beginning.

    Args:
        seed: of the training; None for none.
        rank: of the process.
        epoch: in which the workers start.
        iteration: of that epoch.
    """
    if seed is None:
        return None
    first = 1000 * (10 * seed + rank)
    if not epoch and not iteration and first < 2**31:
        return first
    return int(np.random.SeedSequence((first, epoch, iteration)).generate_state(1)[0]) // 2  # others are added


@dataclass(frozen=True)
class LoaderSettings:
    """What nnU-Net's loaders of a training need to know, beside data and transforms.

    Attributes:
        patch_size: of the configuration.
        initial_patch_size: of training, before rotation.
        labels: nnU-Net's.
        batch_sizes: of training and of validation.
        forced: share of the patches that must hold foreground.
        probabilistic: whether that is decided patch by patch.
        pin_memory: for CUDA.
        seed: of this process's workers; None leaves them unseeded, as nnU-Net.
    """

    patch_size: Sequence[int]
    initial_patch_size: Any
    labels: LabelManager
    batch_sizes: tuple[int, int]
    forced: float
    probabilistic: bool
    pin_memory: bool
    seed: int | None

    def start(
        self,
        dataset: Any,
        transforms: Any,
        *,
        make: Callable[..., nnUNetDataLoader] = nnUNetDataLoader,
        probabilities: np.ndarray | None = None,
        training: bool,
    ) -> Augmenter:
        """Starts the loader of training or of validation.

        Args:
            dataset: what it reads.
            transforms: nnU-Net's.
            make: the loader's class.
            probabilities: of drawing each case.
            training: which of the two.
        """
        loader = make(
            dataset,
            self.batch_sizes[0 if training else 1],
            self.initial_patch_size if training else self.patch_size,
            self.patch_size,
            self.labels,
            oversample_foreground_percent=self.forced,
            sampling_probabilities=probabilities,
            transforms=transforms,
            probabilistic_oversampling=self.probabilistic,
        )
        seed = None if self.seed is None else self.seed + 500 * training
        with damage_named(parts_of(dataset)):
            return start_loader(loader, training=training, pin_memory=self.pin_memory, seed=seed)


def stop_loaders(loaders: Iterable[Any]) -> None:
    """Ends the processes of loaders, if there are any."""
    for loader in loaders:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()
