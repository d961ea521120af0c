"""What the commands on datasets do grows with the number of cases, not with its square, and may be done elsewhere."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from checking import examine
from merging import Pair
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from raw_dataset import SHAPE, RawDataset

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.check import check
from nnunet_mutual.datasets.coverage import coverage
from nnunet_mutual.datasets.simulate.block import restricted
from nnunet_mutual.datasets.simulate.draw import choose, divide
from nnunet_mutual.disk import cores


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends every function, case and result as to and from another process; counts the functions."""
    functions: list[int] = []

    class Executor:
        def __init__(self, number: int, begin: Any, function: Any) -> None:
            functions.append(1)
            self.function = pickle.loads(pickle.dumps(function))

        def map(self, _: Any, jobs: Iterable[Any], chunksize: int) -> Iterator[Any]:
            for job in jobs:
                yield pickle.loads(pickle.dumps(self.function(pickle.loads(pickle.dumps(job)))))

        def __enter__(self) -> Executor:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(cores, "Workers", Executor)
    monkeypatch.setattr(cores, "FEW", 0)
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    return functions


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The files that nnU-Net's reader reads."""
    found: dict[str, list[str]] = {"images": [], "label maps": []}

    def counted(read: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counting(self: Any, files: Any) -> Any:
            found[kind] += [files] if isinstance(files, str) else files
            return read(self, files)

        return counting

    monkeypatch.setattr(SimpleITKIO, "read_images", counted(SimpleITKIO.read_images, "images"))
    monkeypatch.setattr(SimpleITKIO, "read_seg", counted(SimpleITKIO.read_seg, "label maps"))
    return found


def each_once(files: list[str], cases: int, *, datasets: int = 1) -> bool:
    """Whether every image was read once, beside the one of each dataset on which nnU-Net tries its reader."""
    images = [file for file in files if "imagesTr" in file]
    return len({*images}) == cases and len(images) <= cases + datasets


def test_check_reads_each_file_once(
    nnunet_folders: Path, sent: list[int], reads: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    RawDataset(nnunet_folders).declare()
    assert examine(capsys)[0] == 0
    assert sent == [1]
    assert each_once(reads["images"], 5)
    assert len(reads["label maps"]) == len({*reads["label maps"]}) == 5


def test_headers_say_whether_grids_fit_and_no_voxel_is_read(
    nnunet_folders: Path, sent: list[int], reads: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    raw = RawDataset(nnunet_folders)
    raw.declare()
    assert check(777, headers_only=True) == 0
    said = capsys.readouterr().out
    assert "Only headers were read" in said and "voxel" not in said.split("cases annotated")[1].split("Only")[0]
    raw.label("toy_001", {1: 10}, origin=(0, 12, 0))
    raw.label("toy_002", {1: 10}, shape=(4, 5, 7))
    raw.label("toy_003", {7: 10})  # a value that nothing defines
    raw.label("toy_004", {2: 10}, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert check(777, headers_only=True) == 2
    said = capsys.readouterr().out
    for what in ("is shifted by 0 x 12 x 0 mm", "has 7 x 5 x 4 voxels", "the axes of the label map point in other"):
        assert what in said
    assert "toy_003" not in said
    assert len(reads["images"]) == 2 and not reads["label maps"]  # nnU-Net tries its reader, once for each command


def test_headers_of_a_reader_that_turns_images(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders)
    raw.declare()
    raw.save(overwrite_image_reader_writer="NibabelIOWithReorient")
    turned = (0, 1, 0, 1, 0, 0, 0, 0, 1)  # x and y exchanged
    raw.label("toy_001", {1: 10}, shape=(SHAPE[0], SHAPE[2], SHAPE[1]), direction=turned)
    assert check(777, headers_only=True) == check(777) == 0
    raw.label("toy_001", {1: 10}, direction=turned)
    assert check(777, headers_only=True) == check(777) == 2


def test_headers_of_flat_images(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders, {"a": ["liver"], "b": ["liver"]}, {"background": 0, "liver": 1})
    raw.declare()
    for key in raw.drawn:
        raw.image(key, np.random.default_rng(0).normal(size=(5, 6)), spacing=(1, 2))
        raw.label(key, {1: 10}, shape=(5, 6), spacing=(1, 2))
    assert check(777, headers_only=True) == 0
    assert "-c 2d" in capsys.readouterr().out


def test_merge_and_simulate_read_images_once(
    nnunet_folders: Path, sent: list[int], reads: dict[str, list[str]]
) -> None:
    pair = Pair(nnunet_folders)
    assert pair.merge("--accept-intensities") == 0
    assert each_once(reads["images"], 5, datasets=2)
    assert {reads["label maps"].count(file) for file in reads["label maps"]} == {2}  # to look, and to write it anew
    assert len(sent) == 2
    reads["images"].clear()
    assert main(["simulate", "12", "Dataset013_Simulated", "--keep", "a:kidney", "--keep", "b:spleen"]) in (0, 2)
    assert each_once(reads["images"], 3)


class Counting(dict[str, frozenset[str]]):
    """Counts how often it is asked."""

    asked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


def test_coverage_looks_at_each_case_once() -> None:
    labels = [f"organ{i}" for i in range(10)]
    random = Random(0)
    cases = [
        Case(f"c{i}", f"s{i % 7}", frozenset(random.sample(labels, 4)), pseudo=frozenset(random.sample(labels, 2)))
        for i in range(50)
    ]
    cases = [Case(c.key, c.source, c.annotated - c.pseudo, pseudo=c.pseudo) for c in cases]
    content = {
        "labels": {"background": 0, **{label: i + 1 for i, label in enumerate(labels)}},
        "channel_names": {"0": "CT"},
        "mutual": {"version": 1, "cases": {}, "sources": {f"s{i}": {"annotated": []} for i in range(7)}},
    }
    table = AnnotationTable.from_dataset_json(content)
    present = Counting({case.key: frozenset(random.sample(labels, 5)) for case in cases})
    cells = coverage(table, cases, present)
    assert present.asked == len(cases)
    for cell in cells:  # by hand
        own = [case for case in cases if case.source == cell.source]
        seen = [case for case in own if cell.label in present[case.key]]
        drawn = [case for case in own if cell.label in case.annotated]
        assert (cell.annotated, cell.pseudo) == (len(drawn), sum(cell.label in case.pseudo for case in own))
        assert cell.present == sum(case in drawn for case in seen)
        assert cell.outside == sum(case not in drawn and cell.label not in case.pseudo for case in seen)


class Patient(tuple[str, ...]):
    """Counts how often somebody asks for the number of its cases."""

    asked = 0

    def __len__(self) -> int:
        Patient.asked += 1
        return super().__len__()


def choose_slowly(units: list[Any], number: int, random: Random) -> list[Any] | None:
    """All numbers of cases that some patients have together, with the patients."""
    reached: dict[int, list[Any]] = {0: []}
    for unit in random.sample(list(units), len(units)):
        for size, chosen in list(reached.items()):
            reached.setdefault(size + len(unit), [*chosen, unit])
        if number in reached:
            return reached[number]
    return None


def test_choosing_patients_is_fast_and_as_it_was() -> None:
    random = Random(3)
    for _ in range(100):
        units = [tuple(f"{i}_{k}" for k in range(random.choice([1, 2, 2, 5]))) for i in range(12)]
        number = random.randint(1, sum(map(len, units)))
        slow = choose_slowly(units, number, Random(number))
        if slow is not None:
            assert choose(units, number, "--test", Random(number)) == slow
    many = [Patient((f"{i}a", f"{i}b")) for i in range(2000)]
    Patient.asked = 0
    assert len(choose(many, 2000, "--test 2000", Random(0))) == 1000
    assert Patient.asked <= 4 * len(many)


def test_patients_are_divided_by_counting_each_once() -> None:
    many = [Patient((f"{i}a", f"{i}b")) for i in range(1000)]
    Patient.asked = 0
    found = divide(many, ["a", "b", "c"], Random(0))
    assert sorted(map(len, found.values())) == [333, 333, 334]
    assert Patient.asked <= 4 * len(many)


def test_integers_of_regions_are_written_as_by_comparing_all_with_all() -> None:
    values: dict[str, Any] = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "other": [4, 5], "part": [5]}
    content = {
        "labels": {"background": 0, **values},
        "channel_names": {"0": "MRI"},
        "regions_class_order": [1, 2, 3, 4, 5],
    }
    table = AnnotationTable.from_dataset_json(content)
    regions = {name: set(table.values[name]) for name in table.labels}
    for kept in (frozenset(), frozenset({"core"}), frozenset({"whole", "part"}), frozenset(values)):
        for i, written in enumerate(restricted(np.arange(6), table, kept)):
            same = [j for j in range(6) if all((i in regions[name]) == (j in regions[name]) for name in kept)]
            assert written == min(same, key=lambda j: (sum(j in region for region in regions.values()), j))


@pytest.mark.parametrize(
    "module", ["datasets.look", "datasets.merge.scan", "datasets.merge.merged_folder", "pseudo_labels.review.merge"]
)
def test_processes_that_read_cases_need_no_torch(module: str) -> None:
    code = f"import sys, nnunet_mutual.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
