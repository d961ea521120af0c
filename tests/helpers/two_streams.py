"""Trainers with unlabelled images on the tiny dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from training import SHORT, partial_block, region_block
from unlabelled_images import add_unlabelled

from nnunet_mutual.cli.parser import main

UNLABELLED = [f"un_{n}" for n in range(3)]
KINDS: dict[str, dict[str, Any]] = {  # options of two_stream_dataset
    "partial": {"block": partial_block()},
    "regions": {"labels": tiny.REGIONS, "block": region_block()},
    "ignore": {"ignore": True},
    "regions with ignore": {"labels": tiny.REGIONS, "ignore": True},
    "2d": {"configuration": "2d"},
    "anisotropic": {"configuration": "3d_aniso", "batch_dice": True},
}


def two_stream_dataset(root: Path, *, configuration: str = "3d_fullres", settings: Any = None, **options: Any) -> Path:
    """A tiny dataset with images in imagesUn, preprocessed."""
    settings = {**SHORT, **(settings or {})}
    preprocessed = tiny.make_dataset(root, configurations=(configuration,), settings=settings, **options)
    add_unlabelled(root, len(UNLABELLED))
    assert main(["preprocess_unlabelled", "-d", "901", "-c", configuration]) == 0
    return preprocessed


def terms_on_one_batch(trainer: Any, steps: int = 12) -> tuple[dict[str, float], dict[str, float]]:
    """Trains on the same images again and again; returns the terms of the first and of the last step."""
    trainer.peers.set_epoch(0)
    batch = next(trainer.dataloader_train)
    found = [trainer.train_step(batch)["terms"].tolist() for _ in range(steps)]
    first, last = (dict(zip(trainer.stage.term_names, terms, strict=True)) for terms in (found[0], found[-1]))
    return first, last


def with_soft_labels(root: Path, probabilities: np.ndarray, names: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """A dataset and the same soft label for all its unlabelled images."""
    preprocessed = two_stream_dataset(root)
    soft = root / "soft"
    soft.mkdir()
    for n in range(3):
        np.savez_compressed(soft / f"un_{n}.npz", probabilities=probabilities)
    content = {"channel_names": {"0": "other"}, "labels": names or tiny.PLAIN, "file_ending": ".nii.gz"}
    (soft / "dataset.json").write_text(json.dumps(content))
    return preprocessed, soft
