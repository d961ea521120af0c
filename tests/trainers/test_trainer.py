"""PartialTrainer in every configuration and on every kind of label, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from training import (
    KEYS,
    SHORT,
    change_settings,
    largest_difference,
    lines_of,
    partial_block,
    region_block,
    trainer_for,
    weights,
)

from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.command import export
from nnunet_mutual.plugin import compat
from nnunet_mutual.trainers import MutualPartialTrainer, PartialTrainer

ONE_EPOCH = {**SHORT, "num_epochs": 1}


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


def test_cascade(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ("3d_lowres", "3d_fullres")
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH, configurations=stages)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[:4], "val": KEYS}]))
    lowres = trainer_for(preprocessed, configuration="3d_lowres")
    lowres.run_training()
    lowres.perform_actual_validation()
    passed_on = Path(lowres.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    assert sorted(f.name for f in passed_on.glob("*.b2nd")) == [f"{key}.b2nd" for key in KEYS]
    fullres = trainer_for(preprocessed, configuration="3d_cascade_fullres")
    (passed_on / f"{KEYS[1]}.b2nd").rename(passed_on / "aside")
    with pytest.raises(MutualError, match=rf"first stage has not predicted 1 case\(s\) \({KEYS[1]}; .*all its folds"):
        fullres.run_training()
    (passed_on / f"{KEYS[1]}.npz").touch()  # as of data of an older nnU-Net
    trainer_for(preprocessed, configuration="3d_cascade_fullres").do_split()
    (passed_on / f"{KEYS[1]}.npz").unlink()
    (passed_on / "aside").rename(passed_on / f"{KEYS[1]}.b2nd")
    fullres = trainer_for(preprocessed, configuration="3d_cascade_fullres")
    fullres.run_training()
    assert fullres.num_input_channels == 1 + 3
    assert math.isfinite(lines_of(fullres)[0]["loss"])
    fullres.perform_actual_validation()
    for i, key in enumerate(KEYS):
        restricted, full = (
            SimpleITKIO().read_seg(f"{fullres.output_folder}/{name}/{key}.nii.gz")[0]
            for name in ("validation", "validation_full")
        )
        assert restricted.shape == full.shape == (1, 16, 20, 18)
        assert set(np.unique(restricted)) <= {0, *((1,), (2, 3))[i % 2]}
    summary = json.loads((Path(fullres.output_folder) / "validation" / "summary.json").read_text())
    scored = [case["metrics"]["1"]["Dice"] for case in summary["metric_per_case"]]
    assert [math.isnan(dice) for dice in scored] == [False, True] * 3, "liver is annotated in every other case"
    (Path(fullres.output_folder) / "progress.png").write_bytes(b"a picture")
    options: dict[str, Any] = {"trainer": "PartialTrainer", "plans": "nnUNetPlans", "folds": ["0"], "output_name": None}
    export(tiny.NAME, "3d_cascade_fullres", checkpoint="checkpoint_final.pth", **options)
    assert "-o SEGMENTATIONS -prev_stage_predictions SEGMENTATIONS_OF_3d_lowres" in capsys.readouterr().out
    (Path(lowres.output_folder) / "progress.png").write_bytes(b"a picture")
    learnt_from = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in passed_on.iterdir()}
    export(tiny.NAME, "3d_lowres", checkpoint="checkpoint_best.pth", validate=True, **options)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in passed_on.iterdir()} == learnt_from
    damaged = passed_on / f"{KEYS[1]}.b2nd"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(MutualError, match=rf"{damaged} .*validate the fold of the first stage"):
        fullres.perform_actual_validation()


def test_without_deep_supervision_and_on_all_cases(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH)
    trainer = trainer_for(preprocessed, fold="all")
    trainer.enable_deep_supervision = False
    trainer.run_training()
    assert math.isfinite(lines_of(trainer)[0]["loss"])
    assert [sorted(part) for part in trainer.do_split()] == [KEYS, KEYS]


@pytest.mark.parametrize("trainer_class", [PartialTrainer, MutualPartialTrainer])
def test_networks_of_two_stages_have_a_loss(nnunet_folders: Path, trainer_class: type) -> None:
    """Their only output has the weight 0 / 0 in nnU-Net, which meets batches of fully annotated cases."""
    preprocessed = tiny.make_dataset(nnunet_folders, settings=ONE_EPOCH)
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["n_stages"] = 2
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder"):
        network[key] = network[key][:-1]
    file.write_text(json.dumps(plans))
    trainer = trainer_for(preprocessed, trainer_class)
    trainer.initialize()
    before = weights(trainer)
    trainer.run_training()
    assert largest_difference(before, weights(trainer)) > 0
    assert math.isfinite(lines_of(trainer)[-1]["loss"])


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


@pytest.mark.parametrize(
    ("settings", "table", "sentence"),
    [
        ({"num_epoch": 3}, {}, "did you mean 'num_epochs'"),
        ({"amp": "bfloat16"}, {}, "this processor does not compute in bfloat16"),
        ({}, {"case": {}}, "unknown key 'case'.*did you mean 'cases'"),
        ({}, {"cases": {"case_00": {"source": "c"}}}, "case \"case_00\" .* has the source 'c'"),
    ],
    ids=["setting", "processor", "block", "source"],
)
def test_wrong_tables_and_settings_leave_nothing_behind(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, table: dict, sentence: str
) -> None:
    monkeypatch.setattr(compat, "cpu_computes_bfloat16", lambda: False)
    block = partial_block(**table) | table
    settings = {**SHORT, **settings}
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=settings, configurations=(), cases=0)
    with pytest.raises(MutualError, match=sentence):
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
    with pytest.raises(MutualError, match="case_00.*nnunet_mutual sync"):
        trainer_for(preprocessed).run_training()
    assert list((nnunet_folders / "nnUNet_results").iterdir()) == [], "no fold seems to be there"
    with pytest.raises(MutualError, match="nnunet_mutual sync"):
        trainer_for(preprocessed).initialize()  # what -pretrained_weights and --c do first
    assert not (preprocessed / "splits_final.json").exists(), "a split of a wrong table would outlive its correction"


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
    nothing = {"by_source": np.zeros((3, 1, 2, 3)), "loss": np.float32(1)}
    some = {**nothing, "by_source": np.zeros((3, 1, 2, 3))}
    some["by_source"][0, 0, 0, 0] = some["by_source"][1, 0, 1, 0] = 5  # right in one source, wrong in the other
    for epoch, outputs in enumerate((some, nothing)):
        trainer.current_epoch = epoch
        trainer.on_validation_epoch_end([outputs])
    assert trainer.logger.get_value("mean_fg_dice", None) == pytest.approx([2 / 3, 2 / 3])
    assert np.isfinite(trainer.logger.get_value("ema_fg_dice", None)).all()
    assert np.isnan(trainer.logger.get_value("dice_per_class_or_region", 1)).all()
    (line,) = trainer.log.terms.file.read_text().splitlines()
    assert json.loads(line)["validation"] == {"Dice of liver, a": 1.0, "Dice of liver, b": 0.0}


def test_pretrained_weights(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=ONE_EPOCH)
    first = trainer_for(preprocessed)
    first.run_training()
    second = trainer_for(preprocessed, fold=1)
    second.initialize()
    fresh = weights(second)
    load_pretrained_weights(second.network, str(Path(first.output_folder) / "checkpoint_final.pth"))
    shared = {n: v for n, v in weights(first).items() if ".seg_layers." not in n}
    assert largest_difference(shared, {n: weights(second)[n] for n in shared}) == 0
    assert largest_difference(shared, {n: fresh[n] for n in shared}) > 0
    start, original = [], second.train_step
    second.train_step = lambda batch: (start.append(weights(second)), original(batch))[1]
    second.run_training()
    assert largest_difference(shared, {n: start[0][n] for n in shared}) == 0, "the training starts from them"


def test_validation_of_regions(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(
        nnunet_folders, labels=tiny.REGIONS, block=region_block(), settings=ONE_EPOCH, ignore=True
    )
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS, "val": KEYS[:2]}]))
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    stray = Path(trainer.output_folder) / "validation" / "case_05.nii.gz"  # of an earlier training with other folds
    stray.parent.mkdir()
    shutil.copy(preprocessed / "gt_segmentations" / stray.name, stray)
    trainer.perform_actual_validation()
    assert not stray.exists()
    read = {
        (name, key): SimpleITKIO().read_seg(f"{trainer.output_folder}/{name}/{key}.nii.gz")[0]
        for name in ("validation", "validation_full")
        for key in KEYS[:2]
    }
    assert set(np.unique(read["validation", "case_00"])) <= {0, 1}, "only the outer region is annotated there"
    assert set(np.unique(read["validation_full", "case_00"])) - {0, 1}, "or there was nothing to restrict"
    assert np.array_equal(read["validation", "case_00"] > 0, read["validation_full", "case_00"] > 0), "it keeps all"
    assert np.array_equal(read["validation", "case_01"], read["validation_full", "case_01"])
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    scored = {name: not np.isnan(m["Dice"]) for name, m in summary["metric_per_case"][0]["metrics"].items()}
    assert [name for name, there in scored.items() if there] == ["(1, 2, 3)"], "only where somebody drew it"


def test_a_region_is_not_scored_where_only_one_within_it_was_drawn(nnunet_folders: Path) -> None:
    block = region_block()
    block["cases"]["case_01"] = {"source": "b", "annotated": ["core"]}
    preprocessed = tiny.make_dataset(nnunet_folders, labels=tiny.REGIONS, block=block, settings=ONE_EPOCH)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS, "val": KEYS[:2]}]))
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    whole, inner = (case["metrics"]["(1, 2, 3)"]["Dice"] for case in summary["metric_per_case"])
    assert np.isnan(inner) and summary["mean"]["(1, 2, 3)"]["Dice"] == whole


def test_small_sources_are_drawn_more_often(nnunet_folders: Path) -> None:
    block = partial_block()
    block["cases"] = {key: {"source": "a" if key == KEYS[0] else "b"} for key in KEYS}
    preprocessed = tiny.make_dataset(nnunet_folders, block=block)
    shares = []
    for balance in (True, False):
        change_settings(preprocessed, **SHORT, balance_sources=balance)
        trainer = trainer_for(preprocessed, fold="all")
        trainer.initialize()
        loader, validation = trainer.get_dataloaders()
        for batches in (loader, validation):
            drawn = [key for _ in range(2000) for key in batches.data_loader.get_indices()]
            shares.append(drawn.count(KEYS[0]) / len(drawn))
    balanced = 1 / (1 + 5 / 5**0.5)
    # 4000 draws: standard deviation 0.007
    assert shares == pytest.approx([balanced, 1 / 6, 1 / 6, 1 / 6], abs=0.03), "validation is never balanced"


def test_mixed_precision_on_a_processor_that_has_it(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "cpu_computes_bfloat16", lambda: True)
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block())
    losses = {}
    for amp in ("off", "auto", "bfloat16"):
        change_settings(preprocessed, **{**ONE_EPOCH, "amp": amp})
        seen: list[torch.dtype] = []
        trainer = trainer_for(preprocessed)
        trainer.initialize()
        trainer.network.register_forward_hook(lambda m, i, output, seen=seen: seen.append(output[0].dtype))
        trainer.run_training()
        assert set(seen) == {torch.float32 if amp == "off" else torch.bfloat16}
        assert {value.dtype for value in weights(trainer).values()} == {torch.float32}
        losses[amp] = lines_of(trainer)[0]["loss"]
    assert losses["auto"] == losses["bfloat16"] != losses["off"]
    assert losses["auto"] == pytest.approx(losses["off"], abs=0.02)
