"""Predicts the held-out cases with the single network that an arm deploys, and measures them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from nnunet_mutual.disk.images import read_images, reader_for, sidecar, write_label_map
from nnunet_mutual.disk.trainings import FINAL
from nnunet_mutual.engine.stock_model import open_predictor
from nnunet_mutual.evaluation.cases import LabelScores, Pair, Rules, measure_cases
from nnunet_mutual.evaluation.metrics import parse_tolerances
from nnunet_mutual.trial.raw_data import RawData

Measured = dict[str, dict[str, "float | None"]]  # case -> label -> value; None: not drawn, or absent in both


def predict(
    model: Path, fold: str, held_out: RawData, target: Path, device: torch.device, say: Callable[[str], None]
) -> None:
    """Predicts every held-out case with nnU-Net's sliding window, mirroring included.

    Args:
        model: folder of the training.
        fold: in it.
        held_out: the cases.
        target: folder for label maps; those that are there stay.
        device: where.
        say: is told of every case.
    """
    target.mkdir(parents=True, exist_ok=True)
    predictor = open_predictor(model, fold, FINAL, device)
    reader = reader_for(held_out.content, [path for f in held_out.training.values() for path in f.images.values()])
    for number, (key, files) in enumerate(held_out.training.items(), 1):
        say(f"predicting {number} of {len(held_out.training)}: {key}")
        place = target / (key + held_out.content["file_ending"])
        if place.is_file():
            continue
        images, properties = read_images(reader, [files.images[n] for n in sorted(files.images)])
        voxels = predictor.predict_single_npy_array(images, properties, None, None, False)
        half = target / f"unfinished{held_out.content['file_ending']}"
        write_label_map(reader, voxels, half, properties)
        if (spacing := sidecar(half, is_label=True)) is not None:  # first, for a label map that is there is whole
            spacing.replace(place.with_suffix(".json"))
        half.replace(place)


def measure(predictions: Path, held_out: RawData, processes: int = 1) -> dict[str, Measured]:
    """Returns metric -> case -> label -> value, of the labels that a case draws.

    Args:
        predictions: folder of label maps.
        held_out: the cases.
        processes: at most.
    """
    table, ending = held_out.table, held_out.content["file_ending"]
    reader = reader_for(held_out.content, [files.label for files in held_out.training.values()])
    rules = Rules(table, reader, parse_tolerances((), table.labels))
    pairs = [Pair(key, predictions / (key + ending), files.label) for key, files in held_out.training.items()]
    found = measure_cases(pairs, rules, processes=processes)
    return {name: _of_metric(found, metric, table.labels) for name, metric in METRICS.items()}


METRICS = {"dice": "Dice", "surface_dice": "surface_dice"}


def _of_metric(found: dict[str, LabelScores], metric: str, labels: tuple[str, ...]) -> Measured:
    def cell(scores: LabelScores, label: str) -> float | None:
        value = scores.get(label, {}).get(metric, math.nan)
        return None if math.isnan(value) else float(value)

    return {case: {label: cell(scores, label) for label in labels} for case, scores in found.items()}
