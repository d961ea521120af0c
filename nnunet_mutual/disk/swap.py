"""Replaces many files, in several folders: all of them, or none, also if the process is killed half-way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mutual.disk.files import read_object, write_json


@dataclass(frozen=True)
class Swap:
    """One file, or folder that is not there yet.

    Attributes:
        new: what shall be there, on the same disk as ``target``.
        target: where.
        old: where the present one waits until all are replaced, on the same disk too.
    """

    new: Path
    target: Path
    old: Path


def swap_all(swaps: Sequence[Swap], journal: Path) -> None:
    """Replaces all targets, in this order.

    The journal is there from before the first replacement until after the last one: whoever finds it must
    :func:`undo`. An error or an interruption here undoes at once.

    Args:
        swaps: what to replace.
        journal: a file that does not exist.

    Raises:
        OSError: something cannot be replaced; everything is as before.
    """
    entries = []
    for swap in swaps:
        if swap.target.exists():
            swap.old.parent.mkdir(parents=True, exist_ok=True)
            swap.old.unlink(missing_ok=True)
            _link_or_copy(swap.target, swap.old)
            shutil.copymode(swap.target, swap.new)
        entries.append([str(swap.target), str(swap.old) if swap.target.exists() else None])
    write_json(journal, {"replaced": entries})
    try:
        for swap in swaps:
            os.replace(swap.new, swap.target)
    except BaseException:
        undo(journal)
        raise
    journal.unlink()


def undo(journal: Path) -> None:
    """Puts everything back that an interrupted :func:`swap_all` has replaced; may itself be interrupted and repeated.

    Raises:
        OSError: something cannot be put back; the journal stays.
    """
    for target, old in read_object(journal)["replaced"]:
        if old is not None and Path(old).exists():
            os.replace(old, target)
        elif old is None and Path(target).is_dir():
            shutil.rmtree(target)
        elif old is None:
            Path(target).unlink(missing_ok=True)
    journal.unlink()


def _link_or_copy(path: Path, place: Path) -> None:
    try:
        os.link(path, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, place, follow_symlinks=False)
