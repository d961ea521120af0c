"""From masks of other tools to a training: through a reader, or, where two tools agree, from the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from other_tools import label_maps
from reviewing import fill, raw_label, run, truth, voxels
from training import SHORT, partial_block, stopped_and_resumed, trainer_for, weights

from nnunet_mutual.annotation.cases import Outline
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.model_card import _outlines
from nnunet_mutual.pseudo_labels.masks.make import STORE
from nnunet_mutual.report.data import _outlines as outlines_of_report
from nnunet_mutual.trainers import MutualPartialTrainer, PartialTrainer

KEYS = [f"case_{i:02d}" for i in range(6)]
GIVEN = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 2, "pseudo_labels": {"given": True, "weight": 0.5}}
SPLEEN = tiny.PLAIN["spleen"]


def judged(root: Path, *names: str, settings: dict[str, Any]) -> Path:
    """The tiny dataset with pseudo labels of so many tools; returns the preprocessed one."""
    preprocessed = tiny.make_dataset(root, block=partial_block(), settings=settings)
    folders = [word for name in names for word in ("--from", label_maps(root / name, KEYS), "--tool", f"{name} 1")]
    assert run("pseudo_label", 901, *folders) == 0
    return preprocessed


def test_a_reader_accepts_and_every_trainer_learns_with_the_weight(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")  # in test_review_page
    preprocessed = judged(nnunet_folders, "tool", settings=SHORT)
    review = nnunet_folders / "review"
    assert run("review", 901, "-o", review) == 0
    page = (review / "review.html").read_text()
    assert "masks of tool 1" in page and "The outlines come from another tool" in page
    assert "<dd>no second opinion: only a reader can accept it" in page
    assert "<td>no second opinion</td>" in page and "<td>rejected</td>" not in page
    masks = sorted((review / "candidates").glob("case_0[024]__03_spleen.nii.gz"))
    assert len(masks) == 3
    for file in masks:
        np.testing.assert_array_equal(voxels(file) > 0, truth(file.name[:7]) == SPLEEN)
    own = review / "own.nii.gz"
    own.write_bytes(masks[1].read_bytes())
    answers = {("case_00", "spleen"): ("accept",), ("case_02", "spleen"): ("corrected", "own.nii.gz")}
    fill(review / "review.csv", answers)
    capsys.readouterr()
    assert run("accept", 901, review / "review.csv", "--weight", 0.25, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Accepted masks count 0.25 in trainings" in said and "review.csv --weight 0.25" in said
    assert run("accept", 901, review / "review.csv", "--weight", 0.25) == 0
    np.testing.assert_array_equal(raw_label(nnunet_folders, "case_00") == SPLEEN, truth("case_00") == SPLEEN)
    assert run("check", 901) == 0

    content = json.loads((preprocessed / "dataset.json").read_text())
    cases = content["mutual"]["cases"]
    assert cases["case_00"]["outlined"] == {"spleen": {"by": "tool 1", "weight": 0.25}}
    assert "outlined" not in cases["case_02"], "what a person corrected counts as drawn"
    table = AnnotationTable.from_dataset_json(content)
    assert table.outlines == [(Outline("spleen", "tool 1", 0.25), 1)]
    assert "| spleen | tool 1 | 0.25 | 1 |" in _outlines(table)
    assert outlines_of_report(table)[0].rows == [["spleen", "tool 1", "0.25", "1"]]  # type: ignore[union-attr]

    trainer = trainer_for(preprocessed, PartialTrainer)
    trainer.initialize()
    known = trainer.knowledge
    pattern = known.patterns(["case_00", "case_02"])
    assert known.tables.weights[pattern, SPLEEN].tolist() == [0.25, 1]
    assert not any(known.is_full)


def test_annotate_again_keeps_the_outlines_of_labels_that_it_still_lists(nnunet_folders: Path) -> None:
    block = partial_block()
    block["cases"]["case_00"] |= {"annotated": ["liver", "spleen"], "outlined": {"spleen": {"by": "T", "weight": 0.5}}}
    block["cases"]["case_02"] |= {"annotated": ["liver", "spleen"], "outlined": {"spleen": {"by": "T"}}}
    tiny.make_dataset(nnunet_folders, block=block, configurations=())
    file = nnunet_folders / "new.json"
    labels = {key: ["liver"] if i % 2 == 0 else ["tumour", "spleen"] for i, key in enumerate(KEYS)}
    file.write_text(json.dumps(labels | {"case_00": ["liver", "spleen"]}))
    assert run("annotate", 901, file, "--force") == 0
    content = json.loads((nnunet_folders / "nnUNet_raw" / tiny.NAME / "dataset.json").read_text())
    found = {key: entry.get("outlined") for key, entry in content["mutual"]["cases"].items()}
    assert found.pop("case_00") == {"spleen": {"by": "T", "weight": 0.5}} and not any(found.values())


def test_a_training_begins_with_what_two_tools_agree_on_and_goes_on_where_it_was_stopped(nnunet_folders: Path) -> None:
    preprocessed = judged(nnunet_folders, "one", "two", settings=GIVEN)
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    assert trainer.stage_number == 2 and trainer.stages.first_epochs == 0 and trainer.current_epoch == 2
    assert not (Path(trainer.output_folder) / "checkpoint_stage1.pth").exists()
    given = PseudoStore(nnunet_folders / "nnUNet_raw" / tiny.NAME / STORE)
    training, _ = trainer.do_split()
    for key in training:  # on the same grid: the tiny dataset is not resampled
        np.testing.assert_array_equal(trainer.store.codes(key)[:], given.codes(key)[:])
        assert len(trainer.store.locations(key)[SPLEEN]) > 0
    assert trainer.store.accepted(training) == given.accepted(training) != {}
    tables, index = trainer.knowledge.pseudo_tables, trainer.knowledge.patterns(["case_00"])
    assert tables.weights[index][0, [1, SPLEEN]].tolist() == [1, 0.5]
    assert "pseudo labels were learnt from" in trainer.acted.trained and not trainer.acted.idle
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "Begins with pseudo labels of other tools instead of stage 1: 2 epochs of 1 network(s)" in log
    expected = weights(trainer)
    for file in Path(trainer.output_folder).glob("checkpoint_*"):
        file.unlink()
    resumed = stopped_and_resumed(preprocessed, MutualPartialTrainer, 3)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


@pytest.mark.parametrize("kind", ["none", "not accepted", "other table", "of an earlier training"])
def test_a_training_that_cannot_begin_with_them_says_why(nnunet_folders: Path, kind: str) -> None:
    names = ["one"] if kind == "not accepted" else ["one", "two"]
    preprocessed = judged(nnunet_folders, *names, settings=GIVEN)
    store = nnunet_folders / "nnUNet_raw" / tiny.NAME / STORE
    said = {
        "none": 'setting "pseudo_labels.given" needs masks of another tool',
        "not accepted": "is accepted in a training case of this fold",
        "other table": "was made with another annotation table or other labels",
        "of an earlier training": "is of an earlier training with other masks or settings",
    }[kind]
    if kind == "none":
        (store / "decisions.csv").unlink()
    elif kind == "other table":
        for root in ("nnUNet_raw", "nnUNet_preprocessed"):
            file = nnunet_folders / root / tiny.NAME / "dataset.json"
            content = json.loads(file.read_text())
            content["mutual"]["cases"]["case_00"]["patient"] = "p"
            file.write_text(json.dumps(content))
    elif kind == "of an earlier training":
        trainer_for(preprocessed, MutualPartialTrainer).initialize()
        made_by = json.loads((store / "made_by.json").read_text())
        (store / "made_by.json").write_text(json.dumps(made_by | {"masks": "others"}))
    with pytest.raises(MutualError, match=said.split("(")[0]):
        trainer_for(preprocessed, MutualPartialTrainer).run_training()


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, "1"])
def test_a_weight_that_cannot_be_used_is_refused(weight: Any) -> None:
    block = partial_block()
    block["cases"]["case_00"]["outlined"] = {"liver": {"weight": weight}}
    content = {"channel_names": {"0": "CT"}, "labels": tiny.PLAIN, "file_ending": ".nii.gz", "mutual": block}
    with pytest.raises(MutualError, match="must be a number above 0 and at most 1"):
        AnnotationTable.from_dataset_json(content)


def test_only_annotated_labels_have_outlines() -> None:
    block = partial_block()
    block["cases"]["case_00"]["outlined"] = {"spleen": {"by": "tool"}}
    content = {"channel_names": {"0": "CT"}, "labels": tiny.PLAIN, "file_ending": ".nii.gz", "mutual": block}
    with pytest.raises(MutualError, match="unknown annotated label 'spleen' in outlined of case \"case_00\""):
        AnnotationTable.from_dataset_json(content)
