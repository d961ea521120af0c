"""Several folders get their names together, also when a process is killed in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fresh import killed

from nnunet_mutual.disk import folders
from nnunet_mutual.disk.folders import finish, finish_interrupted, output_folder, temporary_folder, written_folders
from nnunet_mutual.disk.names import require_text
from nnunet_mutual.disk.trainings import removed_unless_begun
from nnunet_mutual.errors import MutualError


def write(targets: list[Path]) -> None:
    with written_folders(targets) as staged:
        for number, folder in enumerate(staged):
            folder.mkdir()
            (folder / "content").write_text(str(number))


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_repeating_what_was_killed_ends_well(tmp_path: Path, renames: int) -> None:
    targets = [tmp_path / "elsewhere" / "container", tmp_path / "a", tmp_path / "b"]
    targets[0].parent.mkdir()
    killed(lambda: write(targets), renames)
    assert sum(target.exists() for target in targets) == renames
    assert finish_interrupted(targets) == (renames > 0)
    if not renames:
        write(targets)
    assert [(target / "content").read_text() for target in targets] == ["0", "1", "2"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "container", *["content"] * 3, "elsewhere"]
    assert not finish_interrupted(targets)


def test_what_somebody_else_wrote_is_left_alone(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    killed(lambda: write(targets), 1)
    journal = targets[0] / ".unfinished"
    names = journal.read_text()
    (tmp_path / "secret").mkdir()
    noted = json.loads(names)["folders"]
    secret = json.dumps({"folders": [noted[0], ["../secret", [1, 1]]]})
    more = json.dumps({**json.loads(names), "folders": [*noted, ["c", [1, 1]]]})
    for text in ("", "3", "[1, 2]", '{"folders": 3}', secret, names.replace("-", "-x"), more):
        journal.write_text(text)
        for asked in (None, "something else"):
            assert not finish_interrupted(targets, asked) and not targets[1].exists() and targets[0].exists()
    journal.write_text(names)
    for path in tmp_path.glob(".b.*"):
        shutil.rmtree(path)
    assert not finish_interrupted(targets) and targets[0].exists()


def test_what_was_killed_is_left_alone_where_something_else_is_asked_for(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    killed(lambda: write(targets), 1)
    before = sorted(tmp_path.rglob("*"))
    assert not finish_interrupted(targets, ["other folds"])
    assert sorted(tmp_path.rglob("*")) == before
    write([targets[1]])  # by another command
    assert not finish_interrupted(targets) and (targets[1] / "content").read_text() == "0"


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write([tmp_path / "a", tmp_path / "b"])
    assert list(tmp_path.iterdir()) == []


def test_two_that_begin_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is in the folder from its first moment, so that the second one finds it."""
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "merge_in_progress").write_text("another-computer 4711")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    said = r"another merge \(process 4711 on another-computer\) is writing .*wait for it"
    with pytest.raises(MutualError, match=said), temporary_folder(tmp_path / "out", "merge", "merging"):
        raise AssertionError("the folder is another's")
    assert [path.name for path in tmp_path.rglob("*")] == [".out.merging", "merge_in_progress"]


def test_the_folder_of_the_next_one_is_left_alone(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "out", "merge", "merging") as folder:
        (folder / "content").write_text("1")
        finish(folder, tmp_path / "out")
        folder.mkdir()
        (folder / "merge_in_progress").write_text("another-computer 4711")
    assert folder.is_dir() and [path.name for path in (tmp_path / "out").iterdir()] == ["content"]


def test_a_name_that_was_taken_meanwhile(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    said = r"b was made by another command .* that one is whole and was left as it is"
    with pytest.raises(MutualError, match=said), written_folders(targets) as staged:
        for folder in [*staged, targets[1]]:
            folder.mkdir()
        (targets[1] / "content").write_text("another's")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "content"]


def test_the_folder_of_an_output_is_looked_at_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mask").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("full", "new", "new/newer", "."):
        assert output_folder(tmp_path / name) == tmp_path / name
    assert output_folder(tmp_path / "new", new="nothing") == tmp_path / "new"
    for name, sentence in (
        ("file", r"file is no folder; give -o another one"),
        ("file/a/b", r"file is no folder; give -o another one"),
        ("loop", r"loop is no folder; give -o another one"),
        ("full", r"full is not empty; give -o a new folder, so that no label map is overwritten"),
    ):
        with pytest.raises(MutualError, match=f"^-o {tmp_path}/.*{sentence}"):
            output_folder(tmp_path / name, new="no label map")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "loop"]


def test_a_link_and_a_mounted_disk_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is written whole gets its name at the end, which neither of them would give up."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert output_folder(tmp_path / "link", new="nothing") == tmp_path / "real"
    with temporary_folder(tmp_path / "real", "merge", "merging") as folder:
        monkeypatch.setattr(os, "replace", broken(errno.EBUSY))
        with pytest.raises(OSError, match="busy"):
            finish(folder, tmp_path / "real")
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(MutualError, match=f"^-o {tmp_path}/real is a mounted disk; give -o a new folder in it"):
        output_folder(tmp_path / "real", new="nothing")


def broken(number: int) -> Any:
    def replace(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return replace


def test_processes_of_two_containers_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have the same numbers."""
    with temporary_folder(tmp_path / "out", "merge", "merging") as folder:
        monkeypatch.setattr(folders, "place_of_processes", lambda: "machine-4711")
        with (
            pytest.raises(MutualError, match="another merge .* is writing"),
            temporary_folder(tmp_path / "out", "merge", "merging"),
        ):
            pass
        monkeypatch.undo()
        assert folder.is_dir()


def test_a_training_that_never_began_leaves_no_folder(tmp_path: Path) -> None:
    for name in ("dataset", "other"):
        fold = tmp_path / name / "training" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "training_log_1.txt").write_text("why")
        if name == "other":
            (fold / "checkpoint_best.pth").touch()
        with pytest.raises(MutualError, match="no reason"), removed_unless_begun(fold):
            raise MutualError("no reason")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert len(list(fold.iterdir())) == 2


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    require_text(tmp_path / "café")
    with pytest.raises(MutualError, match=r"caf.udce9' has a name that is no UTF-8 text; rename it"):
        require_text(tmp_path / os.fsdecode(b"caf\xe9"))
