"""PartialTrainer in every configuration and on every kind of label, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from training import KEYS, SHORT, largest_difference, partial_block, region_block, trainer_for, weights

from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective, Term
from nnunet_mutual.trainers import PartialTrainer
from nnunet_mutual.trainers.base import MutualTrainer

ONE_EPOCH = {**SHORT, "num_epochs": 1}


def lines_of(trainer: Any) -> list[dict]:
    return [json.loads(x) for x in (Path(trainer.output_folder) / "mutual_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres", "3d_aniso", "3d_lowres"])
@pytest.mark.parametrize("labels", ["plain", "regions", "ignore", "regions with ignore"])
def test_every_configuration_and_kind_of_label(nnunet_folders: Path, configuration: str, labels: str) -> None:
    regions = "regions" in labels
    preprocessed = tiny.make_dataset(
        nnunet_folders,
        labels=tiny.REGIONS if regions else None,
        block=region_block() if regions else partial_block(),
        settings=ONE_EPOCH,
        configurations=(configuration,),
        ignore="ignore" in labels,
    )
    trainer = trainer_for(preprocessed, configuration=configuration)
    trainer.initialize()
    before = weights(trainer)
    trainer.run_training()
    assert math.isfinite(lines_of(trainer)[0]["terms"]["supervised"])
    assert largest_difference(before, weights(trainer)) > 0
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").exists()


def test_cascade(nnunet_folders: Path) -> None:
    stages = ("3d_lowres", "3d_fullres")
    preprocessed = tiny.make_dataset(
        nnunet_folders, block=partial_block(), settings=ONE_EPOCH, configurations=stages, cases=6
    )
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[:4], "val": KEYS}]))
    lowres = trainer_for(preprocessed, configuration="3d_lowres")
    lowres.run_training()
    lowres.perform_actual_validation()
    passed_on = Path(lowres.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    assert sorted(f.name for f in passed_on.glob("*.b2nd")) == [f"{key}.b2nd" for key in KEYS]
    fullres = trainer_for(preprocessed, configuration="3d_cascade_fullres")
    fullres.run_training()
    assert fullres.num_input_channels == 1 + 3
    assert math.isfinite(lines_of(fullres)[0]["loss"])


def test_without_deep_supervision_and_on_all_cases(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH)
    trainer = trainer_for(preprocessed, fold="all")
    trainer.enable_deep_supervision = False
    trainer.run_training()
    assert math.isfinite(lines_of(trainer)[0]["loss"])
    assert [sorted(part) for part in trainer.do_split()] == [KEYS, KEYS]


def test_an_existing_split_is_honoured(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH)
    file = preprocessed / "splits_final.json"
    file.write_text(json.dumps([{"train": KEYS[:4], "val": KEYS[4:5]}]))
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    assert trainer.do_split() == (KEYS[:4], KEYS[4:5])
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "no validation case annotates" in log and "n = 0" in log
    with pytest.raises(MutualError, match="fold 1 is not in .*folds 0 to 0"):
        trainer_for(preprocessed, fold=1).initialize()
    file.write_text(json.dumps([{"train": KEYS[0::2], "val": KEYS[1::2]}]))
    with pytest.raises(MutualError, match="no training case of fold 0 annotates tumour, spleen"):
        trainer_for(preprocessed).initialize()


def test_wrong_tables_and_settings_leave_nothing_behind(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings={**SHORT, "num_epoch": 3})
    with pytest.raises(MutualError, match="did you mean 'num_epochs'"):
        trainer_for(preprocessed)
    assert list((nnunet_folders / "nnUNet_results").iterdir()) == []


def test_an_unlisted_case_is_refused(nnunet_folders: Path) -> None:
    block = partial_block()
    del block["cases"]["case_03"]
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=SHORT, drop=False)
    with pytest.raises(MutualError, match=r"1 case\(s\) are not listed.*case_03"):
        trainer_for(preprocessed).initialize()


def test_a_corrected_table_must_reach_the_preprocessed_data(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME / "dataset.json"
    content = json.loads(raw.read_text())
    content["mutual"]["cases"]["case_00"]["annotated"] = []
    raw.write_text(json.dumps(content))
    with pytest.raises(MutualError, match="nnunet_mutual sync"):
        trainer_for(preprocessed).run_training()


class Failing(Objective):
    """Turns NaN at its third step."""

    term_names = ("broken",)

    def __init__(self) -> None:
        self.step = 0

    def terms(self, outputs: Sequence, batch: object, progress: object) -> dict[str, Term]:
        self.step += 1
        return {"broken": Term(outputs[0][0].mean() * (math.nan if self.step == 3 else 0.0))}


class FailingTrainer(MutualTrainer):
    """Meets a non-finite term."""

    def build_objectives(self) -> list[Objective]:
        return [*super().build_objectives(), Failing()]


def test_a_non_finite_term_stops_before_the_optimiser_step(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed, FailingTrainer)
    seen = []
    original = trainer.train_step

    def train_step(batch: dict) -> dict:
        seen.append(weights(trainer))
        return original(batch)

    trainer.train_step = train_step
    with pytest.raises(MutualError, match='"broken" became nan in epoch 0, iteration 2 .*case_'):
        trainer.run_training()
    assert largest_difference(seen[-1], weights(trainer)) == 0
    assert largest_difference(seen[0], seen[-1]) > 0


def test_unlabelled_cases_are_ordinary_members(nnunet_folders: Path) -> None:
    block = partial_block()
    for key in KEYS[:2]:
        block["cases"][key]["annotated"] = []
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=ONE_EPOCH)
    trainer = trainer_for(preprocessed, fold="all")
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    batch = next(loader)
    batch["keys"] = np.array(KEYS[:2])
    batch["target"] = [torch.zeros_like(level) for level in batch["target"]]
    step = trainer.train_step(batch)
    assert float(step["loss"]) == 0.0


def test_an_epoch_without_any_scored_label_does_not_spoil_the_mean(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    nothing = {name: np.zeros(3) for name in ("tp_hard", "fp_hard", "fn_hard")} | {"loss": np.float32(1)}
    some = {**nothing, "tp_hard": np.array([5.0, 0, 0]), "fp_hard": np.array([5.0, 0, 0])}
    for epoch, outputs in enumerate((some, nothing)):
        trainer.current_epoch = epoch
        trainer.on_validation_epoch_end([outputs])
    assert trainer.logger.get_value("mean_fg_dice", None) == pytest.approx([2 / 3, 2 / 3])
    assert np.isfinite(trainer.logger.get_value("ema_fg_dice", None)).all()
    assert np.isnan(trainer.logger.get_value("dice_per_class_or_region", 1)).all()


def test_terms_reach_every_logger(nnunet_folders: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple] = []

        def log(self, key: str, value: float, step: int) -> None:
            self.seen.append((key, value, step))

        def log_summary(self, key: str, value: float) -> None: ...

        def update_config(self, config: dict) -> None: ...

    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed)
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.run_training()
    logged = [(value, step) for key, value, step in recorder.seen if key == "term/supervised"]
    assert logged == [(line["terms"]["supervised"], line["epoch"]) for line in lines_of(trainer)]
    assert [step for _, step in logged] == [0, 1, 2]


def test_pretrained_weights(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH)
    first = trainer_for(preprocessed)
    first.run_training()
    second = trainer_for(preprocessed, fold=1)
    second.settings = first.settings
    second.initialize()
    load_pretrained_weights(second.network, str(Path(first.output_folder) / "checkpoint_final.pth"))
    shared = {n: v for n, v in weights(first).items() if ".seg_layers." not in n}
    assert largest_difference(shared, {n: weights(second)[n] for n in shared}) == 0


def test_an_objective_from_outside_plugs_in(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)
    assert code is not None and len(code[1].splitlines()) <= 40
    folder = nnunet_folders / "my_trainers"
    folder.mkdir()
    (folder / "confident_trainer.py").write_text(code[1])
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    trainer_class = recursive_find_trainer_class_by_name("ConfidentTrainer")
    assert issubclass(trainer_class, PartialTrainer)
    settings = {**ONE_EPOCH, "entropy_weight": 0.5}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, trainer_class)
    trainer.run_training()
    terms = lines_of(trainer)[0]["terms"]
    assert 0 < terms["entropy"] <= math.log(4)
    assert lines_of(trainer)[0]["loss"] != pytest.approx(terms["supervised"], abs=1e-6)
