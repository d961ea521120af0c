"""Two-stream loading: who is in a batch, where images are, and what is said when something is missing."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from training import KEYS, SHORT, change_settings, largest_difference, partial_block, region_block, trainer_for, weights
from two_streams import UNLABELLED, two_stream_dataset
from unlabelled_images import add_unlabelled

from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.engine.foreground import in_turn
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer, PartialTrainer, TaughtPartialTrainer

TRAINERS = [MeanTeacherTrainer, MutualCorrelationTrainer]


def batches(trainer: Any, number: int) -> list[Any]:
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    return [trainer.training_batch(next(loader)) for _ in range(number)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (2, 2)), ({"labelled_per_batch": 3}, (3, 1)), ({"unlabelled_per_batch": 3}, (1, 3)),
     ({"labelled_per_batch": 2, "unlabelled_per_batch": 5}, (2, 5))],
)  # fmt: skip
def test_a_batch_holds_both_streams(nnunet_folders: Path, settings: dict[str, int], expected: tuple[int, int]) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={**settings, "paste_from": "off"})
    _set_batch_size(preprocessed, 4)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    training, _ = trainer.do_split()
    labelled, unlabelled = expected
    seen: Counter[str] = Counter()
    for batch in batches(trainer, 20):
        assert batch.views is not None and batch.views.unlabelled == unlabelled
        assert len(batch.keys) == len(batch.data) == labelled + unlabelled
        assert set(batch.keys[:unlabelled]) <= set(UNLABELLED) and set(batch.keys[unlabelled:]) <= set(training)
        if unlabelled <= 3:
            assert len(set(batch.keys[:unlabelled])) == unlabelled, "an unlabelled case twice, although others wait"
        assert not trainer.knowledge.tables.annotated[batch.pattern_index[:unlabelled]].any()
        assert trainer.knowledge.tables.annotated[batch.pattern_index[unlabelled:], 1:].all()
        seen.update(batch.keys)
    assert set(seen) == {*UNLABELLED, *training}


def test_validation_batches_are_those_of_stock(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    _set_batch_size(preprocessed, 4)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    trainer.initialize()
    training, validation = trainer.get_dataloaders()
    assert len(next(validation)["keys"]) == 4 and trainer.batch_size == 2


def _set_batch_size(preprocessed: Path, size: int) -> None:
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        configuration["batch_size"] = size
    file.write_text(json.dumps(plans))


def test_a_batch_of_one_is_raised_to_one_of_each(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    _set_batch_size(preprocessed, 1)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    trainer.initialize()
    assert (trainer.batch_size, trainer.stream.unlabelled) == (1, 1)
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "a batch holds 1 and 1 of them (the plans' batch size is 1)" in log


@pytest.mark.parametrize("probabilistic", [False, True])
def test_only_labelled_patches_are_forced_to_hold_foreground(nnunet_folders: Path, probabilistic: bool) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"labelled_per_batch": 3, "unlabelled_per_batch": 2})
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    trainer.probabilistic_oversampling = probabilistic
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader
    forced = np.array([[loader.get_do_oversample(i) for i in range(5)] for _ in range(300)])
    assert not forced[:, :2].any()
    if probabilistic:
        assert forced[:, 2:].mean() == pytest.approx(0.33, abs=0.06)
    else:  # as stock with a batch of 3
        assert (forced == [False, False, False, False, True]).all()


@pytest.mark.parametrize("kind", ["plain", "ignore", "regions", "regions with ignore", "2d", "3d_aniso"])
def test_the_mask_is_where_the_image_is(nnunet_folders: Path, kind: str) -> None:
    """Labels are those of a loader without unlabelled images; the mask is false where the patch was padded."""
    options: dict[str, Any] = {"labels": tiny.REGIONS} if "regions" in kind else {}
    options["ignore"] = "ignore" in kind
    configuration = kind if kind in ("2d", "3d_aniso") else "3d_fullres"
    preprocessed = two_stream_dataset(
        nnunet_folders,
        configuration=configuration,
        settings={"paste_from": "off", "strong_intensity": False},
        **options,
    )
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    patch = plans["configurations"][configuration]["patch_size"]
    patch[-1] = 32  # images have 18 voxels there
    file.write_text(json.dumps(plans))
    trainer = trainer_for(preprocessed, MeanTeacherTrainer, configuration)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    mark = trainer.stream._mark
    for _ in range(5):
        raw = next(loader)
        batch = trainer.training_batch(raw)
        assert batch.views is not None
        inside = batch.views.inside
        assert inside.shape == (2, 1, *patch) and inside.dtype == torch.bool
        assert 0.2 < inside.float().mean() < 0.75
        if kind != "2d":  # a slice may have no voxel of value zero, and the rotated image keeps its padding
            assert inside[:, 0].flatten(1).any(1).all()
        drawn = batch.target[0][:, :3].amax(1, keepdim=True) > 0
        assert (inside | ~drawn).all(), "a label outside of the image"
        levels = raw["target"]
        for level, target in zip(levels, batch.target, strict=True):
            if "regions" in kind:
                assert target.shape[1] == level.shape[1] - 1 == 3 + options["ignore"]
                assert torch.equal(target[:, :3], level[:, :3])
            else:
                assert (target <= 3 + options["ignore"]).all()
                assert torch.equal(target, torch.where(level == mark, 0, level))
        assert not batch.target[0][0].any(), "an unlabelled image with labels"


def test_cases_that_annotate_nothing_are_unlabelled(nnunet_folders: Path) -> None:
    block = partial_block()
    block["cases"]["case_05"]["annotated"] = []
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=SHORT)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[1:], "val": KEYS[:1]}]))
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    for batch in batches(trainer, 10):
        assert batch.keys[0] == "case_05" and batch.keys[1] in KEYS[1:5]


def test_images_of_validation_patients_are_left_out(nnunet_folders: Path) -> None:
    cases = {key: {"source": "a", "patient": f"p{i}"} for i, key in enumerate(KEYS)}
    cases["un_1"] = {"source": "a", "patient": "p0"}
    block = {"version": 1, "sources": {"a": {"annotated": ["liver", "tumour", "spleen"]}}, "cases": cases}
    preprocessed = two_stream_dataset(nnunet_folders, block=_without(block, "un_1"))
    for file in (preprocessed / "dataset.json", nnunet_folders / "nnUNet_raw" / tiny.NAME / "dataset.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "mutual": block}))
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[1:], "val": KEYS[:1]}]))
    for fold, expected in ((0, {"un_0", "un_2"}), ("all", set(UNLABELLED))):
        trainer = trainer_for(preprocessed, MeanTeacherTrainer, fold=fold)
        trainer.initialize()
        assert set(trainer.stream.unlabelled_keys) == expected


def _without(block: dict[str, Any], key: str) -> dict[str, Any]:
    return {**block, "cases": {k: entry for k, entry in block["cases"].items() if k != key}}


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_without_unlabelled_images_it_is_partial_trainer(nnunet_folders: Path, trainer_class: Any) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    ours, partial = (trainer_for(preprocessed, c) for c in (trainer_class, PartialTrainer))
    for trainer in (ours, partial):
        trainer.run_training()
    assert largest_difference(weights(ours), weights(partial)) == 0
    assert len(ours.peers.networks) == 1
    log = next(Path(ours.output_folder).glob("training_log*")).read_text()
    assert log.count("nothing to be mutual about and trained as PartialTrainer") == 1
    acted = Acted.of_state(read_checkpoint(Path(ours.output_folder) / "checkpoint_final.pth")["mutual_state"])
    assert acted is not None and acted.idle in log and acted.methods == ("PartialTrainer",)


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_images_that_wait_are_named_with_the_command(nnunet_folders: Path, trainer_class: Any) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, settings=SHORT)
    add_unlabelled(nnunet_folders, 2)
    with pytest.raises(MutualError, match=r"imagesUn are not preprocessed .* run nnunet_mutual preprocess_unlabelled"):
        trainer_for(preprocessed, trainer_class).initialize()


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_cascades_are_refused(nnunet_folders: Path, trainer_class: Any) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer = trainer_for(preprocessed, trainer_class, "3d_cascade_fullres")
    with pytest.raises(MutualError, match="does not train cascades.*train 3d_fullres"):
        trainer.initialize()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labelled_per_batch": 0}, '"labelled_per_batch" must be at least 1, found 0'),
        ({"unlabelled_per_batch": -1}, '"unlabelled_per_batch" must be at least 1, found -1'),
        ({"ramp": 0}, '"ramp" must be a share of the training, above 0, found 0'),
        ({"ema": 0}, '"ema" must be above 0'),
        ({"temperature": 0}, '"temperature" must be at least 0.1'),
        ({"consistency": -1}, '"consistency" must be 0 or more'),
        ({"paste_from": "all"}, '"mutual.paste_from" must be one of every, any, unlabelled, labelled, off'),
    ],
)
def test_wrong_settings(nnunet_folders: Path, settings: dict[str, Any], message: str) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, cases=1, configurations=())
    change_settings(preprocessed, **settings)
    with pytest.raises(MutualError) as error:
        trainer_for(preprocessed, MeanTeacherTrainer)
    assert message in str(error.value)
    assert not (nnunet_folders / "nnUNet_results").exists() or not any((nnunet_folders / "nnUNet_results").iterdir())


def test_regions_of_partially_labelled_cases_and_none(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, labels=tiny.REGIONS, block=region_block())
    trainer = trainer_for(preprocessed, MutualCorrelationTrainer)
    trainer.run_training()
    assert trainer.logger.get_value("train_losses", -1) == pytest.approx(trainer.logger.get_value("train_losses", -1))


@pytest.mark.parametrize("kind", ["plain", "regions", "ignore", "2d"])
def test_patches_are_drawn_where_foreground_is_predicted(nnunet_folders: Path, kind: str) -> None:
    """The network says that everything in a corner is foreground; forced patches are centred there."""
    configuration = "2d" if kind == "2d" else "3d_fullres"
    options: dict[str, Any] = {"labels": tiny.REGIONS} if kind == "regions" else {"ignore": kind == "ignore"}
    settings = {"unlabelled_foreground": 1.0, "unlabelled_foreground_epochs": 2, "unlabelled_per_batch": 3}
    settings["num_epochs"] = 40
    preprocessed = two_stream_dataset(nnunet_folders, configuration=configuration, settings=settings, **options)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer, configuration)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    dataset = loader.data_loader._data
    assert trainer.foreground.locations("un_0") is None and not _located(dataset, "un_0")
    trainer.current_epoch = 1
    trainer.before_epoch(None)
    assert not trainer.foreground.folder.exists(), "predicted although it was not due"

    def corner(image: Any) -> torch.Tensor:
        logits = torch.full((3 if kind == "regions" else 4, *image.shape[1:]), -9.0)
        if kind != "regions":
            logits[0] = 0
        logits[1, :4, :4, :4] = 9
        return logits

    trainer.current_epoch = 2
    with pytest.MonkeyPatch.context() as patch:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        patch.setattr(nnUNetPredictor, "predict_sliding_window_return_logits", lambda _, image: corner(image))
        trainer.before_epoch(None)
    places = _located(dataset, "un_0")
    assert len(places) > 10 and (np.asarray(places)[:, 1:] < 4).all()
    assert _located(dataset, KEYS[5 if "case_05" in trainer.stream.labelled_keys else 4]), (
        "labelled cases keep their own"
    )
    loader = loader.data_loader
    for _ in range(20):
        lower, _ = loader.get_bbox((16, 20, 18), True, dataset.load_case("un_0")[3]["class_locations"])
        assert all(low < 4 for low in lower)
    forced = [[loader.get_do_oversample(i) for i in range(4)] for _ in range(20)]
    assert all(all(row[:3]) for row in forced)


def test_images_take_turns_within_a_twentieth_of_the_passes() -> None:
    costs = {"a": 3, "b": 2, "c": 4, "d": 30}
    turns = [in_turn([*costs], costs.__getitem__, 120, number) for number in range(1, 6)]  # so 6 at a time
    assert turns == [["a", "b"], ["c"], ["d"], ["a", "b"], ["c"]], "one that is larger than that has a turn, too"
    assert in_turn([*costs], costs.__getitem__, 10**6, 7) == ["a", "b", "c", "d"]


def test_datasets_of_all_streams_travel_to_loaders_that_are_no_forks(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, block=partial_block())
    for trainer_class in (MeanTeacherTrainer, TaughtPartialTrainer):
        trainer = trainer_for(preprocessed, trainer_class)
        trainer.initialize()
        assert trainer.stream.unlabelled
        dataset = pickle.loads(pickle.dumps(trainer.get_tr_and_val_datasets()[0]))
        assert dataset.load_case("un_0")[3]["class_locations"] is not None


def test_passes_of_a_sliding_window(nnunet_folders: Path) -> None:
    trainer = trainer_for(two_stream_dataset(nnunet_folders), MeanTeacherTrainer)
    trainer.initialize()
    asked: list[int] = []
    network = trainer.deployed_network
    network.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    size = [3 * edge for edge in trainer.configuration_manager.patch_size]
    with trainer.window.around(network, mirroring=False) as predictor:
        predictor.predict_sliding_window_return_logits(torch.zeros(1, *size))
    assert sum(asked) == trainer.window.tiles(size) == 5**3


def _located(dataset: Any, key: str) -> list[Any]:
    return [place for places in dataset.load_case(key)[3]["class_locations"].values() for place in places]
