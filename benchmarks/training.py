"""Trains the networks of one arm and scores them; every arm goes through these functions."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from scoring import score
from settings import CONFIGURATION, BenchmarkError, Network, Schedule, Setting, read_json, write_json
from stock import StockSchedule


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
    dice = score(setting, networks, [t["network_weights"] for t in trained], setting["cases"][cases])
    write_json(
        out,
        {
            "benchmark": setting.name,
            "arm": arm,
            "words": setting["arms"][arm]["words"],
            "seed": seed,
            "scored_on": cases,
            "updates_of_each_network": schedule.updates,
            "networks_trained": len(networks),
            "networks_deployed": len(networks),
            "total_updates": schedule.updates * len(networks),
            "schedule": {**setting["training"], **asdict(schedule), "decay": "nnU-Net's poly schedule over the epochs"},
            "network": setting["network"],
            "augmentation": "nnU-Net's" if setting["mirroring"] else "nnU-Net's without mirroring",
            "precision": "float32",
            "checkpoint": "last",
            "prediction": "nnU-Net's sliding window, step 0.5, Gaussian weighting, no mirroring",
            "training_seconds": [round(t["seconds"], 1) for t in trained],
            "prediction_seconds": round(time.perf_counter() - started, 1),
            "hardware": hardware(),
            "versions": versions(),
            "source": setting["source"],
            "dice": dice,
        },
    )


def train_network(setting: Setting, network: Network, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Returns the weights after the last update and the seconds they took, from the work folder if it has them."""
    file = setting.weights_file(network, schedule, seed)
    if not file.is_file():
        shutil.rmtree(results_folder(setting, network, schedule, seed), ignore_errors=True)  # of a run that was killed
        trainer = build_trainer(setting, network, schedule, seed)
        if not setting["mirroring"]:
            leave_out_mirroring(trainer)
        trainer.initialize()
        # Memory order, not arithmetic: a third faster on CPUs that have no AVX-512.
        trainer.network.to(memory_format=torch.channels_last_3d)
        trainer.logger.plot_progress_png = lambda *_, **__: None
        started = time.perf_counter()
        trainer.run_training()
        seconds = time.perf_counter() - started
        last = torch.load(
            os.path.join(trainer.output_folder, "checkpoint_final.pth"), weights_only=False, map_location="cpu"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        torch.save({"network_weights": last["network_weights"], "seconds": seconds}, temporary)
        os.replace(temporary, file)
        shutil.rmtree(results_folder(setting, network, schedule, seed), ignore_errors=True)
    return torch.load(file, weights_only=True)


def build_trainer(setting: Setting, network: Network, schedule: Schedule, seed: int) -> Any:
    """Returns the trainer of one network; the schedule stands in a configuration of its own."""
    folder = setting.work / "nnUNet_preprocessed" / setting.dataset_name(network.dataset)
    plans = read_json(folder / "nnUNetPlans.json")
    epochs = setting["training"]["num_epochs"]
    if schedule.updates % epochs:
        raise BenchmarkError(
            f"{schedule.updates} updates cannot be divided into {epochs} epochs; choose a multiple of {epochs}"
        )
    name = configuration_name(schedule, seed)
    plans["configurations"][name] = {
        "inherits_from": CONFIGURATION,
        "mutual": {
            **setting["training"],
            "initial_lr": schedule.rate,
            "num_iterations_per_epoch": schedule.updates // epochs,
            "amp": "off",
            "seed": seed,
        },
    }
    plans["continue_training"] = False
    return trainer_class(network.trainer)(plans, name, "all", read_json(folder / "dataset.json"), torch.device("cpu"))


def leave_out_mirroring(trainer: Any) -> None:
    """Does to any trainer what nnU-Net's own nnUNetTrainerNoMirroring does to the stock one."""
    original = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def configure() -> tuple[Any, ...]:
        rotation, dummy_2d, initial_patch_size, _ = original()
        trainer.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, None

    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = configure


def configuration_name(schedule: Schedule, seed: int) -> str:
    return f"{CONFIGURATION}_{schedule}_s{seed}".replace(".", "p")


def results_folder(setting: Setting, network: Network, schedule: Schedule, seed: int) -> Path:
    """Returns the folder that nnU-Net gives to this trainer and configuration."""
    name = f"{trainer_class(network.trainer).__name__}__nnUNetPlans__{configuration_name(schedule, seed)}"
    return setting.work / "nnUNet_results" / setting.dataset_name(network.dataset) / name


def trainer_class(name: str) -> Any:
    """Returns the class; every trainer but "stock" comes from nnunet_mutual.trainers."""
    if name == "stock":
        return StockSchedule
    import nnunet_mutual.trainers

    return getattr(nnunet_mutual.trainers, name)


def hardware() -> dict[str, Any]:
    """Returns what a reader needs to judge the seconds."""
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
        "accelerator": "none used",
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
