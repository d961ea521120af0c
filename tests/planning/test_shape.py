"""Configurations of another shape: nnU-Net's own rules, what is refused, and data of their own with another spacing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.trainings import device_option

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@pytest.fixture()
def plans(nnunet_folders: Path) -> Path:
    return tiny.make_dataset(nnunet_folders, configurations=(), cases=2) / "nnUNetPlans.json"


def plan(*options: str, base: str = "3d_fullres") -> int:
    return main(["plan", "-d", "901", "-c", base, "--name", "new", *options])


def made(plans: Path, base: str = "3d_fullres") -> dict[str, Any]:
    return PlansManager(json.loads(plans.read_text())).get_configuration(f"{base}_new").configuration


def forward(configuration: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the outputs of the network that nnU-Net builds."""
    network = configuration["architecture"]
    parts = network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"]
    built = get_network_from_plans(*parts, 1, 4, deep_supervision=True)
    with torch.no_grad():
        return [tuple(out.shape) for out in built(torch.zeros(1, 1, *configuration["patch_size"]))]


def test_another_patch_has_the_network_that_nnunet_would_take(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (plans.parent / "nnUNetPlans_3d_fullres").mkdir()  # preprocessed
    assert plan("--patch", "32", "64", "64", "--batch", "3", "--features", "8", "--set", "num_epochs=9") == 0
    entry = json.loads(plans.read_text())["configurations"]["3d_fullres_new"]
    assert entry["inherits_from"] == "3d_fullres" and entry["mutual"] == {"num_epochs": 9}
    assert "data_identifier" not in entry  # the same data
    found = made(plans)
    kwargs = found["architecture"]["arch_kwargs"]
    assert (found["batch_size"], found["patch_size"], kwargs["n_stages"]) == (3, [32, 64, 64], 5)
    assert kwargs["strides"] == [[1, 1, 1], *[[2, 2, 2]] * 3, [1, 2, 2]]  # until 4 voxels are left
    assert kwargs["features_per_stage"] == [8, 16, 32, 64, 128]
    assert kwargs["n_conv_per_stage"] == [1] * 5 and kwargs["n_conv_per_stage_decoder"] == [1] * 4
    assert forward(found)[0] == (1, 4, 32, 64, 64)
    said = capsys.readouterr().out
    assert "patch 32 x 64 x 64 voxels of 1 x 1 x 1 mm, 3 in a batch" in said
    assert "network of 5 stages with 8, 16, 32, 64, 128 features" in said
    assert re.search(r"about (?!0\.0)\S+ GB of GPU memory with PartialTrainer|less than 0\.1 GB of GPU", said)
    assert "Next: nnunet_mutual train 901 3d_fullres_new all -tr PartialTrainer" in said  # two cases make no folds


def test_the_forecast_grows_with_batch_and_networks(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tiny.two_sources(["liver"], ["spleen"], ["case_00", "case_01"])
    tiny.make_dataset(nnunet_folders, configurations=(), cases=2, block=block)

    def gigabytes(name: str, *options: str) -> float:
        arguments = ["plan", "-d", "901", "--name", name, "--patch", "64", "64", "64", "--features", "32", *options]
        assert main(arguments) == 0
        return float(capsys.readouterr().out.split("about ")[1].split(" GB")[0])

    one, more = gigabytes("one"), gigabytes("more", "--batch", "8")
    assert 0 < 2.5 * one < more
    assert gigabytes("two", "--set", "stage1_networks=groups", "memory=joint") > 1.5 * one


def test_fewer_stages_and_convolutions(plans: Path) -> None:
    assert plan("--patch", "32", "32", "32", "--stages", "3", "--features", "200", "--convs", "1") == 0
    kwargs = made(plans)["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]] and kwargs["features_per_stage"] == [200, 320, 320]
    assert kwargs["n_conv_per_stage"] == [1, 1, 1]


def test_residual_networks_have_blocks(plans: Path) -> None:
    content = json.loads(plans.read_text())
    network = content["configurations"]["3d_fullres"]["architecture"]
    network["network_class_name"] = RESIDUAL
    kwargs = network["arch_kwargs"]
    kwargs["n_blocks_per_stage"] = [1, 3, 4]
    del kwargs["n_conv_per_stage"]
    plans.write_text(json.dumps(content))
    assert plan("--patch", "64", "64", "64", "--convs", "2") == 0
    found = made(plans)
    assert found["architecture"]["arch_kwargs"]["n_blocks_per_stage"] == [1, 2, 2, 2, 2]
    assert forward(found)[0] == (1, 4, 64, 64, 64)


def test_thick_slices_are_not_halved_with_the_others(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--patch", "8", "64", "64", "--spacing", "5", "1", "1") == 0
    found = made(plans)
    kwargs = found["architecture"]["arch_kwargs"]
    assert kwargs["strides"][1:3] == [[1, 2, 2], [1, 2, 2]] and kwargs["kernel_sizes"][0] == [1, 3, 3]
    assert found["data_identifier"] == "nnUNetPlans_3d_fullres_new"
    assert found["median_image_size_in_voxels"] == pytest.approx([3.2, 20, 18])
    said = capsys.readouterr().out
    expected = "nnunet_mutual plan_and_preprocess -d 901 -c 3d_fullres_new --as-planned nnUNetPlans"
    assert f"Next, data of this spacing: {expected}" in said and "nnunet_mutual train" not in said


def test_two_dimensions(plans: Path) -> None:
    assert plan("--patch", "64", "32", "--features", "300", base="2d") == 0
    found = made(plans, "2d")
    assert found["architecture"]["arch_kwargs"]["features_per_stage"][:3] == [300, 512, 512]
    assert forward(found)[0] == (1, 4, 64, 32)


REFUSED: dict[str, tuple[list[str], str, str]] = {
    "a patch that cannot be halved": (
        ["--patch", "33", "64", "64"],
        "3d_fullres",
        "--patch 33 x 64 x 64: the network of 5 stages needs multiples of 8 x 16 x 16 voxels; give 40 64 64",
    ),
    "one stage": (["--patch", "16", "16", "16", "--stages", "1"], "3d_fullres", "a network has two stages or more"),
    "strides of one stage": (["--strides", "1,1,1"], "3d_fullres", "a network has two stages or more"),
    "too many stages": (["--patch", "16", "16", "16", "--stages", "9"], "3d_fullres", "allows 3 stage(s) at most"),
    "too small a patch": (["--patch", "4", "4", "4"], "3d_fullres", "allows 1 stage(s) at most"),
    "two axes": (["--patch", "32", "32"], "3d_fullres", "3d_fullres has 3 axes, as in 16 x 16 x 16"),
    "spacing of three axes in 2d": (["--spacing", "1", "1", "1"], "2d", "2d has 2 axes, as in 1 x 1 mm"),
    "no voxels": (["--patch", "0", "32", "32"], "3d_fullres", "must be a whole number from 1"),
    "a negative spacing": (["--spacing", "-1", "1", "1"], "3d_fullres", "must be a positive number, found '-1'"),
    "strides that do not divide": (
        ["--patch", "8", "20", "16", "--strides", "1,1,1", "1,2,2", "1,4,2"],
        "3d_fullres",
        "--patch 8 x 20 x 16: the network of 3 stages needs multiples of 1 x 8 x 4 voxels; give 8 24 16",
    ),
    "stages that differ in number": (
        ["--patch", "16", "16", "16", "--features", "8", "16", "--strides", "1,1,1", "2,2,2", "2,2,2"],
        "3d_fullres",
        "stages of different number, 2 by --features and 3 by --strides",
    ),
    "strides of two axes": (["--strides", "1,1", "2,2"], "3d_fullres", "every stage has 3 axes, such as 1,1,1"),
    "a first stage of its own": (["--strides", "2,2,2", "2,2,2"], "3d_fullres", "all of its numbers are 1"),
    "an even kernel": (["--kernels", "2,2,2", "3,3,3"], "3d_fullres", "odd sizes, such as 1 and 3"),
    "kernels that are none": (["--kernels", "3x3x3"], "3d_fullres", "as in 1,2,2, must be a whole number"),
    "too small a map": (["--patch", "4", "4", "4", "--strides", "1,1,1", "4,4,4"], "3d_fullres", "cannot be built"),
    "a cascade": (["--spacing", "2", "2", "2"], "3d_cascade_fullres", "is the second stage of a cascade"),
    "groups": (["--groups", "a=CT", "b=CT", "--batch", "2"], "3d_fullres", "run the command twice"),
}


@pytest.mark.parametrize(("options", "base", "said"), REFUSED.values(), ids=REFUSED)
def test_what_the_network_does_not_allow(
    plans: Path, options: list[str], base: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plans.read_text()
    assert plan(*options, base=base) == 2
    assert said in capsys.readouterr().err and plans.read_text() == before


def test_another_spacing_needs_a_size(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(plans.read_text())
    del content["configurations"]["3d_fullres"]["median_image_size_in_voxels"]
    plans.write_text(json.dumps(content))
    assert plan("--spacing", "2", "2", "2") == 2
    said = capsys.readouterr().err
    assert '3d_fullres of the plans has no "median_image_size_in_voxels"; correct it, or plan again with' in said


def test_networks_of_others_keep_their_shape(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "somebody.Primus"
    plans.write_text(json.dumps(content))
    assert plan("--patch", "32", "32", "32") == 2
    assert "only --batch and --set can differ" in capsys.readouterr().err
    assert plan("--batch", "4") == 0 and made(plans)["batch_size"] == 4


def test_the_same_name_twice(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert plan("--patch", "32", "32", "32") == 0
    assert plan("--patch", "32", "32", "64") == 2
    said = capsys.readouterr().err
    assert "a configuration 3d_fullres_new, which would change (" in said and "choose another --name" in said
    assert "(patch_size: [32, 32, 32] -> [32, 32, 64])" in said
    assert plan("--patch", "16", "32", "32") == 2
    said = capsys.readouterr().err
    assert "patch_size: [32, 32, 32] -> [16, 32, 32]; strides: [[1, 1, 1], [2, 2, 2]" in said and "{" not in said
    assert plan("--patch", "32", "32", "32", "--set", "loss.pd=0.5", "num_epochs=9") == 2
    assert "which would change (loss.pd: not set -> 0.5; num_epochs: not set -> 9); " in capsys.readouterr().err


def test_a_setting_less_is_a_change_too(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--set", "num_epochs=9", "--batch", "3") == 0
    assert plan("--set", "num_epochs=9") == 2
    assert "which would change (batch_size: 3 -> 2); " in capsys.readouterr().err
    assert plan("--batch", "3") == 2
    assert "which would change (num_epochs: 9 -> not set); " in capsys.readouterr().err
    assert plan("--set", "num_epochs=9", "--batch", "3") == 0


def test_every_stage_as_it_is_wanted(plans: Path) -> None:
    strides, kernels = ["1,1,1", "1,2,2", "2,2,2"], ["1,3,3", "3,3,3", "3,5,5"]
    network = ["--features", "8", "12", "20", "--strides", *strides, "--kernels", *kernels]
    assert plan("--patch", "8", "40", "24", *network) == 0
    found = made(plans)
    kwargs = found["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [8, 12, 20] and kwargs["n_stages"] == 3
    assert kwargs["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert kwargs["kernel_sizes"] == [[1, 3, 3], [3, 3, 3], [3, 5, 5]]
    assert forward(found) == [(1, 4, 8, 40, 24), (1, 4, 8, 20, 12)]


def test_strides_alone_have_nnunets_kernels(plans: Path) -> None:
    assert plan("--patch", "32", "32", "32", "--strides", "1,1,1", "1,2,2", "2,2,2", "2,1,1") == 0
    kwargs = made(plans)["architecture"]["arch_kwargs"]
    assert kwargs["kernel_sizes"] == [[3, 3, 3]] * 4 and kwargs["features_per_stage"] == [4, 6, 8, 16]


def test_a_second_stage_is_named_by_its_first_one(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans.write_text(json.dumps(content))
    (plans.parent / "nnUNetPlans_3d_fullres").mkdir()  # preprocessed
    images = plans.parent / "unlabelled" / "nnUNetPlans_3d_fullres"  # whose trainers know no cascade
    images.mkdir(parents=True)
    (images / "new.pkl").touch()
    assert plan("--set", "num_epochs=9", base="3d_cascade_fullres") == 0
    first = json.loads(plans.read_text())["configurations"]["3d_lowres"]
    assert first["next_stage"] == ["3d_cascade_fullres", "3d_cascade_fullres_new"]
    said = capsys.readouterr().out
    again = f"nnunet_mutual train 901 3d_lowres FOLD -tr PartialTrainer{device_option()} --val"
    assert f"predicts for it, too: {again}\n" in said
    assert "Next: nnunet_mutual train 901 3d_cascade_fullres_new all -tr PartialTrainer" in said
