"""Each modality group becomes a stock model that needs its own channels only."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from fresh import environment, run_code_in_copy
from modalities import CHANNELS, GROUPS, make_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_export import BLOCKED
from tiny import NAME
from training import SHORT, trainer_for

from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.sequences import FILE as SEQUENCES
from nnunet_mutual.modules.input_columns import input_keys, only_used

PLANS = "nnUNetPlans_MutualCrossModal"
PREDICT = """
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
for model, cases in CASES.items():
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
    for target, files in cases.items():
        image, properties = SimpleITKIO().read_images(files)
        SimpleITKIO().write_seg(predictor.predict_single_npy_array(image, properties), target, properties)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training by group with its validation; shared, so tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        from nnunet_mutual.trainers import MutualCrossModalTrainer

        settings = SHORT | {"num_iterations_per_epoch": 20, "optimizer": "adamw"}
        trainer = trainer_for(make_preprocessed(root, settings=settings), MutualCrossModalTrainer)
        trainer.run_training()
        (Path(trainer.output_folder) / "progress.png").write_bytes(b"png")  # which nnU-Net plots, not here
        trainer.perform_actual_validation()
    return root


@pytest.fixture()
def folders(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(trained / name))
    return lambda name: trained / name / NAME


def export(*options: str) -> int:
    return main(["export", "901", "3d_fullres", "-tr", "MutualCrossModalTrainer", "-f", "0", *options])


def numbers_of(card: str) -> list[float]:
    """The numbers of the card's comparison: agreement and least agreement in percent, Dice, mean, most."""
    text = card.split("## Comparison with the training")[1]
    return [float(n) for n in re.findall(r"\d+\.\d+", text)]


def test_every_group_predicts_in_stock_nnunet(
    trained: Path, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--compared", "1", "--container", str(tmp_path / "submission")) == 0
    shown = capsys.readouterr().out
    assert "both: 100.000% of the voxels of 1 validation case(s) have" in shown
    results = folders("nnUNet_results")
    fold = results / "MutualCrossModalTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    images = folders("nnUNet_raw") / "imagesTr"
    cases: dict[str, dict[str, list[str]]] = {}
    for group, channels in GROUPS.items():
        model = results / f"nnUNetTrainer__{PLANS}_{group}__3d_fullres"
        look = f"Next, whether images are of {group}: nnunet_mutual check_images {model} {group}_IMAGES"
        predict = (
            f"Next: nnUNetv2_predict -d 901 -c 3d_fullres -p {PLANS}_{group} -f 0 -i {group}_IMAGES -o SEGMENTATIONS"
        )
        assert f"{look}\n{predict}" in shown
        content = json.loads((model / "dataset.json").read_text())
        assert list(content["channel_names"].values()) == channels and list(content["channel_names"])[0] == "0"
        boxed = tmp_path / "submission" / group / "model"
        assert (boxed / "dataset.json").read_text() == (model / "dataset.json").read_text()
        assert (boxed / "model_card.md").read_text() == (model / "model_card.md").read_text()
        assert f"CASE_0000.nii.gz` | {channels[0]} |" in (boxed.parent / "README.md").read_text()
        plan = json.loads((model / "plans.json").read_text())
        assert "modality_groups" not in plan and plan["plans_name"] == f"{PLANS}_{group}"
        assert len(plan["configurations"]["3d_fullres"]["normalization_schemes"]) == len(channels)
        assert list(plan["foreground_intensity_properties_per_channel"]) == [str(n) for n in range(len(channels))]
        assert f"images of {', '.join(channels)}" in (model / "model_card.md").read_text()
        cases[str(model)] = {
            str(tmp_path / f"{group}_{file.name}"): [
                str(images / file.name.replace(".nii.gz", f"_{list(CHANNELS.values()).index(c):04d}.nii.gz"))
                for c in channels
            ]
            for file in sorted((fold / f"validation_full_{group}").glob("*.nii.gz"))
        }
    run_code_in_copy(BLOCKED + PREDICT.replace("CASES", repr(cases)), tmp_path, environment())
    for group in GROUPS:
        model = results / f"nnUNetTrainer__{PLANS}_{group}__3d_fullres"
        agreement, least, dice, mean, most = numbers_of((model / "model_card.md").read_text())
        assert agreement == least and mean == most == 0  # at native spacing, preprocessing is the same to the last bit
        validated = sorted((fold / f"validation_full_{group}").glob("*.nii.gz"))
        for file in validated:
            paths = (file, tmp_path / f"{group}_{file.name}")
            ours, stock = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths)
            # Of a group alone, the windows begin at its own box: the few voxels that differ lie at their borders.
            assert ours.any() and (ours == stock).mean() >= (1 if group == "both" else 0.97)
            if file == validated[0]:
                assert agreement == pytest.approx(100 * (ours == stock).mean(), abs=1e-4)
                assert (dice == 1) == (group == "both") and 0 < dice <= 1


def test_the_exported_network_is_the_trained_one(folders: Callable[[str], Path]) -> None:
    assert export("--name", "same", "--compared", "0") == 0
    results = folders("nnUNet_results")
    file = results / "MutualCrossModalTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    averages = torch.load(file, weights_only=True)["mutual_state"]["peers"]["averages"]
    plan = PlansManager(json.loads((results / "nnUNetTrainer__same_T1__3d_fullres" / "plans.json").read_text()))
    configuration = plan.get_configuration("3d_fullres")
    for number, group in enumerate(GROUPS):
        folder = results / f"nnUNetTrainer__same_{group}__3d_fullres" / "fold_0"
        weights = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
        images = torch.randn(1, 2, 16, 16, 16)
        channels = [number] if number < 2 else [0, 1]
        seen = torch.zeros_like(images)
        seen[:, channels] = images[:, channels]
        logits = []
        for state, data in ((weights, images[:, channels]), (averages[number]["weights"], seen)):
            network = nnUNetTrainer.build_network_architecture(plan, configuration, data.shape[1], 4, False)
            network.load_state_dict(state)
            logits.append(network.eval()(data))
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_the_best_of_each_group(folders: Callable[[str], Path]) -> None:
    assert export("-chk", "checkpoint_best.pth", "--name", "best") == 0
    results = folders("nnUNet_results")
    references = {file.read_text() for file in results.glob(f"nnUNetTrainer__best_*__3d_fullres/{SEQUENCES}")}
    assert len(references) == 1 and {*json.loads(*references)} == {*CHANNELS.values()}, "all know all sequences"
    fold = results / "MutualCrossModalTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    for number, group in enumerate(GROUPS):
        exported = torch.load(
            results / f"nnUNetTrainer__best_{group}__3d_fullres" / "fold_0" / "checkpoint_final.pth", weights_only=True
        )["network_weights"]
        kept = torch.load(fold / f"checkpoint_best_{group}.pth", weights_only=True)["network_weights"]
        columns = [number] if number < 2 else [0, 1]
        first = "encoder.stages.0.0.convs.0.conv.weight"
        assert torch.equal(exported[first], kept[first][:, columns]) and exported[first].shape[1] == len(columns)
        assert torch.equal(exported["decoder." + first], exported[first])


def test_nothing_is_left_where_one_group_cannot_be_written(
    folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = folders("nnUNet_results")
    (results / "nnUNetTrainer__half_FLAIR__3d_fullres").mkdir()
    before = sorted(path.name for path in results.iterdir())
    assert export("--name", "half") == 2
    assert "never overwritten" in capsys.readouterr().err
    assert export("--peers") == 2
    assert "no ensemble" in capsys.readouterr().err
    assert sorted(path.name for path in results.iterdir()) == before


def test_predicting_from_the_training_folder_says_what_to_do(folders: Callable[[str], Path]) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model = folders("nnUNet_results") / "MutualCrossModalTrainer__nnUNetPlans__3d_fullres"
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    with pytest.raises(RuntimeError, match="Export_first_with_nnunet_mutual_export"):
        predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")


def test_columns_with_weights_are_not_cut_off() -> None:
    weights = {"a.weight": torch.ones(2, 3, 1)}
    with pytest.raises(MutualError, match="does not see"):
        only_used(weights, ["a.weight"], [0])
    weights["a.weight"][:, 1:] = 0
    assert only_used(weights, ["a.weight"], [0])["a.weight"].shape == (2, 1, 1)
    with pytest.raises(MutualError, match="which layer reads"):
        input_keys(torch.nn.Linear(2, 2))


@pytest.fixture()
def changed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A copy of the training, which a test may change."""
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("nnUNetTrainer__*"))  # others' exports
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / "copy" / name))
    return lambda name: tmp_path / "copy" / name / NAME


FOLD = "MutualCrossModalTrainer__nnUNetPlans__3d_fullres/fold_0"


def test_a_checkpoint_of_one_group_is_no_export_of_all(
    changed: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = changed("nnUNet_results")
    assert export("-chk", "checkpoint_best_T1.pth") == 2
    assert "is of one modality group" in capsys.readouterr().err
    (results / FOLD / "checkpoint_best_FLAIR.pth").unlink()  # of a group that was never validated
    assert export("-chk", "checkpoint_best.pth") == 2
    said = capsys.readouterr().err
    assert "no checkpoint_best_FLAIR.pth; export one of checkpoint_final.pth" in said and "--c" not in said
    assert not [*results.glob("nnUNetTrainer*")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw, pre: shutil.rmtree(pre / "nnUNetPlans_3d_fullres"), "whose preprocessed images are not there"),
        (lambda raw, pre: [path.unlink() for path in (raw / "imagesTr").glob("*_0001*")], "no validation case has its"),
        (lambda raw, pre: regroup(pre, {"FLAIR": ["FLAIR"], "T1": ["T1"]}), "preprocessed for other modality groups"),
        (lambda raw, pre: regroup(pre, dict(reversed(GROUPS.items()))), "preprocessed for other modality groups"),
    ],
    ids=["preprocessed data gone", "raw images gone", "a group less", "another order"],
)
def test_where_nothing_can_be_compared_the_export_says_why(
    changed: Callable[[str], Path], capsys: pytest.CaptureFixture[str], change: Callable[..., Any], reason: str
) -> None:
    change(changed("nnUNet_raw"), changed("nnUNet_preprocessed"))
    assert export() == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("FLAIR: not compared"))
    assert reason in said
    cards = [model / "model_card.md" for model in changed("nnUNet_results").glob("nnUNetTrainer*")]
    compared = [card for card in cards if "## Comparison" in card.read_text()]
    assert len(cards) == 3 and len(compared) == ("validation case" in reason), "T1 alone can be compared then"


def regroup(folder: Path, groups: dict[str, list[str]]) -> None:
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    (folder / "nnUNetPlans.json").write_text(json.dumps({**plans, "modality_groups": groups}))


def test_a_group_counts_the_cases_that_have_its_channels(
    changed: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """And none is compared where that is not asked for."""
    source = (changed("nnUNet_results") / FOLD).parent / "dataset.json"
    content = json.loads(source.read_text())
    content["mutual"]["cases"]["case_00"]["missing"] = ["FLAIR"]
    source.write_text(json.dumps(content))
    assert export("--compared", "0") == 0
    assert "compared" not in capsys.readouterr().out
    for name, number in (("T1", 6), ("FLAIR", 5), ("both", 5)):
        card = (changed("nnUNet_results") / f"nnUNetTrainer__{PLANS}_{name}__3d_fullres/model_card.md").read_text()
        assert f"\n{number} cases of one source" in card
