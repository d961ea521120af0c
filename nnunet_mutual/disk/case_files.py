"""Files of single cases, which lie open on a disk: read without running anything, and named where they are damaged."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_mutual.errors import MutualError

_PLAIN = {("builtins", name) for name in ("set", "frozenset", "slice", "range", "complex", "bytearray")}
_PLAIN |= {("_codecs", "encode"), ("collections", "OrderedDict"), ("numpy", "ndarray"), ("numpy", "dtype")}
_PLAIN |= {
    (f"numpy.{core}.{module}", name)  # of NumPy 1 and 2
    for core in ("core", "_core")
    for module, name in (("multiarray", "scalar"), ("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
}


class _Foreign(Exception):
    pass


class _Careful(pickle.Unpickler):
    """Knows NumPy's arrays and the plain types of Python, nothing that could be run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN and not (module == "numpy.dtypes" and re.fullmatch(r"\w+DType", name)):
            raise _Foreign(f"{module}.{name}")
        return super().find_class(module, name)


def read_properties(file: Path) -> dict[str, Any]:
    """Reads what nnU-Net keeps about a preprocessed case (``.pkl``).

    Raises:
        MutualError: it is missing, damaged, or asks for anything but NumPy's arrays and plain types.
    """
    anew = f"delete it and run {_command(file.parent)}"
    try:
        content = _Careful(io.BytesIO(file.read_bytes())).load()
    except _Foreign as error:
        raise MutualError(
            f"{file} asks for {error}, which nnU-Net's properties of a case never hold and which may run anything on "
            f"this machine; nothing of it was run: {anew}"
        ) from None
    except FileNotFoundError:
        raise MutualError(f"{file} does not exist; run {_command(file.parent)}") from None
    except OSError as error:
        raise MutualError(f"{file} cannot be read ({error.strerror or error}); check its permissions") from None
    except Exception:  # pickle fails in many ways
        raise MutualError(f"{file} is empty, cut short or changed; {anew}") from None
    if not isinstance(content, dict):
        raise MutualError(f"{file} holds a {type(content).__name__}, expected properties of a case; {anew}")
    return content


def read_arrays(file: Path, fix: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an ``.npz``.

    Args:
        file: the file.
        fix: what makes it anew, for the sentence.

    Raises:
        MutualError: it is missing, damaged, or holds objects instead of numbers.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise MutualError(f"{file} does not exist; {fix}") from None
    except PermissionError as error:
        raise MutualError(f"{file} cannot be read ({error.strerror}); get read permission for it") from None
    except Exception:  # zip and NumPy fail in many ways
        raise MutualError(f"{file} is empty, cut short or holds more than numbers; {fix}") from None


class Stored:
    """A compressed array of blosc2, decompressed where it is read, that says which file is damaged.

    Args:
        array: as blosc2 has opened it; nnU-Net's loader takes nothing else.
        file: where it lies.
        fix: what makes it anew, for the sentence.
    """

    def __init__(self, array: Any, file: Path, fix: str):
        self.array, self._file, self._fix = array, file, fix

    def __getattr__(self, name: str) -> Any:
        if name == "array" or name.startswith("_"):  # asked for while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.array, name)

    def __getitem__(self, place: Any) -> np.ndarray:
        try:
            return np.asarray(self.array[place])
        except RuntimeError:  # what blosc2 raises for a damaged chunk
            raise _damaged(self._file, self._fix) from None


def open_stored(file: Path, fix: str) -> Stored:
    """Opens an array of blosc2 (``.b2nd``).

    Args:
        file: the file.
        fix: what makes it anew, for the sentence.

    Raises:
        MutualError: it is missing or damaged.
    """
    try:
        return Stored(blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}), file, fix)
    except Exception:  # blosc2 fails in several ways, of a missing file, too
        raise _damaged(file, fix) from None


def load_case(dataset: Any, key: str) -> tuple[Stored, Stored, Any, dict[str, Any]]:
    """Returns data, labels, previous stage and properties of a preprocessed case, as nnU-Net's datasets do.

    Args:
        dataset: nnU-Net's.
        key: the case.

    Raises:
        MutualError: a file is missing or damaged, or asks for something to be run.
    """
    folder = Path(dataset.source_folder)
    properties = read_properties(folder / f"{key}.pkl")  # before nnU-Net reads it
    fix = f"delete it and run {_command(folder)}"
    try:
        data, seg, previous, _ = dataset.load_case(key)
    except Exception:  # blosc2 and NumPy fail in several ways
        require_first_stage(dataset, key)
        raise _damaged(folder / f"{key}.b2nd or its labels beside it", fix) from None
    return Stored(data, folder / f"{key}.b2nd", fix), Stored(seg, folder / f"{key}_seg.b2nd", fix), previous, properties


def require_first_stage(dataset: Any, key: str) -> None:
    """Opens what the first stage of a cascade has predicted of a case, if there is one.

    Raises:
        MutualError: it is damaged.
    """
    folder = getattr(dataset, "folder_with_segs_from_previous_stage", None)
    file = Path(folder or "") / f"{key}.b2nd"
    if folder is not None and file.exists():  # else of an older nnU-Net
        open_stored(file, "delete it and validate the fold of the first stage that has this case again (--val)")


def require_readable(dataset: Any) -> None:
    """Opens every case, before nnU-Net's loaders do so in processes of their own, whose errors nobody hears of.

    Args:
        dataset: nnU-Net's.

    Raises:
        MutualError: as :func:`load_case`; a damaged voxel is found where it is read only.
    """
    folder = Path(dataset.source_folder)
    fix = f"delete it and run {_command(folder)}"
    for key in dataset.identifiers:
        read_properties(folder / f"{key}.pkl")
        require_first_stage(dataset, key)
        if not (folder / f"{key}.npz").exists():  # of an older nnU-Net
            open_stored(folder / f"{key}.b2nd", fix)
            open_stored(folder / f"{key}_seg.b2nd", fix)


@contextlib.contextmanager
def damage_named(datasets: Sequence[Any]) -> Iterator[None]:
    """Opens every case where a loader has ended, then reads every voxel, to say which case is damaged.

    Args:
        datasets: nnU-Net's, which the loader reads.

    Raises:
        MutualError: a case is damaged.
    """
    try:
        yield
    except RuntimeError:  # of blosc2, or of nnU-Net, which misses the processes of the loader
        for dataset in datasets:
            require_readable(dataset)
        for dataset in datasets:
            for key in dataset.identifiers:
                for stored in load_case(dataset, key)[:2]:
                    stored[:]
        raise


def _damaged(file: Path, fix: str) -> MutualError:
    return MutualError(f"{file} is missing, empty, cut short or changed; {fix}")


def _command(folder: Path) -> str:
    """What makes the files of a folder of preprocessed cases."""
    dataset = next((one.name for one in folder.parents if re.match(r"Dataset\d{3}_", one.name)), "DatasetDATASET")
    word = "plan_and_preprocess" if folder.parent.name == dataset else "preprocess_unlabelled"
    return f"nnunet_mutual {word} -d {dataset[7:].partition('_')[0]}"
