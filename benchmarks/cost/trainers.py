"""The trainers that are measured, each in the middle of its first epoch, in the same precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from settings import CONFIGURATION, read_json
from stock import MixedStock

import nnunet_mutual.trainers
from cost.dataset import BY_GROUP, in_parts

# Ratios to stock; those of several networks hold for two.
BARS = {
    "partial": {"step": 1.10, "memory": 1.05, "loader": 1.05},
    "mutual_partial_joint": {"step": 2.3},
    "mutual_partial_sequential": {"step": 2.6, "memory": 1.25},
    "pseudo_labels": {"case": 1.1},  # of stock predictions of that case by each network, with mirroring
    "mean_teacher": {"step": 1.5},  # of a batch with as many patches, half of them unlabelled
    "mutual_correlation_joint": {"step": 2.2, "occ": 1.02},  # with the correlation against without
    "mutual_prototype": {"step": 1.7},
    "mutual_cross_modal_joint": {"step": 2.2},  # of two groups
    "mutual_cross_modal_sequential": {"memory": 1.25},
}
CONSENSUS = {"memory": "joint", "form": "consensus", "second": "equal", "loss": {"correlation": 0.0}}
WITHOUT_OCC = "mutual_correlation_without_occ"


@dataclass(frozen=True)
class Recipe:
    """A trainer of the package (None: stock nnU-Net), its settings and its dataset."""

    trainer: str | None
    dataset: str
    block: dict[str, Any] = field(default_factory=dict)


def recipes(parts: int, networks: Sequence[int]) -> dict[str, Recipe]:
    """Returns what is measured, by name.

    Args:
        parts: into which the labels of the dataset of most trainers are divided.
        networks: numbers of networks with which MutualPartialTrainer is measured.
    """
    plain = in_parts(parts)
    found = {
        "stock": Recipe(None, plain),
        "partial": Recipe("PartialTrainer", plain),
        "taught": Recipe("TaughtPartialTrainer", plain),
        "taught_consensus": Recipe("TaughtPartialTrainer", plain, {"networks": 2, "memory": "joint"}),
        "mean_teacher": Recipe("MeanTeacherTrainer", plain),
        "mean_teacher_posed": Recipe("MeanTeacherTrainer", plain, {"strong_pose": True}),
        WITHOUT_OCC: Recipe("MutualCorrelationTrainer", plain, {"memory": "joint", "loss": {"correlation": 0.0}}),
        "mutual_prototype": Recipe("MutualPrototypeTrainer", plain),
        "prototype_filter": Recipe("MutualPrototypeTrainer", plain, {"role": "filter"}),
        "alternating": Recipe("MutualCorrelationTrainer", plain, {"form": "alternating"}),
        "consensus": Recipe("MutualCorrelationTrainer", plain, CONSENSUS),
    }
    for memory in ("joint", "sequential"):
        for number in networks:
            name = f"mutual_partial_{memory}" + ("" if number == 2 else f"_{number}")
            block = {"memory": memory, "stage1_networks": "groups"}
            found[name] = Recipe("MutualPartialTrainer", in_parts(number), block)
        found[f"mutual_correlation_{memory}"] = Recipe("MutualCorrelationTrainer", plain, {"memory": memory})
        block = {"memory": memory, "form": "contrast"}
        found[f"mutual_cross_modal_{memory}"] = Recipe("MutualCrossModalTrainer", BY_GROUP, block)
    found["cross_modal_averages"] = Recipe("MutualCrossModalTrainer", BY_GROUP, {"memory": "joint"})
    return found


def start(recipe: Recipe, work: Path, device: torch.device, *, mixed: bool, compiled: bool, graphs: str = "off") -> Any:
    """Returns a trainer in the middle of its first epoch.

    Args:
        recipe: which one.
        work: holds nnUNet_preprocessed.
        device: where it trains.
        mixed: mixed precision (float16 on CUDA, bfloat16 on a CPU) instead of float32.
        compiled: whether the networks are compiled, which nnU-Net leaves out on CPUs.
        graphs: the setting cuda_graphs.
    """
    folder = work / "nnUNet_preprocessed" / recipe.dataset
    plans = read_json(folder / "nnUNetPlans.json")
    common = {"amp": "auto" if mixed else "off", "cuda_graphs": graphs, "seed": 0}
    plans["configurations"][CONFIGURATION]["mutual"] = {**common, **recipe.block}
    plans["continue_training"] = False
    torch.manual_seed(0)
    if recipe.trainer is not None:
        trainer_class: Any = getattr(nnunet_mutual.trainers, recipe.trainer)
    else:
        trainer_class = MixedStock if mixed and device.type == "cpu" else nnUNetTrainer
    trainer = trainer_class(plans, CONFIGURATION, "all", read_json(folder / "dataset.json"), device)
    trainer._do_i_compile = lambda: compiled
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer
