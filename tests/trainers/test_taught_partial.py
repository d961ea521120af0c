"""TaughtPartialTrainer: what it trains on, that it goes on to the bit, and that stock nnU-Net loads what it deploys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_unlabelled_trainers import assert_same
from training import (
    KEYS,
    SHORT,
    change_settings,
    largest_difference,
    lines_of,
    partial_block,
    region_block,
    started,
    stopped_and_resumed,
    trainer_for,
)
from two_streams import UNLABELLED, two_stream_dataset

from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import read_settings
from nnunet_mutual.trainers import TaughtPartialTrainer
from nnunet_mutual.trainers.taught_partial import TaughtPartialSettings

TWO: dict[str, Any] = {**SHORT, "networks": 2, "strong_intensity": True, "sure": 0.2, "ramp": 0.01}
KINDS: dict[str, dict[str, Any]] = {  # options of the tiny dataset
    "partial": {"block": partial_block()},
    "regions": {"labels": tiny.REGIONS, "block": region_block()},
    "ignore": {"block": partial_block(), "ignore": True},
    "2d": {"block": partial_block(), "configurations": ("2d",)},
}


def made(root: Path, settings: dict[str, Any], **options: Any) -> Path:
    return tiny.make_dataset(root, settings=settings, **{"block": partial_block(), **options})


@pytest.mark.parametrize("teachers", ["consensus", "crossed"])
def test_it_goes_on_to_the_bit_and_stock_loads_the_average(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, teachers: str
) -> None:
    preprocessed = made(nnunet_folders, {**TWO, "teachers": teachers, "num_epochs": 2})
    whole = trainer_for(preprocessed, TaughtPartialTrainer)
    whole.run_training()
    assert 0 < lines_of(whole)[-1]["diagnostics"]["share of undecided voxels that are taught"] <= 1
    stock = trainer_for(preprocessed, nnUNetTrainer)
    stock.initialize()
    stock.load_checkpoint(str(Path(whole.output_folder) / "checkpoint_final.pth"))
    assert largest_difference(stock.network.state_dict(), whole.peers.averages[0].network.state_dict()) == 0
    monkeypatch.setenv("nnUNet_results", str(nnunet_folders / "other"))
    assert_same(stopped_and_resumed(preprocessed, TaughtPartialTrainer, 4), whole)  # within the second epoch


def test_memory_modes_agree(nnunet_folders: Path) -> None:
    found = []
    preprocessed = made(nnunet_folders, TWO)
    for memory in ("joint", "sequential"):
        change_settings(preprocessed, **TWO, memory=memory)
        trainer, _ = started(preprocessed, TaughtPartialTrainer, 3)
        found.append([average.network.state_dict() for average in trainer.peers.averages])
    assert max(largest_difference(*pair) for pair in zip(*found, strict=True)) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_labels_is_taught(nnunet_folders: Path, kind: str) -> None:
    configuration = KINDS[kind].get("configurations", ("3d_fullres",))[0]
    preprocessed = made(nnunet_folders, {**TWO, "num_epochs": 1, "num_iterations_per_epoch": 2}, **KINDS[kind])
    trainer = trainer_for(preprocessed, TaughtPartialTrainer, configuration)
    trainer.run_training()
    (line,) = lines_of(trainer)
    assert line["diagnostics"]["share of undecided voxels that are taught"] > 0
    assert all(line["terms"][f"not drawn[{n}]"] != 0 for n in range(2))


def test_networks_see_views_of_their_own_and_teachers_the_images_as_they_are(nnunet_folders: Path) -> None:
    trainer, loader = started(made(nnunet_folders, TWO), TaughtPartialTrainer)
    raw = next(loader)
    batch = trainer.training_batch(raw)
    assert batch.exchange.weak.equal(raw["data"])
    first, second = batch.seen_by(0), batch.seen_by(1)
    assert first is batch.data and not first.equal(second) and not first.equal(batch.exchange.weak)
    assert len({*batch.patterns}) == 2, "a batch holds cases of both groups"
    held = trainer.validation_batch(raw)
    assert held.exchange is None and held.data.equal(raw["data"])


def test_images_that_nobody_drew_are_one_more_source(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=TWO, block=partial_block())
    trainer, loader = started(preprocessed, TaughtPartialTrainer)
    raw = next(loader)
    batch = trainer.training_batch(raw)
    assert batch.keys[0] in UNLABELLED and batch.keys[1] in KEYS
    assert trainer.acted.unlabelled == len(UNLABELLED) and trainer.acted.idle == ""
    (objective,) = trainer.objectives
    assert objective.foreground_from == trainer.stream.unlabelled, "a single drawn patch may hold foreground by force"
    both = objective.ask(batch, trainer.progress())
    origin, inside = batch.exchange.origins[0], batch.views.inside
    assert both[0].counted.any() and not (both[0].counted & ~batch.exchange.mixed(inside)).any()
    assert all(origin[sample].unique().tolist() == [0, 1] for sample in range(2)), "labels come with their boxes"
    assert np.isfinite(trainer.train_step(raw)["terms"]).all()


def test_volumes_are_compared_with_those_of_drawn_patches_from_anywhere(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={**TWO, "labelled_per_batch": 2}, block=partial_block())
    trainer, _ = started(preprocessed, TaughtPartialTrainer)
    assert trainer.objectives[0].foreground_from == trainer.stream.unlabelled + 1


def test_without_anything_undecided_it_says_so(nnunet_folders: Path) -> None:
    trainer, _ = started(tiny.make_dataset(nnunet_folders, settings=TWO), TaughtPartialTrainer)
    assert "had nothing to be mutual about" in trainer.acted.idle and "every case annotates" in trainer.acted.idle


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"ema": 0.0}, {"networks": 0}, {"networks": 5}, {"weight": -1.0}, {"ramp": 0.0}, {"sure": 1.0}):
        with pytest.raises(MutualError, match=f'"{next(iter(wrong))}" must be'):
            read_settings(TaughtPartialSettings, wrong)
