"""Tables, options and folders that annotate refuses in one sentence, and an untouched folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from annotating import LONG, WIDE, table
from raw_dataset import DRAWN, NAME, RawDataset

from nnunet_mutual.datasets.annotate import annotate
from nnunet_mutual.errors import MutualError


def test_two_names_of_one_value_are_refused(raw: RawDataset, tmp_path: Path) -> None:
    raw.save(labels={"background": 0, "liver": 1, "left": 2, "right": 2})
    with pytest.raises(
        MutualError, match="the labels left and right of dataset.json have the same value 2, so no voxel"
    ):
        annotate(777, table(tmp_path, LONG))


def test_superscripts_are_no_numbers(raw: RawDataset, tmp_path: Path) -> None:
    annotate(777, table(tmp_path, LONG), source="T2²")
    assert list(raw.block["sources"]) == ["T2²"]


def test_misspelt_names_are_compared_for_those_that_are_shown(
    raw: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("nnunet_mutual.datasets.annotate.meant", lambda name, known: asked.append(name) or "")
    with pytest.raises(MutualError, match=r"40 case\(s\) that are not in imagesTr: wrong_0, .* and 35 more"):
        annotate(777, table(tmp_path, LONG + "".join(f"wrong_{i},liver\n" for i in range(40))))
    assert len(asked) == 5


def without(case: str) -> str:
    return "\n".join(line for line in LONG.split("\n") if not line.startswith(case))


BAD: dict[str, tuple[str | dict[str, Any], str]] = {
    "case not listed": (without("toy_002"), r"no line for 1 training case\(s\): toy_002"),
    "unknown case": (LONG + "toy_011,liver\n", r"not in imagesTr: toy_011; list every"),
    "spreadsheet lost the zeros": (
        LONG.replace("toy_001", "toy_1"),
        r"toy_1 \(did you mean 'toy_001'\?\) and no line for 1",
    ),
    "case twice": (LONG + "toy_001,spleen\n", r'line 7 lists case "toy_001" a second time'),
    "case twice in json": ('{"toy_001": ["liver"], "toy_001": []}', r'lists "toy_001" twice'),
    "case in other letters": (LONG.replace("toy_003", "Toy_003"), r"Toy_003 \(did you mean 'toy_003'\?\)"),
    "unknown label": (
        LONG.replace("toy_001,liver", "toy_001,Liver"),
        r"unknown label 'Liver' \(did you mean 'liver'\?\)",
    ),
    "label by number": (
        {case: [1] for case in DRAWN},
        r'case "toy_001" names the unknown label 1; dataset.json has: liver',
    ),
    "label twice": (LONG.replace("toy_001,liver", "toy_001,liver;liver"), r"names a label twice: liver, liver"),
    "empty list": (
        LONG.replace("toy_001,liver", "toy_001,"),
        r'case "toy_001" has an empty list of labels; write none',
    ),
    "no case name": (LONG + ",liver\n", r"line 7 has no case name"),
    "no column case": (
        LONG.replace("case,labels", "id,labels").replace("toy_003", "toy_3"),
        r"has no column 'case'; its first line is 'id,labels'",
    ),
    "column twice": ("case,liver,liver\n", r"two columns called 'liver'"),
    "unknown column": (
        WIDE.replace("spleen", "spleeen"),
        r"'spleeen', which is neither a label \(did you mean 'spleen'",
    ),
    "label without column": ("case,liver,spleen\ntoy_001,1,0\n", r"has no column for kidney"),
    "labels and a column per label": ("case,labels,liver\n", r"has a column 'labels' and also 'liver'"),
    "forgotten cell": (WIDE + "toy_001,yes,no,\n", r'case "toy_001" has an empty cell for kidney; expected yes or no'),
    "strange cell": (WIDE + "toy_001,yes,maybe,no\n", r"has 'maybe' for spleen"),
    "unquoted list": (
        "case;labels\ntoy_001;liver;spleen\n",
        r"line 2 has 3 cells, but there are 2 columns; put a list",
    ),
    "quotation mark never closed": (
        LONG.replace("toy_002,liver", 'toy_002,"liver'),
        r"line 3 opens a quotation mark that is never closed; correct that line",
    ),
    "quotation mark inside": (
        LONG.replace("toy_002,liver", 'toy_002,"liver" old'),
        r"line 3 has a quotation mark in the middle of a cell",
    ),
    "endless cell": (
        LONG + 'toy_002,"' + "liver;" * 30000 + '"\n',
        r"line 7 has a cell of more than 131072 characters",
    ),
    "unknown channel": ("case,labels,missing\ntoy_001,liver,CTT\n", r"unknown channel 'CTT' \(did you mean 'CT'\?\)"),
    "pseudo as text": ({"toy_001": {"annotated": [], "pseudo": "liver"}}, r'"pseudo": \'liver\'; expected a list'),
    "unknown pseudo": ({"toy_001": {"annotated": [], "pseudo": ["livr"]}}, r"'livr' \(did you mean 'liver'\?\)"),
    "source missing once": ("case,labels,source\ntoy_001,liver,A\ntoy_002,liver,\n", r'no source for case "toy_002"'),
    "empty": ("case,labels\n", r"lists no case"),
    "no object": ('["toy_001"]', r"holds a list, expected an object"),
    "broken json": ('{"toy_001": ["liver"],\n', r"is not valid JSON: .* in line \d"),
    "strange json value": ({"toy_001": "liver"}, r"case \"toy_001\" holds 'liver'; expected a list of labels"),
    "strange json key": (
        {"toy_001": {"annotated": [], "patent": "p"}},
        r"unknown key 'patent' \(did you mean 'patient'\?\)",
    ),
    "patient as number": ({"toy_001": {"annotated": [], "patient": 7}}, r'"patient": 7; expected text'),
    "some json sources": (
        {case: {"annotated": [], **({"source": "A"} if case == "toy_001" else {})} for case in DRAWN},
        r"4 case\(s\) have no source \(toy_002",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_table(raw: RawDataset, tmp_path: Path, content: str | dict[str, Any], message: str) -> None:
    path = table(tmp_path, content)
    if isinstance(content, str) and content[0] in "[{":
        path = path.rename(path.with_suffix(".json"))
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match=message) as caught:
        annotate(777, path)
    assert "\n" not in str(caught.value)
    assert raw.json.read_bytes() == before
    assert raw.files() == ["dataset.json", "imagesTr", "labelsTr"]


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "contains without =": ({"contains": ["liver"]}, r"has no '='; write outer=inner"),
    "contains unknown outer": ({"contains": ["livr=spleen"]}, r"unknown label 'livr' \(did you mean 'liver'\?\)"),
    "contains unknown inner": ({"contains": ["liver=tumour"]}, r"--contains names the unknown label 'tumour'"),
    "contains unknown source": ({"contains": ["livr:liver=spleen"]}, r"unknown source 'livr' \(did you mean 'liver'"),
    "contains not annotated": ({"contains": ["liver:spleen=kidney"]}, r"spleen is not annotated in source liver"),
    "contains itself": ({"contains": ["liver=liver"]}, r"contains itself"),
    "overlap of one": ({"may_overlap": ["liver"]}, r"is not a pair"),
    "overlap unknown": ({"may_overlap": ["liver,splen"]}, r"'splen' \(did you mean 'spleen'\?\)"),
    "single unknown": ({"single": ["aorta"]}, r"--single names the unknown label 'aorta'"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_bad_option(raw: RawDataset, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match=message):
        annotate(777, table(tmp_path, LONG), **options)
    assert raw.json.read_bytes() == before


def test_source_given_twice(raw: RawDataset, tmp_path: Path) -> None:
    content = {case: {"annotated": names, "source": "A"} for case, names in DRAWN.items()}
    with pytest.raises(MutualError, match="--source B was given, but the table has its own sources"):
        annotate(777, table(tmp_path, content), source="B")


def test_contains_in_a_region_dataset(nnunet_folders: Path, tmp_path: Path) -> None:
    raw = RawDataset(nnunet_folders, {"r_1": ["whole"]}, {"background": 0, "whole": [1, 2], "core": [2]})
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match="the labels are regions"):
        annotate(777, table(tmp_path, {"r_1": ["whole"]}), contains=["whole=core"])
    assert raw.json.read_bytes() == before


def test_full_disk_leaves_the_old_file(raw: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = raw.json.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MutualError, match="could not be written .No space left on device. and is unchanged"):
        annotate(777, table(tmp_path, LONG))
    assert raw.json.read_bytes() == before
    assert raw.files() == ["dataset.json", "imagesTr", "labelsTr"]


LOST = {
    "unset": (None, "777", "nnUNet_raw is not set; set it as for nnU-Net: export nnUNet_raw="),
    "not a folder": ("nowhere", "777", "which is not a folder"),
    "unknown ID": ("nnUNet_raw", "778", f"no dataset has the ID 778; datasets found: {NAME}"),
    "misspelt name": ("nnUNet_raw", "Dataset777_Tyo", f"did you mean '{NAME}'"),
    "not a name": ("nnUNet_raw", "toy", "give its ID or its full name"),
}


@pytest.mark.parametrize(("variable", "dataset", "message"), LOST.values(), ids=LOST)
def test_dataset_not_found(
    raw: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, dataset: str, message: str
) -> None:
    if variable is None:
        monkeypatch.delenv("nnUNet_raw")
    else:
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / variable))
    with pytest.raises(MutualError) as caught:
        annotate(dataset, table(tmp_path, LONG))
    assert message in str(caught.value)


def test_ambiguous_dataset(raw: RawDataset, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_preprocessed" / "Dataset777_Other").mkdir(parents=True)
    with pytest.raises(MutualError, match="ID 777 belongs to several datasets"):
        annotate(777, table(tmp_path, LONG))
