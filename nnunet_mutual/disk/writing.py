"""Files that are there whole or not at all, and what killed processes left behind."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from nnunet_mutual.disk.names import written_at

_TEMPORARY = re.compile(r"\..+\.([\w\-]+)-(\d+)\.tmp(\.[\w.]+)?")


@contextlib.contextmanager
def written(path: Path, *, ending: str = "") -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; what is written there gets that name at the end.

    The content reaches the disk before the rename. After an error ``path`` is as before and nothing is left; what a
    killed process left for the same ``path`` is removed. A symbolic link within the folder stays one: its target is
    replaced; one that leads out of the folder is itself replaced.

    Args:
        path: where the file shall be.
        ending: of the temporary name, for writers that go by it, such as ``.npz``.

    Raises:
        OSError: the folder cannot be written.
    """
    path = written_at(path)
    sweep(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp{ending}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes temporary files of :func:`written` whose process no longer runs on this machine.

    Args:
        folder: where to look; not below it.
        name: only those of the file that has this name.
    """
    if not folder.is_dir():
        return
    for entry in folder.glob(f".{glob.escape(name)}.*.tmp*" if name else ".*.tmp*"):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and match[1] == _host() and not runs(int(match[2])):
            with contextlib.suppress(OSError):
                entry.unlink()


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


def _host() -> str:
    return re.sub(r"[^\w\-]", "_", socket.gethostname())
