"""Images are linked into a trial, not copied; a file that is saved anew in its place would change later runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.errors import MutualError

_RECORD = "linked.json"


def record(folder: Path, images: Iterable[Path]) -> None:
    """Notes size and time of all images, unless that was done.

    Args:
        folder: of the trial.
        images: folders of images in it.
    """
    if not (folder / _RECORD).is_file():
        files = (file for place in images if place.is_dir() for file in sorted(place.iterdir()))
        write_json(folder / _RECORD, {file.relative_to(folder).as_posix(): _state(file) for file in files})


def require_unchanged(folder: Path) -> None:
    """Verifies that all images are as they were when the trial began.

    Raises:
        MutualError: one was saved anew, or what a symbolic link names is gone.
    """
    noted = read_object(folder / _RECORD) if (folder / _RECORD).is_file() else {}
    for name, state in noted.items():
        file = folder / name
        if not file.is_file() or _state(file) != state:
            what = "was saved anew" if file.is_file() else "is gone"
            raise MutualError(
                f"{file.resolve()} {what} since this trial began, so its runs would not all see the same; put it back "
                "as it was, or begin another trial in another folder (-o)"
            )


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
