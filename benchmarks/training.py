"""Trains the networks of one arm and scores them; every arm goes through these functions."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import staged
import torch
from scoring import Model, score
from settings import CONFIGURATION, BenchmarkError, Network, Schedule, Setting, locked, read_json, write_json
from stock import StockSchedule

from nnunet_mutual.disk.trainings import training_name
from nnunet_mutual.planning.configuration import new_configuration

PRECISIONS = {"off": "float32", "bfloat16": "bfloat16 autocast", "auto": "float16 autocast"}  # of the setting amp


def run_arm(setting: Setting, arm: str, seed: int, schedule: Schedule, cases: str, out: Path) -> None:
    """Trains what is missing, predicts the cases from the last checkpoints and writes one evidence file.

    Args:
        setting: the benchmark.
        arm: key of the protocol's ``arms``.
        seed: of initial weights and data order.
        schedule: updates of each network and learning rate.
        cases: key of the protocol's ``cases``: "test" or "calibration".
        out: the file to write.
    """
    networks = setting.networks(arm)
    trained = [train_network(setting, network, schedule, seed) for network in networks]
    started = time.perf_counter()
    deployed = [model for network, t in zip(networks, trained, strict=True) for model in models(setting, network, t)]
    dice, precision = score(setting, deployed, setting["cases"][cases])
    updates = [t["updates"] for t in trained]
    write_json(
        out,
        {
            "benchmark": setting.name,
            "arm": arm,
            "words": setting["arms"][arm]["words"],
            "seed": seed,
            **({"labelled": setting.draws[seed]} if setting.labelled else {}),
            "scored_on": cases,
            "updates_of_each_network": updates[0] // trained[0]["networks"],
            "networks_trained": sum(t["networks"] for t in trained),
            "networks_deployed": len(deployed),
            "total_updates": sum(updates),
            "schedule": {**setting["training"], **asdict(schedule), "decay": "nnU-Net's poly schedule over the epochs"},
            "network": setting["network"],
            "augmentation": "nnU-Net's" if setting["mirroring"] else "nnU-Net's without mirroring",
            "precision": PRECISIONS[setting.amp],
            "checkpoint": "last",
            "prediction": "nnU-Net's sliding window, step 0.5, Gaussian weighting, no mirroring",
            "training_seconds": [round(t["seconds"], 1) for t in trained],
            "prediction_seconds": round(time.perf_counter() - started, 1),
            "hardware": hardware(setting.device),
            "versions": versions(),
            "source": setting["source"],
            "dice": dice,
            "voxel_precision": precision,
        },
    )


def models(setting: Setting, network: Network, trained: dict[str, Any]) -> list[Model]:
    """Returns what an arm deploys: the network of the last checkpoint, with its prototypes, or those of stage 1."""
    labels = setting["datasets"][network.dataset]["labels"]
    kind, _, group = network.deployed.partition(":")
    if kind == "group":
        return [Model(network, trained["groups"][group], labels)]
    if network.deployed in ("final", "rectified"):
        return [Model(network, trained["network_weights" if network.deployed == "final" else "rectified"], labels)]
    return [Model(network, w, own) for w, own in zip(*trained["stage1"], strict=True)]


def train_network(setting: Setting, network: Network, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Returns the result of a training, from the work folder if it is there.

    Returns:
        ``network_weights`` of the last checkpoint, ``seconds``, ``updates`` of all its networks together, the number of
        ``networks``, for trainings with stages ``stage1``: weights and labels of its networks, and of
        MutualPrototypeTrainer ``rectified``: the weights of network and prototypes.
    """
    file = setting.weights_file(network, schedule, seed)
    with locked(file):
        if not file.is_file():
            _train(setting, network, schedule, seed, file)
    found = torch.load(file, weights_only=True)
    return {"updates": network.schedule(schedule).updates, "networks": 1, **found}


def _train(setting: Setting, network: Network, schedule: Schedule, seed: int, file: Path) -> None:
    """Trains a network and keeps it in a file."""
    shutil.rmtree(results_folder(setting, network, schedule, seed), ignore_errors=True)  # of a run that was killed
    trainer = build_trainer(setting, network, schedule, seed)
    if not setting["mirroring"]:
        leave_out_mirroring(trainer)
    if setting.device == "cpu":
        use_channels_last(trainer)
    trainer.initialize()
    trainer.logger.plot_progress_png = lambda *_, **__: None
    result = staged.train(setting, network, schedule, seed, trainer)
    temporary = file.with_suffix(f".{os.getpid()}")
    torch.save(result, temporary)
    os.replace(temporary, file)
    shutil.rmtree(results_folder(setting, network, schedule, seed), ignore_errors=True)


def use_channels_last(trainer: Any) -> None:
    """Memory order, not arithmetic: a third faster on CPUs that have no AVX-512."""
    original = trainer.build_network_architecture

    @functools.wraps(original)  # nnU-Net looks at the signature
    def build(*arguments: Any, **options: Any) -> Any:
        net = original(*arguments, **options)
        flat = all(parameter.ndim < 5 for parameter in net.parameters())
        return net.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)

    trainer.build_network_architecture = build


def build_trainer(setting: Setting, network: Network, schedule: Schedule, seed: int) -> Any:
    """Returns the trainer of one network; the schedule stands in a configuration of its own."""
    folder = setting.work / "nnUNet_preprocessed" / setting.dataset_name(network.dataset, seed)
    plans = read_json(folder / "nnUNetPlans.json")
    epochs, updates = setting["training"]["num_epochs"], network.schedule(schedule).updates
    if updates % epochs:
        raise BenchmarkError(f"{updates} updates cannot be divided into {epochs} epochs; choose a multiple of {epochs}")
    name = configuration_name(network, schedule, seed)
    settings = {
        **setting["training"],
        **network.settings,
        "initial_lr": schedule.rate,
        "num_iterations_per_epoch": updates // epochs,
        "amp": setting.amp,
        "seed": seed,
    }
    plans["configurations"][name] = new_configuration(plans, CONFIGURATION, name, settings=settings)
    plans["continue_training"] = False
    return trainer_class(network.trainer)(
        plans, name, "all", read_json(folder / "dataset.json"), torch.device(setting.device)
    )


def leave_out_mirroring(trainer: Any) -> None:
    """Does to any trainer what nnU-Net's own nnUNetTrainerNoMirroring does to the stock one."""
    original = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def configure() -> tuple[Any, ...]:
        rotation, dummy_2d, initial_patch_size, _ = original()
        trainer.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, None

    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = configure


def configuration_name(network: Network, schedule: Schedule, seed: int) -> str:
    return f"{CONFIGURATION}{network.variant}_{network.schedule(schedule)}_s{seed}".replace(".", "p")


def results_folder(setting: Setting, network: Network, schedule: Schedule, seed: int) -> Path:
    """Returns the folder that nnU-Net gives to this trainer and configuration."""
    trainer, configuration = trainer_class(network.trainer).__name__, configuration_name(network, schedule, seed)
    name = training_name(trainer, "nnUNetPlans", configuration)
    return setting.work / "nnUNet_results" / setting.dataset_name(network.dataset, seed) / name


def trainer_class(name: str) -> Any:
    """Returns the class: "stock", of nnunet_mutual.trainers, or of forms that were only tried."""
    if name == "stock":
        return StockSchedule
    import forms

    import nnunet_mutual.trainers

    return getattr(nnunet_mutual.trainers, name, None) or getattr(forms, name)


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Returns what a reader needs to judge the seconds on a device."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads_of_this_run": torch.get_num_threads(),
        "accelerator": "none used" if device == "cpu" else torch.cuda.get_device_name(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of everything that decides a number."""
    found = {"python": platform.python_version()}
    for package in (
        "nnunet_mutual",
        "nnunetv2",
        "torch",
        "batchgeneratorsv2",
        "dynamic_network_architectures",
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
