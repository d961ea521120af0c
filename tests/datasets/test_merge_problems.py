"""merge: each kind of bad input ends in one sentence, and the disk is as it was."""

from __future__ import annotations

import csv
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fresh import status_of_copy
from merging import FLIPPED, LIVER, OUT, SPLEEN, Pair, block_of, regions, unlabelled, voxels

from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets import new_dataset
from nnunet_mutual.datasets.check import check
from nnunet_mutual.datasets.merge import command

LIVER_TABLE = {"c_1": {"source": "a"}, "c_2": {"source": "a"}}


@pytest.fixture()
def pair(nnunet_folders: Path) -> Pair:
    return Pair(nnunet_folders)


def nothing(pair: Pair) -> None:
    """The datasets are fine, the options are not."""


def channels(*names: str) -> Callable[[Pair], None]:
    return lambda pair: pair.spleen.save(channel_names={str(i): name for i, name in enumerate(names)})


def channel_order(pair: Pair) -> None:
    pair.liver.save(channel_names={"0": "CT", "1": "PET"})
    pair.spleen.save(channel_names={"0": "PET", "1": "CT"})


def labels(**names: int) -> Callable[[Pair], None]:
    return lambda pair: pair.spleen.save(labels={"background": 0, **names})


def flipped(pair: Pair) -> None:
    pair.spleen.image("s_3", voxels(12), direction=FLIPPED)
    pair.spleen.label("s_3", {1: 9}, direction=FLIPPED)


def offset_source(pair: Pair) -> None:
    for number, key in enumerate(pair.spleen.drawn):
        pair.spleen.image(key, voxels(20 + number, 1024))


def offset_case(pair: Pair) -> None:
    pair.spleen.image("s_2", voxels(21, 1024))


def scaled(pair: Pair) -> None:
    for number, key in enumerate(pair.spleen.drawn):
        pair.spleen.image(key, 300 * voxels(20 + number))


def nan_image(pair: Pair) -> None:
    spoilt = voxels(1)
    spoilt[0, 0, 0] = np.nan
    pair.liver.image("c_2", spoilt)


def equal_but_offset(pair: Pair) -> None:
    whole = np.rint(100 * voxels(7))
    pair.liver.image("c_1", whole)
    pair.spleen.image("s_1", whole + 24)


def other_header(pair: Pair) -> None:
    for dataset, key, spacing in ((pair.liver, "c_1", (1, 1, 1)), (pair.spleen, "s_1", (1, 1, 2))):
        dataset.image(key, voxels(7), spacing=spacing)
        dataset.label(key, {1: 5}, spacing=spacing)


def patients(pair: Pair) -> None:
    block_of(pair.liver, {"a": {"annotated": ["liver"]}}, {k: {"source": "a", "patient": "p1"} for k in LIVER_TABLE})
    cases = {key: {"source": "b", "patient": "p1"} for key in pair.spleen.drawn}
    block_of(pair.spleen, {"b": {"annotated": ["kidney", "spleen"]}}, cases)


def groups_differ(pair: Pair) -> None:
    for dataset, members in ((pair.liver, ["CT"]), (pair.spleen, ["CT", "PET"])):
        dataset.save(channel_names={"0": "CT", "1": "PET"})
        for number, key in enumerate(dataset.drawn):
            dataset.image(key, voxels(80 + number + len(dataset.drawn)), channel=1)
        names = [name for name in dataset.content["labels"] if name != "background"]
        cases = {key: {"source": "a"} for key in dataset.drawn}
        block_of(dataset, {"a": {"annotated": names}}, cases, modality_groups={"x": members})


def partly_united(pair: Pair) -> None:
    block_of(pair.spleen, {"b": {"annotated": ["spleen"]}}, {key: {"source": "b"} for key in pair.spleen.drawn})


def unlisted(pair: Pair) -> None:
    block_of(pair.liver, {"a": {"annotated": ["liver"]}}, {"c_1": {"source": "a"}})


def pseudo(pair: Pair) -> None:
    pair.twin({1: 10}, {0: 10, 2: 5})
    block_of(pair.liver, {"a": {"annotated": []}}, {key: {"source": "a", "pseudo": ["liver"]} for key in LIVER_TABLE})


def circle(pair: Pair) -> None:
    pair.spleen.save(labels={"background": 0, "fat": 1, "skin": 2})


def same_key_unlabelled(pair: Pair) -> None:
    unlabelled(pair.liver, {"c_1": voxels(77)})


def regions_and_plain(pair: Pair) -> None:
    regions(pair)
    pair.spleen.save(labels={"background": 0, "whole": 1, "core": 2})
    del pair.spleen.content["regions_class_order"]
    pair.spleen.save()


def id_used_elsewhere(pair: Pair) -> None:
    (pair.root.parent / "nnUNet_preprocessed" / "Dataset111_Older").mkdir(parents=True)


BAD: dict[str, tuple[Callable[[Pair], object], list[str], str]] = {
    "no dataset name": (nothing, ["11", "12", "Abdomen"], "is 'Abdomen'; nnU-Net expects a name such as Dataset111_"),
    "OUT exists": (nothing, ["11", "12", SPLEEN], "the ID 012 is already used by Dataset012_Spleen"),
    "ID in use": (id_used_elsewhere, [], "the ID 111 is already used by Dataset111_Older"),
    "one dataset twice": (nothing, ["11", LIVER, OUT], "Dataset011_Liver is given twice; name each dataset once"),
    "one dataset": (nothing, ["11", OUT], "merge needs two datasets or more"),
    "unknown dataset": (nothing, ["11", "Dataset012_Splen", OUT], "(did you mean 'Dataset012_Spleen'?)"),
    "rename of an unknown label": (nothing, ["--rename", "Spleen:splen=x"], "has no label 'splen' (did you mean 'sp"),
    "rename in an unknown dataset": (
        nothing,
        ["--rename", "Splen:spleen=x"],
        "(did you mean 'Spleen'?), which is none",
    ),
    "rename without =": (nothing, ["--rename", "Spleen:spleen"], "write --rename DATASET:label=label"),
    "rename to background": (nothing, ["--rename", "12:spleen=background"], "would make spleen 'background'"),
    "rename unites what is partly annotated": (
        partly_united,
        ["--rename", "12:spleen=o", "--rename", "12:kidney=o"],
        "case s_1 does not annotate kidney, so the one label would be incomplete there",
    ),
    "other channel": (channels("MR"), [], "Dataset012_Spleen has the channel(s) MR, Dataset011_Liver has CT; if they"),
    "other number of channels": (channels("CT", "PET"), [], "has 2 channel(s) (CT, PET), Dataset011_Liver has 1 (CT)"),
    "other order of channels": (channel_order, [], "in the order PET, CT, Dataset011_Liver in the order CT, PET"),
    "two spellings": (labels(Liver=1), [], 'add --rename "Spleen:Liver=liver", else rename one'),
    "orientations": (flipped, [], "(LPS in 2 case(s) of Liver, 2 case(s) of Spleen; RAS in 1 case(s) of Spleen)"),
    "offset of a source": (offset_source, [], "Spleen are far from those of Liver, shifted by about +1024 (images st"),
    "offset of a case": (offset_case, [], "s_2 are far from those of Spleen on the whole, shifted by about +1024"),
    "scale of a source": (scaled, [], "Spleen are far from those of Liver, as if one were scaled"),
    "empty image": (
        lambda pair: pair.liver.image("c_2", 0 * voxels(0)),
        [],
        "errors (1 in Dataset011_Liver); the first is Dataset011_Liver/imagesTr/c_2_0000.nii.gz: is empty: every",
    ),
    "unreadable image": (
        lambda pair: (pair.liver.folder / "imagesTr" / "c_2_0000.nii.gz").write_bytes(b"no image"),
        [],
        "imagesTr/c_2_0000.nii.gz: is cut off or damaged (",
    ),
    "NaN": (nan_image, [], "imagesTr/c_2_0000.nii.gz: 1 voxel(s) are NaN or infinite"),
    "geometry": (
        lambda pair: pair.spleen.label("s_1", {1: 9}, shape=(4, 5, 7)),
        [],
        "labelsTr/s_1.nii.gz: the label map has 7 x 5 x 4 voxels, s_1_0000.nii.gz has 6 x 5 x 4",
    ),
    "label map missing": (
        lambda pair: (pair.spleen.folder / "labelsTr" / "s_1.nii.gz").unlink(),
        [],
        "labelsTr/s_1.nii.gz: the label map of case s_1 is missing",
    ),
    "value without a name": (lambda pair: pair.liver.label("c_1", {3: 5}), [], "does not define: 3 (5 voxels)"),
    "empty label map": (
        lambda pair: pair.spleen.label("s_1", {}),
        [],
        "1 label map(s) hold no label (Spleen:s_1): if the structures are truly absent there, repeat with --accept-em",
    ),
    "patient in two datasets": (patients, [], "(first: 'p1' in Dataset011_Liver and Dataset012_Spleen); if they are"),
    "undecided tumour": (
        labels(liver_tumour=1, spleen=2),
        [],
        "add --contains Liver:liver=liver_tumour (included) or --no-contains Liver:liver=liver_tumour (left out)",
    ),
    "contains of an unknown label": (nothing, ["--contains", "11:liver=tumor"], "the merged dataset has no label 'tum"),
    "contains where it is not drawn": (nothing, ["--contains", "11:spleen=kidney"], "spleen is not annotated there"),
    "contains and not": (
        nothing,
        ["--contains", "11:liver=kidney", "--no-contains", "Liver:liver=kidney"],
        "Liver:liver=kidney is given with --contains and with --no-contains",
    ),
    "contains in a circle": (
        circle,
        ["--contains", "12:fat=skin", "--contains", "12:skin=fat"],
        'contains of source "Spleen" of dataset.json says that',
    ),
    "contains of regions": (regions, ["--contains", "11:whole=core"], "--contains and --no-contains are not used for"),
    "regions that differ": (lambda pair: regions(pair, ("entire", "core")), [], "merged only with equal label maps"),
    "regions and plain labels": (regions_and_plain, [], "datasets of regions are merged only with equal label maps"),
    "ending": (nothing, ["--ending", ".png"], "Dataset011_Liver has files ending in .nii.gz, the merged dataset would"),
    "reorient without NIfTI": (nothing, ["--ending", ".mha", "--reorient"], "--reorient works with .nii.gz and .nii"),
    "case not in its table": (unlisted, [], "Dataset011_Liver, table: 1 training case(s) are not in the table: c_2"),
    "unknown preference": (nothing, ["--prefer", "Splen"], "--prefer names 'Splen' (did you mean 'Spleen'?)"),
    "equal but for an offset": (equal_but_offset, ["--accept-intensities"], "Liver:c_1 and Spleen:s_1 are the same "),
    "equal with other headers": (other_header, [], "Liver:c_1 and Spleen:s_1 are the same image voxel for voxel, but"),
    "pseudo labels in an equal image": (pseudo, [], "Liver:c_1 holds pseudo labels and is the same image as Spleen:s"),
    "modality groups": (groups_differ, [], "the modality group 'x' is ['CT'] in one dataset and ['CT', 'PET'] in Dat"),
    "one name in imagesTr and imagesUn": (same_key_unlabelled, [], "has the case c_1 in imagesTr and, with another"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_sentence_and_an_untouched_disk(pair: Pair, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spoil, words, sentence = BAD[kind]
    spoil(pair)
    before = pair.state()
    words = words if words and not words[0].startswith("-") else ["11", "12", OUT, *words]
    assert main(["merge", *words]) == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert sentence in shown and "\n" not in shown.strip()
    assert pair.state() == before and not any(OUT in path.name for path in pair.root.iterdir())


def test_the_good_datasets_are_good(pair: Pair) -> None:
    assert pair.merge() == 0


def test_nnunet_raw_not_set(pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert pair.merge() == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err


def test_contradictions_are_listed_and_stop(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.spleen.save(labels={"background": 0, "liver": 1, "spleen": 2})
    pair.twin({1: 12}, {1: 5, 2: 3})  # 5 agree; 3 liver or spleen; 4 liver or nothing
    before = pair.state()
    assert pair.merge() == 2
    shown = capsys.readouterr().err
    assert "1 image(s) that occur twice were drawn differently, 7 voxel(s) in all" in shown
    assert "where Liver:c_1 says liver and Spleen:s_1 says background (4 voxel(s))" in shown
    report = pair.root / f"{OUT}_contradictions.csv"
    assert {*pair.state()} - {*before} == {report.name}
    with report.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["images"], row["drawn_there"], row["voxels"], row["written"]) for row in rows} == {
        ("Liver:c_1 | Spleen:s_1", "liver | spleen", "3", ""),
        ("Liver:c_1 | Spleen:s_1", "liver | background", "4", ""),
    }
    assert pair.merge("--prefer", "Spleen") == 0
    assert not report.exists() and (pair.out / "contradictions.csv").is_file()


def test_a_preference_for_a_third_dataset_decides_nothing(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.spleen.save(labels={"background": 0, "liver": 1, "spleen": 2})
    pair.twin({1: 12}, {1: 5})
    third = Pair(pair.root.parent / "other").liver
    third.folder = third.folder.rename(pair.root / "Dataset013_Third")
    for number, key in enumerate(third.drawn, 60):
        third.image(key, voxels(number))
    assert main(["merge", "11", "12", "13", OUT, "--prefer", "Third"]) == 2
    assert "were drawn differently, 7 voxel(s)" in capsys.readouterr().err and not pair.out.exists()


def test_full_disk_leaves_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pair.state()
    calls = []

    def full(path: Path, place: Path, *, copy: bool) -> None:
        calls.append(place)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        place.write_bytes(path.read_bytes())

    monkeypatch.setattr(new_dataset, "link_or_copy", full)
    assert pair.merge() == 2
    assert "could not be written (No space left on device) and nothing was kept; free space" in capsys.readouterr().err
    assert len(calls) == 3 and pair.state() == before
    assert [path.name for path in pair.root.iterdir() if "merging" in path.name] == []


def test_interrupt_at_the_last_step_leaves_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pair.state()
    replace = os.replace

    def interrupted(source: str, target: str) -> None:
        if Path(target) == pair.out:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    assert pair.merge() == 130
    assert pair.state() == before and not any("merging" in path.name for path in pair.root.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_merge_leaves_no_dataset_and_a_rerun_starts_clean(pair: Pair) -> None:
    def killed() -> None:
        link = new_dataset.link_or_copy

        def linking(path: Path, place: Path, *, copy: bool) -> None:
            if place.name.startswith("Spleen_s_2"):
                os.kill(os.getpid(), signal.SIGKILL)
            link(path, place, copy=copy)

        new_dataset.link_or_copy = linking
        pair.merge()

    assert status_of_copy(killed) == -signal.SIGKILL
    stale = pair.root / f".{OUT}.merging"
    assert not pair.out.exists() and (stale / "imagesTr" / "Spleen_s_1_0000.nii.gz").is_file()
    (stale / "imagesTr" / "rest_0000.nii.gz").write_bytes(b"left over")
    assert pair.merge() == 0
    assert not stale.exists() and not (pair.out / "imagesTr" / "rest_0000.nii.gz").exists()
    assert sorted(path.name for path in pair.out.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "merged_cases.csv",
    ]
    assert check(111) == 0


def test_two_merges_into_one_place(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    stale = pair.root / f".{OUT}.merging"
    stale.mkdir()
    (stale / "merge_in_progress").write_text("another-computer 4711")
    assert pair.merge() == 2
    assert "another merge (process 4711 on another-computer) is writing" in capsys.readouterr().err
    assert stale.is_dir() and not pair.out.exists()


@pytest.mark.parametrize("name", [OUT, "Dataset111_Other"], ids=["same name", "same ID"])
def test_the_loser_of_two_merges_says_so_and_harms_nothing(
    pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another merge begins and ends while this one reads."""
    scan = command.scan

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(command, "scan", scan)
        assert main(["merge", "11", "12", name]) == 0
        return scan(*arguments)

    monkeypatch.setattr(command, "scan", meanwhile)
    assert pair.merge() == 2
    said = capsys.readouterr().err.rpartition("error: ")[2]
    assert f"the ID 111 is already used by {name}" in said and said.count("\n") == 1
    assert [path.name for path in pair.root.iterdir() if "111" in path.name] == [name]
    assert check(111) == 0


def test_merges_that_end_at_the_same_moment(
    pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def late(source: Any, target: Any) -> None:
        if Path(target) == pair.out and not pair.out.exists():
            pair.out.mkdir()
            (pair.out / "dataset.json").write_text("of the other one")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert pair.merge() == 2
    said = capsys.readouterr().err.rpartition("error: ")[2]
    assert f"{pair.out} was made by another command while this one worked; that one is whole" in said
    assert said.count("\n") == 1 and "free space" not in said
    assert [path.name for path in pair.out.iterdir()] == ["dataset.json"]
    assert (pair.out / "dataset.json").read_text() == "of the other one"
    assert not any("merging" in path.name for path in pair.root.iterdir())


def test_a_name_that_becomes_too_long(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    key = "c" * 240
    (pair.liver.folder / "imagesTr" / "c_1_0000.nii.gz").rename(pair.liver.folder / "imagesTr" / f"{key}_0000.nii.gz")
    (pair.liver.folder / "labelsTr" / "c_1.nii.gz").rename(pair.liver.folder / "labelsTr" / f"{key}.nii.gz")
    before = pair.state()
    assert pair.merge() == 2
    said = capsys.readouterr().err.rpartition("error: ")[2]
    assert "File name too long" in said and f"shorten Liver_{key}" in said and "free space" not in said
    assert said.count("\n") == 1 and pair.state() == before


def test_no_answer_at_the_terminal(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(_: str) -> str:
        raise EOFError

    pair.spleen.save(labels={"background": 0, "liver_tumour": 1, "spleen": 2})
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", closed)
    assert pair.merge() == 2
    assert re.search(r"add --contains Liver:liver=liver_tumour \(included\)", capsys.readouterr().err)


def test_accepted_empty_label_map(pair: Pair) -> None:
    pair.spleen.label("s_1", {})
    assert pair.merge("--accept-empty") == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(pair.out / "labelsTr" / "Spleen_s_1.nii.gz"))).any()
