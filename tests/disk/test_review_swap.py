"""All files are replaced or none, also if the process dies; nothing outside of the dataset is touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunet_mutual.disk import swap
from nnunet_mutual.disk.swap import BACKUP, OLD, Swap, forget_old, swap_all, undo
from nnunet_mutual.errors import MutualError

FOLDER = f"{BACKUP}1"
NAMES = ("a", "b", "new", FOLDER)
BEFORE = {"raw/target/a": "old a", "preprocessed/target/b": "old b"}


def roots(tmp_path: Path) -> dict[str, Path | None]:
    return {"raw": tmp_path / "raw", "preprocessed": tmp_path / "preprocessed"}


@pytest.fixture()
def swaps(tmp_path: Path) -> list[Swap]:
    """Files to replace in two roots, a file and a folder that are not there yet."""
    for path, text in BEFORE.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "staged" / FOLDER).mkdir(parents=True)
    (tmp_path / "staged" / FOLDER / "file").write_text("new")
    for name in ("a", "b", "new"):
        (tmp_path / "staged" / name).write_text(f"new {name}")
    places = ("raw/target/a", "preprocessed/target/b", "preprocessed/target/new", f"raw/{FOLDER}")
    return [Swap(tmp_path / "staged" / name, tmp_path / place) for name, place in zip(NAMES, places, strict=True)]


def content(tmp_path: Path) -> dict[str, str]:
    files = [path for name in ("raw", "preprocessed") for path in (tmp_path / name).rglob("*") if path.is_file()]
    return {str(file.relative_to(tmp_path)): file.read_text() for file in files if OLD not in file.parts}


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    replace, count = os.replace, 0

    def replacing(new: Any, target: Any) -> None:
        nonlocal count
        if Path(target).name in NAMES:
            count += 1
            if count == number:
                raise error
        replace(new, target)

    monkeypatch.setattr(swap.os, "replace", replacing)


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, swaps: list[Swap], tmp_path: Path) -> Path:
    """Leaves what a killed process leaves, and returns the journal."""
    journal = tmp_path / "raw" / "journal"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        stop_at(patch, number, OSError("killed"))
        patch.setattr(swap, "undo", lambda *_: None)
        swap_all(swaps, journal, roots(tmp_path))
    assert journal.exists()
    return journal


def test_all(swaps: list[Swap], tmp_path: Path) -> None:
    swap_all(swaps, tmp_path / "journal", roots(tmp_path))
    new = {"raw/target/a": "new a", "preprocessed/target/b": "new b", "preprocessed/target/new": "new new"}
    assert content(tmp_path) == {**new, f"raw/{FOLDER}/file": "new"}
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_none(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        stop_at(patch, number, error)
        swap_all(swaps, tmp_path / "journal", roots(tmp_path))
    assert content(tmp_path) == BEFORE and not (tmp_path / "journal").exists()


@pytest.mark.parametrize("number", [2, 3, 4])
def test_killed_in_the_middle_and_in_the_repair(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    journal = kill_at(monkeypatch, number, swaps, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="again"):
        stop_at(patch, 1, OSError("again"))
        undo(journal, roots(tmp_path))
    assert journal.exists()
    undo(journal, roots(tmp_path))
    assert content(tmp_path) == BEFORE and not journal.exists()


@pytest.mark.parametrize("by", ["moving", "copying"])
def test_killed_and_moved(swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    kill_at(monkeypatch, 4, swaps, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in roots(tmp_path):
        shutil.copytree(tmp_path / name, elsewhere / name)
        if by == "moving":
            shutil.rmtree(tmp_path / name)
    there = content(tmp_path)
    undo(elsewhere / "raw" / "journal", roots(elsewhere))
    assert content(elsewhere) == BEFORE
    assert content(tmp_path) == there


def test_a_half_changed_state_is_not_taken_for_the_original(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = kill_at(monkeypatch, 4, swaps, tmp_path)
    half = {**content(tmp_path)}
    with pytest.raises(MutualError, match="preprocessed data that are not at hand; set nnUNet_preprocessed"):
        undo(journal, {**roots(tmp_path), "preprocessed": None})
    (tmp_path / "preprocessed" / OLD).rename(tmp_path / "lost")
    with pytest.raises(MutualError, match="move all of the dataset, hidden folders included"):
        undo(journal, roots(tmp_path))
    assert content(tmp_path) == half
    (tmp_path / "lost").rename(tmp_path / "preprocessed" / OLD)
    undo(journal, roots(tmp_path))
    assert content(tmp_path) == BEFORE


def old_journal(tmp_path: Path, swaps: list[Swap], journal: Path) -> None:
    """Writes the journal as release 0.1.0 did."""
    entries = json.loads(journal.read_text())["replaced"]
    old = [str(tmp_path / name / OLD / path) if there else None for name, path, there in entries]
    text = json.dumps({"replaced": [[str(one.target), waits] for one, waits in zip(swaps, old, strict=True)]})
    journal.write_text(text)


@pytest.mark.parametrize("undone", [0, 1], ids=["untouched", "half undone"])
def test_a_journal_of_the_first_release(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undone: int
) -> None:
    journal = kill_at(monkeypatch, 4, swaps, tmp_path)
    old_journal(tmp_path, swaps, journal)
    for path in list(BEFORE)[:undone]:  # 0.1.0 moved what it put back
        name, rest = path.split("/", 1)
        os.replace(tmp_path / name / OLD / rest, tmp_path / path)
    undo(journal, roots(tmp_path))
    assert content(tmp_path) == BEFORE and not journal.exists()


def test_a_journal_of_the_first_release_after_a_move(
    swaps: list[Swap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = kill_at(monkeypatch, 4, swaps, tmp_path)
    old_journal(tmp_path, swaps, journal)
    (tmp_path / "raw").rename(tmp_path / "raw2")
    half = content(tmp_path)
    with pytest.raises(MutualError, match="not in .*nothing was touched.*move them back and repeat"):
        undo(tmp_path / "raw2" / "journal", {**roots(tmp_path), "raw": tmp_path / "raw2"})
    assert content(tmp_path) == half


HOSTILE: dict[str, Any] = {
    "whole path, file": lambda outside: [f"{outside}/file", None],
    "whole path, folder": lambda outside: [str(outside), None],
    "whole path, moved": lambda outside: ["target/a", f"{outside}/file"],
    "relative": lambda outside: ["raw", "../precious/file", False],
    "whole in a new entry": lambda outside: ["raw", f"{outside}/file", False],
    "through a link": lambda outside: ["raw", "link/file", False],
    "the dataset itself": lambda outside: ["raw", ".", False],
    "a folder of it": lambda outside: ["raw", "target", False],
    "upwards at the end": lambda outside: ["raw", "target/../..", False],
    "other data": lambda outside: ["preprocessed", "target/b", False],
    "no root": lambda outside: ["home", "file", False],
    "a number": lambda outside: 3,
    "endless": lambda outside: ["raw", "a" * 5000, False],
    "no UTF-8": lambda outside: ["raw", "a\ud800", False],
    "zero byte": lambda outside: ["raw", "a\0b", False],
    "nested": lambda outside: ["raw", ["a"], False],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_stranger_s_journal_touches_nothing(swaps: list[Swap], tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (tmp_path / "raw" / "link").symlink_to(outside)
    (tmp_path / "raw" / OLD).mkdir()
    journal = tmp_path / "raw" / "journal"
    first = ["raw", "target/a", False]  # valid, but not to be used before all are verified
    journal.write_text(json.dumps({"replaced": [first, HOSTILE[kind](outside)]}))
    with pytest.raises(MutualError):
        undo(journal, roots(tmp_path))
    assert (outside / "file").read_text() == "mine" and journal.exists()
    assert {path: text for path, text in content(tmp_path).items() if path in BEFORE} == BEFORE


@pytest.mark.parametrize("text", ["[]", "{}", '{"replaced": {"a": 1}}', "null", '{"replaced": [[]]}'])
def test_what_is_no_journal(swaps: list[Swap], tmp_path: Path, text: str) -> None:
    journal = tmp_path / "raw" / "journal"
    journal.write_text(text)
    with pytest.raises(MutualError, match="journal"):
        undo(journal, roots(tmp_path))


def test_links_that_lead_out_are_not_written_through(swaps: list[Swap], tmp_path: Path) -> None:
    (tmp_path / "raw" / "target").rename(tmp_path / "elsewhere")
    (tmp_path / "raw" / "target").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MutualError, match="leads out of .*put a copy in the place of the link"):
        swap_all(swaps, tmp_path / "raw" / "journal", roots(tmp_path))
    assert (tmp_path / "elsewhere" / "a").read_text() == "old a" and not (tmp_path / "raw" / "journal").exists()


def test_a_file_that_is_a_link_is_replaced_itself(swaps: list[Swap], tmp_path: Path) -> None:
    target = tmp_path / "raw" / "target" / "a"
    target.rename(tmp_path / "of another dataset")
    target.symlink_to(tmp_path / "of another dataset")
    swap_all(swaps, tmp_path / "raw" / "journal", roots(tmp_path))
    assert target.read_text() == "new a" and not target.is_symlink()
    assert (tmp_path / "of another dataset").read_text() == "old a"


def test_a_link_where_old_files_are_kept_is_not_followed(swaps: list[Swap], tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "target").mkdir(parents=True)
    (tmp_path / "elsewhere" / "target" / "a").write_text("mine")
    (tmp_path / "raw" / OLD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MutualError, match="leads out of"):
        swap_all(swaps, tmp_path / "raw" / "journal", roots(tmp_path))
    forget_old(tmp_path / "raw")
    assert not (tmp_path / "raw" / OLD).exists()
    assert [path.read_text() for path in (tmp_path / "elsewhere").rglob("a")] == ["mine"]
    assert len(list((tmp_path / "elsewhere").rglob("*"))) == 2
    swap_all(swaps, tmp_path / "raw" / "journal", roots(tmp_path))
    assert content(tmp_path)["raw/target/a"] == "new a"
