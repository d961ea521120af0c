"""What a reader accepted becomes a true label: everywhere, or nowhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from reviewing import (
    REVIEW,
    assert_preprocessed_as_by_nnunet,
    decided,
    fabricate,
    fill,
    raw_label,
    run,
    snapshot,
    truth,
)
from training import partial_block, trainer_for

from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.disk import swap
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.filter import millilitres
from nnunet_mutual.pseudo_labels.review import accept as accepting

DECISIONS = [
    decided("case_00", "spleen", False),
    decided("case_00", "tumour", False),
    decided("case_01", "liver", False),
    decided("case_02", "spleen", False),
]
ACCEPTED = {("case_00", "spleen"): ("accept",), ("case_01", "liver"): ("accept",), ("case_02", "spleen"): ("reject",)}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longest, and test_review_page has them."""
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")


def reviewed(root: Path, decisions: list[Any] = DECISIONS, **options: Any) -> Path:
    """Makes a review and returns its table."""
    fabricate(root, decisions, **options)
    assert run(*REVIEW, "-o", root / "review", "--all") == 0
    return root / "review" / "review.csv"


def table_of(root: Path, top: str = "nnUNet_raw") -> dict[str, Any]:
    return json.loads((root / top / tiny.NAME / "dataset.json").read_text())["mutual"]


def mask_file(table: Path, name: str, mask: np.ndarray, value: int = 1, **geometry: Any) -> str:
    tiny.write_nifti((mask * value).astype(np.uint8), table.parent / name, **geometry)
    return name


def test_round_trip(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = reviewed(nnunet_folders, configurations=("3d_fullres", "2d"))
    fill(table, ACCEPTED)
    before, drawn = snapshot(nnunet_folders), raw_label(nnunet_folders, "case_00")
    assert run("accept", 901, table, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Would change: labelsTr" in said and "Nothing was changed" in said
    assert snapshot(nnunet_folders) == before

    assert run("accept", 901, table) == 0
    said = capsys.readouterr().out
    assert "2 new true label(s) in 2 case(s)" in said and "Absent" not in said
    assert "2 accepted, 0 corrected, 0 absent, 1 rejected, 1 undecided; rejected and undecided ones stay" in said
    assert "nnunet_mutual train 901 3d_fullres 0 -tr MutualPartialTrainer" in said
    merged = raw_label(nnunet_folders, "case_00")
    np.testing.assert_array_equal(merged, np.where(truth("case_00") == 3, 3, drawn))
    assert table_of(nnunet_folders)["cases"]["case_00"] == {"source": "a", "annotated": ["liver", "spleen"]}
    assert table_of(nnunet_folders)["cases"]["case_01"]["annotated"] == ["liver", "tumour", "spleen"]
    assert table_of(nnunet_folders)["cases"]["case_02"] == {"source": "a"}
    assert table_of(nnunet_folders, "nnUNet_preprocessed") == table_of(nnunet_folders)
    for key in ("case_00", "case_01"):
        for configuration in ("3d_fullres", "2d"):
            assert_preprocessed_as_by_nnunet(nnunet_folders, key, configuration)

    after = snapshot(nnunet_folders)
    kept = f"nnUNet_raw/{tiny.NAME}/labelsTr_before_1"
    names = ["case_00.nii.gz", "case_01.nii.gz", "dataset.json", "review.csv"]
    assert sorted(path for path in after if path.startswith(f"{kept}/")) == [f"{kept}/{name}" for name in names]
    for name in names[:2]:
        assert after[f"{kept}/{name}"] == before[f"nnUNet_raw/{tiny.NAME}/labelsTr/{name}"]
    assert after[f"{kept}/dataset.json"] == before[f"nnUNet_raw/{tiny.NAME}/dataset.json"]
    changed = {path for path in before if after[path] != before[path]}
    assert all("case_00" in path or "case_01" in path or path.endswith("dataset.json") for path in changed)
    assert not any(".accept" in path for path in after), "nothing of the work is left"
    assert run("check", 901) == 0


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
def test_a_table_that_decides_nothing_says_what_to_write(
    nnunet_folders: Path, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = reviewed(nnunet_folders)
    before = snapshot(nnunet_folders)
    assert run("accept", 901, table, *dry) == 0
    hint = f"Next: write accept, corrected, absent or reject into the column 'decision' of {table}, and repeat"
    assert hint in capsys.readouterr().out
    fill(table, {(decision.case, decision.label): ("reject",) for decision in DECISIONS})
    assert run("accept", 901, table, *dry) == 0
    said = capsys.readouterr().out
    assert "what is rejected stays unknown" in said and "Next" not in said
    assert snapshot(nnunet_folders) == before


def test_the_next_training_is_supervised_by_them(nnunet_folders: Path) -> None:
    table = reviewed(nnunet_folders)
    fill(table, ACCEPTED)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME

    def supervised() -> tuple[bool, set[int]]:
        trainer = trainer_for(preprocessed)
        trainer.initialize()
        known = trainer.knowledge
        annotated = known.tables.annotated[known.patterns(["case_00"])[0], known.channel["spleen"]]
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        seen: set[int] = set()
        for _ in range(12):
            batch = next(trainer.dataloader_train)
            for key, target in zip(batch["keys"], batch["target"][0], strict=True):
                seen |= set(target.unique().int().tolist()) if key == "case_00" else set()
        return bool(annotated), seen

    annotated, seen = supervised()
    assert not annotated and 1 in seen and 3 not in seen
    assert run("accept", 901, table) == 0
    annotated, seen = supervised()
    assert annotated and {1, 3} <= seen


def test_corrected_masks_in_either_value(nnunet_folders: Path) -> None:
    table = reviewed(nnunet_folders)
    spleen = np.zeros(truth("case_00").shape, bool)
    spleen[2:4, 15:18, 2:5] = True
    own = mask_file(table, "mine.nii.gz", spleen, value=3)
    tumour = np.zeros_like(spleen)
    tumour[12:14, 15:18, 2:5] = True
    whole = table.parent / mask_file(table, "tumour.nii.gz", tumour)
    fill(table, {("case_00", "spleen"): ("Corrected", own), ("case_00", "tumour"): ("corrected", str(whole))})
    drawn = raw_label(nnunet_folders, "case_00")
    assert not drawn[spleen | tumour].any()
    assert run("accept", "Dataset901_Tiny", table) == 0
    expected = np.where(spleen, 3, np.where(tumour, 2, drawn))
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), expected)
    assert table_of(nnunet_folders)["cases"]["case_00"]["annotated"] == ["liver", "tumour", "spleen"]


def without_a_spleen(root: Path) -> Path:
    """A review of two spleens, of which the network has found none in case_00."""
    decisions = [decided("case_00", "spleen"), decided("case_02", "spleen")]
    store = fabricate(root, decisions)
    nothing = np.zeros((1, *truth("case_00").shape), np.int16)
    PseudoStore(store).write("case_00", nothing, {}, decisions[:1], candidates=nothing)
    assert run(*REVIEW, "-o", root / "review", "--all") == 0
    return root / "review" / "review.csv"


@pytest.mark.parametrize("decision", ["accept", "corrected"])
def test_an_empty_mask_is_no_absence(nnunet_folders: Path, capsys: pytest.CaptureFixture[str], decision: str) -> None:
    table = without_a_spleen(nnunet_folders)
    (file,) = (table.parent / "candidates").glob("case_00*")
    mask = (f"candidates/{file.name}",) if decision == "corrected" else ()
    fill(table, {("case_00", "spleen"): (decision, *mask), ("case_02", "spleen"): ("accept",)})
    line = next(n for n, row in enumerate(table.read_text().splitlines(), 1) if row.startswith("case_00,spleen"))
    before = snapshot(nnunet_folders)
    assert run("accept", 901, table) == 2
    said = capsys.readouterr().err.rpartition("\r")[2]
    assert f"{table}, line {line}: the mask of spleen in case_00 is empty" in said
    assert "write absent if there is no spleen in this image, else reject" in said and said.count("\n") == 1
    assert snapshot(nnunet_folders) == before


def test_absent_is_said_counted_and_shown_apart(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = without_a_spleen(nnunet_folders)
    page = (table.parent / "review.html").read_text()
    assert "Nothing was found in 1 of 2." in page and page.count("there is nothing to accept") == 1
    fill(table, {("case_00", "spleen"): ("absent",), ("case_02", "spleen"): ("accept",)})
    drawn = raw_label(nnunet_folders, "case_00")
    assert run("accept", 901, table) == 0
    said = capsys.readouterr().out
    assert "1 accepted, 0 corrected, 1 absent, 0 rejected, 0 undecided" in said
    assert "Absent by that word, which trainings believe: spleen in 1 case(s): case_00\n" in said
    assert "case_00: spleen (absent), no voxel" in said
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), drawn)
    assert table_of(nnunet_folders)["cases"]["case_00"]["annotated"] == ["liver", "spleen"]
    assert_preprocessed_as_by_nnunet(nnunet_folders, "case_00", "3d_fullres")
    assert run("check", 901) == 0


def test_absent_against_a_mask_and_what_a_model_drew(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = partial_block()
    block["cases"]["case_00"]["pseudo"] = ["spleen"]
    table = reviewed(nnunet_folders, block=block)
    drawn = raw_label(nnunet_folders, "case_00")
    label = nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr" / "case_00.nii.gz"
    modelled = np.where(truth("case_00") == 3, 3, drawn)
    tiny.write_nifti(modelled, label)
    fill(table, {("case_00", "spleen"): ("absent",)})
    assert run("accept", 901, table) == 0
    assert f"{(modelled == 3).sum()} voxel(s) drawn as spleen are cleared" in capsys.readouterr().out
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), drawn)


def test_a_mask_of_which_nothing_is_left_is_no_absence(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = reviewed(nnunet_folders, block=partial_block(may_overlap=[["liver", "spleen"]]))
    spleen = raw_label(nnunet_folders, "case_00") == 1
    fill(table, {("case_00", "spleen"): ("corrected", mask_file(table, "m.nii.gz", spleen))})
    before = snapshot(nnunet_folders)
    assert run("accept", 901, table) == 2
    assert "so spleen of case_00 would have no voxel; correct the mask, or write absent" in capsys.readouterr().err
    assert snapshot(nnunet_folders) == before


def test_a_region_around_a_drawn_one_is_not_absent(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tiny.two_sources(["core", "enhancing"], ["whole"], [f"case_{i:02d}" for i in range(4)])
    decisions = [decided("case_00", "whole", False), decided("case_02", "enhancing", False)]
    table = reviewed(nnunet_folders, decisions, block=block, labels=tiny.REGIONS, cases=4)
    fill(table, {("case_02", "enhancing"): ("absent",)})
    assert run("accept", 901, table, "--dry-run") == 0
    fill(table, {("case_00", "whole"): ("absent",)})
    capsys.readouterr()
    assert run("accept", 901, table) == 2
    said = capsys.readouterr().err
    assert "whole cannot be absent in case_00, since" in said and "drawn as whole+core" in said


def test_a_mask_against_the_drawing(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = reviewed(nnunet_folders)
    drawn = raw_label(nnunet_folders, "case_00")
    spleen = np.zeros(drawn.shape, bool)
    spleen[8, 4:18, 6] = True
    contradicted = int((drawn[spleen] == 1).sum())
    assert 0 < contradicted < spleen.sum()
    fill(table, {("case_00", "spleen"): ("corrected", mask_file(table, "m.nii.gz", spleen))})
    before = snapshot(nnunet_folders)
    assert run("accept", 901, table) == 2
    assert f"m.nii.gz covers {contradicted} voxel(s) drawn as liver" in capsys.readouterr().err
    assert snapshot(nnunet_folders) == before
    assert run("accept", 901, table, "--keep-drawn") == 0
    assert f"{contradicted} voxel(s) drawn as liver stay as drawn" in capsys.readouterr().out
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), np.where(spleen & (drawn == 0), 3, drawn))


def test_contains_and_may_overlap(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = partial_block(may_overlap=[["liver", "spleen"]])
    block["sources"]["a"]["contains"] = {"liver": ["tumour"]}
    table = reviewed(nnunet_folders, block=block)
    drawn = raw_label(nnunet_folders, "case_00")
    tumour, spleen = np.zeros(drawn.shape, bool), np.zeros(drawn.shape, bool)
    tumour[8, 5:9, 5:7] = True
    spleen[8, 8:18, 6] = True
    answers = {
        ("case_00", "tumour"): ("corrected", mask_file(table, "t.nii.gz", tumour)),
        ("case_00", "spleen"): ("corrected", mask_file(table, "s.nii.gz", spleen & ~tumour)),
    }
    fill(table, answers)
    assert run("accept", 901, table) == 0
    said = capsys.readouterr().out
    refined, kept = int((drawn[tumour] == 1).sum()), int((drawn[spleen & ~tumour] == 1).sum())
    assert refined and kept
    assert f"{refined} voxel(s) drawn as liver become tumour" in said
    assert f"{kept} voxel(s) drawn as liver stay as drawn" in said
    expected = np.where(tumour, 2, np.where(spleen & (drawn == 0), 3, drawn))
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), expected)


def test_regions(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tiny.two_sources(["core", "enhancing"], ["whole"], [f"case_{i:02d}" for i in range(4)])
    decisions = [decided("case_00", "whole", False), decided("case_02", "core", False)]
    table = reviewed(nnunet_folders, decisions, block=block, labels=tiny.REGIONS, cases=4, ignore=True)
    whole = np.zeros(truth("case_00").shape, bool)
    whole[:, :5] = True
    answers = {
        ("case_00", "whole"): ("corrected", mask_file(table, "w.nii.gz", whole)),
        ("case_02", "core"): ("accept",),
    }
    fill(table, answers)
    before = [raw_label(nnunet_folders, key) for key in ("case_00", "case_02")]
    assert run("accept", 901, table) == 0
    outside = int((np.isin(before[0], (2, 3)) & ~whole).sum())
    assert outside and f"{outside} voxel(s) outside of the mask belong to it by what else" in capsys.readouterr().out
    expected = np.where((before[0] == 0) & whole, 1, before[0])
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), expected)
    core = (truth("case_02") >= 2) & (before[1] == 1)
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_02"), np.where(core, 2, before[1]))
    assert table_of(nnunet_folders)["cases"]["case_02"]["annotated"] == ["whole", "core"]
    assert_preprocessed_as_by_nnunet(nnunet_folders, "case_02", "3d_fullres")
    assert run("check", 901) == 0


def test_labels_that_a_model_drew_give_way(nnunet_folders: Path) -> None:
    block = partial_block()
    block["cases"]["case_00"]["pseudo"] = ["spleen"]
    table = reviewed(nnunet_folders, block=block)
    label = nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr" / "case_00.nii.gz"
    drawn = raw_label(nnunet_folders, "case_00")
    modelled = np.where(drawn == 0, 3, drawn)
    tiny.write_nifti(modelled, label)
    fill(table, {("case_00", "spleen"): ("accept",)})
    assert run("accept", 901, table) == 0
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00"), np.where(truth("case_00") == 3, 3, drawn))
    case = table_of(nnunet_folders)["cases"]["case_00"]
    assert case == {"source": "a", "annotated": ["liver", "spleen"]}


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_other_readers(nnunet_folders: Path, reader: str) -> None:
    fabricate(nnunet_folders, DECISIONS)
    for file in nnunet_folders.rglob("*lans.json"):
        file.write_text(file.read_text().replace("SimpleITKIO", reader))
    for file in nnunet_folders.rglob("dataset.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "overwrite_image_reader_writer": reader}))
    assert run(*REVIEW, "-o", nnunet_folders / "review") == 0
    table = nnunet_folders / "review" / "review.csv"
    fill(table, {("case_02", "spleen"): ("accept",)})
    drawn = raw_label(nnunet_folders, "case_02")
    candidate = truth("case_02") == 3  # in the axes of the reader
    if reader.endswith("WithReorient"):
        candidate = candidate[:, ::-1, ::-1]  # the files are LPS, these readers turn them to RAS
    assert run("accept", 901, table) == 0
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_02"), np.where(candidate & (drawn == 0), 3, drawn))
    assert_preprocessed_as_by_nnunet(nnunet_folders, "case_02", "3d_fullres")


def edited(old: str, new: str) -> Callable[[Path], None]:
    return lambda table: table.write_text(table.read_text().replace(old, new)) and None


def corrected(**file: Any) -> Callable[[Path], None]:
    def spoil(table: Path) -> None:
        options: dict[str, Any] = {"shape": (16, 20, 18), "value": 1, **file}
        mask = np.zeros(options.pop("shape"), bool)
        mask[1, 1, 1] = True
        fill(table, {("case_00", "spleen"): ("corrected", mask_file(table, "m.nii.gz", mask, **options))})

    return spoil


def changed_candidate(table: Path) -> None:
    file = table.parent / "candidates" / "case_00__03_spleen.nii.gz"
    tiny.write_nifti(np.ones((16, 20, 18), np.uint8), file)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "case": (edited("case_01", "case_1"), "names the unknown case 'case_1' (did you mean 'case_01'?)"),
    "label": (edited("liver", "livre"), "names the unknown label 'livre' (did you mean 'liver'?)"),
    "not in the review": (edited("case_02,spleen", "case_02,tumour"), "tumour of case_02 is not in this review"),
    "decision": (edited("accept", "acept"), "has the decision 'acept' (did you mean 'accept'?)"),
    "twice": (edited("case_02,spleen", "case_00,spleen"), "lists spleen of case_00 a second time"),
    "no column": (edited("decision", "verdict"), "has no column 'decision'"),
    "no file": (edited("accept,", "corrected,"), "names no corrected_file"),
    "missing file": (edited("accept,,", "corrected,here.nii.gz,"), "review/here.nii.gz does not exist"),
    "home of nobody": (
        edited("accept,,", "corrected,~no_such_user/m.nii.gz,"),
        "m.nii.gz' does not exist; give its path",
    ),
    "endless file name": (edited("accept,,", f"corrected,{'m' * 5000},"), "mmm' does not exist; give its path as seen"),
    "endless case": (edited("case_01", "c" * 100_000), "ccc'; the review does not have it"),
    "file of an accepted one": (
        edited("accept,,", "accept,here.nii.gz,"),
        "names a corrected file, but the decision is",
    ),
    "file of an absent one": (
        edited("accept,,", "absent,here.nii.gz,"),
        "names a corrected file, but the decision is 'absent'",
    ),
    "misspelt absence": (edited("accept", "abscent"), "has the decision 'abscent' (did you mean 'absent'?)"),
    "changed candidate": (changed_candidate, "was changed after the review was made"),
    "size": (corrected(shape=(16, 20, 17)), "17 x 20 x 16 voxels, case_00_0000.nii.gz has 18 x 20 x 16"),
    "spacing": (corrected(spacing=(1.0, 1.0, 2.0)), "voxels of 1 x 1 x 2 mm"),
    "value": (
        corrected(value=2),
        "holds the values 0, 2; a mask holds 0 and 1, or 0 and 3 as in dataset.json (spleen)",
    ),
    "undefined value": (corrected(value=9), "values that dataset.json does not define: 9"),
    "no manifest": (lambda table: table.with_name("review.json").unlink(), "review.json does not exist"),
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled review that tests spoil in a copy."""
    root = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")
        fill(reviewed(root), ACCEPTED)
    return root


@pytest.fixture()
def copy(example: Path, nnunet_folders: Path) -> Path:
    shutil.copytree(example, nnunet_folders, dirs_exist_ok=True)
    return nnunet_folders


@pytest.mark.parametrize("what", WRONG)
def test_wrong_tables_change_nothing(copy: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    spoil, sentence = WRONG[what]
    table = copy / "review" / "review.csv"
    spoil(table)
    before = snapshot(copy)
    assert run("accept", 901, table) == 2
    said = capsys.readouterr().err.rpartition("\r")[2]  # after the progress bar
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1
    assert snapshot(copy) == before


def test_again_and_of_another_dataset(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = copy / "review" / "review.csv"
    assert run("accept", 901, table) == 0
    after = snapshot(copy)
    assert run("accept", 901, table) == 2
    assert "spleen is already annotated in case_00" in capsys.readouterr().err
    (copy / "nnUNet_raw" / "Dataset902_Other").mkdir()
    assert run("accept", 902, table) == 2
    assert "is a review of Dataset901_Tiny, not of Dataset902_Other" in capsys.readouterr().err
    (copy / "nnUNet_raw" / "Dataset902_Other").rmdir()
    assert snapshot(copy) == after


def test_a_table_that_is_changed_meanwhile_stays(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "nnUNet_raw" / tiny.NAME / "dataset.json"
    backup, before = accepting._backup, snapshot(copy)

    def annotated_meanwhile(*arguments: Any) -> Any:
        content = json.loads(file.read_text())
        content["mutual"]["cases"]["case_00"]["patient"] = "p0"
        file.write_text(json.dumps(content))
        return backup(*arguments)

    monkeypatch.setattr(accepting, "_backup", annotated_meanwhile)
    assert run("accept", 901, copy / "review" / "review.csv") == 2
    assert "was changed while accept was at work, which changed nothing; repeat" in capsys.readouterr().err
    assert {name for name, state in snapshot(copy).items() if before.get(name) != state} == {
        f"nnUNet_raw/{tiny.NAME}/dataset.json"
    }


def test_images_of_other_plans_are_preprocessed_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    training = NamedTraining(tiny.NAME, "3d_fullres", "0", "PartialTrainer", "nnUNetResEncUNetLPlans")
    manifest: Any = SimpleNamespace(training=training)
    opened: Any = SimpleNamespace(folders=SimpleNamespace(number=901), arrivals=list, preprocessed=Path("any"))
    accepting._say_next(Path("review.csv"), [], manifest, opened, ["un_0"], None)
    assert "  nnunet_mutual preprocess_unlabelled -d 901 -p nnUNetResEncUNetLPlans\n" in capsys.readouterr().out


def test_volumes_are_never_in_powers_of_ten() -> None:
    assert [millilitres(volume) for volume in (1500.4, 99.94, 0.01234)] == ["1500 ml", "99.9 ml", "0.0123 ml"]


def test_a_path_that_is_no_table(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("accept", 901, copy / "review") == 2
    assert f"review is a folder, give the table in it: {copy / 'review' / 'review.csv'}" in capsys.readouterr().err
    assert run("accept", 901, copy / "reviewed.csv") == 2
    assert "reviewed.csv is no file; give the table that nnunet_mutual review has written" in capsys.readouterr().err


def test_without_preprocessed_data_no_training_is_advised(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "nnUNet_preprocessed" / tiny.NAME)
    table = (copy / "review" / "review.csv").rename(copy / "review" / "dataset.json")
    assert run("accept", 901, table) == 0
    said = capsys.readouterr().out
    assert "which says how to train:\n  nnunet_mutual check 901\n" in said and "nnunet_mutual train" not in said
    kept = copy / "nnUNet_raw" / tiny.NAME / "labelsTr_before_1"
    assert (kept / "review.csv").is_file() and json.loads((kept / "dataset.json").read_text())["labels"]


def test_nothing_decided(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = copy / "review" / "review.csv"
    fill(table, {})
    before = snapshot(copy)
    assert run("accept", 901, table) == 0
    assert "write accept, corrected, absent or reject into" in capsys.readouterr().out
    assert snapshot(copy) == before


def test_semicolons_of_a_spreadsheet(copy: Path) -> None:
    table = copy / "review" / "review.csv"
    table.write_text("\ufeff" + table.read_text().replace(",", ";").replace("accept", "ACCEPT"), encoding="utf-8")
    assert run("accept", 901, table, "--dry-run") == 0


def test_a_full_disk_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(copy)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", full)
    assert run("accept", 901, copy / "review" / "review.csv") == 2
    assert "could not be written (No space left on device) and nothing was changed" in capsys.readouterr().err
    assert snapshot(copy) == before


@pytest.mark.parametrize("number", [1, 4, 11])
def test_interrupted(copy: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    table = copy / "review" / "review.csv"
    before = snapshot(copy)
    with monkeypatch.context() as patch:
        die_at(patch, number, copy)
        assert run("accept", 901, table) == 130
    assert snapshot(copy) == before
    assert run("accept", 901, table) == 0


def test_killed_half_way(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = copy / "review" / "review.csv"
    before = snapshot(copy)
    with monkeypatch.context() as patch:
        die_at(patch, 5, copy)
        patch.setattr(swap, "undo", lambda *_: None)
        assert run("accept", 901, table) == 130
    assert snapshot(copy) != before
    with pytest.raises(MutualError, match="accept was interrupted while it replaced label maps; run it again with its"):
        trainer_for(copy / "nnUNet_preprocessed" / tiny.NAME).initialize()
    assert run("accept", 901, table, "--dry-run") == 2
    assert "run it without --dry-run" in capsys.readouterr().err
    assert run("accept", 901, table) == 0
    assert "An accept that was interrupted has been undone first" in capsys.readouterr().out
    after = snapshot(copy)
    kept = f"nnUNet_raw/{tiny.NAME}/labelsTr_before_1/case_00.nii.gz"
    assert after[kept] == before[f"nnUNet_raw/{tiny.NAME}/labelsTr/case_00.nii.gz"]
    assert not any(".accept" in path or "before_2" in path for path in after)


def test_killed_and_moved(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(copy)
    with monkeypatch.context() as patch:
        die_at(patch, 5, copy)
        patch.setattr(swap, "undo", lambda *_: None)
        assert run("accept", 901, copy / "review" / "review.csv") == 130
    new = copy / "another disk"
    new.mkdir()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(copy / name, new / name)
        shutil.rmtree(copy / name)
        monkeypatch.setenv(name, str(new / name))
    empty = copy / "review" / "empty.csv"
    fill(Path(shutil.copy(copy / "review" / "review.csv", empty)), {})
    assert run("accept", 901, empty) == 0
    assert "An accept that was interrupted has been undone first" in capsys.readouterr().out
    assert snapshot(new) == before


def test_a_stranger_s_dataset_deletes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = copy / "precious"
    precious.mkdir()
    journal = copy / "nnUNet_raw" / tiny.NAME / ".accept.json"
    journal.write_text(json.dumps({"replaced": [[str(precious), None]]}))
    before = snapshot(copy)
    assert run("accept", 901, copy / "review" / "review.csv") == 2
    assert f"{journal} lists {precious}, which is not in" in capsys.readouterr().err
    assert precious.is_dir() and snapshot(copy) == before


@pytest.mark.parametrize(
    "training", [{"dataset": 3}, {"fold": 0}, {"dataset": "Dataset902_Other"}, {"more": "x"}, None]
)
def test_a_damaged_review_is_one_sentence(copy: Path, capsys: pytest.CaptureFixture[str], training: Any) -> None:
    file = copy / "review" / "review.json"
    content = json.loads(file.read_text())
    content["training"] = training and {**content["training"], **training}
    file.write_text(json.dumps(content))
    before = snapshot(copy)
    assert run("accept", 901, copy / "review" / "review.csv") == 2
    assert "review.json is damaged; run nnunet_mutual review again" in capsys.readouterr().err
    assert snapshot(copy) == before


def test_the_next_command_of_a_stranger_s_review_is_safe_to_copy(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "review" / "review.json"
    file.write_text(file.read_text().replace('"3d_fullres"', '"3d_fullres; rm -r ~"'))
    assert run("accept", 901, copy / "review" / "review.csv") == 0
    assert "nnunet_mutual train 901 '3d_fullres; rm -r ~' 0 -tr" in capsys.readouterr().out


def test_links_of_a_stranger_s_dataset_are_not_followed(copy: Path) -> None:
    precious = copy / "precious"
    (precious / "labelsTr").mkdir(parents=True)
    (precious / "labelsTr" / "case_00.nii.gz").write_text("mine")
    (copy / "nnUNet_raw" / tiny.NAME / ".accept.old").symlink_to(precious)
    assert run("accept", 901, copy / "review" / "review.csv") == 0
    assert [path.name for path in precious.rglob("*")] == ["labelsTr", "case_00.nii.gz"]
    assert (precious / "labelsTr" / "case_00.nii.gz").read_text() == "mine"
    assert not (copy / "nnUNet_raw" / tiny.NAME / ".accept.old").is_symlink()


def link(inside: Path, outside: Path) -> None:
    shutil.move(inside, outside)
    inside.symlink_to(outside)


def test_a_linked_folder_out_of_the_dataset(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = copy / "nnUNet_raw" / tiny.NAME
    link(raw / "labelsTr", copy / "labelsTr")
    before = snapshot(copy), {file.name: file.read_bytes() for file in (copy / "labelsTr").iterdir()}
    assert run("accept", 901, copy / "review" / "review.csv") == 2
    assert f"leads out of {raw}" in capsys.readouterr().err
    assert (snapshot(copy), {file.name: file.read_bytes() for file in (copy / "labelsTr").iterdir()}) == before


def test_a_linked_dataset_json_out_of_the_dataset_is_replaced(copy: Path) -> None:
    raw = copy / "nnUNet_raw" / tiny.NAME
    link(raw / "dataset.json", copy / "dataset.json")
    before = (copy / "dataset.json").read_bytes()
    assert run("accept", 901, copy / "review" / "review.csv") == 0
    assert (copy / "dataset.json").read_bytes() == before
    assert table_of(copy) != json.loads(before)["mutual"] and not (raw / "dataset.json").is_symlink()


def die_at(patch: pytest.MonkeyPatch, number: int, root: Path) -> None:
    """Interrupts before the given replacement of a target."""
    replace, count = os.replace, 0

    def replacing(new: Any, target: Any) -> None:
        nonlocal count
        if ".accept.staged" in str(new) and ".accept.staged" not in str(target):
            count += 1
            if count == number:
                raise KeyboardInterrupt
        replace(new, target)

    patch.setattr(swap.os, "replace", replacing)
