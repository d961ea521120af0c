"""Images are linked into a trial, not copied; one that is saved anew in its place would change later runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.errors import MutualError

_RECORD = "linked.json"


def record(folder: Path, images: Iterable[Path]) -> None:
    """Notes what all images hold, unless that was done.

    Args:
        folder: of the trial.
        images: folders of images in it.
    """
    if not (folder / _RECORD).is_file():
        _write(folder, [file for place in images if place.is_dir() for file in sorted(place.iterdir())])


def require_unchanged(folder: Path) -> None:
    """Verifies that all images hold what they held when the trial began; read are those of another size or time.

    Raises:
        MutualError: one was saved anew, or what a symbolic link names is gone.
    """
    noted = read_object(folder / _RECORD) if (folder / _RECORD).is_file() else {}
    touched = False
    for name, (size, changed, content) in noted.items():
        file = folder / name
        if not file.is_file():
            raise MutualError(_sentence(file, "is gone"))
        if [size, changed] != _state(file):
            if content != _content(file):
                raise MutualError(_sentence(file, "was saved anew"))
            touched = True
    if touched:  # or copied: not to be read again by every run
        _write(folder, [folder / name for name in noted])


def _write(folder: Path, files: Sequence[Path]) -> None:
    found = zip(files, each_case(_content, files, doing="noting images"), strict=True)
    write_json(
        folder / _RECORD, {file.relative_to(folder).as_posix(): [*_state(file), content] for file, content in found}
    )


def _sentence(file: Path, what: str) -> str:
    return (
        f"{file.resolve()}, linked from your dataset, {what} since this trial began, so its runs would not all see the "
        "same; put it back as it was, or begin another trial in another folder (-o)"
    )


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
