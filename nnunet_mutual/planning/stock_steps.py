"""Steps of nnU-Net's own planning and preprocessing, run so that whatever ends one is said in a sentence."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.utilities import utils as stock_utilities

from nnunet_mutual.disk.locate import DatasetFolders, require_root
from nnunet_mutual.disk.writing import require_space
from nnunet_mutual.errors import MutualError


@contextlib.contextmanager
def stock_step(step: str, folders: DatasetFolders) -> Iterator[None]:
    """Turns whatever ends a step of nnU-Net into one sentence."""
    try:
        with _without_hidden_files():
            yield
    except MutualError:
        raise
    except Exception as error:
        require_space(require_root("nnUNet_preprocessed"))
        lines = str(error).strip().splitlines() or [""]
        raise MutualError(
            f"nnU-Net's {step} of {folders.name} stopped with {type(error).__name__}: {lines[0]}; nnunet_mutual check "
            f"{folders.name} examines every file, NNUNET_MUTUAL_TRACEBACK=1 in front of the command shows where it "
            "stopped (if memory ran out: -np 1)"
        ) from error


@contextlib.contextmanager
def _without_hidden_files() -> Iterator[None]:
    """Lets nnU-Net list no ``._case_0000.nii.gz``, which macOS makes and which it would take for cases."""
    stock = stock_utilities.subfiles

    def visible(*arguments: Any, **options: Any) -> list[str]:
        return [name for name in stock(*arguments, **options) if not os.path.basename(name).startswith(".")]

    stock_utilities.subfiles = visible
    try:
        yield
    finally:
        stock_utilities.subfiles = stock


@contextlib.contextmanager
def empty_folder_removed(folder: Path) -> Iterator[None]:
    """Removes a folder in which a step that ended left nothing."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
