"""simulate: what is hidden is hidden, nothing else is changed, and the truth is kept where no training reads it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fresh import status_of_copy
from raw_dataset import LABELS, NAME, SHAPE, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets import new_dataset
from nnunet_mutual.datasets.check import check
from nnunet_mutual.datasets.raw import training_cases
from nnunet_mutual.datasets.simulate import block
from nnunet_mutual.datasets.simulate.block import restricted

OUT = "Dataset778_Simulated"
FULL = {f"toy_{i:03d}": ["liver", "spleen", "kidney"] for i in range(8)}
SITES = ("--keep", "a:liver", "--keep", "b:spleen,kidney")


class Toy(RawDataset):
    """Eight fully drawn cases; the commands make OUT beside them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, FULL)
        self.out = self.folder.with_name(OUT)

    def simulate(self, *options: str, output: str = OUT) -> int:
        return main(["simulate", NAME, output, *options])

    def two_channels(self) -> None:
        self.save(channel_names={"0": "T1", "1": "FLAIR"})
        for number, key in enumerate(FULL):
            voxels = np.random.default_rng(50 + number).normal(size=SHAPE)
            self.image(key, voxels, channel=1, spacing=(2, 1, 1), origin=(5, 6, 7))
            self.image(key, voxels + 1, spacing=(2, 1, 1), origin=(5, 6, 7))
            self.label(key, {1: 10, 2: 20, 3: 30}, spacing=(2, 1, 1), origin=(5, 6, 7))

    def unlabelled(self, *keys: str) -> None:
        (self.folder / "imagesUn").mkdir()
        for number, key in enumerate(keys):
            image = sitk.GetImageFromArray(np.random.default_rng(90 + number).normal(size=SHAPE))
            sitk.WriteImage(image, str(self.folder / "imagesUn" / f"{key}_0000.nii.gz"))

    def names(self, folder: str) -> list[str]:
        place = self.out / folder
        return sorted(path.name.removesuffix(".nii.gz") for path in place.iterdir()) if place.is_dir() else []

    @property
    def table(self) -> AnnotationTable:
        return AnnotationTable.from_dataset_json(json.loads((self.out / "dataset.json").read_text()))

    def state(self) -> dict[str, str]:
        files = (path for path in sorted(self.folder.parent.rglob("*")) if not path.is_dir())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture()
def toy(nnunet_folders: Path) -> Toy:
    return Toy(nnunet_folders)


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_two_sites_draw_different_labels(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    before = toy.state()
    assert toy.simulate(*SITES) == 0
    shown = capsys.readouterr().out
    assert check(778) == 0
    table = toy.table
    of_site = {site: [key for key, case in table.cases.items() if case.source == site] for site in ("a", "b")}
    assert {site: len(keys) for site, keys in of_site.items()} == {"a": 4, "b": 4}
    for key in FULL:
        drawn = {"a": {1}, "b": {2, 3}}[table.case(key).source]
        whole = voxels(toy.folder / "labelsTr" / f"{key}.nii.gz")
        np.testing.assert_array_equal(
            voxels(toy.out / "labelsTr" / f"{key}.nii.gz"), np.where(np.isin(whole, list(drawn)), whole, 0)
        )
        np.testing.assert_array_equal(voxels(toy.out / "truth" / "labels" / f"{key}.nii.gz"), whole)
        image = toy.out / "imagesTr" / f"{key}_0000.nii.gz"
        assert os.path.samefile(image, toy.folder / "imagesTr" / image.name)
    assert {path: content for path, content in toy.state().items() if OUT not in path} == before
    assert ["spleen", "-", "4/4", "4/4"] in [line.split() for line in shown.split("\n")]
    assert "Then:  nnunet_mutual plan_and_preprocess -d 778 -c 3d_fullres" in shown
    with (toy.out / "simulated_cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["case"]: row["source"] for row in rows} == {key: table.case(key).source for key in FULL}
    assert json.loads((toy.out / "truth" / "dataset.json").read_text()) == toy.content


def test_the_seed_decides(toy: Toy) -> None:
    drawn = {}
    for number, seed in enumerate(("3", "3", "4")):
        name = f"Dataset78{number}_S"
        assert toy.simulate(*SITES, "--labelled", "4", "--test", "1", "--seed", seed, output=name) == 0
        lines = (toy.out.with_name(name) / "simulated_cases.csv").read_text()
        drawn[number] = lines
    assert drawn[0] == drawn[1] != drawn[2]


def test_few_labels(toy: Toy) -> None:
    toy.unlabelled("more")
    assert toy.simulate("--labelled", "3", "--test", "2") == 0
    labelled, unlabelled, test = toy.names("labelsTr"), toy.names("imagesUn"), toy.names("imagesTs")
    assert [len(labelled), len(unlabelled), len(test)] == [3, 4, 2]
    assert toy.names("imagesTr") == [f"{key}_0000" for key in labelled]
    assert {name[:-5] for name in unlabelled + test} | set(labelled) == {*FULL, "more"}
    assert toy.names("truth/labels") == sorted(FULL)
    content = json.loads((toy.out / "dataset.json").read_text())
    assert content["numTraining"] == 3 and list(training_cases(toy.out, content)[0]) == labelled
    assert check(778) == 0


def test_each_site_keeps_its_share_of_the_labels(toy: Toy) -> None:
    assert toy.simulate(*SITES, "--labelled", "4") == 0
    assert sorted(toy.table.case(key).source for key in toy.names("labelsTr")) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_are_rarely_there_stay_to_be_seen(toy: Toy, seed: int) -> None:
    for key in list(FULL)[1:]:
        toy.label(key, {1: 10})
    assert toy.simulate("--labelled", "2", "--seed", str(seed)) == 0
    assert "toy_000" in toy.names("labelsTr"), "the only case in which spleen and kidney are there"


@pytest.mark.parametrize("seed", range(5))
def test_cases_of_a_patient_stay_together(toy: Toy, seed: int) -> None:
    cases = {key: {"source": "h", "patient": f"p{i // 2}"} for i, key in enumerate(FULL)}
    toy.save(mutual={"version": 1, "sources": {"h": {"annotated": list(LABELS)[1:]}}, "cases": cases})
    assert toy.simulate(*SITES, "--labelled", "4", "--test", "2", "--seed", str(seed)) == 0
    with (toy.out / "simulated_cases.csv").open() as stream:
        rows = {row["case"]: (row["use"], row["source"]) for row in csv.DictReader(stream)}
    for i in range(0, 8, 2):
        assert rows[f"toy_{i:03d}"] == rows[f"toy_{i + 1:03d}"]
    assert sorted(use for use, _ in rows.values()) == ["labelled"] * 4 + ["test"] * 2 + ["unlabelled"] * 2
    assert all(toy.table.case(key).patient == cases[key]["patient"] for key in toy.table.cases)


def test_missing_channels_are_zeros_on_the_same_grid_and_declared(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.two_channels()
    assert toy.simulate("--missing", "FLAIR=0.5", "--missing", "T1=0.25", "--labelled", "6") == 0
    assert "Channels missing: T1 in 2, FLAIR in 4 of 8 cases. Their files hold zeros" in capsys.readouterr().out
    assert check(778) == 0
    for key in FULL:
        case = toy.table.case(key)
        assert len(case.missing) < 2
        for number, channel in enumerate(("T1", "FLAIR")):
            name = f"{key}_{number:04d}.nii.gz"
            old = sitk.ReadImage(str(toy.folder / "imagesTr" / name))
            folder = "imagesTr" if key in toy.names("labelsTr") else "imagesUn"
            new = sitk.ReadImage(str(toy.out / folder / name))
            assert (new.GetSpacing(), new.GetOrigin(), new.GetDirection(), new.GetPixelID()) == (
                old.GetSpacing(),
                old.GetOrigin(),
                old.GetDirection(),
                old.GetPixelID(),
            )
            expected = 0 * voxels(toy.folder / "imagesTr" / name)
            if channel not in case.missing:
                expected = voxels(toy.folder / "imagesTr" / name)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(new), expected)


@pytest.mark.parametrize("copy", [[], ["--copy"]], ids=["linked", "copied"])
def test_3d_tif_keeps_its_spacing(nnunet_folders: Path, copy: list[str]) -> None:
    toy = RawDataset(nnunet_folders, {f"toy_{i:03d}": [] for i in range(6)}, ending=".tif")
    toy.save(overwrite_image_reader_writer="Tiff3DIO")  # else four slices are taken for four colours
    for key in toy.drawn:
        toy.label(key, {1: 10, 2: 20, 3: 30})
        for folder in ("imagesTr", "labelsTr"):
            (toy.folder / folder / f"{key}.json").write_text(json.dumps({"spacing": [5.0, 0.5, 0.7]}))
    before = {path: path.read_bytes() for path in toy.folder.rglob("*") if path.is_file()}
    assert main(["simulate", NAME, OUT, *SITES, "--labelled", "4", *copy]) == 0
    out = toy.folder.with_name(OUT)
    images = [*(out / "imagesTr").glob("*.tif"), *(out / "imagesUn").glob("*.tif")]
    maps = [*(out / "labelsTr").glob("*.tif"), *(out / "truth" / "labels").glob("*.tif")]
    assert (len(images), len(maps)) == (6, 4 + 6)
    for path in images + maps:
        sizes = path.with_name(path.stem.removesuffix("_0000") + ".json")
        assert json.loads(sizes.read_text()) == {"spacing": [5.0, 0.5, 0.7]}
    assert {path: path.read_bytes() for path in before} == before, "a link is never written through"
    assert check(778) == 0


def test_a_table_that_is_there_is_restricted(toy: Toy) -> None:
    sources: dict[str, Any] = {
        "h": {"annotated": ["liver", "spleen"], "contains": {"liver": ["kidney"]}},
        "k": {"annotated": ["liver", "spleen", "kidney"]},
    }
    cases: dict[str, Any] = {key: {"source": "h" if i < 4 else "k"} for i, key in enumerate(FULL)}
    cases["toy_007"] |= {"annotated": ["liver"], "pseudo": ["spleen"]}
    for key in list(FULL)[:4]:
        cases[key]["outlined"] = {"liver": {"by": "T"}, "spleen": {"weight": 0.5}}
    for key in list(FULL)[:4]:
        toy.label(key, {1: 10, 2: 20})
    toy.label("toy_007", {1: 10, 2: 20})
    toy.save(mutual={"version": 1, "sources": sources, "cases": cases, "labels": {"spleen": {"single": True}}})
    assert toy.simulate("--keep", "a:liver", "--keep", "b:spleen,kidney", "--keep", "c:liver,spleen") == 0
    assert check(778) == 0
    table = toy.table
    for key, case in table.cases.items():
        site, old = case.source.split("_")
        kept = {"a": {"liver"}, "b": {"spleen", "kidney"}, "c": {"liver", "spleen"}}[site]
        annotated = set(cases[key].get("annotated", sources[old]["annotated"]))
        assert case.annotated == annotated & kept
        assert case.pseudo == set(cases[key].get("pseudo", ())) & kept
        assert {one.label for one in case.outlined} == cases[key].get("outlined", {}).keys() & kept
        assert old == cases[key]["source"]
        expected = {"liver": {"kidney"}} if old == "h" and "liver" in kept else {}
        assert table.sources[case.source].contains == expected
    assert table.singles == {"spleen"}


def table_of(labels: dict[str, Any]) -> AnnotationTable:
    return AnnotationTable.from_dataset_json({"labels": {"background": 0} | labels, "channel_names": {"0": "CT"}})


@pytest.mark.parametrize(
    ("labels", "kept", "expected"),
    [
        ({"liver": 1, "spleen": 2, "kidney": 3}, {"spleen"}, [0, 0, 2, 0]),
        ({"liver": 1, "spleen": 2, "kidney": 3}, set(), [0, 0, 0, 0]),
        ({"liver": 1, "spleen": 2, "ignore": 3}, {"liver"}, [0, 1, 0, 3]),
        ({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"whole"}, [0, 1, 1, 1]),
        ({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"core"}, [0, 0, 2, 2]),
        ({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"whole", "enhancing"}, [0, 1, 1, 3]),
    ],
)
def test_label_maps_of_somebody_who_draws_less(labels: dict[str, Any], kept: set[str], expected: list[int]) -> None:
    assert restricted(np.arange(4), table_of(labels), frozenset(kept)).tolist() == expected


def test_what_an_outline_contains_is_drawn_as_it() -> None:
    labels = table_of({"liver": 1, "tumour": 2, "necrosis": 3})
    contains = {"liver": frozenset({"tumour", "necrosis"}), "tumour": frozenset({"necrosis"})}
    for kept, expected in (
        ({"liver"}, [0, 1, 1, 1]),
        ({"liver", "tumour"}, [0, 1, 2, 2]),
        ({"tumour"}, [0, 0, 2, 2]),
        ({"necrosis"}, [0, 0, 0, 3]),
    ):
        assert restricted(np.arange(4), labels, frozenset(kept), contains).tolist() == expected


def test_what_is_nested_at_any_depth_stays_open(toy: Toy) -> None:
    """A spleen in a kidney in a liver: who draws the liver alone has drawn it around both."""
    everything = {"annotated": list(LABELS)[1:], "contains": {"liver": ["kidney"], "kidney": ["spleen"]}}
    toy.save(mutual={"version": 1, "sources": {"h": everything}, "cases": {key: {"source": "h"} for key in FULL}})
    assert toy.simulate("--keep", "a:liver", "--keep", "b:kidney,spleen") == 0
    found = [toy.table.inside(name) for name in toy.table.sources]
    assert found == [{"liver": {"kidney", "spleen"}}, {"kidney": {"spleen"}}]


def test_a_label_map_is_no_link_to_the_truth(toy: Toy) -> None:
    assert toy.simulate("--labelled", "3") == 0
    key = toy.names("labelsTr")[0]
    own, truth = (toy.out / folder / f"{key}.nii.gz" for folder in ("labelsTr", "truth/labels"))
    assert own.read_bytes() == truth.read_bytes() and own.stat().st_ino != truth.stat().st_ino


@pytest.mark.parametrize(
    "options", [("--keep", "a:liver,spleen", "--keep", "b:kidney,spleen"), ("--incomplete", "kidney=0.5")]
)
def test_what_is_hidden_within_an_outline_stays_open(toy: Toy, options: tuple[str, ...]) -> None:
    everything = {"annotated": list(LABELS)[1:], "contains": {"liver": ["kidney"]}}
    toy.save(mutual={"version": 1, "sources": {"h": everything}, "cases": {key: {"source": "h"} for key in FULL}})
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[0, :2], voxels[0, 0, :2], voxels[2, 3], voxels[3, 4] = 1, 3, 3, 2  # two kidneys, of which one may be hidden
    for key in FULL:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(toy.folder / "labelsTr" / f"{key}.nii.gz"))
    assert toy.simulate(*options) == 0
    table, hidden = toy.table, 0
    for key, case in table.cases.items():
        truth, drawn = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(toy.out / folder / f"{key}.nii.gz")))
            for folder in ("truth/labels", "labelsTr")
        )
        if "liver" in case.annotated and "kidney" not in case.annotated:
            away = (truth == 3) & (drawn != 3)
            hidden += int(away.sum())
            assert (drawn[away] == 1).all(), "certain background"
            assert table.sources[case.source].contains == {"liver": {"kidney"}}
    assert hidden


def test_a_case_without_a_channel_is_not_all_channels_in_one_file(toy: Toy) -> None:
    toy.two_channels()
    first = next(iter(FULL))
    (toy.folder / "imagesTr" / f"{first}_0001.nii.gz").unlink()
    cases = {key: {"source": "h"} for key in FULL} | {first: {"source": "h", "missing": ["FLAIR"]}}
    groups = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
    everything = {"annotated": list(LABELS)[1:]}
    toy.save(mutual={"version": 1, "sources": {"h": everything}, "cases": cases, "modality_groups": groups})
    assert toy.simulate("--missing", "T1=0.3") == 0


def two_patients(toy: Toy) -> None:
    cases = {key: {"source": "h", "patient": f"p{i // 4}"} for i, key in enumerate(FULL)}
    toy.save(mutual={"version": 1, "sources": {"h": {"annotated": list(LABELS)[1:]}}, "cases": cases})


def unlisted(toy: Toy) -> None:
    toy.declare({key: names for key, names in FULL.items() if key != "toy_003"})


def unreadable(toy: Toy) -> None:
    (toy.folder / "imagesTr" / "toy_001_0000.nii.gz").write_bytes(b"no image")


def undrawn(toy: Toy) -> None:
    toy.declare({key: ["liver"] for key in FULL})
    for key in FULL:
        toy.label(key, {1: 10})


def twice(toy: Toy) -> None:
    toy.unlabelled("toy_001")


def taken(toy: Toy) -> None:
    toy.out.mkdir()


def nothing(_: Toy) -> None:
    """The dataset is fine, the options are not."""


BAD: dict[str, tuple[Callable[[Toy], object], list[str], str]] = {
    "no option": (nothing, [], "nothing to simulate; say what shall be lacking: --keep"),
    "keep without label": (nothing, ["--keep", "a"], "--keep 'a' is not understood; write SITE:LABEL"),
    "unknown label": (nothing, ["--keep", "a:lever"], "unknown label 'lever' (did you mean 'liver'?)"),
    "site twice": (nothing, ["--keep", "a:liver", "--keep", "a:spleen"], "names the site a twice"),
    "label of nobody": (nothing, ["--keep", "a:liver,spleen"], "no site keeps kidney, so it could not be learnt"),
    "no patients left": (two_patients, [*SITES, "--keep", "c:liver"], "2 patient(s) cannot be divided among 3 sites"),
    "too many labelled": (nothing, ["--labelled", "9"], "--labelled 9 needs 9 case(s), but only 8 can be chosen from"),
    "a site without label": (nothing, [*SITES, "--labelled", "1"], "--labelled 1 leaves a site without labelled case"),
    "none labelled": (
        nothing,
        ["--labelled", "0"],
        "--labelled: it must be a whole number from 1",
    ),
    "half a patient": (two_patients, ["--labelled", "3"], "3 case(s) cannot be made of whole patients"),
    "all for the test": (nothing, ["--test", "8"], "--test 8 takes every case"),
    "negative test": (nothing, ["--test", "-1"], "--test: it must be a whole number from 0"),
    "unknown channel": (
        Toy.two_channels,
        ["--missing", "Flair=0.5"],
        "unknown channel 'Flair' (did you mean 'FLAIR",
    ),
    "share too high": (Toy.two_channels, ["--missing", "T1=1.5"], "must be a number between 0 and 1, such as T1=0.3"),
    "share not a number": (Toy.two_channels, ["--missing", "T1=half"], "must be a number between 0 and 1"),
    "channel twice": (Toy.two_channels, ["--missing", "T1=.2", "--missing", "T1=.3"], "names the channel T1 twice"),
    "nothing left": (
        Toy.two_channels,
        ["--missing", "T1=.8", "--missing", "FLAIR=.8"],
        "--missing FLAIR=0.8 would leave 4 case(s) without any channel",
    ),
    "only channel": (nothing, ["--missing", "CT=0.5"], "the only channel, CT, cannot be missing"),
    "case not in the table": (unlisted, ["--labelled", "4"], "1 case(s) are not listed"),
    "unreadable image": (unreadable, ["--labelled", "4"], "has 1 error(s), the first is imagesTr/toy_001_0000.nii.gz"),
    "label that nobody drew": (undrawn, ["--labelled", "4"], "no labelled case would annotate spleen, kidney"),
    "one name twice": (twice, ["--labelled", "4"], "the name toy_001 is in imagesTr too"),
    "place taken": (taken, ["--labelled", "4"], "the ID 778 is already used by Dataset778_Simulated"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_sentence_and_nothing_written(toy: Toy, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spoil, options, sentence = BAD[kind]
    spoil(toy)
    before = toy.state()
    assert toy.simulate(*options) == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert sentence in shown and "\n" not in shown.strip()
    assert toy.state() == before and (kind == "place taken" or not toy.out.exists())


@pytest.mark.parametrize("name", ["Simulated", "Dataset78_X", "../Dataset778_X"])
def test_the_new_name_must_be_a_dataset_name(toy: Toy, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert toy.simulate(*SITES, output=name) == 2
    assert "nnU-Net expects a name such as Dataset111_Abdomen" in capsys.readouterr().err


def test_full_disk(toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = toy.state()
    monkeypatch.setattr(new_dataset, "link_or_copy", full)
    assert toy.simulate(*SITES) == 2
    assert "(No space left on device) and nothing was kept" in capsys.readouterr().err
    assert toy.state() == before


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_and_repeated(toy: Toy) -> None:
    def killed() -> None:
        place = block.place_images

        def placing(files: Any, *arguments: Any, **options: Any) -> None:
            if files.key == "toy_003":
                os.kill(os.getpid(), signal.SIGKILL)
            place(files, *arguments, **options)

        block.place_images = placing
        toy.simulate("--labelled", "4")

    assert status_of_copy(killed) == -signal.SIGKILL
    stale = toy.out.with_name(f".{OUT}.simulating")
    assert not toy.out.exists() and (stale / "truth" / "labels" / "toy_002.nii.gz").is_file()
    assert toy.simulate("--labelled", "4") == 0
    assert not stale.exists() and len(toy.names("labelsTr")) == 4 and not list(toy.out.glob("*_in_progress"))
