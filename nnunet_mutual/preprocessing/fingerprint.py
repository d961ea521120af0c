"""The fingerprint of a dataset, without voxels of which nobody said what they are.

nnU-Net takes every value above 0 for foreground, its ignore label too, so that the intensities of ignored voxels enter
the statistics by which CT images are clipped and normalised (nnU-Net issue 3055). What a case does not annotate is 0 in
its label map and never was foreground.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from numpy.typing import NDArray

from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.locate import require_root

FILE = "dataset_fingerprint.json"
MARK = "ignored_voxels_left_out"  # an entry that nnU-Net does not read


class FingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's, of some cases, without ignored voxels; without an ignore label the result is nnU-Net's own.

    Args:
        dataset: ID or name.
        processes: number of processes.
        verbose: as in nnU-Net.
        cases: those that have every channel, which nnU-Net supposes of all.
    """

    def __init__(self, dataset: int | str, processes: int, verbose: bool = False, *, cases: Sequence[str]):
        super().__init__(dataset, processes, verbose)
        self.dataset: dict[str, Any] = {key: files for key, files in self.dataset.items() if key in cases}

    def run(self, overwrite_existing: bool = False) -> dict:
        """Extracts and saves the fingerprint, unless there is one (nnU-Net's hook)."""
        ignore = self.dataset_json["labels"].get("ignore")
        if ignore is None:
            return super().run(overwrite_existing)
        file = require_root("nnUNet_preprocessed") / self.dataset_name / FILE
        kept = file.is_file() and not overwrite_existing
        with _reading_without(int(ignore)):
            fingerprint = super().run(overwrite_existing)
        if not kept:
            write_json(file, {**read_object(file), MARK: True})
        return fingerprint


class ReaderWithout:
    """A reader of nnU-Net whose label maps are 0 where a label is.

    Args:
        reader: class of the reader.
        value: of the label.
    """

    def __init__(self, reader: type, value: int):
        self._reader = reader()
        self._value = value

    def read_images(self, files: Sequence[str]) -> tuple[NDArray[Any], dict]:
        """See nnU-Net."""
        found: tuple[NDArray[Any], dict] = self._reader.read_images(files)
        return found

    def read_seg(self, file: str) -> tuple[NDArray[Any], dict]:
        """See nnU-Net."""
        segmentation, properties = self._reader.read_seg(file)
        return np.where(segmentation == self._value, 0, segmentation), properties


def counts_ignored(fingerprint: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> bool:
    """Whether ignored voxels are among the foreground of a fingerprint.

    Args:
        fingerprint: content of the file.
        dataset_json: the dataset's.
    """
    return "ignore" in dataset_json["labels"] and not fingerprint.get(MARK, False)


@contextlib.contextmanager
def _reading_without(value: int) -> Iterator[None]:
    """Lets nnU-Net's workers read with :class:`ReaderWithout`.

    nnU-Net names the function that its workers run by its own class, but asks for the reader, and hands that to them.
    """
    name = "determine_reader_writer_from_dataset_json"
    stock = getattr(fingerprint_extractor, name)

    def reader(*arguments: Any, **options: Any) -> Any:
        return partial(ReaderWithout, stock(*arguments, **options), value)

    setattr(fingerprint_extractor, name, reader)
    try:
        yield
    finally:
        setattr(fingerprint_extractor, name, stock)
