"""Trainings in two stages: arms that differ in the second stage only share the first one.

A stage 1 is kept with its pseudo labels under what it depends on; another arm starts from there as ``--c`` would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from settings import Network, Schedule, Setting

from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.modules.input_columns import input_keys, only_used

# Settings that only the second stage reads.
SECOND = (("stage2_networks",), ("loss", "ps"), ("loss", "dfs"))
RECTIFIED = "checkpoint_rectified.pth"
CHECKPOINT, PSEUDO, SECONDS = "checkpoint_stage1.pth", "pseudo_labels", "seconds.json"


def train(setting: Setting, network: Network, schedule: Schedule, seed: int, trainer: Any) -> dict[str, Any]:
    """Trains to the end and returns what :func:`training.train_network` keeps."""
    output = Path(trainer.output_folder)
    staged = hasattr(trainer, "stages")
    kept = stage1_folder(setting, network, schedule, seed, trainer) if staged else None
    before = resume(trainer, kept) if kept is not None and (kept / SECONDS).is_file() else 0.0
    if kept is not None and not before:
        keep_stage1(trainer, kept)
    started = time.perf_counter()
    trainer.run_training()
    seconds = before + time.perf_counter() - started
    last = torch.load(output / "checkpoint_final.pth", weights_only=False, map_location="cpu")
    result: dict[str, Any] = {"network_weights": last["network_weights"], "seconds": seconds}
    if (output / RECTIFIED).is_file():
        rectified = torch.load(output / RECTIFIED, weights_only=True, map_location="cpu")
        result["rectified"] = rectified["network_weights"]
    if network.deployed.startswith("group:"):
        result["groups"] = {
            name: only_used(unwrap(found).state_dict(), input_keys(unwrap(found)), channels)
            for (name, channels), found in zip(trainer.groups.channels.items(), trainer.peers.evaluated, strict=True)
        }
    if kept is None:
        networks = len(trainer.peers.networks) if hasattr(trainer, "peers") else 1
        updates = networks * trainer.num_epochs * trainer.num_iterations_per_epoch
        return {**result, "updates": updates, "networks": networks}
    stages = trainer.stages
    first, second = max(1, len(stages.first)), max(1, len(stages.second))
    epochs = stages.first_epochs * first + (stages.epochs - stages.first_epochs) * second
    checkpoint = torch.load(kept / CHECKPOINT, weights_only=True, map_location="cpu")
    labels = [sorted(group) for group in stages.first] or [list(trainer.table.labels)]
    return {
        **result,
        "updates": epochs * trainer.num_iterations_per_epoch,
        "networks": second,
        "stage1": [checkpoint["mutual_state"]["peers"]["networks"], labels],
    }


def stage1_folder(setting: Setting, network: Network, schedule: Schedule, seed: int, trainer: Any) -> Path:
    """Returns the folder of the stage 1 that a training shares with others."""
    relevant = json.loads(json.dumps(asdict(trainer.settings)))
    for *path, last in SECOND:
        place = relevant
        for key in path:
            place = place[key]
        del place[last]
    text = json.dumps([network.dataset, setting.labelled, network.share, relevant], sort_keys=True)
    name = f"stage1_{hashlib.sha256(text.encode()).hexdigest()[:8]}_{schedule}_s{seed}"
    return setting.weights_file(network, schedule, seed).parent / name


def keep_stage1(trainer: Any, kept: Path) -> None:
    """Has stage 1 kept for other arms as soon as it is over, with how long it and its pseudo labels took."""
    started, original = time.perf_counter(), trainer.restore_stage

    def restore_stage(stage: int) -> None:
        output = Path(trainer.output_folder)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        shutil.copyfile(output / CHECKPOINT, kept / CHECKPOINT)
        shutil.copytree(output / PSEUDO, kept / PSEUDO)
        (kept / SECONDS).write_text(json.dumps(time.perf_counter() - started))  # written last: it says that all is here
        original(stage)

    trainer.restore_stage = restore_stage


def resume(trainer: Any, kept: Path) -> float:
    """Puts a trainer to the end of a stage 1 that another arm trained; returns the seconds that it took."""
    shutil.copytree(kept / PSEUDO, Path(trainer.output_folder) / PSEUDO, dirs_exist_ok=True)
    checkpoint: dict[str, Any] = torch.load(kept / CHECKPOINT, weights_only=True)
    state: Mapping[str, Any] = checkpoint["mutual_state"]
    checkpoint["mutual_state"] = {**state, "settings": asdict(trainer.settings)}
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    torch.save(checkpoint, file)
    trainer.load_checkpoint(str(file))
    seconds: float = json.loads((kept / SECONDS).read_text())
    return seconds
