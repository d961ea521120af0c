"""Labels that change under a training: refused where it would go on, said where it goes on, never silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from reviewing import REVIEW, decided, fabricate, fill, run
from training import KEYS, curves, largest_difference, stop_at, trainer_for, weights

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.label_maps import Maps, outdated, read_maps, read_record, record, record_of
from nnunet_mutual.engine.validation import FoldValidation
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.label_changes import difference, renew_truth
from nnunet_mutual.trainers import MutualPartialTrainer, PartialTrainer

DATA = "nnUNetPlans_3d_fullres"


def reviewed(root: Path, monkeypatch: pytest.MonkeyPatch, decision: str = "accept") -> Path:
    """The tiny dataset and a review that says something of the spleen of case_00; returns its table."""
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")
    fabricate(root, [decided("case_00", "spleen", False)])
    assert run(*REVIEW, "-o", root / "review", "--all") == 0
    fill(root / "review" / "review.csv", {("case_00", "spleen"): (decision,)})
    return root / "review" / "review.csv"


def accept(table: Path) -> None:
    assert run("accept", "901", table) == 0


def stopped(preprocessed: Path, kind: Any = PartialTrainer, step: int = 5) -> Any:
    trainer = trainer_for(preprocessed, kind)
    stop_at(trainer, step, signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.run_training()
    return trainer


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("kind", [PartialTrainer, MutualPartialTrainer])
def test_a_training_does_not_go_on_with_other_labels(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    table = reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    trainer = stopped(preprocessed, kind)
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    before = latest.read_bytes()
    accept(table)
    with pytest.raises(MutualError, match="cases/case_00/annotated.*label map of case_00 changed.*without --c"):
        trainer_for(preprocessed, kind, resume="latest")
    assert latest.read_bytes() == before


def test_an_absence_is_a_change_although_no_voxel_is(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = reviewed(nnunet_folders, monkeypatch, "absent")
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    stopped(preprocessed)
    accept(table)
    with pytest.raises(MutualError, match=r"cases/case_00/annotated.* changed since this training began.*without --c"):
        trainer_for(preprocessed, resume="latest")


def test_a_finished_training_is_not_validated_silently(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    trainer_for(preprocessed).run_training()
    accept(table)
    with pytest.raises(MutualError, match="--val instead of --c"):
        trainer_for(preprocessed, resume="final")
    validated = trainer_for(preprocessed)  # --val
    validated.load_checkpoint(str(Path(validated.output_folder) / "checkpoint_final.pth"))
    monkeypatch.setattr(FoldValidation, "run", lambda *arguments: None)
    validated.perform_actual_validation()
    assert "learnt the old labels and is scored with the new ones" in log_of(validated)
    with pytest.raises(MutualError, match="changed since this training began"):
        validated.run_training()


@pytest.mark.parametrize("kind", [PartialTrainer, MutualPartialTrainer])
def test_accept_during_a_training_is_said_and_the_training_kept(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    table = reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    trainer = trainer_for(preprocessed, kind)
    original = trainer.on_epoch_end

    def on_epoch_end() -> None:
        if trainer.current_epoch == 0:
            accept(table)
        original()

    trainer.on_epoch_end = on_epoch_end
    trainer.run_training()
    log = log_of(trainer)
    news = "label map of case_00 changed since this process began"
    assert log.count(news) == 2 and log.index("Epoch time") < log.index(news) < log.index("Epoch 1")
    if kind is MutualPartialTrainer:
        assert log.index(news) < log.index("Stage 1 is over")
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert final.is_file()
    with pytest.raises(MutualError, match="nothing was validated.*--val"):
        trainer.perform_actual_validation()
    trainer.load_checkpoint(str(final))  # as --val_best does, whose table is as old
    with pytest.raises(MutualError, match="nothing was validated"):
        trainer.perform_actual_validation()


def test_labels_that_were_put_back_let_it_go_on_to_the_bit(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    shutil.copytree(preprocessed, nnunet_folders / "before")
    whole = trainer_for(preprocessed)
    whole.run_training()
    shutil.rmtree(whole.output_folder)
    stopped(preprocessed)
    accept(table)
    shutil.rmtree(preprocessed)  # mtimes become others, contents do not
    shutil.copytree(nnunet_folders / "before", preprocessed, copy_function=shutil.copyfile)
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    shutil.copy(raw / "labelsTr_before_1" / "dataset.json", raw / "dataset.json")
    resumed = trainer_for(preprocessed, resume="latest")
    resumed.run_training()
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert curves(resumed) == curves(whole)


def test_another_table_alone_is_refused(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    stopped(preprocessed)
    for folder in (preprocessed, nnunet_folders / "nnUNet_raw" / tiny.NAME):
        content = json.loads((folder / "dataset.json").read_text())
        content["mutual"]["cases"]["case_03"]["annotated"] = ["spleen"]
        (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(MutualError, match="first at mutual/cases/case_03/annotated. changed"):
        trainer_for(preprocessed, resume="latest")


def test_a_checkpoint_of_the_first_version_goes_on_and_says_so(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    latest = Path(stopped(preprocessed).output_folder) / "checkpoint_latest.pth"
    checkpoint = torch.load(latest, weights_only=True)
    del checkpoint["mutual_state"]["label_maps"]
    torch.save(checkpoint, latest)
    resumed = trainer_for(preprocessed, resume="latest")
    assert "does not say with which label maps" in log_of(resumed)
    resumed.run_training()
    final = torch.load(latest.with_name("checkpoint_final.pth"), weights_only=True)
    assert set(final["mutual_state"]["label_maps"]) == set(KEYS)


def preprocessed_files(root: Path) -> tuple[Path, dict[str, Path]]:
    """Files of two cases, as preprocessing leaves them."""
    data, labels = root / DATA, {}
    for folder in (data, root / "gt_segmentations", root / "labelsTr"):
        folder.mkdir()
    for key in ("a", "b"):
        labels[key] = root / "labelsTr" / f"{key}.nii"
        labels[key].write_bytes(key.encode() * 9)
        shutil.copy(labels[key], root / "gt_segmentations")
        (data / f"{key}_seg.b2nd").write_bytes(b"segmentation")
    return data, labels


def said(then: Maps | None, now: Maps) -> str | None:
    return difference({}, {}, then, now)


def test_copies_become_what_the_label_maps_are(tmp_path: Path) -> None:
    """nnU-Net copies newer files only: a map that was put back is older than its copy."""
    raw, truth = tmp_path / "labelsTr", tmp_path / "gt_segmentations"
    for folder in (raw, truth):
        folder.mkdir()
    labels = {key: raw / f"{key}.nii" for key in "abc"}
    for key, path in labels.items():
        path.write_bytes(b"drawn " + key.encode())
        os.utime(path, (1, 1))
    (truth / "a.nii").write_bytes(b"drawn a")
    same = (truth / "a.nii").stat().st_mtime_ns
    (truth / "b.nii").write_bytes(b"drawn x")
    (truth / "withdrawn.nii").write_bytes(b"gone")
    renew_truth(truth, labels, ".nii")
    assert {path.name: path.read_bytes() for path in truth.iterdir()} == {
        path.name: path.read_bytes() for path in labels.values()
    }
    assert (truth / "a.nii").stat().st_mtime_ns == same


def test_what_is_noted_and_what_is_not(tmp_path: Path) -> None:
    data, labels = preprocessed_files(tmp_path)
    stock = read_maps(data, labels, ".nii")
    assert stock["a"] == [9, 12, ""]
    record(data, labels, ".nii")
    assert record_of(data) == tmp_path / f"label_maps_{DATA}.json"
    noted = read_maps(data, labels, ".nii")
    assert len(noted["a"][2]) == 64 and said(stock, noted) is None

    labels["b"].write_bytes(b"c" * 9)  # as long as before, only the hash tells
    record(data, labels, ".nii")
    other = read_maps(data, labels, ".nii")
    assert said(noted, other) == "the label map of b" and said(stock, other) is None
    (data / "b_seg.b2nd").write_bytes(b"made again by stock nnU-Net")  # which leaves the record as it was
    by_stock = read_maps(data, labels, ".nii")
    assert by_stock["b"][2] == "" and said(other, by_stock) == "the label map of b"
    assert said(None, noted) is None
    assert said({key: noted[key] for key in "a"}, noted) == "the cases of the fold (b new)"
    record_of(data).write_text("{")
    assert read_record(data) == {}


def test_accept_notes_what_it_writes(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = reviewed(nnunet_folders, monkeypatch)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    data = preprocessed / DATA
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    record(data, {key: raw / "labelsTr" / f"{key}.nii.gz" for key in KEYS}, ".nii.gz")
    before = read_maps(data, KEYS, ".nii.gz")
    accept(table)
    after = read_maps(data, KEYS, ".nii.gz")
    assert [key for key in KEYS if before[key][2] != after[key][2]] == ["case_00"]
    assert all(after[key][2] for key in KEYS), "the notes of the others still count"
    assert not np.array_equal(before["case_00"][:2], after["case_00"][:2])


def test_another_configuration_that_is_of_older_label_maps_is_not_trained(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As plan_and_preprocess -c 2d leaves it: the table and gt_segmentations are new, 3d_fullres is not."""
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    preprocessed = tiny.make_dataset(nnunet_folders, configurations=("2d", "3d_fullres"))
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    labels = {key: raw / "labelsTr" / f"{key}.nii.gz" for key in KEYS}
    data = {name: preprocessed / f"nnUNetPlans_{name}" for name in ("2d", "3d_fullres")}
    for folder in data.values():
        record(folder, labels, ".nii.gz")
    trainer_for(preprocessed, PartialTrainer).do_split()
    tiny.write_nifti(np.full((16, 20, 18), 3, np.uint8), labels["case_00"])
    again = "plan_and_preprocess -d 901 -c 3d_fullres --as-planned nnUNetPlans"
    assert main([*again.replace("3d_fullres", "2d").split(), "--no-check", "-np", "1"]) == 0
    said = "3d_fullres: preprocessed from label maps that were drawn anew since; before you train that:"
    assert f"{said}  nnunet_mutual {again}\n" in capsys.readouterr().out
    assert [outdated(folder, KEYS, ".nii.gz") for folder in data.values()] == [[], ["case_00"]]
    trainer_for(preprocessed, PartialTrainer, "2d").do_split()
    with pytest.raises(MutualError, match=rf"label maps of 1 case\(s\) \(case_00\) were drawn anew.*{again}"):
        trainer_for(preprocessed, PartialTrainer).do_split()
    main(["check", "901"])
    assert f" nnunet_mutual {again}\n" in capsys.readouterr().out
