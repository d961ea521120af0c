"""One network per process learns what all networks learn in one process, to the last steps of rounding."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from modalities import make_preprocessed
from processes import in_processes, leaves
from torch import Tensor
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.cli.parser import main
from nnunet_mutual.engine.checkpoints import load_own
from nnunet_mutual.engine.parallel.worker import share_networks
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trainers import MutualCorrelationTrainer, MutualCrossModalTrainer, MutualPartialTrainer

STEPS = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 10}  # 20 steps
SHORTEST = {"num_epochs": 2, "num_iterations_per_epoch": 2}
TWO = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
LAX = {"label": False, "voxel": False}  # pseudo labels of networks that learnt for a second


def partial_dataset(root: Path) -> Path:
    settings = {**STEPS, **GROUPS, "num_epochs": 4, "ramp": {"start": 0.0, "end": 0.1}, "ema": 0.9}
    settings |= {"pseudo_labels": LAX, "loss": {"fd": 1.0, "dfs": 1.0}}
    return tiny.make_dataset(root, block=partial_block(), settings=settings)


def correlation_dataset(root: Path) -> Path:
    return two_stream_dataset(root, settings={**STEPS, "ramp": 0.1, "loss": {"correlation": 1.0}})


def consensus_dataset(root: Path) -> Path:
    taught = {"form": "consensus", "paste_from": "every", "soft_loss": "sample", "strong_pose": True}
    return two_stream_dataset(root, settings={**STEPS, "ramp": 0.1, **taught})


def crossmodal_dataset(root: Path) -> Path:
    phases = {"form": "contrast", "ramp": 0.1, "relearn_from": 0.4, "all_from": 0.7}
    return make_preprocessed(root, groups=TWO, settings={**STEPS, **phases, "loss": {"consistency": 1.0}})


def averages_dataset(root: Path) -> Path:
    return make_preprocessed(root, groups=TWO, settings={**STEPS, "ramp": 0.1})


def short_dataset(root: Path) -> Path:
    return two_stream_dataset(root, settings={**STEPS, **SHORTEST, "checkpoint_epochs": 1, "ramp": 0.1})


def three_dataset(root: Path) -> Path:
    settings = {**STEPS, **SHORTEST, "form": "contrast", "ramp": 0.1, "memory": "sequential", "relearn_from": 0.4}
    return make_preprocessed(root, groups={**TWO, "both": ["T1", "FLAIR"]}, settings=settings)


CASES: dict[str, tuple[Any, Any]] = {
    "partial": (MutualPartialTrainer, partial_dataset),
    "correlation": (MutualCorrelationTrainer, correlation_dataset),
    "consensus": (MutualCorrelationTrainer, consensus_dataset),
    "crossmodal": (MutualCrossModalTrainer, crossmodal_dataset),
    "averages": (MutualCrossModalTrainer, averages_dataset),
    "short": (MutualCorrelationTrainer, short_dataset),
    "three": (MutualCrossModalTrainer, three_dataset),
}
TWENTY_STEPS = ("partial", "correlation", "consensus", "crossmodal", "averages")


def train(rank: int, store: Any, name: str, preprocessed: Path, size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Trains this process's networks; returns what a test may want to know."""
    kind, _ = CASES[name]
    resume, killed, signalled = (options.pop(key, None) for key in ("resume", "killed", "signalled"))
    trainer = trainer_for(preprocessed, kind)
    if size > 1:
        share_networks(trainer, store, rank, size, **options)
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / f"checkpoint_{resume}.pth"))
    step, done = trainer.train_step, 0

    def train_step(batch: dict) -> dict:
        nonlocal done
        done += 1
        if (rank, done) == killed:
            os._exit(9)
        if (rank, done) == signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = train_step
    try:
        trainer.run_training()
    except (MutualError, SystemExit) as error:
        return {"error": str(error)}
    log = Path(trainer.log_file).read_text() if rank == 0 else ""
    remembered = leaves([objective.state_dict() for objective in trainer.objectives], ("numbers",))
    return {"folder": trainer.output_folder, "log": log, "own": trainer.peers.own, "steps": done, "memory": remembered}


def together(results: Path, name: str, preprocessed: Path, size: int = 2, **options: Any) -> list[Any]:
    """Trains in several processes, into a results folder of its own."""
    results.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        if size == 1:
            return [train(0, None, name, preprocessed, 1, options)]
        return in_processes(results, train, name, preprocessed, size, options, size=size)


def final(found: dict[str, Any]) -> dict[str, Any]:
    """The state of a training at its end."""
    state = load_own(Path(found["folder"]) / "checkpoint_final.pth", torch.device("cpu"))["mutual_state"]
    for objective in state["objectives"]:
        objective.pop("numbers", None)  # for the log, of a process's own networks
    return {part: state[part] for part in ("peers", "objectives", "ranking", "stage", "deployed", "iteration")}


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
def datasets() -> dict[str, Path]:
    """Those that were made already."""
    return {}


@pytest.fixture()
def dataset(
    request: pytest.FixtureRequest,
    datasets: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    name = request.param
    if name not in datasets:
        datasets[name] = tmp_path_factory.mktemp(name)
    root = datasets[name]
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(folder, str(root / folder))
    preprocessed = root / "nnUNet_preprocessed" / tiny.NAME
    return preprocessed if preprocessed.exists() else CASES[name][1](root)


@pytest.mark.parametrize("dataset", TWENTY_STEPS, indirect=True)
def test_twenty_steps_are_those_of_one_process(dataset: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.node.callspec.params["dataset"]
    (alone,) = together(tmp_path / "alone", name, dataset, size=1)
    first, second = together(tmp_path / "together", name, dataset)
    assert (alone["own"], first["own"], second["own"]) == ([0, 1], [0], [1])
    assert alone["steps"] == first["steps"] == second["steps"] == 20
    difference, place = largest_difference(final(first), final(alone))
    assert difference <= 1e-6, place
    assert all(torch.equal(value, second["memory"][key]) for key, value in first["memory"].items())
    assert "MB of other networks' outputs per step" in first["log"]


@pytest.fixture()
def alone(dataset: Path, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What one process does."""
    name = request.node.callspec.params["dataset"]
    return final(together(tmp_path / "alone", name, dataset, size=1)[0])


@pytest.mark.parametrize("dataset", ["three"], indirect=True)
def test_three_networks_of_two_processes(dataset: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    first, second = together(tmp_path / "together", "three", dataset)
    assert (first["own"], second["own"]) == ([0, 2], [1])
    assert largest_difference(final(first), alone)[0] <= 1e-6


@pytest.mark.parametrize("dataset", ["short"], indirect=True)
def test_a_lost_process_ends_the_run_and_either_way_goes_on(
    dataset: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    first, second = together(tmp_path / "lost", "short", dataset, killed=(1, 3))
    assert second == 9
    assert "process 0 of this training lost another one" in first["error"] and "--c" in first["error"]
    shutil.copytree(tmp_path / "lost", tmp_path / "again")
    for found in (
        together(tmp_path / "lost", "short", dataset, resume="latest")[0],
        together(tmp_path / "again", "short", dataset, size=1, resume="latest")[0],
    ):
        assert found["steps"] == 2, "the first epoch was not repeated"
        assert largest_difference(final(found), alone)[0] <= 1e-6


@pytest.mark.parametrize("dataset", ["short"], indirect=True)
@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)], ids=["one, then two", "two, then one"])
def test_a_signal_stops_all_and_the_other_way_goes_on(
    dataset: Path, alone: dict[str, Any], sizes: tuple[int, int], tmp_path: Path
) -> None:
    before, after = sizes
    stopped = together(tmp_path / "stopped", "short", dataset, size=before, signalled=(before - 1, 1))
    assert [found["error"] for found in stopped] == ["143"] * before
    found = together(tmp_path / "stopped", "short", dataset, size=after, resume="latest")[0]
    assert found["steps"] == 3 and largest_difference(final(found), alone)[0] <= 1e-6


@pytest.mark.parametrize("dataset", ["short"], indirect=True)
def test_half_precision_on_the_way_is_close_and_said(dataset: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    first, second = together(tmp_path / "half", "short", dataset, exchange="float16")
    assert 0 < largest_difference(final(first)["peers"]["networks"], alone["peers"]["networks"])[0] < 1e-2
    assert "rounded by at most" in first["log"]
    assert all(torch.equal(value, second["memory"][key]) for key, value in first["memory"].items())


@pytest.mark.parametrize("dataset", ["short"], indirect=True)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x -tr PartialTrainer", "a fold is a number such as 0"),
        ("0 -tr PartialTrainer -p Nope", "Nope.json does not exist; plans of Dataset901_Tiny: nnUNetPlans"),
        ("0 -tr PartialTrianer", "(did you mean PartialTrainer or "),
        ("0 -tr PartialTrainer --exchange float16", "belong to --peer-parallel"),
        ("0 -tr MutualCorrelationTrainer --peer-parallel --processes 1 -device cpu", "needs two processes at least"),
        ("0 -tr MutualCorrelationTrainer --peer-parallel -device mps", "leave --peer-parallel out"),
        (
            "0 -tr MutualCorrelationTrainer --peer-parallel --npz",
            "npz is done in one process; leave --peer-parallel out",
        ),
    ],
)
def test_what_the_command_refuses(dataset: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "901", "3d_fullres", *line.split()]) == 2
    assert said in capsys.readouterr().err
