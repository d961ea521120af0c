"""Whole trainings on two processes of DDP, on the CPU: the same networks, teachers and decisions in both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from modalities import make_preprocessed
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from processes import in_processes, joined, leaves
from test_soft_label_trainer import teach
from torch.nn.parallel import DistributedDataParallel
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual import trainers
from nnunet_mutual.cli.parser import main

# Most without a seed: what must be alike has to be made so. With one, samples must differ nonetheless.
FEW = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 2, "seed": None}
LACKING = {"case_01": "T1", "un_0": "FLAIR"}


def partial_data(root: Path, **settings: Any) -> Path:
    return tiny.make_dataset(root, block=partial_block(), settings={**FEW, **settings}, batch_dice=True)


def stages(root: Path) -> Path:
    lax = {"label": False, "voxel": False}
    return partial_data(root, **GROUPS, seed=1, num_epochs=4, fd_form="own", pseudo_labels=lax, ema=0.9)


def streams(root: Path) -> Path:
    return two_stream_dataset(root, settings=FEW, block=partial_block(), batch_dice=True)


def taught(root: Path) -> Path:
    return partial_data(root, networks=2, teachers="crossed", sure=0.2, ramp=0.01)


def soft_labels(root: Path) -> Path:
    preprocessed = streams(root)
    assert main(["preprocess_unlabelled", "-d", "901", "--soft", str(teach(root, preprocessed))]) == 0
    return preprocessed


def modalities(root: Path) -> Path:
    return make_preprocessed(root, groups={"T1": ["T1"], "FLAIR": ["FLAIR"]}, missing=LACKING, settings=FEW)


DATA: dict[str, Callable[[Path], Path]] = {
    "PartialTrainer": partial_data,
    "MutualPartialTrainer": stages,
    "MeanTeacherTrainer": streams,
    "MutualCorrelationTrainer": streams,
    "MutualPrototypeTrainer": streams,
    "MutualCrossModalTrainer": modalities,
    "SoftLabelTrainer": soft_labels,
    "TaughtPartialTrainer": taught,
}
COUNTS = ("numbers", "confident", "alarm")  # of the process's own samples, for the log
QUICK = ("MutualPartialTrainer", "MutualPrototypeTrainer")


def work(rank: int, store: Any, name: str, preprocessed: Path) -> dict[str, Any]:
    with joined(rank, store):
        return trained(rank, name, preprocessed)


def trained(rank: int, name: str, preprocessed: Path) -> dict[str, Any]:
    """What a process has after the training."""
    host.DDP = lambda network, device_ids: DistributedDataParallel(network)
    host.device_count = lambda: 0
    torch.manual_seed(rank)
    np.random.seed(rank)
    trainer = trainer_for(preprocessed, getattr(trainers, name))
    trainer.device = torch.device("cpu")  # under DDP, nnU-Net takes the GPU of the process's number
    seen: list[str] = []
    to_batch = trainer.training_batch
    trainer.training_batch = lambda batch: (seen.extend(map(str, batch["keys"])), to_batch(batch))[1]
    trainer.run_training()
    state = trainer.peers.state_dict()
    return {
        "state": leaves([state, *(o.state_dict() for o in trainer.objectives)], COUNTS),
        "decisions": [trainer.deployed, trainer._best_ema, trainer.online.ranking.state_dict(), trainer.stage_number],
        "batch": (trainer.batch_size, trainer.oversample_foreground_percent, seen),
        "shared": trainer.peers.ranks is trainer.ranks,
        "logged": list(trainer.logger.local_logger.my_fantastic_logging["train_losses"]),
        "moved": not torch.equal(trainer._first_weight, next(trainer.network.parameters())),
    }


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DATA]
)
def test_both_processes_end_with_the_same_networks(name: str, nnunet_folders: Path) -> None:
    first, second = in_processes(nnunet_folders, work, name, DATA[name](nnunet_folders))
    assert first["state"].keys() == second["state"].keys()
    assert [key for key, value in first["state"].items() if not torch.equal(value, second["state"][key])] == []
    assert str(first["decisions"]) == str(second["decisions"])
    assert first["batch"][2] != second["batch"][2], "each process has samples of its own"
    assert first["moved"] and first["shared"] and second["shared"]
    assert first["logged"] == second["logged"], "the mean over both"
    if name != "PartialTrainer":  # whose batches nnU-Net divides: the others compose each as in one process
        assert first["batch"][:2] == second["batch"][:2]
        assert first["batch"][1] == 0.33
