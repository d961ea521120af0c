"""Where the time of a training step goes, by torch's profiler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cost.measuring import batches_of, described
from cost.trainers import Recipe, start
from nnunet_mutual.engine.parts import Part

PARTS = get_args(Part)
BARS = {"small": 0.20, "full": 0.10}  # of what is not in networks
NETWORKS = ("teacher", "forward", "backward")  # the rest is what a method adds
STEP = "training step"
REST = "rest"
NODE = "autograd::engine::evaluate_function: "


def explain(
    recipes: Mapping[str, Recipe], work: Path, device: torch.device, *, mixed: bool, steps: int
) -> dict[str, Any]:
    """Returns the share of each part of a training step, by trainer, of networks that are launched kernel by kernel.

    Args:
        recipes: "stock" among them.
        work: folder of the datasets.
        device: where the networks are. On CUDA shares are of the time of kernels, "idle" is what lies between them.
        mixed: whether in mixed precision.
        steps: of each trainer that are watched, two of them at a time, in turn.

    Returns:
        What was measured, and by trainer the "shares" of a step: of its parts, "rest", "not in networks" (all but
        teachers and the networks' own passes), and "loader", of one process that draws a batch, which is not part of
        the step.
    """
    trainers = {name: start(recipe, work, device, mixed=mixed, compiled=False) for name, recipe in recipes.items()}
    batches = batches_of(trainers)
    for name, trainer in trainers.items():
        for batch in batches[name][:2]:
            trainer.train_step(batch)
    seconds: dict[str, Counter[str]] = {name: Counter() for name in trainers}
    for i in range(0, steps, 2):
        for name, trainer in trainers.items():
            seconds[name] += _watched(trainer, [batches[name][n % len(batches[name])] for n in (i, i + 1)])
    found = {name: shares(own) for name, own in seconds.items()}
    return {**described(trainers["stock"], mixed=mixed, compiled=False, graphs="off"), "shares": found}


def shares(microseconds: Mapping[str, float]) -> dict[str, float]:
    """Returns what part of a step each is; the loader works beside it."""
    own = {name: value for name, value in microseconds.items() if name not in ("loader", "idle")}
    whole = sum(own.values())
    found = {name: value / whole for name, value in microseconds.items()}
    found["not in networks"] = 1 - sum(found.get(name, 0.0) for name in NETWORKS)
    return {name: round(value, 4) for name, value in found.items()}


def _watched(trainer: Any, batches: Iterable[Any]) -> Counter[str]:
    """Microseconds of each part."""
    cuda = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    elapsed = 0.0
    with _named(trainer), profile(activities=activities) as profiled:
        for batch in batches:
            with record_function("loader"):
                next(trainer.dataloader_train)
            started = time.perf_counter()
            with record_function(STEP):
                trainer.train_step(batch)
            if cuda:
                torch.cuda.synchronize()
            elapsed += time.perf_counter() - started
    found = by_part(profiled.events(), on_device=cuda)
    if cuda:
        found["idle"] = max(0.0, 1e6 * elapsed - sum(found.values()))
    return found


def by_part(events: Iterable[Any], *, on_device: bool) -> Counter[str]:
    """Sums the time of events by the part of the step in which they lie.

    What autograd does belongs to what made its graph: to the networks' backward pass, or to the losses.

    Args:
        events: of torch's profiler.
        on_device: whether to count the kernels that they launched, not their own time on the host; of the loader, it is
            that of the host in any case.
    """
    events = list(events)
    passes = [_numbers(event) for event in events if event.name == "forward"]
    found: Counter[str] = Counter()
    for event in events:
        name = _part(event, passes)
        if name is not None:
            kernels = sum(kernel.duration for kernel in event.kernels)
            found[name] += kernels if on_device and name != "loader" else event.self_cpu_time_total
    return found


def _part(event: Any, passes: Iterable[range]) -> str | None:
    """The innermost part around an event; None outside of steps."""
    while event is not None:
        if event.name.startswith(NODE):
            accumulates = event.name.endswith("AccumulateGrad")
            own = accumulates or any(event.sequence_nr in numbers for numbers in passes)
            return "backward" if own else "losses"
        if event.name in PARTS:
            return str(event.name)
        if event.name.startswith("Optimizer."):  # of stock nnU-Net, by torch itself
            return "optimiser"
        if event.name == STEP:
            return REST
        event = event.cpu_parent
    return None


def _numbers(event: Any) -> range:
    """The numbers that autograd gave to what ran within an event."""
    own, below = [], list(event.cpu_children)
    while below:
        child = below.pop()
        below += child.cpu_children
        own += [child.sequence_nr] if child.sequence_nr >= 0 else []
    return range(min(own), max(own) + 1) if own else range(0)


@contextmanager
def _named(trainer: Any) -> Iterator[None]:
    """Names the parts of a step of stock nnU-Net, which has no names of its own."""
    if hasattr(trainer, "peers"):
        yield
        return
    ranges: list[Any] = []

    def enter(*_: Any) -> None:
        ranges.append(record_function("forward").__enter__())

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks = [trainer.network.register_forward_pre_hook(enter), trainer.network.register_forward_hook(leave)]
    loss = trainer.loss

    def named_loss(*arguments: Any) -> Any:
        with record_function("losses"):
            return loss(*arguments)

    trainer.loss = named_loss
    yield
    trainer.loss = loss
    for hook in hooks:
        hook.remove()
