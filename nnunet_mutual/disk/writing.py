"""Files that are there whole or not at all, and what killed processes left behind."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import time

from nnunet_mutual.disk.names import written_at

_TEMPORARY = re.compile(r"\..+\.([\w\-]+)-(\d+)-\d+\.tmp(\.[\w.]+)?")
_NUMBERS = itertools.count()  # of the files of this process, whose threads must not meet
_LITTLE = 2**16  # bytes
_ABANDONED = 24 * 3600  # seconds; what a process of another machine has not touched for so long is left behind


@contextlib.contextmanager
def written(path: Path, *, ending: str = "", sweeping: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; what is written there gets that name at the end.

    The content reaches the disk before the rename. After an error ``path`` is as before and nothing is left; what a
    killed process left for the same ``path`` is removed. A symbolic link within the folder stays one: its target is
    replaced; one that leads out of the folder is itself replaced.

    Args:
        path: where the file shall be.
        ending: of the temporary name, for writers that go by it, such as ``.npz``.
        sweeping: False where many files are written into one folder, which :func:`sweep` looked through once.

    Raises:
        OSError: the folder cannot be written.
    """
    path = written_at(path)
    if sweeping:
        sweep(path.parent, path.name)
    temporary = temporary_beside(path, ending)
    try:
        yield temporary
        with temporary.open("rb" if os.name == "posix" else "rb+") as stream:  # it may be the copy of a read-only file
            os.fsync(stream.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path, ending: str = "") -> Path:
    """Returns a name that says which process uses it, for what is about to become ``path``."""
    return path.with_name(f".{path.name}.{place_of_processes()}-{os.getpid()}-{next(_NUMBERS)}.tmp{ending}")


def abandoned(name: str, path: Path) -> bool:
    """Whether :func:`temporary_beside` gave this name for ``path`` to a process of this machine that no longer runs."""
    match = _TEMPORARY.fullmatch(name) if name.startswith(f".{path.name}.") and "/" not in name else None
    return match is not None and match[1] == place_of_processes() and not runs(int(match[2]))


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes temporary files and folders whose process no longer runs.

    Of a process of another machine (or container) this cannot be asked; its files go when they are a day old.

    Args:
        folder: where to look; not below it.
        name: only those of the file that has this name.
    """
    beginning = "." if name is None else f".{name}."
    with contextlib.suppress(OSError):  # no such folder, or nothing may be changed in it
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name) if entry.name.startswith(beginning) else None
            if match is None:
                continue
            with contextlib.suppress(OSError):
                here = match[1] == place_of_processes()
                if not runs(int(match[2])) if here else time() - entry.stat().st_mtime > _ABANDONED:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


def require_space(folder: str | os.PathLike[str]) -> None:
    """Writes a little, to see whether a disk is full where nobody says so: nnU-Net's log, SimpleITK.

    Raises:
        OSError: it cannot be written; names the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(_LITTLE))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Asks the disk where a RuntimeError does not say why nothing could be written: blosc2, SimpleITK, torch.

    Args:
        folder: that was written to.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        yield
    except RuntimeError:
        require_space(folder)
        raise


def runs(process: int) -> bool:
    """Whether a process of this machine runs; where that cannot be asked (not POSIX), it counts as running."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, of another user
    return True


@functools.cache
def place_of_processes() -> str:
    """Where numbers of processes mean something: the machine and, on Linux, the container."""
    try:
        container = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        container = ""
    return re.sub(r"[^\w\-]", "_", socket.gethostname()) + f"-{container}" * bool(container)
