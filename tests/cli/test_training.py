"""``nnunet_mutual train``: nnU-Net's own options reach nnU-Net, mistakes are one sentence, finished work is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from nnunetv2.run import run_training as stock
from training import partial_block

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.trainings import device_option

TRAIN = ["train", "901", "3d_fullres", "0", "-tr", "PartialTrainer", "-device", "cpu"]
FOLD = "PartialTrainer__nnUNetPlans__3d_fullres/fold_0"


@pytest.fixture()
def fold(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.make_dataset(nnunet_folders, configurations=(), cases=1)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return nnunet_folders / "nnUNet_results" / tiny.NAME / FOLD


@pytest.fixture()
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What nnU-Net was called with."""
    import inspect

    calls: list[dict[str, Any]] = []
    signature = inspect.signature(stock.run_training)

    def run(*arguments: Any, **options: Any) -> None:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        calls.append(dict(bound.arguments))

    monkeypatch.setattr(stock, "run_training", run)
    return calls


def finish(fold: Path, *names: str) -> None:
    for name in names:
        (fold / name).parent.mkdir(parents=True, exist_ok=True)
        (fold / name).touch()


def test_options_reach_nnunet(fold: Path, called: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    weights = str(tmp_path / "weights.pth")
    assert main([*TRAIN, "-pretrained_weights", weights, "--npz", "--val_best"]) == 0
    assert called[0] == {
        "dataset_name_or_id": "901",
        "configuration": "3d_fullres",
        "fold": 0,
        "trainer_class_name": "PartialTrainer",
        "plans_identifier": "nnUNetPlans",
        "pretrained_weights": weights,
        "num_gpus": 1,
        "export_validation_probabilities": True,
        "continue_training": False,
        "only_run_validation": False,
        "disable_checkpointing": False,
        "val_with_best": True,
        "device": torch.device("cpu"),
    }
    finish(fold, "checkpoint_latest.pth")
    assert main([*TRAIN, "--c", "--disable_checkpointing"]) == 0
    assert called[1]["continue_training"] and called[1]["disable_checkpointing"] and called[1]["device"].type == "cpu"
    finish(fold, "checkpoint_final.pth")
    assert main([*TRAIN, "--val"]) == 0
    assert called[2]["only_run_validation"] and not called[2]["continue_training"]


def test_a_fold_that_is_not_there_leaves_no_folder(
    fold: Path, called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed = fold.parents[3] / "nnUNet_preprocessed" / tiny.NAME
    content = read_object(preprocessed / "dataset.json")
    write_json(preprocessed / "dataset.json", {**content, "mutual": {"version": 1, "sources": {}, "cases": {}}})
    write_json(preprocessed / "splits_final.json", [{"train": ["a"], "val": ["b"]}] * 5)
    assert main([*TRAIN[:3], "7", *TRAIN[4:]]) == 2
    assert "fold 7 is not in" in capsys.readouterr().err and not called and not fold.parents[1].exists()
    assert main([*TRAIN[:3], "4", *TRAIN[4:]]) == 0


def test_a_finished_training_that_is_continued(
    fold: Path, called: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(fold, "checkpoint_final.pth", "progress.png")
    assert main([*TRAIN, "--c"]) == 0
    assert len(called) == 1 and "finished; what is left is its validation" in capsys.readouterr().out
    finish(fold, "validation/summary.json")
    finish(fold, "validation/checkpoint.json", "validation_FLAIR/checkpoint.json")
    assert main([*TRAIN, "--c"]) == 0, "the second network's was interrupted"
    assert len(called) == 2 and "what is left is its validation" in capsys.readouterr().out
    finish(fold, "validation_FLAIR/summary.json")
    assert main([*TRAIN, "--c"]) == 0
    said = capsys.readouterr().out
    assert len(called) == 2 and "finished and validated, there is nothing to do" in said
    assert (
        "To validate it again: --val; to train longer, give it a name of its own, for example: nnunet_mutual plan"
        in said
    )
    assert "nnunet_mutual export 901 3d_fullres -tr PartialTrainer -f 0" in said and "WARNING" not in said
    preprocessed = fold.parents[3] / "nnUNet_preprocessed" / tiny.NAME / "dataset.json"
    content = json.loads(preprocessed.read_text())
    (fold.parent / "dataset.json").write_text(json.dumps(content))
    preprocessed.write_text(json.dumps({**content, "mutual": partial_block()}))
    assert main([*TRAIN, "--c"]) == 0
    assert "WARNING: labels or their table have changed since it began" in capsys.readouterr().out


REFUSED: dict[str, tuple[list[str], str]] = {
    "a finished training": ([], "holds a finished training, which would be written over; validate it again with --val"),
    "nothing to validate": (
        ["--val", "-p", "nnUNetOther"],
        "has no checkpoint_final.pth, so there is nothing to valid",
    ),
    "two at once": (["--val", "--c"], "not allowed with argument"),
    "no weights": (["-pretrained_weights", "none.pth"], "-pretrained_weights none.pth is no file"),
    "no such GPU": (["-device", "cuda", "-p", "nnUNetOther"], "add -device cpu"),
    "other options in several processes": (["--peer-parallel", "--val"], "val is done in one process"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(
    fold: Path,
    called: list[dict[str, Any]],
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    plans = fold.parents[3] / "nnUNet_preprocessed" / tiny.NAME / "nnUNetPlans.json"
    plans.with_name("nnUNetOther.json").write_text(plans.read_text())
    finish(fold, "checkpoint_final.pth")
    assert main([*TRAIN, *options]) == 2
    assert said in capsys.readouterr().err and not called


@pytest.mark.parametrize("trainer", ["PartialTrainer", "nnUNetTrainer"])
def test_an_unknown_configuration_is_one_sentence(
    fold: Path, called: list[dict[str, Any]], trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "901", "3d_fulres", "0", "-tr", trainer, "-device", "cpu"]) == 2
    assert "no configuration '3d_fulres' (did you mean '3d_fullres'?)" in capsys.readouterr().err and not called


WRONG = "nnUNetTrainerNoMirorring"


def write_trainers(folder: Path, **modules: str) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "__init__.py").touch()
    for name, source in modules.items():
        (folder / "inner" / f"{name}.py").write_text(source)


def test_a_trainer_that_nobody_has_is_told_without_nnunets_search(
    fold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.utilities import find_objects

    def search(name: str) -> None:
        raise AssertionError("it imports every module")

    monkeypatch.setattr(find_objects, "recursive_find_trainer_class_by_name", search)
    write_trainers(tmp_path / "own", mine="class OurHospitalTrainer: ...")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))
    for wrong, near in (
        (WRONG, "nnUNetTrainerNoMirroring"),
        ("PartialTraner", "PartialTrainer"),
        ("OurHospitalTrain", "OurHospitalTrainer"),
    ):
        assert main(["train", "901", "3d_fullres", "0", "-tr", wrong, "-device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert f"has a trainer called {wrong!r} (did you mean {near}" in said


OWN = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer"
MODULES = {
    "a class": {"mine": f"{OWN}\nclass OurHospitalTrainer(nnUNetTrainer): ..."},
    "a name": {"mine": f"{OWN}\nOurHospitalTrainer = type('Other', (nnUNetTrainer,), {{}})"},
    "re-exported": {
        "_real": f"{OWN}\nclass A(nnUNetTrainer): ...",
        "mine": "from ._real import A as OurHospitalTrainer",
    },
    "at run time": {"mine": f"{OWN}\nfor n in 'A', 'OurHospital':\n    globals()[n + 'Trainer'] = nnUNetTrainer"},
    "on demand": {
        "mine": f"{OWN}\nKNOWN = {{'OurHospital' + 'Trainer': nnUNetTrainer}}\n"
        "def __getattr__(name):\n    if name in KNOWN:\n        return KNOWN[name]\n    raise AttributeError(name)"
    },
}


@pytest.mark.parametrize("modules", MODULES.values(), ids=MODULES)
def test_trainers_of_others_are_found_however_they_are_made(
    fold: Path,
    called: list[dict[str, Any]],
    modules: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_trainers(tmp_path / "own", **modules)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))
    assert main(["train", "901", "3d_fullres", "0", "-tr", "OurHospitalTrainer", "-device", "cpu"]) == 0
    assert called[0]["trainer_class_name"] == "OurHospitalTrainer"


def test_trainers_in_nnunets_own_folders_are_found(
    fold: Path, called: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "nnUNetTrainer_5epochs"
    assert main(["train", "901", "3d_fullres", "0", "-tr", name, "-device", "cpu"]) == 0
    assert called[0]["trainer_class_name"] == name


def test_without_trainer_the_fitting_one_is_taken(
    fold: Path, called: list[dict[str, Any]], nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "901", "3d_fullres", "0", "-device", "cpu"]
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "Trains with PartialTrainer, since every case annotates every label; " in said
    assert f"nnunet_mutual trial 901 3d_fullres{device_option()}\n" in said
    (raw / "imagesUn").mkdir()
    tiny.write_nifti(tiny.image_and_labels(9)[0], raw / "imagesUn" / "un_0000.nii.gz")
    assert main(line) == 0
    assert "Trains with MeanTeacherTrainer, since there are unlabelled images; " in capsys.readouterr().out
    assert [call["trainer_class_name"] for call in called] == ["PartialTrainer", "MeanTeacherTrainer"]
