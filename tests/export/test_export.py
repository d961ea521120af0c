"""From a training to a stock model: what the export holds, and that it predicts where this package does not exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from training import trainer_for

from nnunet_mutual import trainers
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.trainings import device_option
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export import ready
from nnunet_mutual.export.command import export
from nnunet_mutual.export.model_card import Origin, TrainedFold, model_card
from nnunet_mutual.planning.configuration import plan
from nnunet_mutual.plugin.find import training_names
from nnunet_mutual.settings import parse_settings

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1, "amp": "off", "seed": 1}
KEYS = [f"case_{i:02d}" for i in range(6)]

# Runs the code that follows with every import of nnunet_mutual failing, as on a machine that does not have it.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_mutual":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run_export(**changed: object) -> None:
    options: dict = {"trainer": "PartialTrainer", "plans": "nnUNetPlans", "folds": ["0"], "output_name": None}
    options |= {"checkpoint": "checkpoint_final.pth", **changed}
    export(options.pop("dataset", tiny.NAME), options.pop("configuration", "3d_fullres"), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training with its validation; shared, so tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
        block["cases"]["case_00"]["patient"] = "Jane Roe"
        preprocessed = tiny.make_dataset(root, block=block, settings=SHORT)
        trainer = trainer_for(preprocessed)
        trainer.run_training()
        (Path(trainer.output_folder) / "progress.png").write_bytes(b"png")  # which nnU-Net plots, not here
        trainer.perform_actual_validation()
    return root


@pytest.fixture()
def folders(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(trained / name))
    return lambda name: trained / name / tiny.NAME


def test_export_zips_installs_and_predicts_without_this_package(
    trained: Path, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(output_name="nnUNetPlans_RoundTrip")
    command = "nnUNetv2_predict -d 901 -c 3d_fullres -p nnUNetPlans_RoundTrip -f 0 -i IMAGES -o SEGMENTATIONS"
    assert f"Next: {command}{device_option()}\n" in capsys.readouterr().out
    installed = tmp_path / "elsewhere"
    installed.mkdir()
    code = f"""{BLOCKED}
import os, torch
os.environ["nnUNet_results"] = {str(trained / "nnUNet_results")!r}
from nnunetv2.model_sharing.model_export import export_pretrained_model
zip_file = {str(tmp_path / "model.zip")!r}
export_pretrained_model(901, zip_file, ("3d_fullres",), plans_identifier="nnUNetPlans_RoundTrip", folds=(0,))
os.environ["nnUNet_results"] = {str(installed)!r}
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
install_model_from_zip_file(zip_file)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
import SimpleITK as sitk
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
model = {str(installed / tiny.NAME / "nnUNetTrainer__nnUNetPlans_RoundTrip__3d_fullres")!r}
predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
for key in {KEYS!r}:
    image, properties = SimpleITKIO().read_images([{str(folders("nnUNet_raw"))!r} + f"/imagesTr/{{key}}_0000.nii.gz"])
    labels = predictor.predict_single_npy_array(image, properties)
    SimpleITKIO().write_seg(labels, {str(tmp_path)!r} + f"/{{key}}.nii.gz", properties)
try:
    import nnunet_mutual
except ModuleNotFoundError:
    print("predicted without the package")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "predicted without the package" in done.stdout
    full = folders("nnUNet_results") / "PartialTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "validation_full"
    validated = sorted(full.glob("*.nii.gz"))
    assert validated
    for file in validated:
        ours, stock = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (file, tmp_path / file.name))
        assert np.array_equal(ours, stock)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        contents = b"".join(archive.read(name) for name in archive.namelist() if name.endswith((".json", ".pth")))
    identities = [b"Jane Roe", b"case_0", str(trained).encode()]
    assert [word for word in identities[:2] if word in contents.replace(b"case_001", b"")] == []
    assert identities[2] not in contents


def test_exported_checkpoint_holds_no_training_state(folders: Callable[[str], Path]) -> None:
    run_export(output_name="nnUNetPlans_Slim")
    model = folders("nnUNet_results") / "nnUNetTrainer__nnUNetPlans_Slim__3d_fullres"
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert "mutual_state" not in checkpoint and "optimizer_state" not in checkpoint
    assert checkpoint["init_args"]["plans"]["plans_name"] == "nnUNetPlans_Slim"
    assert "mutual" not in json.loads((model / "dataset.json").read_text())
    card = (model / "model_card.md").read_text()
    assert "| liver | 3 |" in card and "not a medical device" in card.lower()


def test_keys_of_the_group_stay_behind(
    trained: Path, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained / "nnUNet_results", results)
    monkeypatch.setenv("nnUNet_results", str(results))
    training = results / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres"
    who = {"patients": ["Richard Roe"], "path": "/home/richard-roe", "Richard Roe": 1}
    for file in ("dataset.json", "plans.json", "dataset_fingerprint.json", "fold_0/validation/summary.json"):
        content = json.loads((training / file).read_text()) | who
        for entry in content.get("configurations", {}).values():
            entry |= who
        (training / file).write_text(json.dumps(content))
    path = training / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["init_args"] |= who
    checkpoint["logging"] |= who
    torch.save(checkpoint, path)
    run_export(output_name="nnUNetPlans_Clean", container=str(tmp_path / "box"))
    model = results / tiny.NAME / "nnUNetTrainer__nnUNetPlans_Clean__3d_fullres"
    files = [file for folder in (model, tmp_path / "box") for file in folder.rglob("*") if file.is_file()]
    assert len(files) >= 12
    assert [str(file) for file in files if re.search(rb"(?i)richard|patients\"|/home/", file.read_bytes())] == []


def test_the_card_tells_all_but_names(trained: Path, folders: Callable[[str], Path]) -> None:
    run_export(output_name="nnUNetPlans_Card")
    card = (folders("nnUNet_results") / "nnUNetTrainer__nnUNetPlans_Card__3d_fullres" / "model_card.md").read_text()
    training = folders("nnUNet_results") / "PartialTrainer__nnUNetPlans__3d_fullres"
    summary = json.loads((training / "fold_0" / "validation" / "summary.json").read_text())
    dice = [case["metrics"]["1"]["Dice"] for case in summary["metric_per_case"]]
    scored = [value for value in dice if value == value]
    mean = f"{sum(scored) / len(scored):.3f}" if scored else "not scored"
    assert re.search(rf"\| liver \| 3 \| {mean} \| [-.0-9]+ \| {len(scored)} \|", card)
    assert "6 cases of 2 sources" in card and "| liver | 3 |\n| tumour, spleen | 3 |" in card
    for version in ("nnunetv2", "torch", "nnunet_mutual"):
        assert f"{version} {metadata.version(version)}" in card
    for words in ("PartialTrainer", "2 epochs", "(1 x 1 x 1 mm)", "Intended use", "Limits", "70, 101979 (2021)"):
        assert words in card
    assert re.search(r"- One network on \d cases, \d of which leave labels open \(fold 0\)\.", card)
    assert not re.search(r"case_\d|Jane", card) and str(trained) not in card


def test_no_paper_is_cited_for_what_did_not_run() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    origin = Origin("M", "MutualCorrelationTrainer", "3d_fullres", (1, 1, 1), ["0"], "final", ["CT"], 4)

    def card(*folds: Acted | None) -> str:
        return model_card(origin, table, [TrainedFold({"metric_per_case": []}, {}, 1, (), one) for one in folds])

    idle = Acted("one network on 4 cases", (), idle="MutualCorrelationTrainer had nothing to be mutual about")
    assert "MutualCorrelationTrainer had nothing to be mutual about (fold 0)." in card(idle)
    assert "arXiv:2307.06312" not in card(idle) and "Isensee" in card(idle) and "without any drawing" not in card(idle)
    acted = Acted("two networks", ("MutualCorrelationTrainer",), unlabelled=80)
    assert "arXiv:2307.06312" in card(acted) and "Beside them, 80 images without any drawing." in card(acted)
    assert "arXiv:2307.06312" in card(None)  # of a checkpoint that does not know


def test_folds_of_other_settings_are_told_apart() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    origin = Origin("M", "PartialTrainer", "3d_fullres", (1, 1, 1), ["0", "1", "2"], "final", ["CT"], 4)

    def card(*rates: float) -> str:
        folds = [TrainedFold({"metric_per_case": []}, {"initial_lr": rate}, round(rate), (), None) for rate in rates]
        return model_card(origin, table, folds)

    several = card(2, 3, 2)
    assert "2 epochs (fold 0, 2), 3 epochs (fold 1).\n" in several
    assert several.count("## Settings (fold ") == 2 and "## Settings (fold 1)" in several
    assert "2 epochs.\n" in card(2, 2, 2) and card(2, 2, 2).count("## Settings\n") == 1


def test_fold_all_is_scored_alone_only() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})

    def card(*folds: str) -> str:
        of = {"0": 0.5, "all": 0.9}
        trained = [TrainedFold({"metric_per_case": [{"metrics": {"1": {"Dice": of[fold]}}}]}, {}, 1) for fold in folds]
        origin = Origin("M", "PartialTrainer", "3d_fullres", (1, 1, 1), folds, "checkpoint_final.pth", ["CT"], 4)
        return model_card(origin, table, trained)

    assert "| 0.500 | - | 1 |" in card("0", "all") and "it is left out of these numbers." in card("0", "all")
    assert "| 0.900 | - | 1 |" in card("all") and "these numbers are too good." in card("all")
    assert "Fold all" not in card("0")


def test_results_of_another_checkpoint_are_said_to_be() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    origin = Origin("M", "PartialTrainer", "3d_fullres", (1, 1, 1), ["0"], "checkpoint_best.pth", ["CT"], 4, "pixels")

    def card(validated: str | None) -> str:
        return model_card(origin, table, [TrainedFold({"metric_per_case": []}, {}, 1, validated=validated)])

    said = "These numbers are of checkpoint_final.pth; those of checkpoint_best.pth were not measured."
    assert said in card("checkpoint_final.pth") and "These numbers are of" not in card(None)
    assert "(1 x 1 x 1 pixels)" in card(None), "of a picture"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"trainer": "PartialTrainr"}, "did you mean 'PartialTrainer__nnUNetPlans__3d_fullres'"),
        ({"folds": ["3"]}, "nnunet_mutual train 901 3d_fullres 3 -tr PartialTrainer"),
        ({"checkpoint": "checkpoint_latest.pth"}, "export one of checkpoint_best.pth, checkpoint_final.pth with -chk"),
        ({"output_name": "../outside"}, "use letters, digits"),
        ({"dataset": "902"}, "902"),
    ],
)
def test_bad_exports_write_nothing(folders: Callable[[str], Path], changed: dict, sentence: str) -> None:
    results = folders("nnUNet_results")
    before = sorted(results.rglob("*"))
    with pytest.raises(MutualError, match=sentence.replace("(", r"\(")):
        run_export(**changed)
    assert sorted(results.rglob("*")) == before


def test_a_training_that_was_stopped_is_validated_and_exported(
    trained: Path, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        shutil.copytree(trained / name, nnunet_folders / name)
    training = nnunet_folders / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres"
    fold = training / "fold_0"
    (fold / "checkpoint_final.pth").unlink()
    shutil.rmtree(fold / "validation")
    with pytest.raises(MutualError, match="--c, or export one of checkpoint_best.pth with -chk --validate"):
        run_export(output_name="stopped")
    with pytest.raises(MutualError, match="were not predicted.*; add --validate"):
        run_export(output_name="stopped", checkpoint="checkpoint_best.pth")
    run_export(output_name="stopped", checkpoint="checkpoint_best.pth", validate=True)
    assert "nnUNetv2_predict -d 901 -c 3d_fullres -p stopped -f 0" in capsys.readouterr().out
    assert (
        training.with_name("nnUNetTrainer__stopped__3d_fullres") / "fold_0" / "validation" / "summary.json"
    ).is_file()
    trained_on = torch.load(fold / "checkpoint_best.pth", weights_only=True)
    shutil.copyfile(fold / "checkpoint_best.pth", fold / "checkpoint_final.pth")
    torch.save({**trained_on, "current_epoch": trained_on["current_epoch"] + 1}, fold / "checkpoint_best.pth")
    with pytest.raises(
        MutualError, match="predicted with an earlier checkpoint_best.pth, not with checkpoint_best.pth"
    ):
        run_export(output_name="again", checkpoint="checkpoint_best.pth")
    torch.save(trained_on, fold / "checkpoint_best.pth")
    with pytest.raises(MutualError, match="predicted with checkpoint_best.pth, not with checkpoint_final.pth.*--val"):
        run_export(output_name="again")
    (fold / "checkpoint_final.pth").unlink()
    (training / "dataset_fingerprint.json").write_text('{"spac')
    with pytest.raises(MutualError, match="fingerprint.json is missing, was not written to its end.*; copy it anew"):
        run_export(output_name="again", checkpoint="checkpoint_best.pth")


def test_what_was_drawn_since_and_cases_that_came_since_change_no_validation(
    trained: Path, nnunet_folders: Path
) -> None:
    """The training's table does not say so: a drawing that it did not know would be scored against nothing."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        shutil.copytree(trained / name, nnunet_folders / name)
    training = nnunet_folders / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres"
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    summary = training / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())
    key = Path(before["metric_per_case"][0]["prediction_file"]).name
    everything = tiny.image_and_labels(int(key[5:7]))[1]
    for folder in (preprocessed / "gt_segmentations", nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr"):
        tiny.write_nifti(everything, folder / key)
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    for number, split in enumerate(splits):
        split["train" if number == 0 else "val"].append("case_later")
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for file in preprocessed.rglob("case_05*"):
        shutil.copy(file, file.with_name(file.name.replace("case_05", "case_later")))
    for root in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = nnunet_folders / root / tiny.NAME / "dataset.json"
        content = json.loads(file.read_text())
        content["mutual"]["cases"]["case_later"] = {"source": "b"}
        file.write_text(json.dumps(content))
    run_export(output_name="later", validate=True)
    after = json.loads(summary.read_text())
    for then, now in zip(before["metric_per_case"], after["metric_per_case"], strict=True):
        dice = [{label: m["Dice"] for label, m in entry["metrics"].items()} for entry in (then, now)]
        assert dice[0] == pytest.approx(dice[1], abs=1e-5, nan_ok=True)


def test_an_existing_export_is_never_overwritten(folders: Callable[[str], Path]) -> None:
    run_export(output_name="nnUNetPlans_Twice")
    kept = folders("nnUNet_results") / "nnUNetTrainer__nnUNetPlans_Twice__3d_fullres" / "plans.json"
    stamp = kept.stat().st_mtime_ns
    with pytest.raises(MutualError, match="never overwritten"):
        run_export(output_name="nnUNetPlans_Twice")
    assert kept.stat().st_mtime_ns == stamp


def test_an_interrupted_export_leaves_nothing(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(folders("nnUNet_results").rglob("*"))
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(MutualError, match="No space left on device"):
        run_export(output_name="nnUNetPlans_Full")
    assert sorted(folders("nnUNet_results").rglob("*")) == before


def test_plan_writes_an_inheriting_configuration(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, cases=1, configurations=(), settings={"num_epochs": 7})
    (preprocessed / "nnUNetPlans_3d_fullres").mkdir()
    options = {"configuration": "3d_fullres", "plans": "nnUNetPlans", "name": "long"}
    plan("901", settings=["num_iterations_per_epoch=9", "optimizer=adamw"], **options)
    content = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    assert content["configurations"]["3d_fullres_long"] == {
        "inherits_from": "3d_fullres",
        "mutual": {"num_iterations_per_epoch": 9, "optimizer": "adamw"},
    }
    assert "nnunet_mutual train 901 3d_fullres_long all -tr PartialTrainer" in capsys.readouterr().out
    plan("901", settings=["loss.pd=0.5", "stage1_networks=groups"], **{**options, "name": "own"})
    assert capsys.readouterr().out.count("3d_fullres_own all -tr MutualPartialTrainer ") == 1
    for settings, sentence in (
        (["los.pd=3"], "did you mean 'loss'"),
        (["loss.pd=3"], '"loss.pd" has no effect with stage1_networks="one"'),
        (["num_epoch=3"], "did you mean 'num_epochs'"),
        (["num_epochs=many"], '"num_epochs" must be int'),
        (["num_epochs"], "key=value"),
    ):
        before = (preprocessed / "nnUNetPlans.json").read_text()
        with pytest.raises(MutualError, match=sentence):
            plan("901", settings=settings, **{**options, "name": "other"})
        assert (preprocessed / "nnUNetPlans.json").read_text() == before
    with pytest.raises(MutualError, match="choose another --name"):
        plan("901", settings=["num_epochs=1"], **options)


def test_settings_on_the_command_line_go_into_objects() -> None:
    assert parse_settings(["loss.pd=0.5", "loss.fd=0", "amp=off"]) == {"loss": {"pd": 0.5, "fd": 0}, "amp": "off"}


def test_every_method_names_its_paper() -> None:
    classes = {name: getattr(trainers, name) for name in training_names()}
    assert all(found.paper for found in classes.values())


@pytest.mark.parametrize(
    ("stage", "networks", "deployable", "refused"),
    [(1, "groups", 2, True), (2, "groups", 2, False), (1, "one", 1, False), (None, None, 1, False)],
)
def test_networks_of_groups_are_no_model_of_all_labels(
    stage: int | None, networks: str | None, deployable: int, refused: bool
) -> None:
    """In the first stage of MutualPartialTrainer each knows labels of its own."""
    state = {"stage": stage, "settings": {"stage1_networks": networks}, "peers": {"deployable": deployable}}
    with pytest.raises(MutualError, match="first stage, whose networks each know") if refused else nullcontext():
        ready._refuse_first_stage(state, Path("checkpoint_latest.pth"))
