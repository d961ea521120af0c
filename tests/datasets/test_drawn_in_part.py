"""Labels that are drawn in part, from a table to the folds: annotate, merge, simulate, check and splits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from annotating import table
from checking import examine, sentences
from merging import Pair, block_of
from raw_dataset import NAME, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.annotate import annotate
from nnunet_mutual.datasets.check import check
from nnunet_mutual.datasets.simulate.hiding import Hiding
from nnunet_mutual.datasets.split_problems import fold_problems
from nnunet_mutual.datasets.splits import describe_splits, stratified_splits
from nnunet_mutual.errors import MutualError

DRAWN = {"toy_001": ["liver", "spleen"], "toy_002": ["liver", "spleen"], "toy_003": ["liver"]}
EXPECTED = {"toy_001": ({"liver", "spleen"}, set()), "toy_002": ({"liver"}, {"spleen"}), "toy_003": ({"liver"}, set())}
TABLES: dict[str, str | dict[str, Any]] = {
    "a word in the column of the label": "case,liver,spleen\ntoy_001,yes,yes\ntoy_002,yes,partly\ntoy_003,yes,no\n",
    "among crosses": "case,liver,spleen\ntoy_001,x,x\ntoy_002,x,(x)\ntoy_003,x,\n",
    "German": "Fall;liver;spleen\ntoy_001;ja;ja\ntoy_002;ja;teilweise\ntoy_003;ja;nein\n",
    "a column": "case,labels,incomplete\ntoy_001,liver;spleen,\ntoy_002,liver,spleen\ntoy_003,liver,\n",
    "JSON": {
        "toy_001": ["liver", "spleen"],
        "toy_002": {"annotated": ["liver"], "incomplete": ["spleen"]},
        "toy_003": ["liver"],
    },
}


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    return RawDataset(nnunet_folders, DRAWN, {"background": 0, "liver": 1, "spleen": 2})


def said(folder: Path) -> dict[str, tuple[set[str], set[str]]]:
    parsed = AnnotationTable.from_dataset_json(json.loads((folder / "dataset.json").read_text()))
    return {key: (set(case.annotated), set(case.incomplete)) for key, case in parsed.cases.items()}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_tables_with_a_third_state(
    raw: RawDataset, tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(NAME, table(tmp_path, content))
    assert said(raw.folder) == EXPECTED
    shown = capsys.readouterr().out
    assert ["spleen", "1", "(1)", "-", "1", "(1)"] in [line.split() for line in shown.split("\n")]
    assert "nnU-Net's ignore label there says more" in shown
    assert len(raw.block["sources"]) == 2, "a case drawn in part is of the same source as one drawn completely"


def test_a_later_table_that_says_yes_is_asked_whether_it_is_so(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(NAME, table(tmp_path, "case,labels\ntoy_001,all\ntoy_002,all\ntoy_003,liver\n"))
    annotate(NAME, table(tmp_path, TABLES["JSON"]), force=True)
    assert "WARNING" not in capsys.readouterr().out, "that some of it was not drawn is no loss"
    annotate(NAME, table(tmp_path, "case,labels\ntoy_001,all\ntoy_002,all\ntoy_003,liver\n"), force=True)
    shown = capsys.readouterr().out
    assert "WARNING: 1 case(s) draw completely what the block before said was drawn in part: toy_002: spleen" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,labels,incomplete\ntoy_001,liver,liver\n", "line 2, case \"toy_001\" calls liver incomplete and also"),
        ("case,liver,spleen,incomplete\ntoy_001,yes,no,liver\n", "calls liver incomplete and also annotated"),
        ("case,labels,incomplete\ntoy_001,liver,splen\n", "unknown label 'splen'.*mean 'spleen'"),
        ("case,liver,spleen\ntoy_001,yes,partially drawn\n", "has 'partially drawn' for spleen; .* or partly"),
        ({"toy_001": {"annotated": ["liver"], "incomplete": "spleen"}}, "\"incomplete\": .*expected a list of names"),
        ({"toy_001": {"annotated": [], "pseudo": ["liver"], "incomplete": ["liver"]}}, "calls liver incomplete and"),
    ],
)  # fmt: skip
def test_contradictions(raw: RawDataset, tmp_path: Path, content: Any, message: str) -> None:
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match=message):
        annotate(NAME, table(tmp_path, content))
    assert raw.json.read_bytes() == before


def declare(raw: RawDataset, *in_part: str) -> None:
    """Spleens of these cases are drawn in part."""
    cases = {key: {"source": "a"} | ({"incomplete": ["spleen"]} if key in in_part else {}) for key in DRAWN}
    cases["toy_003"]["annotated"] = ["liver"]
    raw.save(mutual={"version": 1, "sources": {"a": {"annotated": ["liver", "spleen"]}}, "cases": cases})


def test_check_shows_three_states(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    declare(raw, "toy_002")
    status, report = examine(capsys)
    assert (status, sentences(report, "error")) == (0, [])
    (warning,) = sentences(report, "warning")
    assert warning.startswith("label spleen: drawn in part in 1 case(s) (toy_002), where what is not drawn is unknown;")
    cell = next(cell for cell in report["coverage"] if cell["label"] == "spleen")
    assert (cell["annotated"], cell["present"], cell["outside"], cell["incomplete"]) == (1, 1, 0, 1)
    assert check(777) == 0
    shown = capsys.readouterr().out
    assert "(n): drawn in part in n more cases, where what is not drawn is unknown" in shown
    assert ["spleen", "1/1", "(1)", "1/1", "(1)"] in [line.split() for line in shown.split("\n")]
    raw.label("toy_002", {1: 5})
    assert (
        "1 of them (toy_002) have no voxel of it, so they say nothing about it"
        in sentences(examine(capsys)[1], "warning")[0]
    )


def test_check_says_why_parts_alone_teach_nothing(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    declare(raw, "toy_001", "toy_002")
    status, report = examine(capsys)
    (error,) = sentences(report, "error")
    assert status == 2 and error.startswith("label spleen: no case annotates it completely: where only a part is drawn")


def test_merge_keeps_what_is_drawn_in_part(nnunet_folders: Path) -> None:
    pair = Pair(nnunet_folders)
    cases = {"s_1": {"source": "A"}, "s_2": {"source": "A", "annotated": ["kidney", "spleen"]}, "s_3": {"source": "A"}}
    block_of(pair.spleen, {"A": {"annotated": ["kidney"], "incomplete": ["spleen"]}}, cases)
    assert pair.merge() == 0
    found = said(pair.out)
    assert found["Spleen_s_1"] == ({"kidney"}, {"spleen"}) and found["Spleen_s_2"] == ({"kidney", "spleen"}, set())
    assert check(111) == 0


def test_one_drew_all_and_the_other_a_part(nnunet_folders: Path) -> None:
    """Of one image in two datasets: the complete drawing counts, and of two parts both."""
    pair = Pair(nnunet_folders)
    pair.liver.save(labels={"background": 0, "liver": 1, "spleen": 2})
    pair.twin({1: 10, 2: 4}, {0: 12, 2: 8})
    spleens = {"s_1": {"source": "A"}, "s_2": {"source": "A"}, "s_3": {"source": "A"}}
    block_of(pair.spleen, {"A": {"annotated": ["kidney"], "incomplete": ["spleen"]}}, spleens)
    both = {"c_1": {"source": "B", "annotated": ["liver"], "incomplete": ["spleen"]}, "c_2": {"source": "B"}}
    block_of(pair.liver, {"B": {"annotated": ["liver", "spleen"]}}, both)
    assert pair.merge() == 0
    assert said(pair.out)["Liver_c_1"] == ({"liver", "kidney"}, {"spleen"})
    assert (pair.label_map("Liver_c_1").ravel()[:20] == [1] * 10 + [2] * 10).all(), "what either drew is there"


def test_rename_of_a_part_and_a_whole_is_a_part(nnunet_folders: Path) -> None:
    pair = Pair(nnunet_folders)
    cases = {key: {"source": "A"} for key in ("s_1", "s_2", "s_3")}
    block_of(pair.spleen, {"A": {"annotated": ["kidney"], "incomplete": ["spleen"]}}, cases)
    options = ("--rename", "Spleen:kidney=organ", "--rename", "Spleen:spleen=organ")
    assert pair.merge(*options) == 0
    assert said(pair.out)["Spleen_s_1"] == (set(), {"organ"})


class Lesions(RawDataset):
    """Eight cases with an organ, and six lesions of two voxels in as many slices, three in the organ."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {f"toy_{i:03d}": [] for i in range(8)}, {"background": 0, "organ": 1, "lesion": 2})
        self.out = self.folder.with_name("Dataset778_Some")
        for number, key in enumerate(self.drawn):
            image = sitk.GetImageFromArray(self.truth())
            image.SetSpacing([1.0, 1.0, 3.0])
            sitk.WriteImage(image, str(self.folder / "labelsTr" / f"{key}.nii.gz"))
            self.image(key, np.random.default_rng(number).normal(size=(11, 5, 6)), spacing=(1, 1, 3))

    @staticmethod
    def truth() -> np.ndarray:
        voxels = np.zeros((11, 5, 6), np.uint8)
        voxels[:, 3:] = 1
        for number in range(6):
            voxels[2 * number, 1 if number % 2 else 4, 1:3] = 2
        return voxels

    def simulate(self, *options: str) -> int:
        return main(["simulate", NAME, self.out.name, *options])

    def drawn_map(self, key: str) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(self.out / "labelsTr" / f"{key}.nii.gz")))


@pytest.fixture()
def lesions(nnunet_folders: Path) -> Lesions:
    return Lesions(nnunet_folders)


@pytest.mark.parametrize("pieces", ["components", "slices"])
def test_a_share_of_the_pieces_is_hidden(lesions: Lesions, pieces: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lesions.simulate("--incomplete", "lesion=0.5", "--complete", "3", "--pieces", pieces) == 0
    assert ["lesion", "3/3", "(5)", "3/3", "(5)"] in [line.split() for line in capsys.readouterr().out.split("\n")]
    assert check(778) == 0
    found, hidden = said(lesions.out), set()
    for key, (annotated, in_part) in found.items():
        drawn, truth = lesions.drawn_map(key), lesions.truth()
        if annotated == {"organ", "lesion"}:
            assert np.array_equal(drawn, truth)
            continue
        assert (annotated, in_part) == ({"organ"}, {"lesion"})
        kept = [number for number in range(6) if (drawn[2 * number] == 2).sum() == 2]
        assert len(kept) == 3 and (drawn == 2).sum() == 6, "whole lesions, half of them"
        assert np.array_equal(drawn == 1, truth == 1), "a hidden lesion is nothing, and no organ"
        hidden.add(tuple(kept))
    assert len(hidden) > 1, "others in every case"
    whole = sitk.ReadImage(str(lesions.out / "truth" / "labels" / "toy_000.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(whole), lesions.truth())
    with (lesions.out / "simulated_cases.csv").open() as stream:
        rows = {row["case"]: row["labels_in_part"] for row in csv.DictReader(stream)}
    assert rows == {key: " ".join(in_part) for key, (_, in_part) in found.items()}


def test_the_seed_decides_what_is_hidden(lesions: Lesions) -> None:
    maps = []
    for number, seed in enumerate(("3", "3", "4")):
        lesions.out = lesions.folder.with_name(f"Dataset78{number}_Some")
        assert lesions.simulate("--incomplete", "lesion=0.4", "--complete", "1", "--seed", seed) == 0
        maps.append([lesions.drawn_map(key) for key in lesions.drawn])
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[1], maps[2])


def test_pieces_by_hand() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, :, 0] = mask[3, :2, 3] = True
    components = Hiding({"lesion": 0.5}, "components", 0).hidden(mask, (1, 1, 1), "case", "lesion")
    assert components.sum() in (2, 4) and (mask & ~components).sum() == 6 - components.sum()
    slices = Hiding({"lesion": 0.5}, "slices", 0).hidden(mask, (1, 5, 1), "case", "lesion")
    assert len({*np.where(slices)[1]}) == 2 == len({*np.where(mask & ~slices)[1]}), "across the axis of 5 mm"
    one = Hiding({"lesion": 0.9}, "components", 0).hidden(
        mask & (np.indices(mask.shape)[0] == 0), (1, 1, 1), "c", "lesion"
    )
    assert not one.any(), "one piece is always left"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--incomplete", "lesoin=0.5"], "--incomplete 'lesoin=0.5' names the unknown label 'lesoin' (did you mean"),
        (["--incomplete", "lesion=1"], "the share must be a number between 0 and 1, such as lesion=0.3"),
        (["--incomplete", "lesion=.2", "--incomplete", "lesion=.3"], "names the label lesion twice"),
        (["--incomplete", "lesion=.2", "--complete", "9"], "--complete 9 (lesion) needs 9 case(s), but only 8 can be"),
        (["--incomplete", "lesion=.2", "--complete", "8"], "--complete 8 leaves no case in which lesion is drawn in"),
    ],
)
def test_wrong_options(lesions: Lesions, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lesions.simulate(*options) == 2
    assert sentence in capsys.readouterr().err and not lesions.out.exists()


def table_of(in_part: int, complete: int, patients: dict[str, str] | None = None) -> AnnotationTable:
    entries = [{"annotated": ["liver"], "incomplete": ["spleen"]}] * in_part + [{}] * complete
    cases = {f"c{i:02d}": {"source": "a", **entry} for i, entry in enumerate(entries)}
    for key, patient in (patients or {}).items():
        cases[key]["patient"] = patient
    labels = {"background": 0, "liver": 1, "spleen": 2}
    block = {"version": 1, "sources": {"a": {"annotated": ["liver", "spleen"]}}, "cases": cases}
    return AnnotationTable.from_dataset_json({"labels": labels, "channel_names": {"0": "CT"}, "mutual": block})


@pytest.mark.parametrize("patients", [None, {"c00": "p", "c09": "p"}])
def test_cases_drawn_in_part_are_trained_on_in_every_fold(patients: dict[str, str] | None) -> None:
    found = table_of(6, 8, patients)
    splits = stratified_splits(found, list(found.cases))
    in_part = {key for key, case in found.cases.items() if case.incomplete}
    stay = in_part | set(patients or {})
    assert all(stay <= {*split["train"]} and not stay & {*split["val"]} for split in splits)
    assert sorted(key for split in splits for key in split["val"]) == sorted(set(found.cases) - stay)
    text = describe_splits(splits, found)
    assert "draw a label in part" in text
    (row,) = (line.split() for line in text.splitlines() if "spleen in part" in line)
    assert row[3:] == ["6/0"] * 5 and "liver in part" not in text


def test_too_few_complete_cases_for_folds() -> None:
    found = table_of(6, 4)
    with pytest.raises(MutualError, match=r"only 4 patient\(s\) can be validated: .* draw a label in part"):
        stratified_splits(found, list(found.cases))
    everywhere = table_of(6, 0)
    with pytest.raises(MutualError, match=r"only 0 patient\(s\) can be validated"):
        stratified_splits(everywhere, list(everywhere.cases))


def test_a_split_of_others_is_judged() -> None:
    found = table_of(3, 3)
    first = fold_problems(found, {"train": ["c00", "c01"], "val": ["c02", "c03"]}, 0)
    assert [(p.severity, p.text.split(";")[0].split(": ")[0]) for p in first] == [
        ("error", "no training case annotates spleen completely"),
        ("warning", "1 validation case(s) draw spleen in part (c02)"),
    ]
    assert not fold_problems(found, {"train": ["c00", "c01", "c04"], "val": ["c03"]}, 0)
