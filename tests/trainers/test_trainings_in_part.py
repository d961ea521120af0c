"""Trainings on cases of which a label is drawn in part: end to end, what is scored, and what a fold needs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import KEYS, SHORT, largest_difference, lines_of, started, trainer_for

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export import model_card
from nnunet_mutual.trainers import (
    MeanTeacherTrainer,
    MutualPartialTrainer,
    MutualPrototypeTrainer,
    PartialTrainer,
    TaughtPartialTrainer,
)

ONE_EPOCH: dict[str, Any] = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 2}
FOLD = [{"train": KEYS[:4], "val": KEYS[4:]}]
TRAINERS = [PartialTrainer, TaughtPartialTrainer, MutualPartialTrainer, MeanTeacherTrainer, MutualPrototypeTrainer]


def block(labels: dict[str, Any] = tiny.PLAIN) -> dict[str, Any]:
    """Every other case draws its first label completely and its last in part; the second one only the last in part."""
    *_, last = names = [name for name in labels if name != "background"]
    some: dict[str, Any] = {"source": "a", "annotated": names[:1], "incomplete": [last]}
    cases = {key: dict(some) if i % 2 else {"source": "a"} for i, key in enumerate(KEYS)}
    cases[KEYS[1]]["annotated"] = []
    return {"version": 1, "sources": {"a": {"annotated": names}}, "cases": cases}


def made(root: Path, labels: dict[str, Any] = tiny.PLAIN, **options: Any) -> Path:
    preprocessed = tiny.make_dataset(root, labels=labels, block=block(labels), settings=ONE_EPOCH, **options)
    (preprocessed / "splits_final.json").write_text(json.dumps(FOLD))
    return preprocessed


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_every_trainer_learns_from_it_and_stock_loads_the_network(nnunet_folders: Path, trainer_class: Any) -> None:
    preprocessed = made(nnunet_folders)
    trainer = trainer_for(preprocessed, trainer_class)
    trainer.run_training()
    assert math.isfinite(lines_of(trainer)[-1]["loss"])
    stock = trainer_for(preprocessed, nnUNetTrainer)
    stock.initialize()
    stock.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))


@pytest.mark.parametrize("kind", ["plain", "regions", "ignore", "2d"])
def test_validation_says_how_much_of_the_drawn_voxels_is_found_and_no_dice(nnunet_folders: Path, kind: str) -> None:
    configuration = "2d" if kind == "2d" else "3d_fullres"
    labels = tiny.REGIONS if kind == "regions" else tiny.PLAIN
    preprocessed = made(nnunet_folders, labels, configurations=(configuration,), ignore=kind == "ignore")
    trainer = trainer_for(preprocessed, configuration=configuration)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    label, value = ("enhancing", "3") if kind == "regions" else ("spleen", "3")
    value = "(3,)" if kind == "regions" else value
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    whole, part = (case["metrics"][value] for case in summary["metric_per_case"])
    assert not math.isnan(whole["n_ref"]) and all(math.isnan(number) for number in part.values())
    said = next(file.read_text() for file in folder.glob("training_log*.txt"))
    assert f"{label}: " in said and "of the drawn voxels found (sensitivity) in 1 validation cases" in said
    assert f"1 validation case(s) draw {label} in part ({KEYS[5]}): of these only the share" in said
    measured = (folder / "validation" / "metrics.csv").read_text().splitlines()
    assert [row for row in measured if row.startswith(KEYS[4]) and label in row]
    assert not [row for row in measured if row.startswith(KEYS[5]) and label in row]


def test_a_case_that_draws_only_a_part_is_labelled(nnunet_folders: Path) -> None:
    trainer, _ = started(made(nnunet_folders), MeanTeacherTrainer)
    assert trainer.stream.labelled_keys == KEYS[:4] and not trainer.stream.unlabelled
    assert "on 4 cases, 2 of which leave labels open" in trainer.acted.trained


def test_a_fold_needs_a_case_that_draws_all(nnunet_folders: Path) -> None:
    preprocessed = made(nnunet_folders)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[1::2], "val": KEYS[::2]}]))
    with pytest.raises(
        MutualError, match=r"no training case of fold 0 annotates tumour, spleen completely: where only"
    ):
        trainer_for(preprocessed).initialize()


def test_what_is_found_where_nobody_drew_costs_nothing(nnunet_folders: Path) -> None:
    """The loss, over all deep supervision levels, of a case that draws a part of the spleen and nothing else."""
    trainer, loader = started(made(nnunet_folders), PartialTrainer)
    batch = trainer.training_batch(next(loader))
    (pattern,) = trainer.knowledge.patterns([KEYS[1]])
    target = [torch.zeros_like(level) for level in batch.target]
    for level in target:
        level[:, :, 0, 0] = 3
    batch = replace(batch, target=target, patterns=[pattern] * 2, pattern_index=torch.tensor([pattern] * 2))

    def loss(spleen: float) -> float:
        levels = [torch.zeros(2, 4, *level.shape[2:]) for level in target]
        for level in levels:
            level[:, 3] = spleen
        return float(trainer.supervised.loss(levels, batch))

    weights, sizes = trainer.supervised.level_weights, [level.shape[2:] for level in target]
    missed = sum(w / math.prod(size[:2]) for w, size in zip(weights, sizes, strict=True)) * (50 + math.log(3))
    assert loss(-50) == pytest.approx(missed, rel=1e-4), "found nowhere: the drawn voxels alone cost"
    rows = [len(range(size[1])[1:3]) / math.prod(size[:2]) for size in sizes]  # the next two of the plane
    beside = sum(w * row for w, row in zip(weights, rows, strict=True)) * (50 - math.log(3))
    assert loss(50) == pytest.approx(beside, rel=1e-4), "found everywhere: what is beside the drawn voxels costs"
    trainer.supervised.options["margin"] = 0
    assert loss(50) == pytest.approx(0, abs=1e-5)


def test_same_weights_as_an_unannotated_label_where_nothing_is_drawn(nnunet_folders: Path) -> None:
    """Without a drawn voxel "in part" says what "not annotated" says."""
    found = []
    preprocessed = made(nnunet_folders)
    for key in ("annotated", "incomplete"):
        file = preprocessed / "dataset.json"
        content = json.loads(file.read_text())
        for i, case in enumerate(content["mutual"]["cases"].values()):
            if i % 2:
                case.pop("incomplete", None)
                case |= {"annotated": ["liver"]} | ({"incomplete": ["tumour"]} if key == "incomplete" else {})
        file.write_text(json.dumps(content))
        raw = preprocessed.parents[1] / "nnUNet_raw" / tiny.NAME / "dataset.json"
        raw.write_text(json.dumps(content))
        trainer, _ = started(preprocessed, PartialTrainer, 2)
        found.append(trainer.network.state_dict())
    assert largest_difference(*found) == 0


def test_report_and_model_card_say_what_is_drawn_in_part(nnunet_folders: Path) -> None:
    trainer = trainer_for(made(nnunet_folders))
    trainer.run_training()
    trainer.perform_actual_validation()
    training = ["901", "3d_fullres", "-tr", "PartialTrainer", "-f", "0"]
    assert main(["report", *training, "--no-images"]) == 0
    results = nnunet_folders / "nnUNet_results"
    page = " ".join(re.sub(r"<[^>]+>", " ", next(results.rglob("*.html")).read_text()).split())
    assert "in brackets: cases in which it is drawn in part, so that what is not drawn is unknown" in page
    assert "spleen 2 + 1 (2 + 1) 2 + 1 (2 + 1)" in page
    table = AnnotationTable.from_dataset_json({"labels": tiny.PLAIN, "channel_names": {"0": "CT"}, "mutual": block()})
    data = model_card._data(SimpleNamespace(cases=6), table, 0)  # type: ignore[arg-type]
    assert "| liver, spleen (in part) | 2 |" in data and "| spleen (in part) | 1 |" in data
