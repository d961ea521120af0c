"""Replaces many files, in several folders: all of them, or none, also if the process is killed half-way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.names import inside
from nnunet_mutual.errors import MutualError

OLD = ".accept.old"  # in each root while files are replaced: what was there before, under the same relative paths
BACKUP = "labelsTr_before_"  # and a number: the only folder that is ever added, and so the only one that is removed
_FIX = "files are replaced within the dataset only, so put a copy in the place of the link"

Roots = Mapping[str, Path | None]  # by the name that a journal calls them; None where one is not at hand


@dataclass(frozen=True)
class Swap:
    """One file, or a backup folder that is not there yet.

    Attributes:
        new: what shall be there, on the same disk as ``target``; None: nothing.
        target: where, in one of the roots.
    """

    new: Path | None
    target: Path


def swap_all(swaps: Sequence[Swap], journal: Path, roots: Roots) -> None:
    """Replaces all targets, in this order.

    The journal is there from before the first replacement until after the last one: whoever finds it must
    :func:`undo`. It holds paths relative to the roots, so the folders may be moved in between. An error or an
    interruption here undoes at once.

    Args:
        swaps: what to replace.
        journal: a file that does not exist.
        roots: folders that all targets lie in.

    Raises:
        MutualError: a target lies outside of all roots, also through a link; everything is as before.
        OSError: something cannot be replaced; everything is as before.
    """
    places = [_place(swap.target, roots) for swap in swaps]
    entries = []
    for swap, (name, relative) in zip(swaps, places, strict=True):
        old = inside(_of(roots, name), Path(OLD) / relative, "copy of a file to replace", followed=False, fix=_FIX)
        old.parent.mkdir(parents=True, exist_ok=True)
        there = os.path.lexists(swap.target)
        if there:
            old.unlink(missing_ok=True)
            link_or_copy(swap.target, old)
            if swap.new is not None:
                shutil.copymode(swap.target, swap.new)
        entries.append([name, relative.as_posix(), there])
    try:
        write_json(journal, {"replaced": entries})
        for swap in swaps:
            if swap.new is None:
                swap.target.unlink()
            else:
                os.replace(swap.new, swap.target)
    except BaseException:
        if journal.exists():
            undo(journal, roots)
        raise
    journal.unlink()


def forget_old(root: Path) -> None:
    """Removes what was kept for :func:`undo`; of a link in its place, the link."""
    place = root / OLD
    with contextlib.suppress(OSError):
        if place.is_symlink():
            place.unlink()
    shutil.rmtree(place, ignore_errors=True)


def undo(journal: Path, roots: Roots) -> None:
    """Puts everything back that an interrupted :func:`swap_all` has replaced; may itself be interrupted and repeated.

    Args:
        journal: perhaps of another place or of a stranger's dataset; every entry is verified before the first is used.
        roots: where the folders are now.

    Raises:
        MutualError: the journal is damaged, leads out of the roots, or what it needs is not at hand; nothing was done.
        OSError: something cannot be put back; the journal stays.
    """
    content = read_object(journal).get("replaced")
    if not isinstance(content, list):
        raise _damaged(journal, content)
    found = [_read(entry, journal, roots) for entry in content]
    for target, old in found:
        if old is not None:
            _put_back(old, target)
        elif target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    journal.unlink()


def _read(entry: Any, journal: Path, roots: Roots) -> tuple[Path, Path | None]:
    """Returns what an entry says was replaced, and where that waits; None if there was nothing before."""
    match entry:
        case [str(name), str(path), bool(there)]:
            pass
        case [str(path), (str() | None) as whole]:  # of release 0.1.0: whole paths
            name, there = "", whole is not None
            if whole is not None:
                _known("", whole, journal, roots)
        case _:
            raise _damaged(journal, entry)
    target = _known(name, path, journal, roots)
    name, relative = _place(target, roots)
    root = _of(roots, name)
    old = inside(root, Path(OLD) / relative, f"entry of {journal}", followed=False)
    if not (root / OLD).is_dir() or there and not os.path.lexists(old):
        if len(entry) == 2 and (root / OLD).is_dir() and os.path.lexists(target):
            old = target  # 0.1.0 moved what it put back, so an undoing that was interrupted has done this one
        else:
            raise MutualError(
                f"{journal} says that an accept was interrupted, but {old}, which it needs to put {target} back, is "
                f"not there; move all of the dataset, hidden folders included ({OLD}), or restore a backup and delete "
                "that file"
            )
    added = re.fullmatch(BACKUP + r"\d+", relative.as_posix()) is not None
    if there and (old.is_dir() and not old.is_symlink()) or target.is_dir() and not target.is_symlink() and not added:
        raise _damaged(journal, entry)
    return target, old if there else None


def _known(name: str, path: str, journal: Path, roots: Roots) -> Path:
    """Returns a target; without a name, in whichever root it lies."""
    if name and name not in roots:
        raise _damaged(journal, name)
    for root in [roots[name]] if name else list(roots.values()):
        if root is None and name:
            raise MutualError(
                f"{journal} says that an accept was interrupted, which also changed {name} data that are not at hand; "
                f"set nnUNet_{name} to where they are, then repeat"
            )
        if root is not None:
            try:
                return inside(root, path, f"entry of {journal}", followed=False)
            except MutualError:
                continue
    here = " or ".join(str(root) for root in roots.values() if root is not None)
    raise MutualError(
        f"{journal} lists {path}, which is not in {here}; nothing was touched. If an accept was interrupted and the "
        "folders were moved since, move them back and repeat; if the dataset comes from elsewhere, delete that file"
    )


def _place(target: Path, roots: Roots) -> tuple[str, Path]:
    """Returns name of the root and the path in it, after links are resolved."""
    error = None
    for name, root in roots.items():
        if root is not None:
            try:
                found = inside(root, target, "file to replace", followed=False, fix=_FIX)
                return name, found.relative_to(root.resolve())
            except MutualError as other:
                error = error or other
    assert error is not None  # there is a raw dataset
    raise error


def _of(roots: Roots, name: str) -> Path:
    root = roots[name]
    assert root is not None
    return root.resolve()


def _put_back(old: Path, target: Path) -> None:
    """The old file stays until all are back, so that this can be repeated."""
    if os.path.lexists(target) and os.path.samestat(os.lstat(old), os.lstat(target)):
        return  # not replaced, or back already
    temporary = old.with_name(f"{old.name}.back")
    temporary.unlink(missing_ok=True)
    link_or_copy(old, temporary)
    os.replace(temporary, target)


def link_or_copy(path: Path, place: Path) -> None:
    """Puts a file, or the link that it is, into a second place, without a second copy where the disk allows it."""
    try:
        os.link(path, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, place, follow_symlinks=False)


def _damaged(journal: Path, entry: Any) -> MutualError:
    return MutualError(
        f"{journal} is no journal of nnunet_mutual accept (found {str(entry)[:80]!r}); nothing was touched. Delete it "
        "if the dataset comes from elsewhere, else restore a backup of the dataset"
    )
