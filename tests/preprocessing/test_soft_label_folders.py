"""Soft labels go stale by no way: not by a second model, a withdrawn or changed image, or contents that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from training import trainer_for
from two_streams import two_stream_dataset, with_soft_labels

from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.soft_folder import SoftFolder, model_of, read_soft
from nnunet_mutual.preprocessing.unlabelled import SOFT
from nnunet_mutual.trainers import MeanTeacherTrainer, SoftLabelTrainer

DATA = "nnUNetPlans_3d_fullres"
SHAPE = (4, 16, 20, 18)
FIRST = {"dataset": "D", "model": "T__p__c", "fold": "0", "checkpoint": "c.pth", "sha256": "1" * 64}
SECOND = {**FIRST, "sha256": "2" * 64}


def preprocess(*options: str) -> int:
    return main(["preprocess_unlabelled", "-d", "901", *options])


def made(preprocessed: Path, key: str = "un_0") -> np.ndarray:
    return np.asarray(nnUNetDatasetBlosc2(str(preprocessed / SOFT / DATA), [key]).load_case(key)[0][1:])


def identifiers(preprocessed: Path) -> list[str]:
    return sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed / SOFT / DATA)))


def write(file: Path, value: float, *, older: bool = False) -> None:
    np.savez_compressed(file, probabilities=np.full(SHAPE, value, np.float32))
    if older:
        os.utime(file, (1, 1))


def test_a_second_model_replaces_the_first_one(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("--soft", str(soft)) == 0
    assert (
        f"{DATA}: 3 of 3 unlabelled images have soft labels, 0 up to date, 3 to preprocess" in capsys.readouterr().out
    )
    assert preprocess("--soft", str(soft)) == 0
    assert "3 up to date, 0 to preprocess, 0 to remove" in capsys.readouterr().out
    for number in range(2):  # copied with their times, older than what was made of the first model
        write(soft / f"un_{number}.npz", 0.3, older=True)
    (soft / "un_2.npz").unlink()
    write(soft / "other.npz", 0.3)
    assert preprocess("--soft", str(soft)) == 0
    said = capsys.readouterr().out
    assert "2 of 3 unlabelled images have soft labels, 0 up to date, 2 to preprocess, 1 to remove" in said
    assert "1 soft label(s) (other)" in said
    assert identifiers(preprocessed) == ["un_0", "un_1"]
    np.testing.assert_allclose(made(preprocessed), 0.3, atol=1e-6)


def test_every_configuration_is_counted(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("-c", "2d") == 0
    assert preprocess("--soft", str(soft)) == 0
    said = capsys.readouterr().out
    for name in ("2d", "3d_fullres"):
        assert said.count(f"nnUNetPlans_{name}: 3 of 3 unlabelled images have soft labels") == 1
    (nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesUn" / "un_1_0000.nii.gz").unlink()
    assert preprocess("-c", "2d") == 0
    assert preprocess("--soft", str(soft)) == 0  # brings 3d_fullres up to date first
    assert "nnUNetPlans_3d_fullres: 2 of 2 unlabelled images have soft labels" in capsys.readouterr().out
    assert identifiers(preprocessed) == ["un_0", "un_2"]


def test_a_link_steers_no_deletion(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    precious = nnunet_folders / "precious" / DATA
    precious.mkdir(parents=True)
    (precious / "mine.b2nd").write_text("mine")
    (preprocessed / SOFT).symlink_to(precious.parent)
    for options in (["--soft", str(soft)], ["-np", "1"]):
        assert preprocess(*options) == 2
        assert f"leads out of {preprocessed}" in capsys.readouterr().err
        assert [path.name for path in precious.iterdir()] == ["mine.b2nd"]


def test_a_withdrawn_image_is_not_trained_on(nnunet_folders: Path) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("--soft", str(soft)) == 0
    (nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesUn" / "un_1_0000.nii.gz").unlink()
    for kind in (SoftLabelTrainer, MeanTeacherTrainer):
        with pytest.raises(MutualError, match=r"no longer in .*imagesUn \(un_1\); run nnunet_mutual preprocess_unl"):
            trainer_for(preprocessed, kind).initialize()
    assert preprocess() == 0
    assert identifiers(preprocessed) == ["un_0", "un_2"]
    assert not list((preprocessed / SOFT / DATA).glob("un_1*"))
    trainer = trainer_for(preprocessed, SoftLabelTrainer)
    trainer.initialize()
    assert trainer.stream.unlabelled_keys == ["un_0", "un_2"]


def test_leftovers_without_image_are_left_out(nnunet_folders: Path) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("--soft", str(soft)) == 0
    for path in (preprocessed / "unlabelled" / DATA).glob("un_1*"):
        path.unlink()  # as version 0.1.0 did it, which knew nothing of soft labels there
    trainer = trainer_for(preprocessed, SoftLabelTrainer)
    trainer.initialize()
    assert trainer.stream.unlabelled_keys == ["un_0", "un_2"]


def test_soft_labels_of_another_image_are_refused(nnunet_folders: Path) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("--soft", str(soft)) == 0
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    tiny.write_nifti(tiny.image_and_labels(77)[0], raw / "imagesUn" / "un_2_0000.nii.gz")
    assert preprocess() == 0
    with pytest.raises(MutualError, match=r"1 soft label\(s\) \(un_2\) were made of other images.*--soft FOLDER"):
        trainer_for(preprocessed, SoftLabelTrainer).initialize()
    assert preprocess("--soft", str(soft)) == 0
    trainer_for(preprocessed, SoftLabelTrainer).initialize()


def test_soft_labels_of_the_first_version_are_used_if_they_have_all_channels(nnunet_folders: Path) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    assert preprocess("--soft", str(soft)) == 0
    (preprocessed / SOFT / f"{DATA}.jsonl").unlink()
    trainer_for(preprocessed, SoftLabelTrainer).initialize()
    images, seg, _, properties = nnUNetDatasetBlosc2(str(preprocessed / "unlabelled" / DATA), ["un_0"]).load_case(
        "un_0"
    )
    three = np.concatenate([images[:], np.zeros((3, *images.shape[1:]), np.float32)])
    (preprocessed / SOFT / DATA / "un_0.b2nd").unlink()
    (preprocessed / SOFT / DATA / "un_0_seg.b2nd").unlink()
    nnUNetDatasetBlosc2.save_case(three, np.asarray(seg[:]), properties, str(preprocessed / SOFT / DATA / "un_0"))
    with pytest.raises(MutualError, match=r"\(un_0\) have not the 5 channels"):
        trainer_for(preprocessed, SoftLabelTrainer).initialize()


def broken(kind: str) -> Any:
    values = np.full(SHAPE, 0.2, np.float32)
    if kind == "nan":
        values[0, 3, 3, 3] = np.nan
    elif kind == "infinity":
        values[0, 3, 3, 3] = np.inf
    elif kind == "negative":
        values[1, 0, 0, 0] = -0.5
    elif kind == "logits":
        values[1] = 7
    elif kind == "channels":
        values = values[:3]
    elif kind == "dimensions":
        values = values[:, 0]
    elif kind == "integers":
        values = np.full(SHAPE, 2000, np.int16)
    elif kind == "objects":
        values = np.array([{}], object)
    return values


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "not probabilities"),
        ("infinity", "not probabilities"),
        ("negative", "-0.5 to 0.2, not probabilities"),
        ("logits", "0.2 to 7, not probabilities"),
        ("channels", "names 4 outputs"),
        ("dimensions", "names 4 outputs"),
        ("integers", "steps of 1/255"),
        ("objects", "is empty, cut short or holds more than numbers"),
        ("name", 'holds no "probabilities"'),
        ("text", "is empty, cut short or holds more than numbers"),
        ("cut", "is empty, cut short or holds more than numbers"),
        ("array", "is empty, cut short or holds more than numbers"),
    ],
)
def test_contents_that_are_no_probabilities(tmp_path: Path, kind: str, says: str) -> None:
    file = tmp_path / "un_0.npz"
    np.savez_compressed(file, **{"p" if kind == "name" else "probabilities": broken(kind)})
    if kind == "text":
        file.write_text("nothing")
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:-300])
    elif kind == "array":
        with file.open("wb") as stream:
            np.save(stream, broken(kind))
    with pytest.raises(MutualError, match="un_0.npz") as caught:
        read_soft(file, 4)
    assert says in str(caught.value)


def test_contents_are_verified_where_they_are_preprocessed(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.full(SHAPE, 0.2, np.float32))
    write(soft / "un_1.npz", -1.0)
    assert preprocess("--soft", str(soft)) == 2
    assert "un_1.npz holds -1 to -1, not probabilities" in capsys.readouterr().err
    assert not (preprocessed / SOFT).exists(), "un_0 alone would be trained on"
    with pytest.raises(MutualError, match="--soft FOLDER"):
        trainer_for(preprocessed, SoftLabelTrainer).initialize()


def files_of(root: Path, keys: str) -> dict[str, CaseFiles]:
    for key in keys:
        (root / f"{key}_0000.nii").write_bytes(key.encode())
    return {key: CaseFiles(key, {0: root / f"{key}_0000.nii"}, root / key) for key in keys}


def test_a_folder_is_of_one_model_and_of_the_images_that_are_there(tmp_path: Path) -> None:
    folder = SoftFolder(tmp_path / "soft")
    folder.claim(FIRST)
    cases = files_of(tmp_path, "abc")
    for files in cases.values():
        folder.write(files, np.full(SHAPE, 0.5))
    folder.claim(FIRST)
    assert folder.keep(cases) == set(folder.labels()) == set("abc")
    with pytest.raises(MutualError, match="of another model.*name a new folder with -o"):
        folder.claim(SECOND)

    del cases["c"]  # withdrawn
    cases["a"].images[0].write_bytes(b"another image")
    (folder.folder / "b.npz").write_bytes(b"by another programme")
    with pytest.raises(MutualError, match=r"did not write \(b\)"):
        folder.labels()
    assert folder.keep(cases) == set() and not list(folder.folder.glob("*.npz"))
    with pytest.raises(MutualError, match="NaN"):
        folder.write(cases["a"], np.full(SHAPE, np.nan))

    unknown = SoftFolder(tmp_path / "unknown")
    unknown.folder.mkdir()
    write(unknown.folder / "a.npz", 0.5)
    with pytest.raises(MutualError, match="nobody noted the model"):
        unknown.claim(FIRST)
    assert set(unknown.labels()) == {"a"}, "nnU-Net's own can be preprocessed"


def test_the_command_refuses_a_folder_of_another_model(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"num_epochs": 1})
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    trainer.run_training()
    soft = nnunet_folders / "soft"
    line = f"pseudo_label 901 3d_fullres 0 -tr MeanTeacherTrainer -device cpu --soft -o {soft}".split()
    assert main(line) == 0
    noted = json.loads((soft / "soft_labels.json").read_text())
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert noted == model_of(checkpoint) and noted["model"] == "MeanTeacherTrainer__nnUNetPlans__3d_fullres"
    (nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesUn" / "un_1_0000.nii.gz").unlink()
    monkeypatch.setattr(nnUNetPredictor, "predict_single_npy_array", None)  # nothing is left to predict
    assert main(line) == 0
    assert sorted(path.name for path in soft.glob("*.npz")) == ["un_0.npz", "un_2.npz"]
    content = torch.load(checkpoint, weights_only=True)
    next(iter(content["network_weights"].values())).add_(1)
    torch.save(content, checkpoint)
    assert main(line) == 2
    assert "holds soft labels of another model" in capsys.readouterr().err
    assert len(list(soft.glob("*.npz"))) == 2
