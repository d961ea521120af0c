"""From a training to what to draw next, and into the dataset once it is drawn."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from first_release import put
from reviewing import assert_preprocessed_as_by_nnunet, fill, raw_label, run, snapshot, voxels
from training import trainer_for
from unlabelled_images import add_unlabelled

from nnunet_mutual.disk import swap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.review.arrivals import require_sources
from nnunet_mutual.pseudo_labels.suggest import measuring

SUGGEST = ["suggest", "901", "3d_fullres", "-tr", "PartialTrainer", "-chk", "checkpoint_latest.pth", "-device", "cpu"]
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LISTED = {"un_0": {"source": "a"}, "un_1": {"source": "b", "patient": "p5"}}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")


def edit(root: Path, tops: tuple[str, ...], change: Any) -> None:
    for top in tops:
        file = root / top / tiny.NAME / "dataset.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def tables(root: Path, change: Any) -> None:
    """Changes the table of the raw and of the preprocessed dataset, as annotate and sync do."""
    edit(root, VARIABLES[:2], lambda content: change(content["mutual"]["cases"]))


def make_world(root: Path, images: int = 3) -> Path:
    """A trained network; case_05, of patient p5, is validated, and so is nothing of that patient suggested."""
    preprocessed, _, _ = put(root, "PartialTrainer")
    add_unlabelled(root, images)
    tables(root, lambda cases: (cases.update(LISTED), cases["case_05"].update(patient="p5")))
    folds = [{"train": [f"case_{n:02d}" for n in range(5)], "val": ["case_05"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    assert run("preprocess_unlabelled", "-d", 901, "-np", 1) == 0
    return preprocessed


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "review.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_interrupted_run_goes_on_and_the_reader_gets_a_folder(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_world(nnunet_folders)
    (nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTs").mkdir()
    tiny.write_nifti(
        tiny.image_and_labels(22)[0], nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTs/un_2_0000.nii.gz"
    )
    asked: list[str] = []
    label = measuring.label_case

    def label_case(labeller: Any, dataset: Any, store: Any, key: str) -> None:
        if len(asked) == 2:
            asked.append("")
            raise KeyboardInterrupt
        asked.append(key)
        label(labeller, dataset, store, key)

    monkeypatch.setattr(measuring, "label_case", label_case)
    out = nnunet_folders / "next"
    assert run(*SUGGEST, "-o", out) == 130
    assert not out.exists()
    capsys.readouterr()
    assert run(*SUGGEST, "-o", out, "--minutes", 2, "spleen=3", "--max", 100) == 0
    said = capsys.readouterr().out
    assert asked == ["case_00", "case_01", "", "case_02", "case_03", "case_04", "un_0"], "each once, and no others"
    assert f"nnunet_mutual accept 901 {out}/review.csv --dry-run" in said and "WARNING" not in said
    assert sorted(path.name for path in out.iterdir()) == ["candidates", "review.csv", "review.html", "review.json"]

    table = rows(out)
    drawn = {"a": {"liver"}, "b": {"tumour", "spleen"}}
    undrawn = {(f"case_{n:02d}", label) for n in range(5) for label in set(tiny.PLAIN) - drawn["ab"[n % 2]]}
    undrawn = {(case, label) for case, label in undrawn if label != "background"}
    assert {(row["case"], row["label"]) for row in table} == undrawn | {
        ("un_0", label) for label in tiny.PLAIN if label != "background"
    }
    assert [row["rank"] for row in table] == [str(n + 1) for n in range(len(table))]
    assert {row["label"]: row["minutes"] for row in table} == {"liver": "2", "tumour": "2", "spleen": "3"}
    assert len(list((out / "candidates").iterdir())) == len(table)
    for file in (out / "candidates").glob("un_0__*"):
        assert voxels(file).shape == tiny.image_and_labels(20)[0].shape and set(np.unique(voxels(file))) <= {0, 1}
    page = (out / "review.html").read_text()
    assert "Where to draw next" in page and "the image and its mirrored copies" in page and "tumour in un_0" in page
    assert run(*SUGGEST, "-o", nnunet_folders / "again", "--max", 2) == 0
    assert len(asked) == 7 and len(rows(nnunet_folders / "again")) == 2, "with other minutes nobody is asked again"


def drawn_by_a_reader(root: Path) -> tuple[Path, np.ndarray]:
    """Suggestions, of which a reader has drawn the liver and the spleen of un_0."""
    assert run(*SUGGEST, "-o", root / "next", "--max", 100) == 0
    truth = tiny.image_and_labels(20)[1]
    table = root / "next" / "review.csv"
    for label, value in (("liver", 1), ("spleen", 3)):
        tiny.write_nifti((truth == value).astype(np.uint8), table.with_name(f"{label}.nii.gz"))
    answers = {label: ("corrected", f"{label}.nii.gz") for label in ("liver", "spleen")}
    fill(table, {("un_0", label): answer for label, answer in answers.items()})
    return table, np.where(truth == 2, 0, truth)


def test_a_drawn_image_becomes_a_training_case(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = make_world(nnunet_folders)
    table, truth = drawn_by_a_reader(nnunet_folders)
    assert "does not say of which source un_2 of imagesUn is" in capsys.readouterr().out
    raw, before = nnunet_folders / "nnUNet_raw" / tiny.NAME, snapshot(nnunet_folders)
    assert run("accept", 901, table, "--dry-run") == 0
    assert snapshot(nnunet_folders) == before
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 6)
        assert run("accept", 901, table) == 130
    assert snapshot(nnunet_folders) == before, "an image that arrived has gone again"

    capsys.readouterr()
    assert run("accept", 901, table) == 0
    said = capsys.readouterr().out
    assert (
        "images move from imagesUn to imagesTr: un_0\n" in said and "nnunet_mutual preprocess_unlabelled -d 901" in said
    )
    after = snapshot(nnunet_folders)
    names = [f"nnUNet_raw/{tiny.NAME}/{folder}/un_0_0000.nii.gz" for folder in ("imagesUn", "imagesTr")]
    assert names[0] not in after and after[names[1]] == before[names[0]]
    np.testing.assert_array_equal(raw_label(nnunet_folders, "un_0"), truth)
    content = json.loads((raw / "dataset.json").read_text())
    assert content["mutual"]["cases"]["un_0"] == {"source": "a", "annotated": ["liver", "spleen"]}
    assert content["numTraining"] == 7
    assert_preprocessed_as_by_nnunet(nnunet_folders, "un_0", "3d_fullres")
    (fold,) = json.loads((preprocessed / "splits_final.json").read_text())
    assert fold["train"][-1] == "un_0" and fold["val"] == ["case_05"]
    assert run("preprocess_unlabelled", "-d", 901, "-np", 1) == 0
    assert run("check", 901) == 0
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    assert "un_0" in trainer.do_split()[0]
    capsys.readouterr()
    assert run(*SUGGEST, "-o", nnunet_folders / "again") == 2
    assert "un_0 became training cases after PartialTrainer was trained" in capsys.readouterr().err


def test_a_drawing_is_not_replaced_and_no_case_is_in_two_parts_of_a_fold(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image was moved from imagesTr to imagesUn, where its label map and its place in a fold were left."""
    preprocessed = make_world(nnunet_folders)
    table, _ = drawn_by_a_reader(nnunet_folders)
    folds = [{"train": [f"case_{n:02d}" for n in range(5)], "val": ["case_05", "un_0"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    drawing = nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr" / "un_0.nii.gz"
    shutil.copyfile(drawing.with_name("case_00.nii.gz"), drawing)
    before = snapshot(nnunet_folders)
    assert run("accept", 901, table) == 2
    assert "un_0.nii.gz is there already, but its image lies in imagesUn" in capsys.readouterr().err
    assert snapshot(nnunet_folders) == before
    drawing.unlink()
    assert run("accept", 901, table) == 0
    assert json.loads((preprocessed / "splits_final.json").read_text()) == folds


@pytest.mark.parametrize("linked", [False, True])
def test_interrupted_before_the_image_left_imagesun(nnunet_folders: Path, linked: bool) -> None:
    make_world(nnunet_folders)
    images = nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesUn"
    if linked:
        elsewhere = images.rename(nnunet_folders / "elsewhere")
        images.symlink_to(elsewhere)
    table, _ = drawn_by_a_reader(nnunet_folders)
    before = snapshot(nnunet_folders)
    unlink = os.unlink

    def dies(path: Any, **options: Any) -> None:
        if Path(path).parent == images:
            raise KeyboardInterrupt
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", dies)
        assert run("accept", 901, table) == 130
    if not linked:
        assert snapshot(nnunet_folders) == before
        assert run("accept", 901, table) == 0
    assert (images / "un_0_0000.nii.gz").exists() == linked
    assert (images.parent / "imagesTr" / "un_0_0000.nii.gz").is_file()


def test_two_images_of_one_name(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_world(nnunet_folders)
    images = nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesUn"
    table, _ = drawn_by_a_reader(nnunet_folders)
    shutil.copyfile(images / "un_0_0000.nii.gz", images / "case_00_0000.nii.gz")
    before = snapshot(nnunet_folders)
    capsys.readouterr()
    assert run("accept", 901, table) == 2
    assert "imagesUn: case_00 has the name of a training case" in capsys.readouterr().err
    assert snapshot(nnunet_folders) == before
    assert run(*SUGGEST, "-o", nnunet_folders / "twins") == 2
    assert "imagesUn: case_00 has the name of a training case" in capsys.readouterr().err


def test_after_the_last_image_its_data_are_removed(nnunet_folders: Path) -> None:
    preprocessed = make_world(nnunet_folders, images=1)
    table, _ = drawn_by_a_reader(nnunet_folders)
    assert run("accept", 901, table) == 0
    data = preprocessed / "unlabelled" / "nnUNetPlans_3d_fullres"
    assert [path.name for path in data.glob("*.pkl")] == ["un_0.pkl"]
    assert run("preprocess_unlabelled", "-d", 901, "-np", 1) == 0
    assert not [*data.iterdir()]


def die_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupts before the given replacement of a target."""
    replace, count = os.replace, 0

    def replacing(new: Any, target: Any) -> None:
        nonlocal count
        count += ".accept.staged" in str(new) and ".accept.staged" not in str(target)
        if count == number:
            raise KeyboardInterrupt
        replace(new, target)

    patch.setattr(swap.os, "replace", replacing)


def test_two_folds_are_two_opinions_and_neither_s_patients_are_suggested(nnunet_folders: Path) -> None:
    preprocessed = make_world(nnunet_folders, images=1)
    folds = [
        {"train": [f"case_{n:02d}" for n in range(6) if n != held], "val": [f"case_{held:02d}"]} for held in (5, 0)
    ]
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    (trained,) = (nnunet_folders / "nnUNet_results" / tiny.NAME).glob("PartialTrainer*")
    shutil.copytree(trained / "fold_0", trained / "fold_1")
    out = nnunet_folders / "next"
    assert run(*SUGGEST, "-f", 0, 1, "-o", out, "--max", 100) == 0
    assert {row["case"] for row in rows(out)} == {"case_01", "case_02", "case_03", "case_04", "un_0"}
    assert "independent predictions (networks) differ" in " ".join((out / "review.html").read_text().split())
    assert {row["disagreement"] for row in rows(out) if "nothing was found" not in row["why"]} <= {"0.01"}, (
        "twins agree"
    )


def test_a_dataset_without_a_table_gets_one(nnunet_folders: Path) -> None:
    """Every case of it is fully drawn, and the new one only in part."""
    make_world(nnunet_folders)
    (trained,) = (nnunet_folders / "nnUNet_results" / tiny.NAME).glob("PartialTrainer*")
    for place in (*(nnunet_folders / top / tiny.NAME for top in VARIABLES[:2]), trained):
        content = json.loads((place / "dataset.json").read_text())
        del content["mutual"]
        (place / "dataset.json").write_text(json.dumps(content))
    table, _ = drawn_by_a_reader(nnunet_folders)
    assert {row["case"] for row in rows(table.parent)} == {"un_0", "un_1", "un_2"}, "nobody knows whose un_1 is"
    assert run("accept", 901, table) == 0
    for top in VARIABLES[:2]:
        block = json.loads((nnunet_folders / top / tiny.NAME / "dataset.json").read_text())["mutual"]
        assert block["sources"] == {"dataset": {"annotated": ["liver", "tumour", "spleen"]}}
        assert block["cases"]["case_00"] == {"source": "dataset"}
        assert block["cases"]["un_0"] == {"source": "dataset", "annotated": ["liver", "spleen"]}
    assert_preprocessed_as_by_nnunet(nnunet_folders, "un_0", "3d_fullres")


def test_an_image_of_an_unknown_source() -> None:
    content = {"mutual": {"sources": {"a": {}, "b": {}}, "cases": {"un_0": {"source": "a"}}}}
    require_sources(content, ["un_0"])
    with pytest.raises(
        MutualError, match=r"of which source un_1, un_2 of imagesUn is \(there are a, b\); list the image"
    ):
        require_sources(content, ["un_0", "un_1", "un_2"])
    del content["mutual"]["sources"]["b"]
    require_sources(content, ["un_1"])
