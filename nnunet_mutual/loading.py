"""Loaders: nnU-Net's own, with cases drawn so that a small source is not drowned by a large one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_mutual.annotation import AnnotationTable

Augmenter = SingleThreadedAugmenter | NonDetMultiThreadedAugmenter


def case_probabilities(table: AnnotationTable, identifiers: Sequence[str]) -> np.ndarray | None:
    """Returns the probability of drawing each case, proportional to 1/sqrt(cases of its source).

    Args:
        table: the annotation table.
        identifiers: the training cases, in the order of the loader.

    Returns:
        (len(identifiers),) summing to 1, or None with a single source: nnU-Net then draws uniformly, by its own random stream.
    """
    sources = [table.case(key).source for key in identifiers]
    count = Counter(sources)
    if len(count) == 1:
        return None
    weights = np.array([1 / np.sqrt(count[source]) for source in sources])
    return weights / weights.sum()


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
        options: dict[str, Any] = dict(num_processes=workers, pin_memory=pin_memory, wait_time=0.002)
        options["num_cached"] = max(6, processes // 2) if training else max(3, processes // 4)
        options["seeds"] = None if seed is None else [seed + i for i in range(workers)]
        augmenter = NonDetMultiThreadedAugmenter(data_loader=loader, transform=None, **options)
    next(augmenter)
    return augmenter
