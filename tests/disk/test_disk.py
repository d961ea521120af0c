"""Files that are whole or not there, the sweep after kills, and names that stay in their folder."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fresh import killed

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.names import inside, safe_name
from nnunet_mutual.disk.writing import sweep, written
from nnunet_mutual.errors import MutualError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    with written(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_after_an_error_everything_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_text("old")
    with pytest.raises(RuntimeError), written(path, ending=".npz") as temporary:
        assert temporary.name.endswith(".npz")
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("old")
    link = tmp_path / "a"
    link.symlink_to(tmp_path / "real" / "a")
    with written(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    outside, link = tmp_path / "precious.json", tmp_path / "folder" / "dataset.json"
    outside.write_text("mine")
    for write in (lambda: write_json(link, {}), lambda: _write(link)):
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        write()
        assert outside.read_text() == "mine" and not link.is_symlink() and link.is_file()


def _write(path: Path) -> None:
    with written(path) as temporary:
        temporary.write_text("new")


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    killed(lambda: _write(tmp_path / "a[1].json"), renames=0)
    left = os.listdir(tmp_path)
    assert len(left) == 1 and left[0].startswith(".a[1].json.")
    (tmp_path / ".note.tmp").write_text("the user's own")
    place = left[0].removesuffix(".tmp").rsplit("-", 2)[0]
    running, elsewhere, forgotten = f"{place}-{os.getpid()}-0.tmp", ".a[1].json.far-1-0.tmp", ".a[1].json.far-2-0.tmp"
    for name in (elsewhere, forgotten):
        (tmp_path / name).write_text("of another machine")
    os.utime(tmp_path / forgotten, (0, 0))
    (tmp_path / running).write_text("of a process that runs")
    sweep(tmp_path, "b.json")
    assert left[0] in os.listdir(tmp_path)
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([".note.tmp", running, elsewhere])


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path, both = tmp_path / "a", threading.Barrier(2)

    def write(text: str) -> None:
        with written(path) as temporary:
            temporary.write_text(text)
            both.wait(10)
            assert temporary.read_text() == text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "two"]))
    assert path.read_text() in ("one", "two") and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["case_1", "Fälle 2", "a.b", "-x", "..a"])
def test_names_that_stay(name: str) -> None:
    assert safe_name(name, "case") == name


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/b", "/x", "a\\b", "C:x", "a\n", "a\0", ".. .", "...", 3, None]
)
def test_names_that_would_leave(name: object) -> None:
    with pytest.raises(MutualError, match="case .* cannot be used as a file name"):
        safe_name(name, "case")


def test_paths_stay_inside_also_through_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "sub/a", "entry") == (root / "sub" / "a").resolve()
    assert inside(root, root / "sub", "entry") == (root / "sub").resolve()
    for path in ("../x", "sub/../../x", str(tmp_path / "x"), "out/x", "/etc"):
        for followed in (True, False):
            with pytest.raises(MutualError, match="entry .* leads out of"):
                inside(root, path, "entry", followed=followed)


def test_what_is_replaced_may_be_a_link_but_not_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "out", "entry", followed=False) == root.resolve() / "out"
    for path in ("", ".", "..", "out/..", "a\0"):
        with pytest.raises(MutualError, match="entry"):
            inside(root, path, "entry", followed=False)
