"""Where a network finds labels in unlabelled images, so that patches can be drawn from there."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from torch import nn

from nnunet_mutual.batches.locations import read_locations, write_locations
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.writing import sweep
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.window import Window

SHARE = 0.05  # of the passes of a training that predictions take
PASSES = 3  # of a patch in a step: forward, and backward, which counts as two


def in_turn(keys: Sequence[str], cost: Callable[[str], int], passes: int, number: int) -> list[str]:
    """Returns the images of a renewal: they take turns, and as many have one as a share of the passes allows.

    Counted, not timed, so that a training that is repeated or goes on predicts the same ones.

    Args:
        keys: of all images.
        cost: key -> passes that its prediction takes.
        passes: of the training between two renewals.
        number: of the renewal, from 1.
    """
    costs = {key: cost(key) for key in keys}
    start, chosen = 0, list[str]()
    for _ in range(number):
        order = [*keys[start:], *keys[:start]]
        spent = itertools.accumulate(costs[key] for key in order)
        fitting = sum(1 for _ in itertools.takewhile(lambda total: total <= SHARE * passes, spent))
        chosen = order[: max(1, fitting)]
        start = (start + len(chosen)) % len(keys)
    return chosen


class PredictedForeground:
    """A file per unlabelled image with places of each label; the loader's processes read the newest ones.

    Args:
        folder: below the output folder of the fold.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def forget(self) -> None:
        """Removes what an older training left; several processes may do so at once."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether the images are to be predicted before an epoch.

        Args:
            epoch: that is about to begin.
            every: how many epochs, 0 for never.
        """
        return bool(every and epoch and epoch % every == 0)

    def locations(self, key: str) -> dict[Any, np.ndarray] | None:
        """Returns nnU-Net's ``class_locations``, None before anything was predicted."""
        file = self.folder / f"{key}.npz"
        return read_locations(file, "delete it and continue with --c") if file.is_file() else None

    def renew(self, window: Window, network: nn.Module, dataset: Any, keys: Sequence[str], ranks: Ranks) -> None:
        """Predicts images without mirroring; processes share them.

        Args:
            window: of the configuration.
            network: the one that would be deployed.
            dataset: says which of nnU-Net's datasets holds an image.
            keys: of the images.
            ranks: of the training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        labels = window.labels
        classes: list[Any] = (
            list(labels.foreground_regions) if labels.has_regions else [int(x) for x in labels.foreground_labels]
        )
        with window.around(network, mirroring=False) as predictor:
            for key in ranks.share(keys):
                image = torch.from_numpy(load_case(dataset.holding(key), key)[0][:]).float()
                logits = predictor.predict_sliding_window_return_logits(image).cpu().float()
                found = np.asarray(labels.convert_logits_to_segmentation(logits))
                places = DefaultPreprocessor._sample_foreground_locations(found[None], classes)
                write_locations(self.folder / f"{key}.npz", {c: places.get(c, []) for c in classes})
        ranks.barrier()
