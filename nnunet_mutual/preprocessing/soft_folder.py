"""A folder of soft labels that says which model made them of which images, so that no two models are mixed.

``soft_labels.json`` names the model, ``soft_labels.jsonl`` has a line for each image. Folders of nnU-Net's own
``--save_probabilities`` have neither.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.case_files import read_arrays
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.names import safe_name
from nnunet_mutual.disk.writing import sweep, written
from nnunet_mutual.errors import MutualError, shorten, telling
from nnunet_mutual.preprocessing.unlabelled import add_to_record, read_record, state_of, write_record

SCALE = 255  # steps of a probability, as it is written
ROUNDING = 1e-2  # by which half-precision probabilities may exceed 1


def model_of(checkpoint: Path) -> dict[str, str]:
    """Returns what tells a model from others: where it lies in nnUNet_results, and the hash of its weights' file."""
    digest = hashlib.sha256()
    with checkpoint.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    dataset, name, fold = checkpoint.parts[-4:-1]
    return {
        "dataset": dataset,
        "model": name,
        "fold": fold,
        "checkpoint": checkpoint.name,
        "sha256": digest.hexdigest(),
    }


class SoftFolder:
    """Soft labels on disk, ``<case>.npz`` each.

    Args:
        folder: where they are, or shall be.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._model = folder / "soft_labels.json"
        self._record = folder / "soft_labels.jsonl"

    def claim(self, model: Mapping[str, str], *, anew: bool = False) -> None:
        """Makes the folder that of a model.

        Args:
            model: from :func:`model_of`.
            anew: throw away what is there of another model, instead of refusing.

        Raises:
            MutualError: it holds soft labels of another model, or of one that nobody knows.
        """
        if anew and not (self._model.is_file() and read_object(self._model).get("sha256") == model["sha256"]):
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._model.is_file():
            before = read_object(self._model)
            if before.get("sha256") != model["sha256"]:
                raise MutualError(
                    f"{self.folder} holds soft labels of another model ({_described(before)}), not of "
                    f"{_described(model)}; name a new folder with -o, or delete that one"
                )
            return
        if self._files():
            raise MutualError(
                f"{self.folder} holds soft labels of which nobody noted the model (no {self._model.name}); name a new "
                "folder with -o, or delete that one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record.unlink(missing_ok=True)
        write_json(self._model, dict(model))

    def keep(self, cases: Mapping[str, CaseFiles]) -> set[str]:
        """Removes what was made of images that are no longer there or are others now.

        Args:
            cases: the images.

        Returns:
            The cases whose soft label is there.
        """
        sweep(self.folder)
        record = read_record(self._record)
        kept = {
            key: line
            for key, line in record.items()
            if key in cases and line == self._line(cases[key]) and self._is_whole(key, line)
        }
        for key in record.keys() - kept.keys():
            self._file(key).unlink(missing_ok=True)
        write_record(self._record, kept)
        return set(kept)

    def write(self, files: CaseFiles, probabilities: NDArray[np.floating]) -> None:
        """Writes the soft label of an image, in steps of 1/255.

        Raises:
            MutualError: they are no probabilities.
        """
        if not np.isfinite(probabilities).all():
            raise MutualError(
                f"the model says nothing but NaN or infinity in some voxels of {files.key}; look at that image and at "
                "the training of the model"
            )
        with written(self._file(files.key), ending=".npz") as temporary:
            np.savez_compressed(temporary, probabilities=(probabilities.clip(0, 1) * SCALE).round().astype(np.uint8))
        add_to_record(self._record, files.key, self._line(files))

    def labels(self) -> dict[str, Path]:
        """Returns the file of each case.

        Raises:
            MutualError: a file is not of the model that made the others.
        """
        files = self._files()
        if self._model.is_file():
            record = read_record(self._record)
            foreign = [key for key in files if key not in record or not self._is_whole(key, record[key])]
            if foreign:
                raise MutualError(
                    f"{self.folder} holds soft labels that its model ({_described(read_object(self._model))}) did not "
                    f"write ({shorten(foreign, 3)}); delete these files, and repeat nnunet_mutual pseudo_label --soft"
                )
        return files

    def _line(self, files: CaseFiles) -> dict[str, Any]:
        file = self._file(files.key)
        return {"files": state_of(files, "")["files"], "bytes": file.stat().st_size if file.is_file() else None}

    def _is_whole(self, key: str, line: Mapping[str, Any]) -> bool:
        file = self._file(key)
        return file.is_file() and file.stat().st_size == line.get("bytes")

    def _file(self, key: str) -> Path:
        return self.folder / f"{safe_name(key, 'case')}.npz"

    def _files(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted(self.folder.glob("[!.]*.npz"))}


def read_soft(file: Path, outputs: int) -> NDArray[np.float32]:
    """Reads the soft label of an image.

    Args:
        file: ``probabilities`` (K, Z, Y, X), real numbers or steps of 1/255.
        outputs: K of the model.

    Raises:
        MutualError: the file is damaged, or holds something else than K probabilities of each voxel.
    """
    again = "predict that image again (delete the file and repeat the command that made it)"
    found = read_arrays(file, again).get("probabilities")
    if found is None:
        raise MutualError(f'{file} holds no "probabilities"; {again}')
    if found.ndim != 4 or len(found) != outputs or found.dtype.kind not in "uif":
        raise MutualError(
            f"{file} holds {found.dtype} of shape {found.shape}, "
            f"its dataset.json names {outputs} outputs (K, Z, Y, X); {again}"
        )
    if found.dtype.kind in "ui" and found.dtype != np.uint8:
        raise MutualError(f"{file} holds {found.dtype}, not probabilities or steps of 1/{SCALE} (uint8); {again}")
    values = np.asarray(found, np.float32) / np.float32(SCALE if found.dtype == np.uint8 else 1)
    if values.size and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1 + ROUNDING):
        low, high = (telling(float(value), 0, 1) for value in (values.min(), values.max()))
        raise MutualError(f"{file} holds {low} to {high}, not probabilities from 0 to 1; {again}")
    return values


def _described(model: Mapping[str, Any]) -> str:
    names = [str(model.get(key, "?")) for key in ("dataset", "model", "fold", "checkpoint")]
    return f"{'/'.join(names)}, {str(model.get('sha256', '?'))[:8]}"
