"""A table of case -> labels becomes the block of dataset.json, or one sentence and an untouched folder."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from raw_dataset import DRAWN, NAME, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.annotate import annotate
from nnunet_mutual.datasets.declare_groups import declare_groups
from nnunet_mutual.datasets.merge.sources import load_sources
from nnunet_mutual.datasets.simulate.command import SimulateOptions, simulate
from nnunet_mutual.datasets.sync import sync
from nnunet_mutual.errors import MutualError

LONG = "case,labels\n" + "".join(f"{case},{';'.join(names)}\n" for case, names in DRAWN.items())


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    return RawDataset(nnunet_folders)


def table(tmp_path: Path, content: str | dict[str, Any], *, encoding: str = "utf-8") -> Path:
    path = tmp_path / ("table.csv" if isinstance(content, str) else "table.json")
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))
    return path


def annotated(raw: RawDataset) -> dict[str, set[str]]:
    parsed = AnnotationTable.from_dataset_json(json.loads(raw.json.read_text()))
    return {key: set(case.annotated) for key, case in parsed.cases.items()}


WIDE = "case,liver,spleen,kidney\n"
MARKS = {
    "yes and no": {True: "yes", False: "no"},
    "1 and 0": {True: "1", False: "0"},
    "crosses": {True: "x", False: ""},
    "capitals": {True: " Yes ", False: "NO"},
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_column_per_label(raw: RawDataset, tmp_path: Path, marks: dict[bool, str]) -> None:
    rows = [
        ",".join([case, *(marks[n in names] for n in ("liver", "spleen", "kidney"))]) for case, names in DRAWN.items()
    ]
    annotate(NAME, table(tmp_path, WIDE + "\n".join(rows)))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}


SAME = {
    "column labels": LONG,
    "byte order mark and empty lines": "\ufeff" + LONG.replace("\n", "\r\n\r\n"),
    "spreadsheet with semicolons": LONG.replace(";", "/")
    .replace(",", ";")
    .replace("spleen/kidney", '"spleen;kidney"')
    .replace('liver/"spleen;kidney"', '"liver;spleen;kidney"'),
    "all": LONG.replace("liver;spleen;kidney", "all"),
    "json lists": dict(DRAWN),
    "json objects": {case: {"annotated": names} for case, names in DRAWN.items()},
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_spellings_of_the_same_table(raw: RawDataset, tmp_path: Path, content: str | dict[str, Any]) -> None:
    annotate("777", table(tmp_path, content))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}


def test_sources_of_equal_sets_have_telling_names(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(777, table(tmp_path, LONG))
    assert raw.block["sources"] == {
        "liver": {"annotated": ["liver"]},
        "without_liver": {"annotated": ["spleen", "kidney"]},
        "all_labels": {"annotated": ["liver", "spleen", "kidney"]},
    }
    assert raw.block["cases"]["toy_003"] == {"source": "without_liver"}
    printed = capsys.readouterr().out
    assert "--source NAME" in printed
    assert printed.rstrip().endswith(f"nnunet_mutual check {NAME}")


def test_own_sources_and_patients(raw: RawDataset, tmp_path: Path) -> None:
    rows = {"toy_001": "A,p1,liver", "toy_002": "A,p2,liver", "toy_003": "B,p1,spleen;kidney", "toy_004": "B,,none"}
    rows["toy_010"] = "A,p3,all"
    annotate(777, table(tmp_path, "case,source,patient,labels\n" + "".join(f"{c},{row}\n" for c, row in rows.items())))
    block = raw.block
    assert block["sources"]["A"] == {"annotated": ["liver"]}
    assert block["cases"]["toy_001"] == {"source": "A", "patient": "p1"}
    assert block["cases"]["toy_010"] == {"source": "A", "annotated": ["liver", "spleen", "kidney"], "patient": "p3"}
    assert annotated(raw)["toy_004"] == set()
    assert "patient" not in block["cases"]["toy_004"]


def test_one_source_for_all(raw: RawDataset, tmp_path: Path) -> None:
    annotate(777, table(tmp_path, LONG), source="clinic")
    assert list(raw.block["sources"]) == ["clinic"]
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}


def test_relations_between_labels(raw: RawDataset, tmp_path: Path) -> None:
    annotate(
        777,
        table(tmp_path, LONG),
        contains=["liver:liver=spleen", "kidney=liver"],
        may_overlap=["spleen, kidney"],
        single=["spleen"],
    )
    block = raw.block
    assert block["sources"]["liver"]["contains"] == {"liver": ["spleen"]}
    assert block["sources"]["without_liver"]["contains"] == {"kidney": ["liver"]}
    assert block["sources"]["all_labels"]["contains"] == {"kidney": ["liver"]}
    assert block["may_overlap"] == [["spleen", "kidney"]]
    assert block["labels"] == {"spleen": {"single": True}}


def test_everything_else_in_dataset_json_is_kept(raw: RawDataset, tmp_path: Path) -> None:
    before = json.loads(raw.json.read_text())
    annotate(777, table(tmp_path, LONG))
    after = json.loads(raw.json.read_text())
    assert list(after) == [*before, "mutual"]
    assert {key: after[key] for key in before} == before
    assert raw.files() == ["dataset.json", "imagesTr", "labelsTr"]


def unlabelled_images(raw: RawDataset, *keys: str) -> None:
    (raw.folder / "imagesUn").mkdir()
    for key in keys:
        (raw.folder / "imagesUn" / f"{key}_0000.nii.gz").touch()


UNLABELLED: dict[str, str | dict[str, Any]] = {
    "none": LONG.replace("labels", "labels,source,patient,missing").replace("\n", ",A,,\n").replace("g,A,,\n", "g\n")
    + "un_1,none,B,p1,\nun_2,,B,,CT\n",
    "json": {
        **{case: {"annotated": names, "source": "A"} for case, names in DRAWN.items()},
        "un_1": {"source": "B", "patient": "p1"},
        "un_2": {"annotated": [], "source": "B", "missing": ["CT"]},
    },
}


@pytest.mark.parametrize("content", UNLABELLED.values(), ids=UNLABELLED)
def test_images_of_images_un_may_be_listed(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | dict[str, Any]
) -> None:
    unlabelled_images(raw, "un_1", "un_2", "un_3")
    annotate(777, table(tmp_path, content))
    block = raw.block
    assert block["cases"]["un_1"] == {"source": "B", "patient": "p1"}
    assert block["cases"]["un_2"] == {"source": "B", "missing": ["CT"]}
    assert "un_3" not in block["cases"]
    assert block["sources"]["B"] == {"annotated": []}
    assert "5 training cases and 2 image(s) of imagesUn" in capsys.readouterr().out
    parsed = AnnotationTable.from_dataset_json(json.loads(raw.json.read_text()))
    assert not parsed.case("un_1").annotated


def test_column_per_label_needs_no_word_for_images_un(raw: RawDataset, tmp_path: Path) -> None:
    unlabelled_images(raw, "un_1", "un_2")
    rows = [
        ",".join([case, *("no" if n not in names else "yes" for n in ("liver", "spleen", "kidney"))])
        for case, names in DRAWN.items()
    ]
    annotate(777, table(tmp_path, WIDE + "\n".join([*rows, "un_1,,,", "un_2,no,no,no"])))
    assert raw.block["cases"]["un_1"] == raw.block["cases"]["un_2"] == {"source": "unlabelled"}


def test_labels_of_an_image_in_images_un_are_refused(raw: RawDataset, tmp_path: Path) -> None:
    unlabelled_images(raw, "un_1")
    with pytest.raises(MutualError, match="lists liver for un_1, which is in imagesUn, where nothing is drawn"):
        annotate(777, table(tmp_path, LONG + "un_1,liver\n"))


def test_what_a_table_does_not_say_stays(raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost patient would let an image of a validation patient into the training."""
    unlabelled_images(raw, "un_1", "un_2")
    raw.declare(labels={"spleen": {"single": True}}, may_overlap=[["kidney", "liver"]])
    cases = raw.block["cases"]
    cases["toy_001"] |= {"patient": "p1", "pseudo": ["spleen", "kidney"]}
    cases["toy_002"] |= {"missing": ["CT"]}
    cases |= {"un_1": {"source": "b", "patient": "p1", "missing": ["CT"]}, "un_2": {"source": "a", "patient": "p2"}}
    raw.save(mutual=raw.block | {"sources": {"a": {"annotated": []}, "b": {"annotated": []}}, "cases": cases})
    corrected = LONG.replace("toy_001,liver", "toy_001,liver;spleen") + "un_2,none\n"
    annotate(777, table(tmp_path, corrected), source="c", force=True)
    new = raw.block["cases"]
    assert new["un_1"] == {"source": "c", "patient": "p1", "missing": ["CT"]}
    assert new["un_2"] == {"source": "c", "patient": "p2"}
    assert new["toy_001"] == {"source": "c", "annotated": ["liver", "spleen"], "patient": "p1", "pseudo": ["kidney"]}
    assert new["toy_002"]["missing"] == ["CT"]
    printed = capsys.readouterr().out
    assert "1 image(s) of imagesUn, which the table does not list" in printed
    assert "repeat with  --force --single spleen --may-overlap kidney,liver" in printed
    without_patients = "case,labels,patient\n" + LONG.split("\n", 1)[1].replace("\n", ",\n")
    annotate(777, table(tmp_path, without_patients), force=True)
    assert "patient" not in raw.block["cases"]["toy_001"]  # said: nobody knows
    assert raw.block["cases"]["un_1"] == {"source": "c", "patient": "p1", "missing": ["CT"]}


def test_what_a_source_contained_is_said_of_that_source(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"annotated": ["liver"], "contains": {"liver": ["kidney"]}}
    sources = {"site a": {"annotated": ["liver"]}, "site b": own, "gone": own}
    cases = {key: {"source": "site b", "annotated": list(names)} for key, names in DRAWN.items()}
    raw.save(mutual={"version": 1, "sources": sources, "cases": cases})
    text = "case,labels,source\n" + "".join(
        f"{case},{';'.join(names)},site {'a' if case < 'toy_003' else 'b'}\n" for case, names in DRAWN.items()
    )
    annotate(777, table(tmp_path, text), contains=["site a:liver=kidney"], force=True)
    said = capsys.readouterr().out
    assert "repeat with  --force --contains 'site b:liver=kidney'\n" in said
    assert "of sources that are called otherwise now: gone: liver contains kidney; say it with --contains" in said
    annotate(777, table(tmp_path, text), contains=["site a:liver=kidney", "site b:liver=kidney"], force=True)
    assert "No longer said; if" not in capsys.readouterr().out


def test_patients_outlast_a_label_that_was_renamed(raw: RawDataset, tmp_path: Path) -> None:
    raw.declare()
    cases = {key: {**entry, "patient": f"p{n // 2}"} for n, (key, entry) in enumerate(raw.block["cases"].items())}
    cases["toy_001"]["outlined"] = {"liver": {"by": "a tool"}}
    cases["toy_003"] |= {"annotated": ["kidney"], "pseudo": ["liver", "spleen"]}
    sources = {"a": {"annotated": [], "contains": {"liver": ["spleen"]}}}
    raw.save(mutual={"version": 1, "sources": sources, "cases": cases})
    raw.save(labels={"background": 0, "liver": 1, "milt": 2, "kidney": 3})
    annotate(777, table(tmp_path, LONG.replace("spleen;kidney", "kidney").replace("spleen", "milt")), force=True)
    new = raw.block["cases"]
    assert {key: entry["patient"] for key, entry in new.items()} == {key: cases[key]["patient"] for key in cases}
    assert new["toy_003"]["pseudo"] == ["liver"] and new["toy_001"]["outlined"] == {"liver": {"by": "a tool"}}


def test_nothing_is_declared_while_an_accept_is_interrupted(raw: RawDataset, tmp_path: Path) -> None:
    raw.preprocessed(tmp_path)
    other = raw.folder.with_name("Dataset779_Other")
    shutil.copytree(raw.folder, other)
    (raw.folder / ".accept.json").write_text("{}")
    before = raw.files()
    for command in (
        lambda: annotate(777, table(tmp_path, LONG)),
        lambda: declare_groups(777, ["one=CT", "two=CT"]),
        lambda: simulate("777", "Dataset778_Out", SimulateOptions(labelled=2)),
        lambda: load_sources([NAME, other.name], []),
        lambda: sync(777),
    ):
        with pytest.raises(MutualError, match="accept was interrupted while it replaced label maps; run it again"):
            command()
    assert raw.files() == before


def test_two_names_of_one_value_are_refused(raw: RawDataset, tmp_path: Path) -> None:
    raw.save(labels={"background": 0, "liver": 1, "left": 2, "right": 2})
    with pytest.raises(
        MutualError, match="the labels left and right of dataset.json have the same value 2, so no voxel"
    ):
        annotate(777, table(tmp_path, LONG))


@pytest.mark.parametrize(
    "text",
    [
        LONG.replace("\n", "\r"),
        "sep=;\r\n" + SAME["spreadsheet with semicolons"],
        "\n,,\n" + LONG,
    ],
    ids=["line ends of a Macintosh", "the separator said in a line of its own", "empty first lines"],
)
def test_what_spreadsheets_write_before_and_between_lines(raw: RawDataset, tmp_path: Path, text: str) -> None:
    annotate(777, table(tmp_path, text))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    with pytest.raises(MutualError, match=f"line {lines + 1} opens a quotation mark that is never closed"):
        annotate(777, table(tmp_path, text + '"toy_1'), force=True)


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


def test_replacing_needs_force_and_keeps_the_old_file(raw: RawDataset, tmp_path: Path) -> None:
    raw.declare(modality_groups={"ct": ["CT"]})
    old = raw.json.read_bytes()
    with pytest.raises(MutualError, match="already has a .mutual. block; repeat with --force"):
        annotate(777, table(tmp_path, LONG))
    assert raw.json.read_bytes() == old
    annotate(777, table(tmp_path, LONG), force=True)
    assert (raw.folder / "dataset.json.bak-1").read_bytes() == old
    assert raw.block["modality_groups"] == {"ct": ["CT"]}
    second = raw.json.read_bytes()
    annotate(777, table(tmp_path, LONG), source="x", force=True)
    assert (raw.folder / "dataset.json.bak-1").read_bytes() == old
    assert (raw.folder / "dataset.json.bak-2").read_bytes() == second


def test_what_accept_has_added_and_a_table_does_not_say(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(777, table(tmp_path, LONG), force=True)
    assert "no longer annotate" not in capsys.readouterr().out
    block = raw.block
    block["cases"]["toy_002"]["annotated"] = ["liver", "spleen", "kidney"]
    raw.save(mutual=block)
    annotate(777, table(tmp_path, LONG), force=True)
    said = capsys.readouterr().out
    assert "WARNING: 1 case(s) no longer annotate what the block before said" in said and "accept: toy_002: " in said


def test_preprocessed_dataset_is_mentioned(raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw.preprocessed(tmp_path)
    annotate(777, table(tmp_path, LONG))
    assert f"nnunet_mutual sync {NAME}" in capsys.readouterr().out


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


def test_table_file_that_cannot_be_read(raw: RawDataset, tmp_path: Path) -> None:
    with pytest.raises(MutualError, match="nothing.csv does not exist"):
        annotate(777, tmp_path / "nothing.csv")
    with pytest.raises(MutualError, match="neither .xlsx, .csv nor .json"):
        annotate(777, tmp_path / "table.ods")
    for encoding in ("latin-1", "utf-32"):
        with pytest.raises(MutualError, match="neither UTF-8 nor UTF-16 text; in the spreadsheet choose"):
            annotate(777, table(tmp_path, LONG + "tö", encoding=encoding))
    with pytest.raises(MutualError, match="line 3 holds a NUL byte"):
        annotate(777, table(tmp_path, LONG.replace("toy_002", "toy\0_002")))
    with pytest.raises(MutualError, match="has no sheets"):
        annotate(777, table(tmp_path, LONG), sheet="A")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_of_spreadsheets(
    raw: RawDataset, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(777, table(tmp_path, LONG.replace(",", "\t"), encoding=encoding))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert "is read so: UTF-16" in capsys.readouterr().out


def workbook(tmp_path: Path, *, sheets: int = 1, **cells: Any) -> Path:
    """A table of yes and no as a spreadsheet holds it; ``cells`` are written last."""
    book = openpyxl.Workbook()
    for number in range(sheets):
        sheet = book.active if not number else book.create_sheet()
        sheet.title = f"Tabelle{number + 1}"
        sheet.append(["Patient ID", "liver", "spleen", "kidney"])
        for case, names in DRAWN.items():
            sheet.append([f"{case}_0000.nii.gz", *(label in names for label in ("liver", "spleen", "kidney"))])
        for place, value in cells.items():
            sheet[place] = value
    book.create_sheet("empty")
    book.save(tmp_path / "drawn.xlsx")
    return tmp_path / "drawn.xlsx"


def test_a_workbook_and_what_was_guessed(raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotate(777, workbook(tmp_path))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert "sheet 'Tabelle1'" in capsys.readouterr().out


BAD_WORKBOOKS: dict[str, tuple[dict[str, Any], str]] = {
    "formula without a value": ({"C3": "=B3"}, r"line 3 holds the formula =B3 without a value; open and save"),
    "several sheets": ({"sheets": 2}, r"several sheets with content: Tabelle1, Tabelle2; .*--sheet 'Tabelle1'"),
    "a forgotten cell": ({"C3": None}, r"line 3, case \"toy_002\" has an empty cell for spleen"),
    "an error of the spreadsheet": ({"C3": "#N/A"}, r"line 3, case \"toy_002\" has '#N/A' for spleen"),
}


@pytest.mark.parametrize(("cells", "message"), BAD_WORKBOOKS.values(), ids=BAD_WORKBOOKS)
def test_bad_workbook(raw: RawDataset, tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match=message):
        annotate(777, workbook(tmp_path, **cells))
    assert raw.json.read_bytes() == before


def test_the_sheet_that_is_meant(raw: RawDataset, tmp_path: Path) -> None:
    path = workbook(tmp_path, sheets=2)
    with pytest.raises(MutualError, match="no sheet 'tabelle2' .did you mean 'Tabelle2'"):
        annotate(777, path, sheet="tabelle2")
    annotate(777, path, sheet="Tabelle2")
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}


def test_workbooks_that_are_none_or_too_large(raw: RawDataset, tmp_path: Path) -> None:
    path = tmp_path / "drawn.xlsx"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(MutualError, match="cannot be read as a workbook .*save it anew as .xlsx without a password"):
        annotate(777, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(101 * 10**6))
    assert path.stat().st_size < 10**6
    with pytest.raises(MutualError, match="unpacks to 101 MB"):
        annotate(777, path)


WORDS = {"German": ("WAHR", "FALSCH"), "ja": ("ja", "Nein"), "oui": ("oui", "non"), "French": ("VRAI", "FAUX")}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_yes_and_no_in_other_languages(
    raw: RawDataset, tmp_path: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ";".join([case, *(words[label not in names] for label in ("liver", "spleen", "kidney"))])
        for case, names in DRAWN.items()
    ]
    annotate(777, table(tmp_path, "\n".join(["Fall;liver;spleen;kidney", *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    said = capsys.readouterr().out
    assert f"'case' is the column 'Fall'; {words[0]} = drawn; {words[1]} = not drawn" in said


def test_file_names_and_a_patient_id_beside_the_case(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"imagesTr/{case}.nii.gz,p7,{';'.join(names) or 'none'}" for case, names in DRAWN.items()]
    annotate(777, table(tmp_path, "\n".join(["File name,Patient ID,labels", *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert {case["patient"] for case in raw.block["cases"].values()} == {"p7"}
    said = capsys.readouterr().out
    assert "'case' is the column 'File name'; 'patient' is the column 'Patient ID'; file names are cases" in said


HEADINGS = {
    "German": ("Fall-Nr.", "Quelle", "Patienten-ID", "Eingezeichnet", "keine", "alle"),
    "French": ("Cas", "Hôpital", "N\u0075me\u0301ro patient", "Étiquettes", "aucune", "toutes"),  # e and accent apart
    "English": ("Scan ID", "Site", "Subject", "Organs", "none", "all"),
}


@pytest.mark.parametrize("words", HEADINGS.values(), ids=HEADINGS)
def test_headings_in_other_languages(
    raw: RawDataset, tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    *heading, nothing, everything = words
    cells = {0: nothing, 3: everything}
    rows = [f"{case};A;p_{case};{cells.get(len(n), ' '.join(n))}" for case, n in DRAWN.items() if len(n) != 2]
    rows += [f'{case};A;p_{case};"{";".join(names)}"' for case, names in DRAWN.items() if len(names) == 2]
    annotate(777, table(tmp_path, "\n".join([";".join(heading), *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert list(raw.block["sources"]) == ["A"]
    assert all(entry["patient"] == f"p_{case}" for case, entry in raw.block["cases"].items())
    ours = ("case", "source", "patient", "labels")
    guesses = [f"{our!r} is the column {column!r}" for our, column in zip(ours, heading, strict=True)]
    assert "; ".join(guesses) in capsys.readouterr().out


def test_a_heading_that_is_a_label_is_one(raw: RawDataset, tmp_path: Path) -> None:
    """Nothing is guessed about a column 'Organe' beside one column for each label."""
    rows = [
        f"{case};A;" + ";".join("yes" if x in n else "no" for x in ("liver", "spleen", "kidney"))
        for case, n in DRAWN.items()
    ]
    with pytest.raises(MutualError, match="has a column 'Organe', which is neither a label"):
        annotate(777, table(tmp_path, "\n".join(["Fall;Organe;liver;spleen;kidney", *rows])))
    assert "mutual" not in raw.json.read_text()


def test_the_guess_is_printed_before_anything_is_written(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MutualError, match="--contains"):
        annotate(777, workbook(tmp_path), contains=["liver"])
    said = capsys.readouterr().out
    assert (
        "sheet 'Tabelle1'; 'case' is the column 'Patient ID'; file names are cases, such as toy_001_0000.nii.gz" in said
    )
    assert "True = drawn; False = not drawn" in said and "mutual" not in raw.json.read_text()


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
