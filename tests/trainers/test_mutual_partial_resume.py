"""MutualPartialTrainer goes on wherever it was stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from training import (
    GROUPS,
    KEYS,
    SHORT,
    assert_same_optimizer,
    curves,
    largest_difference,
    lines_of,
    partial_block,
    stop_at,
    trainer_for,
)

from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.trainers import MutualPartialTrainer

# Stage 1: 4 epochs, stage 2: 6, halved for two networks; the loose filter accepts what such a short training says.
SETTINGS = {
    **SHORT,
    **GROUPS,
    "num_epochs": 10,
    "num_iterations_per_epoch": 3,
    "ramp": {"start": 0.0, "end": 0.1},
    "pseudo_labels": {"label": False, "voxel": False},
}
STAGE_1_STEPS = 2 * 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A dataset and a training of fold 0 that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        preprocessed = tiny.make_dataset(root, block=partial_block(), settings=SETTINGS)
        trainer = trainer_for(preprocessed, MutualPartialTrainer)
        trainer.run_training()
    return preprocessed, trainer


@pytest.fixture()
def preprocessed(whole: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same dataset, with results of its own."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(whole[0].parents[1] / name))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    return whole[0]


def assert_same_training(resumed: Any, reference: Any) -> None:
    for mine, theirs in zip(resumed.peers.networks, reference.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), theirs.state_dict()) == 0
    assert largest_difference(resumed.peers.heads.state_dict(), reference.peers.heads.state_dict()) == 0
    for mine, theirs in zip(resumed.peers.optimizers, reference.peers.optimizers, strict=True):
        assert_same_optimizer(mine, theirs)
    for mine, theirs in zip(resumed.objectives, reference.objectives, strict=True):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=0, equal_nan=True)
    assert curves(resumed) == curves(reference)
    assert resumed.deployed == reference.deployed
    assert json.dumps(lines_of(resumed)) == json.dumps(lines_of(reference))
    csv = [Path(t.output_folder) / "pseudo_labels" / "decisions.csv" for t in (resumed, reference)]
    assert csv[0].read_text() == csv[1].read_text()


def interrupt(trainer: Any, how: Callable[[Any], None], error: type[BaseException]) -> None:
    how(trainer)
    with pytest.raises(error):
        trainer.run_training()


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed_after_cases(number: int) -> Callable[[Any], None]:
    def how(trainer: Any) -> None:
        original, count = PseudoStore.write, 0

        def write(store: PseudoStore, *arguments: Any, **options: Any) -> None:
            nonlocal count
            if count == number:
                raise Killed
            count += 1
            original(store, *arguments, **options)

        trainer.patch.setattr(PseudoStore, "write", write)

    return how


def killed_before_stage_2_is_saved(trainer: Any) -> None:
    original = trainer.save_checkpoint

    def save(name: str) -> None:
        if trainer.stage_number == 2:
            raise Killed
        original(name)

    trainer.save_checkpoint = save


def killed_while_saving(trainer: Any) -> None:
    """At the end, with a whole file under the temporary name only."""
    replace = os.replace

    def cut(source: Any, target: Any) -> None:
        if str(target).endswith("checkpoint_final.pth"):
            raise Killed
        replace(source, target)

    trainer.patch.setattr(os, "replace", cut)


def terminated_at(step: int) -> Callable[[Any], None]:
    return lambda trainer: stop_at(trainer, step, signal.SIGTERM)


def terminated_between_cases(trainer: Any) -> None:
    original = PseudoStore.write

    def write(store: PseudoStore, *arguments: Any, **options: Any) -> None:
        original(store, *arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.patch.setattr(PseudoStore, "write", write)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (terminated_at(2), SystemExit),
        (terminated_at(STAGE_1_STEPS), SystemExit),
        (killed_after_cases(0), Killed),
        (killed_after_cases(3), Killed),
        (terminated_between_cases, SystemExit),
        (killed_before_stage_2_is_saved, Killed),
        (terminated_at(STAGE_1_STEPS + 1), SystemExit),
        (terminated_at(STAGE_1_STEPS + 5), SystemExit),
    ],
    ids=[
        "SIGTERM in stage 1",
        "SIGTERM in the last step of stage 1",
        "killed before the first case",
        "killed after three cases",
        "SIGTERM between two cases",
        "killed before stage 2 is saved",
        "SIGTERM in the first step of stage 2",
        "SIGTERM in stage 2",
    ],
)
def test_goes_on_to_the_bit(
    whole: tuple[Path, Any],
    preprocessed: Path,
    how: Callable[[Any], None],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    with monkeypatch.context() as patch:
        stopped.patch = patch
        interrupt(stopped, how, error)
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    resumed.run_training()
    assert_same_training(resumed, whole[1])


def test_a_cut_off_checkpoint_is_no_checkpoint(
    whole: tuple[Path, Any], preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    with monkeypatch.context() as patch:
        stopped.patch = patch
        interrupt(stopped, killed_while_saving, Killed)
    assert not (Path(stopped.output_folder) / "checkpoint_final.pth").exists()
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    assert resumed.stage_number == 2
    resumed.run_training()
    assert_same_training(resumed, whole[1])


def test_finished_cases_are_not_predicted_again(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    with monkeypatch.context() as patch:
        stopped.patch = patch
        interrupt(stopped, killed_after_cases(3), Killed)
    folder = Path(stopped.output_folder) / "pseudo_labels"
    there = {file.name: file.stat().st_mtime_ns for file in folder.glob("case_*")}
    assert len(there) == 3 * 3
    trainer_for(preprocessed, MutualPartialTrainer, resume="latest").run_training()
    assert {name: (folder / name).stat().st_mtime_ns for name in there} == there
    assert len(list(folder.glob("case_*"))) == 5 * 3


def test_two_folds_do_not_meet(whole: tuple[Path, Any], preprocessed: Path) -> None:
    """Fold 1 is stopped among its pseudo labels, fold 0 trains to its end in the same results folder."""
    other = trainer_for(preprocessed, MutualPartialTrainer, fold=1)
    with pytest.MonkeyPatch.context() as patch:
        other.patch = patch
        interrupt(other, killed_after_cases(2), Killed)
    theirs = sorted((Path(other.output_folder) / "pseudo_labels").iterdir())
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    assert_same_training(trainer, whole[1])
    assert sorted((Path(other.output_folder) / "pseudo_labels").iterdir()) == theirs
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    mine = {file.stem for file in (Path(trainer.output_folder) / "pseudo_labels").glob("case_*.b2nd")}
    assert mine == set(splits[0]["train"]) != set(KEYS)


def test_changed_settings_are_refused(preprocessed: Path) -> None:
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    interrupt(stopped, terminated_at(2), SystemExit)
    file = preprocessed / "nnUNetPlans.json"
    before = file.read_text()
    plans = json.loads(before)
    plans["configurations"]["3d_fullres"]["mutual"]["loss"] = {"pd": 0.5}
    file.write_text(json.dumps(plans))
    try:
        with pytest.raises(Exception, match=r"loss.pd: 1.0 -> 0.5"):
            trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    finally:
        file.write_text(before)
