"""Folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.writing import abandoned, place_of_processes, runs, sweep, temporary_beside
from nnunet_mutual.errors import MutualError

_OWNER = "_in_progress"  # end of the name of the file that says who writes a temporary folder
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
    if new and folder.is_symlink():
        folder = Path(os.path.realpath(folder))  # the folder is what gets its name at the end, not the link
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise MutualError(f"-o {folder}: {there} is no folder; give -o another one")
    for place in (there, folder.absolute().parent) if new and there == folder else (there,):  # which gives it its name
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise MutualError(f"-o {folder}: there is no permission to write in {place}; give -o another folder")
    if new and there == folder and os.path.ismount(folder):
        raise MutualError(f"-o {folder} is a mounted disk; give -o a new folder in it, such as {folder / 'new'}")
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
    owner = folder / f"{work}{_OWNER}"
    sweep(folder.parent, folder.name)
    if folder.exists():
        _refuse_running(folder, owner, work)
        shutil.rmtree(folder, ignore_errors=True)
    begun = temporary_beside(folder)
    try:
        begun.mkdir()
        _this_process().write(begun / owner.name)
        os.rename(begun, folder)  # with its owner in it from the first moment
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        if folder.exists():
            _refuse_running(folder, owner, work)
        raise MutualError(
            f"{folder} could not be made ({error.strerror or error}); get write permission for {output.parent}"
        ) from None
    try:
        yield folder
    finally:
        if _Process.read(owner) == _this_process():  # else it has its final name, and this one may be another's by now
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def written_folders(targets: Sequence[Path], asked: Any = None) -> Iterator[list[Path]]:
    """Yields names of temporary folders beside some folders; at the end they get those names, all or none.

    What a killed process left is removed, unless it was whole: :func:`finish_interrupted` gives it its names.

    Args:
        targets: none of them exists.
        asked: what is written into them, in builtins of JSON.

    Raises:
        MutualError: another process has made one of them meanwhile, which stays.
        OSError: a folder cannot be renamed.
    """
    for target in targets:
        sweep(target.parent, target.name)
    staged, named = [temporary_beside(target) for target in targets], []
    try:
        yield staged
        journal = {"folders": [[folder.name, _identity(folder)] for folder in staged], "asked": asked}
        (staged[0] / _JOURNAL).write_text(json.dumps(journal), encoding="utf-8")
        for folder, target in zip(staged, targets, strict=True):
            _take_name(folder, target)
            named.append(target)
        (targets[0] / _JOURNAL).unlink()
    except BaseException:
        for folder in [*staged, *named]:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def finish_interrupted(targets: Sequence[Path], asked: Any = None) -> bool:
    """Gives the remaining names where :func:`written_folders` of the same targets was killed between its renames.

    Nothing is changed where something else was asked for then, or where another command has made one of the targets.

    Returns:
        Whether it was; all targets are then whole.
    """
    journal = targets[0] / _JOURNAL
    try:
        content = json.loads(journal.read_text(encoding="utf-8"))
        noted = [(str(name), identity) for name, identity in content["folders"]]
        left = [
            (target, target.with_name(name), identity) for target, (name, identity) in zip(targets, noted, strict=True)
        ]
        if content.get("asked") != asked or not all(abandoned(staged.name, target) for target, staged, _ in left):
            return False
        if any(_identity(target if target.exists() else staged) != identity for target, staged, identity in left[1:]):
            return False  # the first one has the journal
    except (OSError, ValueError, TypeError, KeyError):
        return False
    for target, staged, _ in left:
        if not target.exists():
            os.replace(staged, target)
    journal.unlink()
    return True


def _identity(folder: Path) -> list[int]:
    """What a folder keeps when it is renamed."""
    state = folder.stat()
    return [state.st_ino, state.st_mtime_ns]


def finish(folder: Path, output: Path) -> None:
    """Gives a temporary folder its final name.

    Raises:
        MutualError: another process has made a folder of that name meanwhile, which stays.
        OSError: the folder cannot be renamed.
    """
    _take_name(folder, output)
    with contextlib.suppress(OSError):  # it says nothing any more, wherever it stays
        for owner in output.glob(f"*{_OWNER}"):
            owner.unlink()


def not_written(output: Path, error: Exception) -> MutualError:
    """Returns the sentence for a full or protected disk, or for a name that it does not take."""
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
    name = Path(str(getattr(error, "filename2", None) or getattr(error, "filename", None) or "")).name
    fix = f"shorten {name}" if too_long else f"free space or get write permission for {output.parent}"
    return MutualError(
        f"{output} could not be written ({lines[-1] if lines else type(error).__name__}) and nothing was kept; {fix}, "
        "then repeat"
    )


def _take_name(folder: Path, output: Path) -> None:
    try:
        os.replace(folder, output)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise MutualError(
                f"{output} was made by another command while this one worked; that one is whole and was left as it is, "
                "what this one made was not kept; use that one, or choose another name"
            ) from None
        raise


@dataclass(frozen=True)
class _Process:
    host: str
    number: int

    @classmethod
    def read(cls, owner: Path) -> _Process | None:
        try:
            host, text = owner.read_text(encoding="utf-8").split()
            return cls(host, int(text))
        except (OSError, ValueError):
            return None

    def write(self, owner: Path) -> None:
        owner.write_text(f"{self.host} {self.number}", encoding="utf-8")


def _this_process() -> _Process:
    return _Process(place_of_processes(), os.getpid())


def _refuse_running(folder: Path, owner: Path, work: str) -> None:
    process, this = _Process.read(owner), _this_process()
    if process is None or process == this or (process.host == this.host and not runs(process.number)):
        return
    raise MutualError(
        f"another {work} (process {process.number} on {process.host}) is writing {folder}; wait for it, or remove that "
        "folder if it no longer runs"
    )
