"""MutualPartialTrainer goes on from what a killed process leaves behind: half-written cases, files of other names."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_mutual_partial_resume import SETTINGS, STAGE_1_STEPS, Killed, assert_same_training, interrupt
from training import largest_difference, partial_block, stop_at, trainer_for

from nnunet_mutual.batches import pseudo as store_module
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trainers import MutualPartialTrainer

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averages, one graph, own": {"ema": 0.9, "memory": "sequential", "fd_form": "own"},
}


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A dataset and a training that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    settings = {**SETTINGS, **VARIANTS[request.param]}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        preprocessed = tiny.make_dataset(root, block=partial_block(), settings=settings)
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


@pytest.fixture()
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Patches undone when the process is dead, in which nothing cleans up: SIGKILL runs no ``finally``."""
    with monkeypatch.context() as patch:
        yield patch


def killed_at_replacing(ending: str, number: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    """Dies when a file of this name was written under its temporary name, for the ``number``-th time."""

    def how(patch: pytest.MonkeyPatch) -> None:
        replace, count = os.replace, 0

        def die(source: Any, target: Any) -> None:
            nonlocal count
            count += str(target).endswith(ending)
            if count == number:
                patch.setattr(Path, "unlink", lambda *_, **__: None)
                raise Killed
            replace(source, target)

        patch.setattr(os, "replace", die)

    return how


def killed_before_decisions(patch: pytest.MonkeyPatch) -> None:
    """Codes and locations of the second case are there, what was decided is not."""
    write, count = store_module.write_json, 0

    def die(file: Path, content: Any) -> None:
        nonlocal count
        count += Path(file).name.startswith("case_")
        if count == 2:
            raise Killed
        write(file, content)

    patch.setattr(store_module, "write_json", die)


def stopped_by(how: Callable[[pytest.MonkeyPatch], None], preprocessed: Path, patch: pytest.MonkeyPatch) -> Any:
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    interrupt(trainer, lambda _: how(patch), Killed)
    patch.undo()
    return trainer


def assert_same(resumed: Any, reference: Any) -> None:
    assert_same_training(resumed, reference)
    mine, theirs = resumed.peers.averages, reference.peers.averages
    for one, other in zip(mine, theirs, strict=True):
        assert one.steps == other.steps
        assert largest_difference(one.network.state_dict(), other.network.state_dict()) == 0


def last_checkpoint(trainer: Any) -> str:
    """That with which nnU-Net's --c goes on."""
    there = [n for n in ("final", "latest", "best") if (Path(trainer.output_folder) / f"checkpoint_{n}.pth").exists()]
    return there[0]


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("how", "found"),
    [
        (killed_at_replacing("checkpoint_best.pth", 2), "latest"),
        (killed_at_replacing("checkpoint_stage1.pth"), "best"),
        (killed_at_replacing("checkpoint_latest.pth"), "best"),
        (killed_at_replacing("case_02.b2nd"), "latest"),
        (killed_before_decisions, "latest"),
        (killed_at_replacing("decisions.csv"), "latest"),
        (killed_at_replacing("checkpoint_latest.pth", 2), "latest"),
        (killed_at_replacing("checkpoint_final.pth"), "latest"),
    ],
    ids=[
        "while the best of stage 2 is saved",
        "while the end of stage 1 is saved",
        "between the two checkpoints of stage 1",
        "within the codes of a case",
        "before the decisions of a case",
        "before the table of decisions",
        "while the beginning of stage 2 is saved",
        "while the end is saved",
    ],
)
def test_goes_on_to_the_bit(
    whole: tuple[Path, Any],
    preprocessed: Path,
    how: Callable[[pytest.MonkeyPatch], None],
    found: str,
    dying: pytest.MonkeyPatch,
) -> None:
    stopped = stopped_by(how, preprocessed, dying)
    assert last_checkpoint(stopped) == found
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume=found)
    resumed.run_training()
    assert_same(resumed, whole[1])


@pytest.mark.parametrize("whole", ["averages, one graph, own"], indirect=True)
@pytest.mark.parametrize("step", [2, STAGE_1_STEPS, STAGE_1_STEPS + 1, STAGE_1_STEPS + 5])
def test_variants_go_on_after_sigterm(whole: tuple[Path, Any], preprocessed: Path, step: int) -> None:
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    interrupt(stopped, lambda trainer: stop_at(trainer, step, signal.SIGTERM), SystemExit)
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    resumed.run_training()
    assert_same(resumed, whole[1])


@pytest.mark.parametrize("whole", VARIANTS, indirect=True)
def test_killed_again_and_again(whole: tuple[Path, Any], preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose jobs are shorter than the training."""
    deaths = [
        killed_at_replacing("checkpoint_latest.pth"),
        killed_at_replacing("case_02.b2nd"),
        killed_before_decisions,
        killed_at_replacing("decisions.csv"),
    ]
    resume = None
    for how in deaths:
        trainer = trainer_for(preprocessed, MutualPartialTrainer, resume=resume)
        with monkeypatch.context() as patch:
            interrupt(trainer, lambda _, how=how, patch=patch: how(patch), Killed)
        resume = last_checkpoint(trainer)
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume=resume)
    resumed.run_training()
    assert_same(resumed, whole[1])


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
def test_sigusr1_saves_and_goes_on(whole: tuple[Path, Any], preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    stop_at(trainer, STAGE_1_STEPS - 1, signal.SIGUSR1)
    trainer.run_training()
    assert_same(trainer, whole[1])
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "SIGUSR1 received: saved at epoch 1, iteration 2" in log


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
def test_a_finished_training_is_finished(whole: tuple[Path, Any], preprocessed: Path) -> None:
    """--c from the last checkpoint trains no further step."""
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    again = trainer_for(preprocessed, MutualPartialTrainer, resume="final")

    def refuse(batch: dict) -> dict:
        raise AssertionError("there is nothing left to train")

    again.train_step = refuse
    again.run_training()
    assert again.stage_number == 2
    assert_same(again, whole[1])


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
@pytest.mark.parametrize(("lost", "number"), [("*", 5), ("case_02.*", 1)], ids=["the folder", "a case"])
def test_lost_pseudo_labels_are_missed(whole: tuple[Path, Any], preprocessed: Path, lost: str, number: int) -> None:
    """What the sentence advises ends as the training that lost nothing."""
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    interrupt(stopped, lambda trainer: stop_at(trainer, STAGE_1_STEPS + 5, signal.SIGTERM), SystemExit)
    fold = Path(stopped.output_folder)
    for path in list((fold / "pseudo_labels").glob(lost)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    with pytest.raises(MutualError, match=rf"lacks the pseudo labels of {number} cases .*copy checkpoint_stage1.pth"):
        resumed.run_training()
    shutil.copy(fold / "checkpoint_stage1.pth", fold / "checkpoint_latest.pth")
    repeated = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    repeated.run_training()
    assert_same(repeated, whole[1])


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
def test_a_finished_training_needs_no_pseudo_labels(whole: tuple[Path, Any], preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    shutil.rmtree(Path(trainer.output_folder) / "pseudo_labels")
    again = trainer_for(preprocessed, MutualPartialTrainer, resume="final")
    again.run_training()
    for mine, theirs in zip(again.peers.networks, trainer.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), theirs.state_dict()) == 0
