"""Masks of other tools: read in every layout, judged by the same rules, and never accepted on one word alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from modalities import two_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from other_tools import label_maps, organs, probabilities, resampled, rewrite
from reviewing import raw_label, run, truth, voxels
from training import partial_block, region_block

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.geometry import in_image_space, in_network_space
from nnunet_mutual.pseudo_labels.masks.folder import MaskFolder, _names
from nnunet_mutual.pseudo_labels.masks.make import STORE
from nnunet_mutual.pseudo_labels.soft_prediction import _complete

A, B = ["case_00", "case_02", "case_04"], ["case_01", "case_03", "case_05"]  # annotate the liver; tumour and spleen
SPLEEN = tiny.PLAIN["spleen"]


@pytest.fixture()
def raw(nnunet_folders: Path) -> Path:
    tiny.make_dataset(nnunet_folders, block=partial_block(), configurations=())
    return nnunet_folders / "nnUNet_raw" / tiny.NAME


def decisions_of(raw: Path) -> dict[tuple[str, str], Decision]:
    store = PseudoStore(raw / STORE)
    return {(one.case, one.label): one for one in store.decisions(key for key in [*A, *B] if store.has(key))}


def decided(raw: Path, key: str) -> np.ndarray:
    content = json.loads((raw / "dataset.json").read_text())
    codes = PseudoCodes.from_table(AnnotationTable.from_dataset_json(content))
    stored = PseudoStore(raw / STORE).codes(key)[0]
    np.testing.assert_array_equal(codes.true_values(stored), raw_label(raw.parents[1], key))
    return codes.decided_values(stored)


def test_one_tool_alone_is_judged_and_not_accepted(raw: Path, tmp_path: Path, capsys: Any) -> None:
    masks = label_maps(tmp_path / "tool", A, lambda labels: np.where(labels == SPLEEN, SPLEEN, 0))
    assert run("pseudo_label", 901, "--from", masks, "--tool", "Tool 1.2") == 0
    found = decisions_of(raw)
    assert {(key, "spleen") for key in A} == {pair for pair in found if pair[1] == "spleen"}
    assert not any(one.accepted for one in found.values())
    own = found["case_00", "spleen"]
    assert own.agreement is None and own.z is not None and own.networks == "Tool 1.2"
    assert own.reason.startswith("no second opinion: only a reader can accept it; plausible: ")
    said = capsys.readouterr().out
    assert "6 of 6 have no second opinion: only their volume and geometry were judged, and none is accepted" in said
    assert "nnunet_mutual review 901 -o review" in said
    assert not set(np.unique(decided(raw, "case_00"))) & {SPLEEN}, "nothing is accepted, so nothing is learnt"
    np.testing.assert_array_equal(
        PseudoStore(raw / STORE).candidates("case_00")[0] == SPLEEN, truth("case_00") == SPLEEN
    )


def test_two_tools_that_agree_are_accepted_and_their_differences_stay_unknown(raw: Path, tmp_path: Path) -> None:
    first = label_maps(tmp_path / "first", A)
    wider = organs(tmp_path / "second", A, {"milz": SPLEEN, "tumour": 2}, lambda labels: _grown(labels, SPLEEN))
    (wider / "tool.json").write_text(json.dumps({"tool": "Other", "version": "3"}))
    assert run("pseudo_label", 901, "--from", first, "--from", wider, "--map", "milz=spleen", "--tool", "One") == 0
    own = decisions_of(raw)["case_02", "spleen"]
    a, b = truth("case_02") == SPLEEN, _grown(truth("case_02"), SPLEEN) == SPLEEN
    assert own.accepted and own.networks == "One+Other 3"
    assert own.agreement == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    found = decided(raw, "case_02")
    drawn = raw_label(raw.parents[1], "case_02")
    np.testing.assert_array_equal(found == SPLEEN, a & (drawn == 0))
    assert (found[b & ~a & (drawn == 0)] == -1).all()
    candidates = PseudoStore(raw / STORE).candidates("case_02")
    assert candidates is not None
    np.testing.assert_array_equal(candidates[0] == SPLEEN, a), "a reader sees the masks of the first folder"


def test_what_was_drawn_wins_over_a_mask(raw: Path, tmp_path: Path) -> None:
    everywhere = [
        organs(tmp_path / name, A, {"spleen": 0}, lambda labels: np.zeros_like(labels)) for name in ("one", "two")
    ]
    folders = [word for folder in everywhere for word in ("--from", folder)]
    assert run("pseudo_label", 901, *folders, "--set", "label=false", "component=false") == 0
    drawn = raw_label(raw.parents[1], "case_00")
    np.testing.assert_array_equal(decided(raw, "case_00") == SPLEEN, drawn == 0)


def test_every_layout_says_the_same(raw: Path, tmp_path: Path) -> None:
    second = label_maps(tmp_path / "second", A)
    ways = {
        "label maps": label_maps(tmp_path / "maps", A),
        "organs": organs(tmp_path / "organs", A, {"tumour": 2, "spleen": SPLEEN}),
        "probabilities": probabilities(tmp_path / "npz", A, 0.97),
        "two names": organs(tmp_path / "two", A, {"tumour": 2, "upper": SPLEEN, "lower": 0}, _no_background),
    }
    found = {}
    for name, folder in ways.items():
        names = ["--map", "upper=spleen", "lower=spleen"] if name == "two names" else []
        assert run("pseudo_label", 901, "--from", folder, "--from", second, *names) == 0
        found[name] = [decided(raw, key).tolist() for key in A]
        assert all(one.accepted for pair, one in decisions_of(raw).items() if pair[1] == "spleen")
    assert all(one == found["label maps"] for one in found.values())


def test_numbers_are_mapped_and_left_out_where_no_dataset_json_names_them(raw: Path, tmp_path: Path) -> None:
    masks = label_maps(tmp_path / "tool", A, lambda labels: labels * 10)
    (masks / "dataset.json").unlink()
    assert run("pseudo_label", 901, "--from", masks, "--map", "30=spleen", "10=", "20=") == 0
    assert {label for _, label in decisions_of(raw)} == {"spleen"}
    assert decisions_of(raw)["case_00", "spleen"].networks == "tool (version unknown)"


def test_another_grid_of_the_same_space_is_resampled(raw: Path, tmp_path: Path) -> None:
    masks, exact = label_maps(tmp_path / "fine", A), label_maps(tmp_path / "exact", A)
    resampled(masks / "case_02.nii.gz", 2)
    assert voxels(masks / "case_02.nii.gz").shape == (32, 40, 36)
    assert run("pseudo_label", 901, "--from", masks, "--from", exact) == 0
    assert decisions_of(raw)["case_02", "spleen"].agreement == 1


def test_it_goes_on_and_makes_anew_what_has_changed(raw: Path, tmp_path: Path, capsys: Any) -> None:
    masks = label_maps(tmp_path / "tool", A)
    command = ["pseudo_label", 901, "--from", masks]
    assert run(*command) == 0
    store = PseudoStore(raw / STORE)
    (store.folder / "case_02.json").unlink()
    (store.folder / "case_00.b2nd").write_bytes(b"kept")
    assert run(*command) == 0 and store.has("case_02")
    assert (store.folder / "case_00.b2nd").read_bytes() == b"kept"
    capsys.readouterr()
    assert run(*command, "--set", "max_z=2") == 0
    assert "made anew" in capsys.readouterr().out and (store.folder / "case_00.b2nd").read_bytes() != b"kept"


def test_an_inner_label_wins_and_an_overlap_stays_unknown(nnunet_folders: Path, tmp_path: Path) -> None:
    block = partial_block(may_overlap=[["tumour", "spleen"]])
    block["sources"]["b"] = {"annotated": []}
    block["sources"]["a"] = {"annotated": ["liver", "tumour", "spleen"], "contains": {"liver": ["tumour"]}}
    tiny.make_dataset(nnunet_folders, block=block, configurations=())
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    shape = truth("case_01").shape
    for name in ("one", "two"):
        (tmp_path / name / "case_01").mkdir(parents=True)
        for organ, columns in (("liver", slice(0, 8)), ("tumour", slice(4, 10)), ("spleen", slice(9, 14))):
            mask = np.zeros(shape, np.uint8)
            mask[:, :, columns] = 1
            tiny.write_nifti(mask, tmp_path / name / "case_01" / f"{organ}.nii.gz")
    folders = ["--from", tmp_path / "one", "--from", tmp_path / "two"]
    assert run("pseudo_label", 901, *folders, "--set", "label=false") == 0
    assert decided(raw, "case_01")[0, 0].tolist() == [1] * 4 + [2] * 5 + [-1] + [3] * 4 + [0] * 4


def test_regions(nnunet_folders: Path, tmp_path: Path) -> None:
    tiny.make_dataset(nnunet_folders, labels=tiny.REGIONS, block=region_block(), configurations=())
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    folders = [label_maps(tmp_path / name, A, labels=tiny.REGIONS) for name in ("one", "two")]
    assert run("pseudo_label", 901, "--from", folders[0], "--from", folders[1], "--set", "label=false") == 0
    found = decisions_of(raw)
    assert {label for _, label in found} == {"core", "enhancing"} and all(one.accepted for one in found.values())
    codes = PseudoCodes.from_table(AnnotationTable.from_dataset_json(json.loads((raw / "dataset.json").read_text())))
    values = codes.decided_values(PseudoStore(raw / STORE).codes("case_00")[0])
    drawn, seen = raw_label(nnunet_folders, "case_00"), truth("case_00")
    np.testing.assert_array_equal(values[drawn > 0], seen[drawn > 0])


def test_there_and_back_between_the_grids() -> None:
    plans = PlansManager(tiny.plans() | {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]})
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4, (6, 7, 8))
    properties = {
        "shape_before_cropping": (8, 6, 7),
        "bbox_used_for_cropping": [[1, 8], [0, 5], [2, 6]],
        "shape_after_cropping_and_before_resampling": (7, 5, 4),
    }
    there = in_network_space(plans, image, properties, (14, 10, 8))
    np.testing.assert_array_equal(there[::2, ::2, ::2], image.transpose(2, 0, 1)[1:8, 0:5, 2:6])
    back = in_image_space(plans, there, properties)
    inside = np.full(image.shape, -1)
    inside[0:5, 2:6, 1:8] = image[0:5, 2:6, 1:8]
    np.testing.assert_array_equal(back, inside)


def _grown(labels: np.ndarray, value: int) -> np.ndarray:
    wider = labels.copy()
    for shift in (-1, 1):
        wider[(np.roll(labels, shift, 0) == value) & (labels == 0)] = value
    return wider


def _no_background(labels: np.ndarray) -> np.ndarray:
    """So that the mask of value 0 is empty."""
    return np.where(labels == 0, 9, labels)


def _shifted(file: Path) -> None:
    resampled(file, 1, (3.0, 0, 0))


def _oblique(file: Path) -> None:
    import SimpleITK as sitk

    mask = sitk.ReadImage(str(file))
    mask.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    sitk.WriteImage(mask, str(file))


def _four_axes(file: Path) -> None:
    import SimpleITK as sitk

    mask = sitk.ReadImage(str(file))
    sitk.WriteImage(sitk.JoinSeries([mask, mask]), str(file))


def _not_a_number(labels: np.ndarray) -> np.ndarray:
    changed = labels.astype(np.float32)
    changed[0, 0, 0] = np.nan
    return changed


FILES = {
    "shifted": (_shifted, "shows another physical space than case_02_0000.nii.gz: its ends are 3 x 0 x 0 mm"),
    "oblique": (_oblique, "its axes are not parallel"),
    "4D": (_four_axes, "2 channels, a label map one whole number for each voxel"),
    "NaN": (lambda file: rewrite(file, _not_a_number), "1 voxel(s) are NaN or infinite"),
    "interpolated": (lambda file: rewrite(file, lambda labels: labels * 0.5), "no whole numbers"),
    "negative": (lambda file: rewrite(file, lambda labels: -labels.astype(np.int16)), "holds the value -3"),
    "unknown value": (lambda file: rewrite(file, lambda labels: labels + 4), "holds the value 4, which neither"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-50]), "cut off or damaged"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_used_is_one_sentence_with_the_case(
    raw: Path, tmp_path: Path, capsys: Any, kind: str
) -> None:
    change, said = FILES[kind]
    masks = label_maps(tmp_path / "tool", A)
    change(masks / "case_02.nii.gz")
    assert run("pseudo_label", 901, "--from", masks) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: case case_02: ") and said in error, error
    assert not (raw / STORE / "decisions.csv").exists()


def _two_claim(folder: Path) -> None:
    for name in ("spleen", "tumour"):
        rewrite(folder / "case_02" / f"{name}.nii.gz", lambda mask: np.ones_like(mask))


def _half_an_organ(folder: Path) -> None:
    (folder / "case_02" / "right.nii.gz").write_bytes((folder / "case_02" / "spleen.nii.gz").read_bytes())


ORGANS: dict[str, tuple[Any, list[str], str]] = {
    "two claim a voxel": (_two_claim, [], "voxel(s) are claimed by tumour and by spleen; erase them from one"),
    "half an organ": (_half_an_organ, ["right=spleen"], "has no right, which spleen consists of, too"),
    "no mask": (
        lambda folder: rewrite(folder / "case_02" / "spleen.nii.gz", lambda mask: mask * 7),
        [],
        "holds the value 7; the mask of one organ holds 0 and 1",
    ),
    "all empty": (
        lambda folder: [rewrite(file, np.zeros_like) for file in folder.glob("*/*")],
        [],
        "no mask has a voxel where tumour or spleen may be: all are empty",
    ),
    "unknown label": (lambda folder: None, ["spleen=splen"], "unknown label 'splen' (did you mean 'spleen'?)"),
    "unknown organ": (lambda folder: None, ["spleeen=spleen"], "the masks have no 'spleeen' (did you mean 'spleen'?)"),
    "no pair": (lambda folder: None, ["spleen"], "--map spleen: expected NAME=LABEL"),
    "nothing is left": (lambda folder: None, ["spleen=", "tumour="], "none of its names is a label of this dataset"),
    "twice": (lambda folder: None, ["spleen=spleen", "spleen=liver"], "--map names 'spleen' twice"),
}


@pytest.mark.parametrize("kind", ORGANS)
def test_organs_that_cannot_be_used_are_one_sentence(raw: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    change, names, said = ORGANS[kind]
    masks = organs(tmp_path / "tool", A, {"tumour": 2, "spleen": SPLEEN})
    change(masks)
    assert run("pseudo_label", 901, "--from", masks, *(["--map", *names] if names else [])) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (raw / STORE / "decisions.csv").exists()


def test_a_name_in_files_and_folders_is_one(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "x.nii.gz").touch()
    places = {"c1": tmp_path / "c1", "c2": tmp_path / "c2.npz"}
    assert _names(MaskFolder(tmp_path, "T", places, {"x": (1,), "y": (2,)}, {}, [".nii.gz"])) == ["x", "y"]


def test_images_without_a_channel_of_the_model_are_left_out(tmp_path: Path, capsys: Any) -> None:
    cases = {key: CaseFiles(key, dict.fromkeys(range(n), tmp_path), tmp_path) for key, n in (("a", 2), ("b", 1))}
    table = two_channels()
    assert list(_complete(cases, [0, 1], table)) == ["a"]
    assert capsys.readouterr().out == "Left out, for want of a channel that the model needs: b\n"
    assert list(_complete(cases, [0], table)) == ["a", "b"]
    with pytest.raises(MutualError, match=r"each of the 1 image\(s\) lacks a channel .*\(b\)"):
        _complete({"b": cases["b"]}, [1], table)
