"""Trainings that 0.1.0 began: the only checkpoints of tests that no test has to train."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny
import torch
from modalities import make_preprocessed
from training import partial_block
from two_streams import two_stream_dataset

CHECKPOINTS = Path(__file__).resolve().parents[1] / "fixtures" / "0.1.0"
NAMES = [file.name.removesuffix(".pth.xz") for file in sorted(CHECKPOINTS.glob("*.pth.xz"))]
DATASETS = {
    "PartialTrainer": lambda root: tiny.make_dataset(root, block=partial_block()),
    "MutualPartialTrainer": lambda root: tiny.make_dataset(root, block=partial_block()),
    "MutualCrossModalTrainer": make_preprocessed,
}


THEN = {"MutualCrossModalTrainer": {"form": "contrast", "ramp": 0.4}}  # defaults that have changed since


def put(root: Path, name: str, settings: Mapping[str, Any] | None = None) -> tuple[Path, Path, dict[str, Any]]:
    """Returns dataset and fold of a training of 0.1.0 that was stopped, and its checkpoint.

    Args:
        root: of nnU-Net's folders.
        name: of the trainer.
        settings: added to the plans; None: defaults that have changed since.
    """
    preprocessed = DATASETS.get(name, two_stream_dataset)(root)
    fold = root / "nnUNet_results" / tiny.NAME / f"{name}__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    content = lzma.decompress((CHECKPOINTS / f"{name}.pth.xz").read_bytes())
    (fold / "checkpoint_latest.pth").write_bytes(content)
    checkpoint = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    for folder in (preprocessed, fold.parent):
        (folder / "dataset.json").write_text(json.dumps(checkpoint["init_args"]["dataset_json"]))
    plans = checkpoint["init_args"]["plans"]
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    plans["configurations"]["3d_fullres"]["mutual"] |= THEN.get(name, {}) if settings is None else settings
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    return preprocessed, fold, checkpoint
