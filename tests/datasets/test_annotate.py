"""A table of case -> labels becomes the block of dataset.json; what it does not say stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from annotating import LONG, SAME, WIDE, annotated, table
from raw_dataset import DRAWN, NAME, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.annotate import annotate
from nnunet_mutual.datasets.declare_groups import declare_groups
from nnunet_mutual.datasets.examination import examine
from nnunet_mutual.datasets.merge.sources import load_sources
from nnunet_mutual.datasets.simulate.command import SimulateOptions, simulate
from nnunet_mutual.datasets.sync import sync
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.pairing import find_references
from nnunet_mutual.planning.plan_and_preprocess import plan_and_preprocess, preprocess_as_planned
from nnunet_mutual.preprocessing.update import preprocess_unlabelled
from nnunet_mutual.trial.raw_data import RawData

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
        lambda: examine(locate(777)),
        lambda: plan_and_preprocess(777),
        lambda: preprocess_as_planned(777, "nnUNetPlans"),
        lambda: preprocess_unlabelled(777),
        lambda: RawData.read(locate(777)),
        lambda: find_references(None, dataset="777", dataset_json=None, fold=None, complete=False),
    ):
        with pytest.raises(MutualError, match="accept was interrupted while it replaced label maps; run it again with"):
            command()
    assert raw.files() == before


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
