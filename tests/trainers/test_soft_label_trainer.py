"""Soft labels of one model, made on its images, preprocessed with those of another, and learnt by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from training import trainer_for
from two_streams import two_stream_dataset, with_soft_labels

from nnunet_mutual.batches.transforms import SoftChannels
from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.preprocessing.soft_labels import SOFT
from nnunet_mutual.trainers import MeanTeacherTrainer, SoftLabelTrainer

DATA = "nnUNetPlans_3d_fullres"


def teach(root: Path, preprocessed: Path) -> Path:
    """Trains a teacher for a moment and writes its soft labels."""
    teacher = trainer_for(preprocessed, MeanTeacherTrainer)
    teacher.run_training()
    folder = root / "soft"
    line = f"pseudo_label 901 3d_fullres 0 -tr MeanTeacherTrainer -device cpu --soft -o {folder}"
    assert main(line.split()) == 0
    return folder


@pytest.mark.parametrize("labels", [tiny.PLAIN, tiny.REGIONS], ids=["labels", "regions"])
def test_from_one_model_to_the_other(
    nnunet_folders: Path, labels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, labels=labels)
    soft = teach(nnunet_folders, preprocessed)
    assert f"preprocess_unlabelled -d DATASET --soft {soft}" in capsys.readouterr().out
    stored = np.load(soft / "un_0.npz")["probabilities"]
    assert stored.dtype == np.uint8 and stored.shape == (len(labels) - (labels is tiny.REGIONS), 16, 20, 18)
    before = (soft / "un_0.npz").stat().st_mtime_ns
    (soft / "un_1.npz").unlink()  # as if it had been interrupted
    line = f"pseudo_label 901 3d_fullres 0 -tr MeanTeacherTrainer -device cpu --soft -o {soft}"
    assert main(line.split()) == 0 and (soft / "un_0.npz").stat().st_mtime_ns == before
    assert (soft / "un_1.npz").is_file()

    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 0
    assert "-tr SoftLabelTrainer" in capsys.readouterr().out
    data = nnUNetDatasetBlosc2(str(preprocessed / SOFT / DATA), ["un_0"]).load_case("un_0")[0][:]
    np.testing.assert_allclose(data[1:] * 255, stored, atol=0.51)  # same grid: nothing is resampled

    student = trainer_for(preprocessed, SoftLabelTrainer)
    student.run_training()
    lines = [json.loads(line) for line in (Path(student.output_folder) / "mutual_log.jsonl").read_text().splitlines()]
    assert all(line["terms"]["relearning"] != 0 for line in lines if "terms" in line)
    checkpoint = torch.load(Path(student.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_labels_are_matched_by_name(nnunet_folders: Path) -> None:
    found = np.zeros((4, 16, 20, 18), np.float32)
    found[0], found[1, :8], found[2, 8:], found[3, :, :, :2] = 0.1, 0.2, 0.3, 0.4
    other = {"background": 0, "spleen": 1, "liver": 2, "tumour": 3}
    preprocessed, soft = with_soft_labels(nnunet_folders, found, other)
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 0
    data = nnUNetDatasetBlosc2(str(preprocessed / SOFT / DATA), ["un_2"]).load_case("un_2")[0][:]
    np.testing.assert_allclose(data[1:], found[[0, 2, 3, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "names", "says"),
    [
        ((4, 16, 20, 17), None, "its image has another one"),
        ((3, 16, 20, 18), {"background": 0, "liver": 1, "tumour": 2}, "say nothing of spleen"),
        ((5, 16, 20, 18), {**tiny.PLAIN, "kidney": 4}, "have kidney, too"),
        ((3, 16, 20, 18), tiny.REGIONS, "of the same kind"),
    ],
)
def test_soft_labels_that_do_not_fit(
    nnunet_folders: Path, shape: tuple[int, ...], names: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.ones(shape, np.float32), names)
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 2
    assert says in capsys.readouterr().err
    folder = preprocessed / SOFT / DATA
    assert not folder.is_dir() or not nnUNetDatasetBlosc2.get_identifiers(str(folder))


def test_nothing_to_learn_from(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed, soft = with_soft_labels(nnunet_folders, np.ones((4, 16, 20, 18), np.float32))
    with pytest.raises(MutualError, match="--soft FOLDER"):
        trainer_for(preprocessed, SoftLabelTrainer).initialize()
    for number in range(3):
        (soft / f"un_{number}.npz").rename(soft / f"other_{number}.npz")
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 2
    assert "is of a preprocessed unlabelled image" in capsys.readouterr().err
    shutil.rmtree(soft)
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 2
    assert "holds no soft labels" in capsys.readouterr().err
    assert main(["pseudo_label", "901", "3d_fullres", "0", "-tr", "PartialTrainer", "--soft", "-o", "there"]) == 2
    assert "no training called" in capsys.readouterr().err
    assert main(["pseudo_label", "901", "3d_fullres", "0", "-tr", "PartialTrainer", "--soft"]) == 2
    assert "-o FOLDER" in capsys.readouterr().err


def test_soft_labels_move_with_the_image_and_keep_their_values() -> None:
    inner = ComposeTransforms([MirrorTransform((0, 1, 2)), MultiplicativeBrightnessTransform((2.0, 2.0), True, 1.0)])
    transform = SoftChannels(inner, 1, 2)
    image = torch.rand(1, 6, 7, 8)
    soft = torch.cat([image, 1 - image])
    done = transform(image=torch.cat([image, soft]), segmentation=torch.zeros(1, 6, 7, 8))
    assert torch.allclose(done["image"][:1], 2 * done["image"][1:2]) and "regression_target" not in done
    assert torch.equal(done["image"][1:].flatten().sort().values, soft.flatten().sort().values)
    plain = transform(image=image, segmentation=torch.zeros(1, 6, 7, 8))
    assert plain["image"].shape == (3, 6, 7, 8) and not plain["image"][1:].any()


def test_the_loss_is_that_of_the_soft_label(nnunet_folders: Path) -> None:
    found = np.random.default_rng(0).dirichlet(np.ones(4), (16, 20, 18)).transpose(3, 0, 1, 2).astype(np.float32)
    preprocessed, soft = with_soft_labels(nnunet_folders, found)
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(soft)]) == 0
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["mutual"]["ema"] = 0.9
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    trainer = trainer_for(preprocessed, SoftLabelTrainer)
    trainer.initialize()
    assert len(trainer.peers.averages) == 1 and trainer.deployed_network is trainer.peers.averages[0].network
    loader, _ = trainer.get_dataloaders()
    batch = trainer.training_batch(next(loader))
    assert batch.data.shape[1] == 1
    (objective,) = trainer.objectives
    target, counted = objective._soft(batch.views)
    assert not (counted & ~batch.views.inside[: len(target)]).any() and counted.any()
    assert torch.allclose(target.sum(1, keepdim=True)[counted], torch.ones(()), atol=1e-4)
    objective.area = 0.0
    z = torch.randn(len(batch.data), 4, *batch.data.shape[2:])
    from nnunet_mutual.objectives import Output, Progress, Step

    levels = [z, *(torch.randn(len(z), 4, *t.shape[2:]) for t in batch.target[1:])]
    terms = objective.terms(0, [Output(levels)], Step(batch, Progress(0, 1)))
    expected = soft_label_loss(z[: len(target)], target, counted, regions=False, squared=True)
    assert terms["relearning"].value.item() == pytest.approx(expected.item())
