"""Times and counts all trainers in turn, on the same batches."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cost.counting import compiled_frames, counted_bytes, graph_bytes, networks_of, peak_bytes, waits
from cost.trainers import WITHOUT_OCC, Recipe, start

Clock = Callable[[], float]


def measure(
    recipes: Mapping[str, Recipe],
    work: Path,
    device: torch.device,
    *,
    mixed: bool,
    compiled: bool,
    graphs: str,
    pairs: int,
    draws: int,
) -> dict[str, Any]:
    """Returns medians, counts and the ratios to stock of one precision, compiled or not.

    Args:
        recipes: "stock" among them.
        work: folder of the datasets.
        device: where the networks are.
        mixed: whether in mixed precision.
        compiled: whether by torch.compile.
        graphs: the setting cuda_graphs.
        pairs: rounds in which each trainer takes a step.
        draws: rounds in which each draws a batch; 0 leaves the loader out.
    """
    options: dict[str, Any] = {"mixed": mixed, "compiled": compiled, "graphs": graphs}
    trainers = {name: start(recipe, work, device, **options) for name, recipe in recipes.items()}
    batches = batches_of(trainers)
    in_graphs = {name: _settle(trainer, batches[name][0]) for name, trainer in trainers.items()}
    memory = {name: counted_bytes(trainer, batches[name][0]) for name, trainer in trainers.items()}
    counts = {name: {"waits": waits(trainer, batches[name][0])} for name, trainer in trainers.items()}
    if device.type == "cuda":
        for name, trainer in trainers.items():
            counts[name]["peak_bytes"] = peak_bytes(trainer, batches[name][0]) + in_graphs[name]
            counts[name]["graph_bytes"] = in_graphs[name]
    # Processor seconds do not count what other processes take; they mean nothing for threads or a GPU.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = {
        "step": _steps(trainers, batches, pairs, clock),
        "loader": _draws(trainers, draws, clock) if draws else {},
        "validation": _validations(trainers, batches, max(10, pairs // 3), clock),
    }
    if compiled:
        for name, trainer in trainers.items():
            before = compiled_frames()
            for batch in batches[name]:
                trainer.train_step(batch)
            counts[name]["recompilations"] = compiled_frames() - before
    networks = {name: len(networks_of(trainer)) for name, trainer in trainers.items()}
    patches = {name: len(own[0]["keys"]) / len(batches["stock"][0]["keys"]) for name, own in batches.items()}
    ratio = _ratios(seconds, memory, networks, patches)
    if "mutual_partial_joint" in trainers:
        ratio["pseudo_labels"] = {"case": _labelling(trainers["mutual_partial_joint"], trainers["stock"], clock)}
    return {
        **described(trainers["stock"], **options),
        "median_seconds": seconds,
        "bytes": memory,
        "counts": counts,
        "networks": networks,
        "ratio": ratio,
    }


def described(stock: Any, *, mixed: bool, compiled: bool, graphs: str) -> dict[str, Any]:
    """Returns what all trainers have in common."""
    kind = "bfloat16" if stock.device.type == "cpu" else "float16"
    configuration = stock.configuration_manager
    return {
        "precision": f"{kind} autocast" if mixed else "float32",
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "features": configuration.network_arch_init_kwargs["features_per_stage"],
        "compiled": compiled,
        "cuda_graphs": graphs,
    }


def _settle(trainer: Any, batch: Any) -> int:
    """Makes the first steps, in which CUDA graphs are recorded; returns the memory of these."""
    before = graph_bytes()
    for _ in range(2):  # networks first, then their teachers
        trainer.train_step(batch)
    return graph_bytes() - before


def batches_of(trainers: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Draws batches, the same for all trainers of a kind."""
    drawn: dict[tuple[str, bool], list[Any]] = {}
    found = {}
    for name, trainer in trainers.items():
        stream = getattr(trainer, "stream", None)  # stock has none
        kind = trainer.plans_manager.dataset_name, stream is not None and stream.unlabelled > 0
        if kind not in drawn:
            drawn[kind] = [next(trainer.dataloader_train) for _ in range(4)]
        found[name] = drawn[kind]
    return found


def _steps(trainers: Mapping[str, Any], batches: Mapping[str, Any], pairs: int, clock: Clock) -> dict[str, float]:
    def step(name: str, i: int) -> None:
        trainers[name].train_step(batches[name][i % len(batches[name])])
        _wait(trainers[name])

    return _alternate(trainers, step, pairs, clock)


def _draws(trainers: Mapping[str, Any], pairs: int, clock: Clock) -> dict[str, float]:
    def draw(name: str, i: int) -> None:
        # The same draws for all: most augmentations are rare and slow, so unequal ones would decide the median.
        random.seed(i + 3)
        np.random.seed(i + 3)
        torch.manual_seed(i + 3)
        next(trainers[name].dataloader_train)

    return _alternate(trainers, draw, pairs, clock)


def _validations(trainers: Mapping[str, Any], batches: Mapping[str, Any], pairs: int, clock: Clock) -> dict[str, float]:
    """Of validation batches, which have stock's size in all trainers."""
    drawn = {name: next(trainer.dataloader_val) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        trainer.on_validation_epoch_start()

    def validate(name: str, _: int) -> None:
        with torch.no_grad():
            trainers[name].validation_step(drawn[name])
        _wait(trainers[name])

    found = _alternate(trainers, validate, pairs, clock)
    for trainer in trainers.values():
        trainer.on_train_epoch_start()
    return found


def _wait(trainer: Any) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def _alternate(
    names: Mapping[str, Any], call: Callable[[str, int], Any], pairs: int, clock: Clock, *, warm: int = 3
) -> dict[str, float]:
    """Returns the median seconds of each trainer's call; who goes first changes with every pair."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warm, pairs):
        for name in seconds if i % 2 else reversed(seconds):
            started = clock()
            call(name, i)
            if i >= 0:
                seconds[name].append(clock() - started)
    return {name: round(statistics.median(values), 5) for name, values in seconds.items()}


def _ratios(
    seconds: Mapping[str, Mapping[str, float]],
    memory: Mapping[str, Mapping[str, int]],
    networks: Mapping[str, int],
    patches: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Compares with stock; time and kept memory of a step count per patch."""
    loader = seconds["loader"] or dict.fromkeys(networks, 0.0)
    fair = {name: {**own, "saved": own["saved"] / patches[name]} for name, own in memory.items()}
    step = {name: value / patches[name] for name, value in seconds["step"].items()}
    whole = {name: value + loader[name] / patches[name] for name, value in step.items()}
    found = {}
    for name in step:
        if name != "stock":
            found[name] = {
                "step": step[name] / step["stock"],
                "memory": sum(fair[name].values()) / sum(fair["stock"].values()),
                **({"loader": loader[name] / loader["stock"] / patches[name]} if seconds["loader"] else {}),
                "validation": seconds["validation"][name] / seconds["validation"]["stock"],
                # what a user would otherwise run: a stock training for each network, one after the other
                "separate": whole[name] / (networks[name] * whole["stock"]),
            }
    if WITHOUT_OCC in step and "mutual_correlation_joint" in step:
        found["mutual_correlation_joint"]["occ"] = step["mutual_correlation_joint"] / step[WITHOUT_OCC]
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()}


def _labelling(trainer: Any, stock: Any, clock: Clock) -> float:
    """Returns seconds to pseudo-label cases over those of reading and predicting them once per network that is asked.

    Files are read and written, decisions included; of the other side only read.
    """
    from nnunet_mutual.batches.pseudo import PseudoStore
    from nnunet_mutual.pseudo_labels.filter import FilterSettings
    from nnunet_mutual.pseudo_labels.generate import label_cases
    from nnunet_mutual.pseudo_labels.labeller import PseudoLabeller
    from nnunet_mutual.pseudo_labels.opinions import asked_twice

    keys, learnt = trainer.do_split()[0][:2], trainer.network_labels()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
    asked = {key: sum(bool(own - trainer.table.case(key).annotated) for own in learnt) for key in keys}
    with (
        tempfile.TemporaryDirectory() as folder,
        asked_twice(trainer.window, networks_of(trainer)) as predictors,
        trainer.window.around(stock.network, mirroring=True) as reference,
    ):
        store, axes = PseudoStore(folder), trainer.inference_allowed_mirroring_axes
        labeller = PseudoLabeller(trainer.table, trainer.label_manager, axes, predictors, learnt, FilterSettings())

        def predict() -> None:
            for key, times in asked.items():
                image = torch.from_numpy(np.array(dataset.load_case(key)[0][:]))
                for _ in range(times):
                    reference.predict_sliding_window_return_logits(image)

        calls = {"mutual": lambda: [*label_cases(labeller, dataset, store, keys)], "stock": predict}
        seconds = _alternate(calls, lambda name, _: calls[name](), 2, clock, warm=1)
    return round(seconds["mutual"] / seconds["stock"], 4)
