"""Folds of one folder that were trained with other labels, channels or plans are not mixed up."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from training import SHORT, partial_block, trainer_for

from nnunet_mutual.cli.parser import main
from nnunet_mutual.engine.folds import difference, what_predicts
from nnunet_mutual.errors import MutualError

LABELS = {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
CONTENT: dict[str, Any] = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


def changed(content: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda c: c["labels"].update(liver=3, spleen=1), True),
        (lambda c: c.update(channel_names={"0": "MR"}), True),
        (lambda c: c.update(labels=dict(reversed(LABELS.items()))), False),
        (lambda c: c.update(numTraining=99, mutual={"version": 1}), False),
    ],
)
def test_labels_and_channels_matter(change: Callable[[dict[str, Any]], Any], matters: bool) -> None:
    plans = tiny.plans()
    before, after = (what_predicts(plans, one, "3d_fullres") for one in (CONTENT, changed(CONTENT, change)))
    assert (before != after) == matters


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda own: own.update(spacing=[2.0, 2.0, 2.0]), True),
        (lambda own: own["architecture"]["arch_kwargs"].update(features_per_stage=[4, 8, 8]), True),
        (lambda own: own.update(batch_size=9, patch_size=[8, 8, 8], mutual={"num_epochs": 3}), False),
    ],
)
@pytest.mark.parametrize("configuration", ["3d_fullres", "inherits"])
def test_what_prediction_reads_of_plans_matters(
    change: Callable[[dict[str, Any]], Any], matters: bool, configuration: str
) -> None:
    plans = tiny.plans()
    plans["configurations"]["inherits"] = {"inherits_from": "3d_fullres", "batch_size": 1}
    other = changed(plans, lambda content: change(content["configurations"]["3d_fullres"]))
    before, after = (what_predicts(one, CONTENT, configuration) for one in (plans, other))
    assert (before != after) == matters
    overridden = changed(other, lambda content: content["configurations"].update(inherits=own(plans)))
    assert what_predicts(overridden, CONTENT, "inherits") == what_predicts(plans, CONTENT, "3d_fullres")


def own(plans: dict[str, Any]) -> dict[str, Any]:
    """What a configuration inherits and changes back."""
    return {**plans["configurations"]["3d_fullres"], "inherits_from": "3d_fullres"}


@pytest.mark.parametrize(("scheme", "matters"), [("CTNormalization", True), ("ZScoreNormalization", False)])
def test_intensities_matter_where_images_are_normalised_by_them(scheme: str, matters: bool) -> None:
    plans = changed(
        tiny.plans(), lambda content: content["configurations"]["3d_fullres"].update(normalization_schemes=[scheme])
    )
    other = changed(plans, lambda content: content["foreground_intensity_properties_per_channel"]["0"].update(mean=7.5))
    before, after = (what_predicts(one, CONTENT, "3d_fullres") for one in (plans, other))
    assert (before != after) == matters


def test_the_order_of_modality_groups_matters() -> None:
    one, other = ({**tiny.plans(), "modality_groups": {name: [name] for name in names}} for names in ("ab", "ba"))
    assert what_predicts(one, CONTENT, "3d_fullres") != what_predicts(other, CONTENT, "3d_fullres")


def test_a_checkpoint_that_does_not_say_is_no_other_one() -> None:
    for init_args in ({}, {"plans": {}, "dataset_json": {}, "configuration": "3d_fullres"}):
        assert difference({"init_args": init_args}, tiny.plans(), CONTENT) == ""


def test_a_training_goes_on_with_its_own_plans_alone(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    shutil.copyfile(*(Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")))
    file = preprocessed / "nnUNetPlans.json"
    before = json.loads(file.read_text())
    change = {"patch_size": [8, 8, 8]}
    file.write_text(json.dumps(changed(before, lambda c: c["configurations"]["3d_fullres"].update(change))))
    trainer_for(preprocessed, resume="latest")  # as users do where memory is short
    change["spacing"] = [2.0, 1.0, 1.0]
    file.write_text(json.dumps(changed(before, lambda c: c["configurations"]["3d_fullres"].update(change))))
    with pytest.raises(
        MutualError, match=r"checkpoint_latest.pth was trained with other .*configuration/spacing.*; put"
    ):
        trainer_for(preprocessed, resume="latest")


def test_the_order_of_regions_matters() -> None:
    content = {**CONTENT, "labels": {"background": 0, "organ": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
    turned = {**content, "labels": {"background": 0, "tumour": 2, "organ": [1, 2]}}
    before, after = (what_predicts(tiny.plans(), one, "3d_fullres") for one in (content, turned))
    assert before != after


def test_a_fold_of_other_labels(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    fold = Path(trainer.output_folder)
    (fold / "validation").mkdir()
    (fold / "validation" / "summary.json").write_text("{}")
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    files = [folder / "dataset.json" for folder in (raw, preprocessed, fold.parent)]
    turned = [changed(json.loads(f.read_text()), lambda c: c["labels"].update(liver=3, spleen=1)) for f in files]
    for file, content in zip(files[:2], turned, strict=False):
        file.write_text(json.dumps(content))
    before = files[2].read_bytes()
    with pytest.raises(MutualError, match=r"fold_0 of .* with other labels, channels or plans .*labels/liver"):
        trainer_for(preprocessed, fold=1).run_training()
    assert files[2].read_bytes() == before and not (fold.parent / "fold_1").exists()
    files[2].write_text(json.dumps(turned[2]))  # as an older version did
    for command in ("export", "report", "pseudo_label"):
        options = ["0", "-device", "cpu"] if command == "pseudo_label" else ["-f", "0"]
        assert main([command, "901", "3d_fullres", *options, "-tr", "PartialTrainer"]) == 2
        said = capsys.readouterr().err
        assert "fold 0 of" in said and "labels/liver" in said and "train fold 0 anew" in said, (command, said)
    assert torch.load(fold / "checkpoint_final.pth", weights_only=True)["init_args"]["dataset_json"]["labels"] == LABELS
