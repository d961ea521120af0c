"""What is done with a finished MutualPartialTrainer: an ensemble of its networks, pseudo labels to look at."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import GROUPS, KEYS, SHORT, partial_block, trainer_for

from nnunet_mutual.batches.decisions import Decision, read_decisions
from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.command import export
from nnunet_mutual.pseudo_labels import command, generate
from nnunet_mutual.trainers import MutualPartialTrainer

SETTINGS = {**SHORT, **GROUPS, "num_epochs": 10, "num_iterations_per_epoch": 2}
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, with a summary as its validation would write it; shared, so tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, str(root / name))
        preprocessed = tiny.make_dataset(root, block=partial_block(), settings=SETTINGS)
        trainer = trainer_for(preprocessed, MutualPartialTrainer)
        trainer.run_training()
        folder = Path(trainer.output_folder)
        (folder / "progress.png").write_bytes(b"a picture")
        (folder / "validation").mkdir()
        case = {
            "reference_file": "x",
            "prediction_file": "y",
            "metrics": {"1": {"Dice": 0.5, "TP": 1, "n_ref": 2, "n_pred": 2}},
        }
        summary = {"metric_per_case": [case], "mean": {"1": {"Dice": 0.5}}, "foreground_mean": {"Dice": 0.5}}
        (folder / "validation" / "summary.json").write_text(json.dumps(summary))
    return root


@pytest.fixture()
def results(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.setenv(name, str(trained / name))
    return trained / "nnUNet_results" / tiny.NAME


def run_export(**changed: Any) -> None:
    options: dict[str, Any] = {"trainer": "MutualPartialTrainer", "plans": "nnUNetPlans", "folds": ["0"]}
    options |= {"checkpoint": "checkpoint_final.pth", "output_name": None, "peers": True, **changed}
    export(tiny.NAME, "3d_fullres", **options)


def test_all_networks_become_an_ensemble(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_export()
    assert "-p nnUNetPlans_MutualPartial_Peers -f 0 1 -i" in capsys.readouterr().out
    folder = results / "nnUNetTrainer__nnUNetPlans_MutualPartial_Peers__3d_fullres"
    own = torch.load(
        results / "MutualPartialTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth", weights_only=True
    )
    for n, weights in enumerate(own["mutual_state"]["peers"]["networks"]):
        exported = torch.load(folder / f"fold_{n}" / "checkpoint_final.pth", weights_only=True)
        assert all(torch.equal(value, weights[name]) for name, value in exported["network_weights"].items())
    card = (folder / "model_card.md").read_text()
    assert "fold_p is network p, not a fold" in card
    decisions = read_decisions(
        results / "MutualPartialTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "pseudo_labels" / "decisions.csv"
    )
    spleen = [decision.accepted for decision in decisions if decision.label == "spleen"]
    assert spleen and f"| spleen | {sum(spleen)} of {len(spleen)} |" in card
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1), "checkpoint_final.pth")
    image = np.random.default_rng(0).normal(size=(1, 16, 20, 18)).astype(np.float32)
    assert predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}).shape == (16, 20, 18)


def test_an_ensemble_needs_one_fold_and_several_networks(results: Path) -> None:
    with pytest.raises(MutualError, match="found -f 0 1; name one"):
        run_export(folds=["0", "1"])
    folder = results / "MutualPartialTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    del checkpoint["mutual_state"]["peers"]["networks"][1]
    torch.save(checkpoint, folder / "checkpoint_alone.pth")
    before = sorted(results.iterdir())
    with pytest.raises(
        MutualError,
        match="holds one network that stock nnU-Net knows, so there is no ensemble of peers; leave --peers out",
    ):
        run_export(checkpoint="checkpoint_alone.pth", output_name="nnUNetPlans_Alone")
    assert sorted(results.iterdir()) == before, "nothing half-written is left"
    (folder / "checkpoint_alone.pth").unlink()


def label(*more: str, trainer: str = "MutualPartialTrainer") -> int:
    return main(["pseudo_label", "901", "3d_fullres", "0", "-tr", trainer, *more])


def test_pseudo_labels_to_look_at(
    results: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    fold = results / "MutualPartialTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    during = (fold / "pseudo_labels" / "decisions.csv").read_bytes()
    assert label("-device", "cpu", "-o", str(out), "--set", "label=false", "pseudo_labels.voxel=false") == 0
    assert "nnunet_mutual train 901 3d_fullres 0 -tr MutualPartialTrainer" in capsys.readouterr().out
    assert (fold / "pseudo_labels" / "decisions.csv").read_bytes() == during, "those of the training stay"
    decisions = read_decisions(fold / "pseudo_labels_final" / "decisions.csv")
    assert decisions and all(decision.accepted for decision in decisions)
    splits = json.loads((trained / "nnUNet_preprocessed" / tiny.NAME / "splits_final.json").read_text())
    written = {file.name.removesuffix(".nii.gz"): file for file in out.iterdir()}
    assert sorted(written) == sorted(splits[0]["train"]) < KEYS
    added = 0
    for key, file in written.items():
        drawn, found = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(f)))
            for f in (trained / "nnUNet_raw" / tiny.NAME / "labelsTr" / f"{key}.nii.gz", file)
        )
        assert (found[drawn > 0] == drawn[drawn > 0]).all(), "what was drawn is never altered"
        added += int((found != drawn).sum())
        names = {decision.label for decision in decisions if decision.case == key}
        assert set(np.unique(found[drawn == 0])) <= {0, *(tiny.PLAIN[name] for name in names)}
    assert added > 0
    assert label("-device", "cpu", "-o", str(out)) == 2
    assert "is not empty; give -o a new folder" in capsys.readouterr().err


def test_a_training_is_not_named_where_nothing_was_accepted(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Decision] = []
    monkeypatch.setattr(command, "make_pseudo_labels", lambda *_, **__: made)
    assert label("-device", "cpu") == 0
    said = capsys.readouterr().out
    assert "annotated in every training case" in said and "nnunet_mutual" not in said
    made.append(Decision("case_00", "a", "spleen", False, "predictions disagree", 1.0, None, None, None, "0"))
    assert label("-device", "cpu") == 0
    said = capsys.readouterr().out
    assert "Nothing was accepted" in said and "nnunet_mutual train" not in said
    review = "nnunet_mutual review 901 3d_fullres 0 -tr MutualPartialTrainer -chk checkpoint_final.pth -o review"
    assert said.splitlines()[-1].strip() == review


def test_images_that_were_preprocessed_again_are_predicted_again(
    results: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = generate.label_cases
    monkeypatch.setattr(generate, "label_cases", lambda *some: (asked.extend(some[-1]), original(*some))[1])
    for _ in range(2):
        assert label("-device", "cpu", "--set", "high=0.9") == 0
    first = list(asked)
    image = trained / "nnUNet_preprocessed" / tiny.NAME / "nnUNetPlans_3d_fullres" / f"{first[0]}.b2nd"
    content = image.read_bytes()
    os.utime(image, (later := time.time() + 10, later))
    assert label("-device", "cpu", "--set", "high=0.9") == 0
    assert asked == first, "a copy has other times"
    noise = np.random.default_rng(0).normal(size=(1, 16, 20, 18)).astype(np.float32)
    image.unlink()
    blosc2.asarray(noise, urlpath=str(image))
    try:
        assert label("-device", "cpu", "--set", "high=0.9", "-o", str(tmp_path / "maps")) == 0
    finally:
        image.write_bytes(content)
    assert asked == [*first, first[0]] and len(first) > 1


def test_what_was_drawn_since_the_training_is_not_taken_for_open(
    results: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [trained / root / tiny.NAME / "dataset.json" for root in VARIABLES[:2]]
    before = files[0].read_text()
    content = json.loads(before)
    content["mutual"]["cases"]["case_00"]["annotated"] = ["liver", "spleen"]
    for file in files:
        file.write_text(json.dumps(content))
    try:
        assert label("-device", "cpu") == 2
    finally:
        for file in files:
            file.write_text(before)
    assert "was changed since MutualPartialTrainer was trained, which would take" in capsys.readouterr().err


def test_label_maps_are_written_whole_or_not_at_all(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "require_space", full)
        assert label("-device", "cpu", "-o", str(tmp_path / "maps")) == 2
    assert "maps could not be written (No space left on device) and nothing was kept" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "trainer", "sentence"),
    [
        ([], "MutualPartialTraner", "did you mean 'MutualPartialTrainer'"),
        ([], "PartialTrainer", "train it with: nnunet_mutual train 901 3d_fullres 0 -tr Partial"),
        (["-chk", "checkpoint_first.pth"], "MutualPartialTrainer", "give -chk one of checkpoint_best.pth, checkpoint_"),
        (["-device", "cpu", "--set", "hihg=0.8"], "MutualPartialTrainer", "did you mean 'high'"),
        (["-device", "cpu", "--set", "low=0.9"], "MutualPartialTrainer", "low below high"),
        (["-device", "cpu", "--set", "pseudo_labels=3"], "MutualPartialTrainer", 'unknown setting "pseudo_labels"'),
    ],
)
def test_wrong_arguments_say_what_to_do(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], trainer: str, sentence: str
) -> None:
    before = sorted(results.rglob("*.csv"))
    assert label(*arguments, trainer=trainer) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(results.rglob("*.csv")) == before
