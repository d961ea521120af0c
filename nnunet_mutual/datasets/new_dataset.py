"""Makes a dataset folder that exists whole or not at all: a free place, a temporary folder, links to images."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import SimpleITK as sitk
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_mutual.datasets.locate import require_root
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.errors import MutualError


def free_place(output: str) -> Path:
    """Returns the folder of a new dataset in nnUNet_raw.

    Args:
        output: its name, 'Dataset111_Abdomen'.

    Raises:
        MutualError: not a dataset name, or its name or ID is in use.
    """
    root = require_root("nnUNet_raw")
    if not re.fullmatch(r"Dataset\d{3}_[\w\-]+", output):
        raise MutualError(
            f"the last word names the new dataset and is {output!r}; nnU-Net expects a name such as Dataset111_Abdomen"
        )
    used = [str(name) for name in find_candidate_datasets(int(output[7:10]))]
    if used:
        raise MutualError(
            f"the new dataset would be {output}, but the ID {output[7:10]} is already used by {' and '.join(used)} (in "
            "nnUNet_raw, nnUNet_preprocessed or nnUNet_results); choose a free one, or remove what is there"
        )
    return root / output


@contextlib.contextmanager
def temporary_folder(output: Path, work: str, ending: str) -> Iterator[Path]:
    """Makes a hidden folder beside ``output`` that only one process writes, and leaves none behind.

    What a killed process left in its place is removed. :func:`finish` renames it; without that it is removed.

    Args:
        output: the final folder.
        work: what is going on, for the sentence that another process reads: 'merge'.
        ending: of the folder's name.

    Raises:
        MutualError: another process is at it, or the folder cannot be made.
    """
    folder = output.with_name(f".{output.name}.{ending}")
    owner = folder / f"{work}_in_progress"
    if folder.exists():
        _refuse_running(folder, owner, work)
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        owner.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    except OSError as error:
        raise MutualError(
            f"{folder} could not be made ({error.strerror or error}); get write permission for {output.parent}"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after the rename it is no longer there


def finish(folder: Path, output: Path) -> None:
    """Gives a temporary folder its final name.

    Raises:
        OSError: the folder cannot be renamed.
    """
    for owner in folder.glob("*_in_progress"):
        owner.unlink()
    os.replace(folder, output)


def not_written(output: Path, error: Exception) -> MutualError:
    """Returns the sentence for a full or protected disk."""
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return MutualError(
        f"{output} could not be written ({lines[-1] if lines else type(error).__name__}) and nothing was kept; "
        f"free space or get write permission for {output.parent}, then repeat"
    )


def place_images(files: CaseFiles, folder: Path, key: str, ending: str, *, copy: bool) -> None:
    """Links the images of a case into a folder, or converts them where their file ending differs.

    Args:
        files: of the case.
        folder: imagesTr or imagesUn of the new dataset.
        key: name of the case there.
        ending: file ending there.
        copy: copy instead of linking.

    Raises:
        OSError, RuntimeError: the disk is full or not writable (SimpleITK reports it as RuntimeError).
    """
    for number, path in files.images.items():
        place = folder / f"{key}_{number:04d}{ending}"
        if path.name.endswith(ending):
            link_or_copy(path, place, copy=copy)
        else:
            sitk.WriteImage(sitk.ReadImage(str(path)), str(place), useCompression=True)
    sidecar = next(iter(files.images.values())).with_name(f"{files.key}.json")
    if ending.startswith(".tif") and sidecar.is_file():  # nnU-Net reads the spacing of tif files from there
        link_or_copy(sidecar, folder / f"{key}.json", copy=copy)


def link_or_copy(path: Path, place: Path, *, copy: bool) -> None:
    """Hard link (survives a move of the source dataset), else symbolic link, else copy."""
    path = path.resolve()
    if not copy:
        for link in (os.link, os.symlink):
            with contextlib.suppress(OSError, NotImplementedError):
                link(path, place)
                return
    shutil.copyfile(path, place)


def _refuse_running(folder: Path, owner: Path, work: str) -> None:
    try:
        host, text = owner.read_text(encoding="utf-8").split()
        number = int(text)
    except (OSError, ValueError):
        return  # not even begun, or finished but for the rename
    if host == socket.gethostname() and os.name == "posix":
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # alive, of another user
        if number == os.getpid():
            return
    raise MutualError(
        f"another {work} (process {number} on {host}) is writing {folder}; wait for it, or remove that folder if it no "
        "longer runs"
    )
