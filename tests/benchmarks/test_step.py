"""What the benchmark of training steps makes of a profile."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def explaining(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cost.explaining")


def event(name: str, own: float, *children: Any, number: int = -1, kernels: Sequence[float] = ()) -> Any:
    made = SimpleNamespace(name=name, self_cpu_time_total=own, cpu_children=list(children), sequence_nr=number)
    made.kernels, made.cpu_parent = [SimpleNamespace(duration=duration) for duration in kernels], None
    for child in children:
        child.cpu_parent = made
    return made


def everything(root: Any) -> list[Any]:
    return [root, *(found for child in root.cpu_children for found in everything(child))]


def test_each_event_counts_for_the_innermost_part_around_it(explaining: Any) -> None:
    node = "autograd::engine::evaluate_function: "
    step = event(
        "training step",
        1,
        event("forward", 2, event("aten::conv", 4, event("aten::inner", 8, number=6, kernels=[5]), number=5)),
        event("losses", 16, event("aten::mean", 32, number=7), event("teacher", 64)),
        event("Optimizer.step#SGD.step", 128),
    )
    loader = event("loader", 1000)
    # On CUDA, autograd works in a thread of its own, so its nodes have nothing around them.
    nodes = [
        event(node + "MeanBackward0", 256, event("aten::div", 512, kernels=[7, 7]), number=7),
        event(node + "ConvBackward0", 1024, number=5),
        event(node + "torch::autograd::AccumulateGrad", 2048),
    ]
    events = [found for root in (step, loader, *nodes) for found in everything(root)]
    assert explaining.by_part(events, on_device=False) == {
        "rest": 1,
        "forward": 14,
        "losses": 16 + 32 + 256 + 512,
        "teacher": 64,
        "optimiser": 128,
        "loader": 1000,
        "backward": 1024 + 2048,
    }
    on_device = explaining.by_part(events, on_device=True)
    assert {name: value for name, value in on_device.items() if value} == {"forward": 5, "losses": 14, "loader": 1000}


def test_shares_are_of_a_step_beside_which_the_loader_works(explaining: Any) -> None:
    found = explaining.shares({"forward": 30, "backward": 50, "teacher": 10, "losses": 10, "loader": 50, "idle": 200})
    assert found == {
        "forward": 0.3,
        "backward": 0.5,
        "teacher": 0.1,
        "losses": 0.1,
        "loader": 0.5,
        "idle": 2.0,
        "not in networks": 0.1,
    }


def test_the_backward_pass_of_a_loss_is_not_that_of_the_network(explaining: Any) -> None:
    network, images = nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        with record_function("forward"):
            output = network(images)
        with record_function("losses"):
            loss = (output.exp() - 1).square().mean()
        with record_function("backward"):
            loss.backward()
    events = list(profiled.events())
    passes = [explaining._numbers(found) for found in events if found.name == "forward"]
    nodes = {found.name: explaining._part(found, passes) for found in events if found.name.startswith(explaining.NODE)}
    parts = {name.removeprefix(explaining.NODE): found for name, found in nodes.items()}
    assert parts.pop("ConvolutionBackward0") == parts.pop("torch::autograd::AccumulateGrad") == "backward"
    assert len(parts) >= 4 and {*parts.values()} == {"losses"}
