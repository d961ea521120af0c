"""One network per process learns what all networks learn in one process, to the last steps of rounding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from modalities import make_preprocessed
from processes import in_processes
from torch import Tensor
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.checkpoints import load_own
from nnunet_mutual.errors import MutualError
from nnunet_mutual.peer_parallel import share_networks
from nnunet_mutual.trainers import MutualCorrelationTrainer, MutualCrossModalTrainer, MutualPartialTrainer

STEPS = {**SHORT, "num_epochs": 5, "num_iterations_per_epoch": 4}  # 20 steps
TWO = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
LAX = {"label": False, "voxel": False}  # pseudo labels of networks that learnt for a second


def partial_dataset(root: Path) -> Path:
    settings = {**STEPS, **GROUPS, "num_epochs": 10, "ramp": {"start": 0.0, "end": 0.1}, "ema": 0.9}
    settings |= {"pseudo_labels": LAX, "loss": {"fd": 1.0, "dfs": 1.0}}
    return tiny.make_dataset(root, block=partial_block(), settings=settings)


def correlation_dataset(root: Path) -> Path:
    return two_stream_dataset(root, settings={**STEPS, "ramp": 0.1, "loss": {"correlation": 1.0}})


def crossmodal_dataset(root: Path) -> Path:
    phases = {"ramp": 0.1, "relearn_from": 0.4, "all_from": 0.7}
    return make_preprocessed(root, groups=TWO, settings={**STEPS, **phases, "loss": {"consistency": 1.0}})


CASES: dict[str, tuple[Any, Any]] = {
    "partial": (MutualPartialTrainer, partial_dataset),
    "correlation": (MutualCorrelationTrainer, correlation_dataset),
    "crossmodal": (MutualCrossModalTrainer, crossmodal_dataset),
}


def train(rank: int, store: Any, name: str, preprocessed: Path, size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Trains this process's networks; returns what a test may want to know."""
    kind, _ = CASES[name]
    resume, die, epochs = (options.pop(key, None) for key in ("resume", "die_at", "stop_after"))
    trainer = trainer_for(preprocessed, kind)
    if size > 1:
        share_networks(trainer, store, rank, size, **options)
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / f"checkpoint_{resume}.pth"))
    step, done = trainer.train_step, 0

    def train_step(batch: dict) -> dict:
        nonlocal done
        done += 1
        if die is not None and (rank, done) == die:
            os._exit(9)
        return step(batch)

    trainer.train_step = train_step
    if epochs is not None:
        trainer.on_epoch_end = lambda end=trainer.on_epoch_end: (end(), stop(trainer, epochs))
    try:
        trainer.run_training()
    except (MutualError, SystemExit) as error:
        return {"error": str(error)}
    log = Path(trainer.log_file).read_text() if rank == 0 else ""
    return {"folder": trainer.output_folder, "log": log, "networks": len(trainer.peers.own), "steps": done}


def stop(trainer: Any, epochs: int) -> None:
    if trainer.current_epoch == epochs:
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        raise SystemExit("stopped")


def together(results: Path, name: str, preprocessed: Path, size: int = 2, **options: Any) -> list[Any]:
    """Trains in several processes, into a results folder of its own."""
    results.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        if size == 1:
            return [train(0, None, name, preprocessed, 1, options)]
        return in_processes(results, train, name, preprocessed, size, options, size=size)


def final(found: dict[str, Any], name: str = "final") -> dict[str, Any]:
    return load_own(Path(found["folder"]) / f"checkpoint_{name}.pth", torch.device("cpu"))


def largest_difference(a: Any, b: Any, place: str = "") -> tuple[float, str]:
    """Between numbers of any depth; other things must be equal."""
    if isinstance(a, Tensor) and a.is_floating_point():
        assert a.shape == b.shape, place
        return (float((a.double() - b.double()).abs().nan_to_num().max()) if a.numel() else 0.0), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        return max((largest_difference(a[key], b[key], f"{place}.{key}") for key in a), default=(0.0, place))
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        pairs = enumerate(zip(a, b, strict=True))
        return max((largest_difference(x, y, f"{place}.{i}") for i, (x, y) in pairs), default=(0.0, place))
    if isinstance(a, float):
        return abs(a - b) if a == a or b == b else 0.0, place
    assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f"{place}: {a} is not {b}"
    return 0.0, place


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (_, make) in CASES.items():
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                patch.setenv(folder, str(root / folder))
            made[name] = make(root)
    return made


@pytest.fixture()
def dataset(request: pytest.FixtureRequest, datasets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = datasets[request.param]
    monkeypatch.setenv("nnUNet_raw", str(folder.parents[1] / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


@pytest.mark.parametrize("dataset", list(CASES), indirect=True)
def test_twenty_steps_are_those_of_one_process(dataset: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.node.callspec.params["dataset"]
    (alone,) = together(tmp_path / "alone", name, dataset, size=1)
    first, second = together(tmp_path / "together", name, dataset)
    assert (alone["networks"], first["networks"], second["networks"]) == (2, 1, 1)
    assert alone["steps"] == first["steps"] == second["steps"] == 20
    theirs, mine = final(alone)["mutual_state"], final(first)["mutual_state"]
    for part in ("peers", "ranking", "stage", "deployed", "iteration"):
        difference, place = largest_difference(mine[part], theirs[part], part)
        assert difference <= 1e-6, place
    for state in (*mine["objectives"], *theirs["objectives"]):
        state.pop("numbers", None)  # diagnostics of this process's own networks
    difference, place = largest_difference(mine["objectives"], theirs["objectives"], "objectives")
    assert difference <= 1e-6, place
    networks = mine["peers"]["networks"]
    assert largest_difference(networks[0], networks[1])[0] > 1e-3 if name != "correlation" else True
    assert "of other networks' outputs per step" in first["log"]
