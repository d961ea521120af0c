"""MutualPrototypeTrainer: prototypes learn labelled images and rectify what the teacher says of the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from prepared import prepare, prepare_all
from training import change_settings, largest_difference, lines_of, trainer_for
from two_streams import KINDS, terms_on_one_batch, two_stream_dataset

from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Output, Progress
from nnunet_mutual.plugin.find import VARIABLE, trainers_variable
from nnunet_mutual.settings import read_settings
from nnunet_mutual.trainers import MutualPrototypeTrainer, RectifiedPredictor
from nnunet_mutual.trainers.mutual_prototype import MutualPrototypeSettings

LATE = Progress(90, 100)


def started(preprocessed: Path, **options: Any) -> Any:
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer, **options)
    trainer.on_train_start()
    trainer.peers.set_epoch(0)
    return trainer


def output_of(trainer: Any, batch: Any) -> Output:
    return Output(*trainer.peers.networks[0](batch.data))


def test_every_parameter_learns(nnunet_folders: Path) -> None:
    """Or DDP would wait for it. The mixing convolution is zero at first, and lets nothing through."""
    trainer = started(two_stream_dataset(nnunet_folders, settings={"ramp": 0.001}))
    named = {**dict(trainer.network.named_parameters()), **dict(trainer.peers.heads.named_parameters())}
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
        lost = [name for name, p in named.items() if p.grad is None]
        assert [name for name in lost if "seg_layers.0" not in name] == [], "stock's coarsest output has no weight"
    zero = [name for name, p in named.items() if p.grad is not None and not p.grad.any()]
    assert [name for name in zero if "seg_layers.0" not in name] == []


def test_at_first_the_pseudo_labels_are_the_plain_teachers(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders, settings={"paste_from": "off"}))
    batch = trainer.training_batch(next(trainer.dataloader_train))
    with torch.no_grad():
        plain = trainer.peers.averages[0].network(batch.views.weak)[0].softmax(1)
        outputs = [output_of(trainer, batch).detach()]
        prototypes, rectification = prepare_all(trainer.objectives, outputs, batch, LATE)
    assert not prototypes.said[1].any()
    assert torch.equal(rectification.corrected.target.argmax(1), plain.argmax(1))
    inside = batch.views.inside[: batch.views.unlabelled]
    torch.testing.assert_close(rectification.corrected.certainty, plain.amax(1, keepdim=True) * inside)
    # Once the class scores say something, they count.
    with torch.no_grad():
        trainer.rectifier.average.network.mix.bias[2] = 50
        _, rectification = prepare_all(trainer.objectives, outputs, batch, LATE)
    assert (rectification.corrected.target.argmax(1) == 2).all()


def test_the_sum_holds_every_term(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders, settings={"ramp": 0.001, "confidence": 0.01}))
    trainer.train_step(next(trainer.dataloader_train))
    trainer.current_epoch = 2
    seen: list[float] = []
    backward = trainer.peers.backward
    trainer.peers.backward = lambda total: (seen.append(total.item()), backward(total))
    found = trainer.train_step(next(trainer.dataloader_train))
    terms = dict(zip(trainer.stage.term_names, found["terms"].tolist(), strict=True))
    assert list(terms) == ["prototypes", "trust", "supervised", "pseudo", "contrast"]
    assert terms["contrast"] > 0 and terms["pseudo"] != 0
    assert seen[0] == pytest.approx(sum(terms.values()) - 0.9 * terms["contrast"], rel=1e-5)


def test_trust_learns_from_another_view_and_nothing_else_does(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders))
    prototypes, _ = trainer.objectives
    trainer.train_step(next(trainer.dataloader_train))
    batch = trainer.training_batch(next(trainer.dataloader_train))
    asked: list[torch.Tensor] = []
    ask = prototypes.teacher
    prototypes.teacher = lambda images: (asked.append(images), ask(images))[1]
    output = output_of(trainer, batch)
    np.random.seed(1)  # of the intensities
    step = prepare(prototypes, [output], batch, LATE)
    number = batch.views.unlabelled
    assert torch.equal(asked[0][:number], batch.views.weak)
    assert not torch.equal(asked[0][number:], batch.data[number:])
    trainer.peers.zero_grad()
    prototypes.terms(0, [output], step)["trust"].value.backward()
    moved = [n for n, p in prototypes.interaction.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved == ["trust"]
    assert all(p.grad is None for p in trainer.network.parameters())


def test_prototypes_learn_labelled_samples_only(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders))
    prototypes, _ = trainer.objectives
    with torch.no_grad():  # as after a longer training
        prototypes.interaction.mix.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = trainer.training_batch(next(trainer.dataloader_train))
    step = prepare(prototypes, [], batch, LATE)
    values = []
    for sample in (None, 0, 1):  # an unlabelled one, then a labelled one
        data = batch.data.clone()
        if sample is not None:
            data[sample] = 0
        changed = replace(step, batch=replace(batch, data=data))
        values.append(prototypes.terms(0, [output_of(trainer, changed.batch)], changed)["prototypes"].value.item())
    assert values[0] == pytest.approx(values[1], abs=1e-6) and abs(values[0] - values[2]) > 1e-4


def test_unsure_voxels_and_other_images_teach_nothing(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders, settings={"paste_from": "off", "confidence": 0.6}))
    _, rectification = trainer.objectives
    batch = trainer.training_batch(next(trainer.dataloader_train))
    step = prepare_all(trainer.objectives, [output_of(trainer, batch).detach()], batch, LATE)[1]
    number = batch.views.unlabelled
    step.corrected.certainty[:] = 0.5
    step.corrected.certainty[..., :8] = 0.9
    corrected = replace(step.corrected, share=torch.tensor(0.5))
    z = [torch.randn_like(target[:, :1].float().expand(-1, 4, *[-1] * 3)) for target in batch.target]
    for level in z:
        level.requires_grad_()
    value = rectification._pseudo(z, corrected)
    value.backward()
    assert z[0].grad[:number, ..., :8].abs().sum() > 0 == z[0].grad[:number, ..., 8:].abs().sum()
    assert not z[0].grad[number:].any()
    corrected = replace(corrected, share=torch.tensor(0.25))
    assert rectification._pseudo(z, corrected).item() == pytest.approx(value.item() / 2, rel=1e-5)


def test_the_confident_share_is_balanced_over_classes(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders))
    _, rectification = trainer.objectives
    target = torch.zeros(1, 4, 2, 5, 10)
    target[:, 0], target[:, 1, 0, 0] = 1, 1
    target[:, 0, 0, 0] = 0  # 90 voxels of background and 10 of liver
    confident = torch.zeros(1, 1, 2, 5, 10, dtype=torch.bool)
    confident[:, :, 1] = True
    inside = torch.ones_like(confident)
    assert rectification._confident_share(target, confident, inside).item() == pytest.approx((50 / 90 + 0) / 2)
    inside[:, :, 1] = False
    assert rectification._confident_share(target, confident, inside).item() == 0
    numbers, _ = rectification.diagnose()
    assert numbers == {"share of unlabelled voxels of liver of which the teacher is sure": 0.0}


def test_a_step_without_any_foreground_is_finite(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders, settings={"ramp": 0.001}))
    batch = next(trainer.dataloader_train)
    # The loader's mark of the background inside of images is beyond the labels.
    batch["target"] = [torch.where(level < 4, 0, level) for level in batch["target"]]
    for _ in range(3):
        found = trainer.train_step(batch)
    assert np.isfinite(found["terms"]).all()
    assert not trainer.objectives[1].centroids.filled[1:].any()


@pytest.mark.parametrize("options", [*KINDS.values(), {"settings": {"published": True}}], ids=[*KINDS, "published"])
def test_every_kind_of_dataset_trains(nnunet_folders: Path, options: dict[str, Any]) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, **options)
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer, options.get("configuration", "3d_fullres"))
    trainer.run_training()
    assert not np.isnan(trainer.logger.get_value("mean_fg_dice", -1))
    first, last = terms_on_one_batch(trainer)
    assert first["supervised"] > last["supervised"] and first["prototypes"] > last["prototypes"]
    assert all(math.isfinite(value) for value in last.values())
    # Of a case that annotates one region, no voxel is known to be of a class; in a patch of one class, none has an
    # opposite once the teacher is unsure of the others.
    assert first["contrast"] + last["contrast"] > 0 or options is KINDS["regions"]


def test_two_models_are_deployed(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher alone for any nnU-Net, and the rectified one where this package is."""
    monkeypatch.setenv(VARIABLE, trainers_variable(None))
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer)
    trainer.run_training()
    with torch.no_grad():  # as after a longer training
        trainer.rectifier.average.network.mix.weight.normal_(generator=torch.Generator().manual_seed(0))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder)
    final, rectified = (torch.load(folder / f"checkpoint_{n}.pth", weights_only=True) for n in ("final", "rectified"))
    average = trainer.peers.averages[0].network
    assert largest_difference(final["network_weights"], average.state_dict()) == 0
    assert final["trainer_name"] == "nnUNetTrainer" and rectified["trainer_name"] == "RectifiedPredictor"
    assert rectified.keys() == {"network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"}
    said = {}
    image = torch.randn(1, 16, 20, 18)
    for name in ("final", "rectified"):
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
        predictor.initialize_from_trained_model_folder(str(folder.parent), (0,), f"checkpoint_{name}.pth")
        said[name] = predictor.predict_sliding_window_return_logits(image)
        images = torch.randn(1, 1, 16, 16, 16)
        predictor.network.eval()
        expected = trainer.rectifier.network(images) if name == "rectified" else average(images)[0]
        torch.testing.assert_close(predictor.network(images), expected)
    assert (said["final"] - said["rectified"]).abs().max() > 0.01


def test_the_predictor_does_not_train(nnunet_folders: Path) -> None:
    with pytest.raises(MutualError, match="only predicts.*train with -tr MutualPrototypeTrainer"):
        trainer_for(tiny.make_dataset(nnunet_folders, cases=1, configurations=()), RectifiedPredictor)


def test_what_the_log_says(nnunet_folders: Path) -> None:
    trainer = trainer_for(two_stream_dataset(nnunet_folders), MutualPrototypeTrainer)
    trainer.run_training()
    trained = lines_of(trainer)
    validated = [line["validation"] for line in lines_of(trainer, "validation")]
    assert len(trained) == len(validated) == 3
    labels = ("liver", "tumour", "spleen")
    assert all(0 < trained[-1]["diagnostics"][f"mu of {label}"] < 0.1 for label in labels)
    for line in validated:
        assert line and all(0 <= value <= 1 for value in line.values())
        assert set(line) <= {f"Dice of {x}, {how}" for x in labels for how in ("class scores", "rectified")}
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "Pseudo dice, rectified" in log


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ema": 0}, 'setting "ema" must be above 0'),
        ({"confidence": 1.0}, 'setting "confidence" must be between 0 and 1, found 1.0'),
        ({"loss": {"contrast": -1}}, 'setting "loss.contrast" must be 0 or more, found -1'),
        ({"paste_from": "nobody"}, "paste_from"),
    ],
)
def test_wrong_settings(nnunet_folders: Path, settings: dict[str, Any], sentence: str) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, cases=1, configurations=())
    change_settings(preprocessed, **settings)
    with pytest.raises(MutualError, match=sentence):
        trainer_for(preprocessed, MutualPrototypeTrainer)


def test_without_unlabelled_images_it_is_partial_training(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, settings={"num_epochs": 1, "num_iterations_per_epoch": 2})
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer)
    trainer.run_training()
    assert json.loads((preprocessed / "dataset.json").read_text())["labels"]
    assert trainer.stage.term_names == ["supervised"]
    assert not (Path(trainer.output_folder) / "checkpoint_rectified.pth").exists()


def test_plan_names_the_trainer_of_a_setting(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And never what only predicts."""
    tiny.make_dataset(nnunet_folders, cases=1, configurations=())
    assert main(["plan", "-d", "901", "-c", "3d_fullres", "--name", "sure", "--set", "confidence=0.9"]) == 0
    assert "for MutualPrototypeTrainer\n" in capsys.readouterr().out
    assert main(["pseudo_label", "901", "3d_fullres", "0", "-tr", "RectifiedPredictor"]) == 2
    assert "RectifiedPredictor is no trainer of this package" in capsys.readouterr().err


def test_a_filter_teaches_where_prototypes_agree_with_the_teacher(nnunet_folders: Path) -> None:
    settings = {"role": "filter", "ramp": 0.001, "paste_from": "off", "unlabelled_per_batch": 2}
    trainer = started(two_stream_dataset(nnunet_folders, settings=settings))
    batch = trainer.training_batch(next(trainer.dataloader_train))
    with torch.no_grad():
        plain = trainer.peers.averages[0].network(batch.views.weak)[0]
        trainer.rectifier.average.network.mix.bias[2] = 50  # the prototypes see the second label everywhere
        _, step = prepare_all(trainer.objectives, [output_of(trainer, batch).detach()], batch, LATE)
    (lesson,) = step.lessons
    inside = batch.views.inside[: batch.views.unlabelled]
    assert torch.equal(lesson.counted, inside & (plain.argmax(1, keepdim=True) == 2))
    torch.testing.assert_close(lesson.target, (plain / 0.5).softmax(1))
    found = trainer.train_step(next(trainer.dataloader_train))
    assert trainer.stage.term_names == ["prototypes", "trust", "supervised", "consistency"]
    assert np.isfinite(found["loss"])


def test_a_filtered_training_goes_on(nnunet_folders: Path) -> None:
    settings = {
        "role": "filter",
        "paste_from": "every",
        "soft_loss": "sample",
        "strong_pose": True,
        "loss": {"pseudo": 0.5},
        "ramp": 0.1,
    }
    trainer = trainer_for(two_stream_dataset(nnunet_folders, settings=settings), MutualPrototypeTrainer)
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_rectified.pth").is_file()
    last = lines_of(trainer)[-1]
    assert last["weights"]["consistency"] == 0.5 and last["terms"]["consistency"] != 0
    resumed = trainer_for(Path(trainer.preprocessed_dataset_folder_base), MutualPrototypeTrainer, resume="final")
    for mine, theirs in zip(resumed.objectives, trainer.objectives, strict=True):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(MutualError, match='published=true has role="rectify"'):
        read_settings(MutualPrototypeSettings, {"published": True, "role": "filter"})
