"""All files are replaced or none, also if the process dies in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nnunet_mutual.disk import swap
from nnunet_mutual.disk.swap import Swap, swap_all, undo

NAMES = ("a", "b", "new", "folder")


@pytest.fixture()
def swaps(tmp_path: Path) -> list[Swap]:
    """Two files to replace, a file and a folder that are not there yet."""
    for name in ("new", "target", "old"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "target" / name).write_text(f"old {name}")
    for name in ("a", "b", "new"):
        (tmp_path / "new" / name).write_text(f"new {name}")
    (tmp_path / "new" / "folder").mkdir()
    (tmp_path / "new" / "folder" / "file").write_text("new")
    return [Swap(tmp_path / "new" / name, tmp_path / "target" / name, tmp_path / "old" / name) for name in NAMES]


def content(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (tmp_path / "target").rglob("*") if path.is_file()}


BEFORE = {"a": "old a", "b": "old b"}


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    replace, count = os.replace, 0

    def replacing(new: Any, target: Any) -> None:
        nonlocal count
        if Path(target).parent.name == "target":
            count += 1
            if count == number:
                raise error
        replace(new, target)

    monkeypatch.setattr(swap.os, "replace", replacing)


def test_all(swaps: list[Swap], tmp_path: Path) -> None:
    swap_all(swaps, tmp_path / "journal")
    assert content(tmp_path) == {"a": "new a", "b": "new b", "new": "new new", "file": "new"}
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_none(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        stop_at(patch, number, error)
        swap_all(swaps, tmp_path / "journal")
    assert content(tmp_path) == BEFORE and not (tmp_path / "journal").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_in_the_middle_and_in_the_repair(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    journal = tmp_path / "journal"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        stop_at(patch, number, OSError("killed"))
        patch.setattr(swap, "undo", lambda file: None)
        swap_all(swaps, journal)
    assert journal.exists()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="again"):
        stop_at(patch, 2, OSError("again"))
        undo(journal)
    assert journal.exists()
    undo(journal)
    assert content(tmp_path) == BEFORE and not journal.exists()
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a", "b"]
