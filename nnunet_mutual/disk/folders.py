"""Folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_mutual.disk.writing import abandoned, sweep, temporary_beside
from nnunet_mutual.errors import MutualError

_JOURNAL = ".unfinished"  # in the first of several folders, until all have their names


def output_folder(given: str | os.PathLike[str], *, new: str = "") -> Path:
    """Returns the folder that -o names; called before anything is computed for it.

    Args:
        given: need not exist.
        new: what would be overwritten in a folder that holds something, for the sentence: 'no decision'; '' where that
            is no matter.

    Raises:
        MutualError: it is a file, lies below one, may not be written, or is not empty.
    """
    folder = Path(given)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise MutualError(f"-o {folder}: {there} is no folder; give -o another one")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise MutualError(f"-o {folder}: there is no permission to write in {there}; give -o another folder")
    if new and there == folder and any(folder.iterdir()):
        raise MutualError(f"-o {folder} is not empty; give -o a new folder, so that {new} is overwritten")
    return folder


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


@contextlib.contextmanager
def written_folders(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields names of temporary folders beside some folders; at the end they get those names, all or none.

    What a killed process left is removed, unless it was whole: :func:`finish_interrupted` gives it its names.

    Args:
        targets: none of them exists.

    Raises:
        OSError: a folder cannot be renamed.
    """
    for target in targets:
        sweep(target.parent, target.name)
    staged, named = [temporary_beside(target) for target in targets], []
    try:
        yield staged
        (staged[0] / _JOURNAL).write_text(json.dumps([folder.name for folder in staged]), encoding="utf-8")
        for folder, target in zip(staged, targets, strict=True):
            os.replace(folder, target)
            named.append(target)
        (targets[0] / _JOURNAL).unlink()
    except BaseException:
        for folder in [*staged, *named]:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def finish_interrupted(targets: Sequence[Path]) -> bool:
    """Gives the remaining names where :func:`written_folders` of the same targets was killed between its renames.

    Returns:
        Whether it was; all targets are then whole.
    """
    journal = targets[0] / _JOURNAL
    try:
        names = json.loads(journal.read_text(encoding="utf-8"))
        left = list(zip(map(str, names), targets, strict=True))
    except (OSError, ValueError, TypeError):
        return False
    if not all(abandoned(name, target) for name, target in left):
        return False
    for name, target in left:
        if not target.exists() and target.with_name(name).is_dir():
            os.replace(target.with_name(name), target)
    if not all(target.is_dir() for target in targets):
        return False
    journal.unlink()
    return True


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
