"""Stopped, killed, continued: every way in which a training goes on ends in the weights of an uninterrupted one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import (
    SHORT,
    assert_same_optimizer,
    curves,
    largest_difference,
    lines_of,
    partial_block,
    stop_at,
    trainer_for,
    weights,
)

from nnunet_mutual.batches import pseudo as store
from nnunet_mutual.disk.writing import written
from nnunet_mutual.engine import signals as stopping
from nnunet_mutual.engine.validation import export_case
from nnunet_mutual.errors import MutualError


@pytest.fixture()
def preprocessed(nnunet_folders: Path) -> Path:
    return tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)


@pytest.mark.parametrize(
    ("step", "optimizer"),
    [(1, "sgd"), (3, "sgd"), (5, "sgd"), (9, "sgd"), (5, "adamw")],
    ids=["first step", "end of epoch", "within an epoch", "last step", "adamw"],
)
def test_a_run_stopped_by_the_cluster_resumes_bit_for_bit(nnunet_folders: Path, step: int, optimizer: str) -> None:
    preprocessed = tiny.make_dataset(
        nnunet_folders, block=partial_block(), settings={**SHORT, "optimizer": optimizer, "initial_lr": 1e-3}
    )
    whole = trainer_for(preprocessed)
    whole.run_training()
    terms = (Path(whole.output_folder) / "mutual_log.jsonl").read_text()
    (Path(whole.output_folder) / "mutual_log.jsonl").unlink()

    stopped = trainer_for(preprocessed)
    stop_at(stopped, step, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        stopped.run_training()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"
    resumed = trainer_for(preprocessed, resume="latest")
    # A stop after the last step of an epoch is a stop before its validation.
    assert (resumed.current_epoch, resumed.iteration) == ((step - 1) // 3, (step - 1) % 3 + 1)
    resumed.run_training()

    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert curves(resumed) == curves(whole)
    assert resumed._best_ema == whole._best_ema
    assert_same_optimizer(resumed.optimizer, whole.optimizer)
    assert (Path(resumed.output_folder) / "mutual_log.jsonl").read_text() == terms


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_in_online_validation_keeps_the_epoch(
    preprocessed: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = trainer_for(preprocessed)
    whole.run_training()
    (Path(whole.output_folder) / "mutual_log.jsonl").unlink()
    stopped = trainer_for(preprocessed)
    original, before = stopped.validation_step, signal.getsignal(signal.SIGINT)

    def validation_step(batch: dict) -> dict:
        if stopped.current_epoch == 1:
            os.kill(os.getpid(), number)
        return original(batch)

    stopped.validation_step = validation_step
    with pytest.raises(SystemExit) as stop:
        stopped.run_training()
    assert stop.value.code == 128 + number
    output = capfd.readouterr()
    assert f"{signal.Signals(number).name} received: saved at epoch 2, iteration 0; continue with --c" in output.out
    assert ("once more stops at once" in output.err) == (number == signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before, "handlers are put back"
    resumed = trainer_for(preprocessed, resume="latest")
    assert (resumed.current_epoch, resumed.iteration) == (2, 0)
    resumed.run_training()
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert curves(resumed) == curves(whole)


def test_a_second_ctrl_c_stops_at_once(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it comes at once: launchers pass on to their processes what the terminal has told these, too."""
    signals = stopping.StopSignals()
    with signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.take() == signal.SIGINT
    monkeypatch.setattr(stopping, "_SAME", -1.0)
    trainer = trainer_for(preprocessed)
    original = trainer.train_step

    def train_step(batch: dict) -> dict:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return original(batch)

    trainer.train_step = train_step
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert not (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()


def test_a_stop_at_the_end_of_a_training_comes_after_its_last_checkpoint(
    preprocessed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_for(preprocessed)
    original = trainer.save_checkpoint

    def save_checkpoint(name: str) -> None:
        if name.endswith("final.pth"):
            os.kill(os.getpid(), signal.SIGTERM)
        original(name)

    trainer.save_checkpoint = save_checkpoint
    with pytest.raises(SystemExit) as stop:
        trainer.run_training()
    assert stop.value.code == 143
    assert "SIGTERM received: the training is over and saved; validate it with --val" in capfd.readouterr().out
    assert torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 3


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_a_killed_run_resumes_from_the_last_epoch_bit_for_bit(nnunet_folders: Path, checkpoint: str) -> None:
    settings = {**SHORT, "checkpoint_epochs": 2 if checkpoint == "latest" else 100}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    whole = trainer_for(preprocessed)
    whole.run_training()
    terms = (Path(whole.output_folder) / "mutual_log.jsonl").read_text()
    (Path(whole.output_folder) / "mutual_log.jsonl").unlink()
    (Path(whole.output_folder) / "checkpoint_best.pth").unlink()

    killed = trainer_for(preprocessed)
    original = killed.train_step

    def train_step(batch: dict) -> dict:
        if (killed.current_epoch, killed.iteration) == (2, 1):
            raise RuntimeError("power cut")
        return original(batch)

    killed.train_step = train_step
    with pytest.raises(RuntimeError, match="power cut"):
        killed.run_training()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"
    resumed = trainer_for(preprocessed, resume=checkpoint)
    assert resumed.current_epoch == 2 if checkpoint == "latest" else resumed.current_epoch in (1, 2)
    resumed.run_training()
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert_same_optimizer(resumed.optimizer, whole.optimizer)
    assert curves(resumed) == curves(whole)
    assert (Path(resumed.output_folder) / "mutual_log.jsonl").read_text() == terms


def test_sigusr1_saves_and_goes_on(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    saved = []
    original = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (saved.append((Path(name).name, trainer.iteration)), original(name))
    stop_at(trainer, 2, signal.SIGUSR1)
    trainer.run_training()
    assert saved[0] == ("checkpoint_latest.pth", 2)
    assert saved[-1][0] == "checkpoint_final.pth"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, "handlers are put back"


def test_loader_processes_that_the_signal_ended_too_do_not_prevent_the_save(preprocessed: Path) -> None:
    """Clusters send SIGTERM to all processes of a job; nnU-Net's loader then raises in the middle of next()."""
    trainer = trainer_for(preprocessed)
    original = trainer.get_dataloaders

    def get_dataloaders() -> tuple:
        training, validation = original()

        def batches():  # noqa: ANN202
            for step in range(100):
                if step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                    raise RuntimeError("One or more background workers are no longer alive")
                yield next(training)

        return batches(), validation

    trainer.get_dataloaders = get_dataloaders
    with pytest.raises(SystemExit) as stop:
        trainer.run_training()
    assert stop.value.code == 143
    resumed = trainer_for(preprocessed, resume="latest")
    assert (resumed.current_epoch, resumed.iteration) == (1, 1)


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_a_validation_loader_that_the_signal_ended_is_replaced(preprocessed: Path, delay: float) -> None:
    """The processes of a job get their signals one after the other, the loader's perhaps first."""
    trainer = trainer_for(preprocessed)
    original = trainer.get_dataloaders

    class Dying:
        died = False

        def __init__(self, loader: Any):
            self.loader = loader

        def __next__(self) -> dict:
            if not self.died:
                self.died = True
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
                raise RuntimeError("One or more background workers are no longer alive")
            return next(self.loader)

    trainer.get_dataloaders = lambda: (lambda pair: (pair[0], Dying(pair[1])))(original())
    with pytest.raises(SystemExit) as stop:
        trainer.run_training()
    assert stop.value.code == 143
    resumed = trainer_for(preprocessed, resume="latest")
    assert (resumed.current_epoch, resumed.iteration) == (1, 0)


def test_a_loader_that_dies_by_itself_ends_the_training(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE", 0.1)
    trainer = trainer_for(preprocessed)
    original = trainer.get_dataloaders

    def dead() -> Any:
        raise RuntimeError("One or more background workers are no longer alive")
        yield

    trainer.get_dataloaders = lambda: (original()[0], dead())
    with pytest.raises(RuntimeError, match="no longer alive"):
        trainer.run_training()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", ["train_step", "validation_step"])
def test_loader_processes_outlive_a_stop_until_the_training_is_saved(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, phase: str
) -> None:
    """Clusters signal all processes of a job, Ctrl-C those of the terminal; nothing that looks like a crash follows."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = trainer_for(preprocessed)
    original, signalled = getattr(trainer, phase), []

    def step(batch: dict) -> dict:
        if not signalled:
            signalled.extend(multiprocessing.active_children())
            for pid in [*(process.pid for process in signalled), os.getpid()]:
                os.kill(pid, number)
        return original(batch)

    setattr(trainer, phase, step)
    with pytest.raises(SystemExit) as stop:
        trainer.run_training()
    assert stop.value.code == 128 + number
    output = capfd.readouterr()
    assert "saved at" in output.out and "Traceback" not in output.out + output.err
    assert len(signalled) >= 2 and not any(process.is_alive() for process in signalled)
    resumed = trainer_for(preprocessed, resume="latest")
    assert (resumed.current_epoch, resumed.iteration) == ((0, 1) if phase == "train_step" else (1, 0))


@pytest.mark.parametrize("where", ["start", "log", "checkpoint", "validation"])
def test_a_full_disk_is_one_sentence(preprocessed: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    trainer = trainer_for(preprocessed)
    if where == "start":
        monkeypatch.setattr(nnUNetTrainer, "on_train_start", full)
    elif where == "log":
        monkeypatch.setattr(type(trainer.log.terms), "_write", lambda log, line: full(log.file))
    elif where == "checkpoint":
        monkeypatch.setattr("torch.save", full)
    else:
        monkeypatch.setattr("nnunet_mutual.trainers.base.FoldValidation.run", full)
    with pytest.raises(MutualError, match="No space left on device.*free disk space.*--c") as caught:
        trainer.run_training()
        trainer.perform_actual_validation()
    assert caught.value.__suppress_context__, "one exception, not a chain of them"
    left = os.listdir(trainer.output_folder) if where != "start" else []
    assert not [name for name in left if "tmp" in name]
    assert os.path.exists(trainer.output_folder) == (where != "start"), "what never began leaves nothing"


def test_results_that_cannot_be_written_are_named(preprocessed: Path, nnunet_folders: Path) -> None:
    results = nnunet_folders / "nnUNet_results"
    results.rmdir()
    results.write_text("a file")
    with pytest.raises(MutualError, match=f"{results}.* cannot be written .*set nnUNet_results"):
        trainer_for(preprocessed)


def test_a_disk_that_is_full_before_the_training_and_what_a_kill_left(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(trainer_for(preprocessed).output_folder)
    with written(folder / "checkpoint_stage1.pth") as temporary:
        (folder / temporary.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")).touch()  # no process has this number
        temporary.touch()
    assert len(list(folder.glob(".checkpoint_stage1*"))) == 1
    trainer_for(preprocessed)
    assert not list(folder.glob(".checkpoint_stage1*"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    with pytest.raises(MutualError, match=f"{folder} cannot be written .No space left on device"):
        trainer_for(preprocessed)


def test_a_full_disk_under_pseudo_labels_and_label_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blosc2 raises something else there, SimpleITK nothing."""

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while creating the NDArray")

    with monkeypatch.context() as patch:
        patch.setattr("blosc2.asarray", full)
        with pytest.raises(RuntimeError, match="NDArray"):  # not for want of space
            store._write_map(tmp_path / "case.b2nd", np.zeros((1, 2, 2, 2), np.int16))
        patch.setattr("tempfile.TemporaryFile", lambda dir: Full())
        with (
            pytest.raises(MutualError, match=f"{tmp_path} cannot be written .*No space left"),
            stopping.disk_in_one_sentence("here"),
        ):
            store._write_map(tmp_path / "case.b2nd", np.zeros((1, 2, 2, 2), np.int16))
    assert not os.listdir(tmp_path)
    (tmp_path / "case.nii.gz").touch()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    monkeypatch.setattr("nnunet_mutual.engine.validation.export_prediction_from_logits", lambda *_: None)
    folders = (str(tmp_path), str(tmp_path))
    monkeypatch.setattr("shutil.copyfile", lambda *_: None)
    with pytest.raises(OSError, match="No space left on device"):
        export_case(torch.zeros(1), {}, None, None, {"file_ending": ".nii.gz"}, folders, "case", None, False)


class Full:
    """A file on a full disk."""

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_loader_processes_outlive_sigusr1(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters send SIGUSR1 to all processes of a job, and by default it kills."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = trainer_for(preprocessed)
    original, signalled = trainer.train_step, []

    def train_step(batch: dict) -> dict:
        if not signalled:
            signalled.extend(multiprocessing.active_children())
            for pid in [*(process.pid for process in signalled), os.getpid()]:
                os.kill(pid, signal.SIGUSR1)
        return original(batch)

    trainer.train_step = train_step
    trainer.run_training()
    assert len(signalled) >= 2, "a training and a validation loader"
    assert trainer.current_epoch == 3
    assert not any(process.is_alive() for process in signalled), "SIGTERM and the end of the training still end them"


def test_looking_at_the_best_checkpoint_keeps_the_log(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    terms = (folder / "mutual_log.jsonl").read_text()
    early = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    early["current_epoch"] = 1
    torch.save(early, folder / "checkpoint_best.pth")
    trainer_for(preprocessed, resume="best")  # as --val --val_best does before it predicts
    assert (folder / "mutual_log.jsonl").read_text() == terms


def test_a_log_line_cut_off_by_a_crash_does_not_prevent_a_resume(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    stop_at(trainer, 5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.run_training()
    file = Path(trainer.output_folder) / "mutual_log.jsonl"
    with file.open("a") as stream:
        stream.write('{"epoch": 1, "lo')
    trainer_for(preprocessed, resume="latest").run_training()
    assert [line["epoch"] for line in lines_of(trainer)] == [0, 1, 2]


def test_a_training_started_anew_starts_the_log_anew(preprocessed: Path) -> None:
    for _ in range(2):
        trainer = trainer_for(preprocessed)
        trainer.run_training()
    assert [line["epoch"] for line in lines_of(trainer)] == [0, 1, 2]


def test_a_training_started_anew_goes_on_and_not_the_finished_one(preprocessed: Path) -> None:
    """nnU-Net's --c takes checkpoint_final first, and validations are known by their summary."""
    first = trainer_for(preprocessed)
    first.run_training()
    folder = Path(first.output_folder)
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
    (folder / "checkpoint_rectified.pth").touch()
    second = trainer_for(preprocessed)
    stop_at(second, 5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        second.run_training()
    assert (folder / "checkpoint_final.pth.bak-1").is_file() and not (folder / "checkpoint_final.pth").exists()
    assert (folder / "validation" / "summary.json.bak-1").is_file()
    assert (folder / "checkpoint_rectified.pth.bak-1").is_file()
    third = trainer_for(preprocessed)
    maybe_load_checkpoint(third, True, False)
    assert 0 < third.current_epoch < 3 or third.iteration > 0
    third.run_training()
    assert len(third.pauses) == 1 and min(third.pauses.values()) > 0, "of the epoch in which it was stopped"
    assert (folder / "checkpoint_final.pth").is_file() and not (folder / "checkpoint_final.pth.bak-2").exists()


def test_a_finished_run_that_is_continued_changes_nothing(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    terms = (folder / "mutual_log.jsonl").read_text()
    again = trainer_for(preprocessed)
    maybe_load_checkpoint(again, True, False)
    again.run_training()
    assert again.current_epoch == 3
    assert largest_difference(weights(again), weights(trainer)) == 0
    final = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 3
    assert largest_difference(final["network_weights"], weights(trainer)) == 0
    assert (folder / "mutual_log.jsonl").read_text() == terms
