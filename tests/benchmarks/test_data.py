"""What benchmarks make of the data: crops, simulated modalities, what is drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from made_up_evidence import BENCHMARKS
from scipy import ndimage


def test_a_crop_is_around_the_foreground_and_inside_the_image(bench: SimpleNamespace) -> None:
    labels = np.zeros((3, 10, 12), np.uint8)
    labels[1, 4:7, 0:3] = 1
    assert bench.crops.box_around(labels, [None, 5, 6]) == (slice(0, 3), slice(3, 8), slice(0, 6))
    assert bench.crops.box_around(labels, [None, 5, 20]) == (slice(0, 3), slice(3, 8), slice(0, 12))
    assert bench.crops.box_around(np.zeros_like(labels), [1, 5, 6]) == (slice(1, 2), slice(2, 7), slice(3, 9))


def test_a_label_map_keeps_only_what_was_annotated(bench: SimpleNamespace, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.array([[[0, 1, 2, 3]]], dtype=np.uint8))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "old.nii.gz"))
    bench.preparation.write_labels(tmp_path / "old.nii.gz", tmp_path / "new.nii.gz", {3: 1})
    new = sitk.ReadImage(str(tmp_path / "new.nii.gz"))
    assert sitk.GetArrayFromImage(new).ravel().tolist() == [0, 0, 0, 1]
    assert new.GetSpacing() == (1.0, 2.0, 3.0)


def test_a_second_modality_hides_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulate = importlib.import_module("second_modality").second_modality
    labels = np.zeros((21, 24, 23), np.uint8)
    labels[4:10, 4:12, 4:12], labels[12:18, 12:20, 12:20] = 1, 2
    image = np.array([200.0, 300.0, 300.0])[labels] + np.random.default_rng(0).normal(0, 3, labels.shape)
    image[0, :12], image[0, 12:] = 50, 400  # what else is in an image

    def contrast(x: np.ndarray, label: int) -> float:
        inner = ndimage.binary_erosion(labels == label, iterations=2)
        other = x[2:][labels[2:] == 0]
        return abs(x[inner].mean() - other.mean()) / other.std()

    made = simulate(image, labels, 2, "case_1")
    assert made.shape == image.shape and made.dtype == np.float32 and made.min() >= 0
    assert contrast(image, 2) > 10 and contrast(made, 1) > 10 * contrast(made, 2)
    assert np.array_equal(made, simulate(image, labels, 2, "case_1"))
    assert not np.array_equal(made, simulate(image, labels, 2, "case_2"))
    other = simulate(image, labels, 1, "case_1")
    assert contrast(other, 2) > 10 * contrast(other, 1)

    first, second = importlib.import_module("second_modality").two_modalities(image, labels, (1, 2), 0.3, "case_1")
    assert first.shape == second.shape == image.shape and first.dtype == second.dtype == np.float32
    assert contrast(first, 2) > 4 * contrast(first, 1) and contrast(second, 1) > 4 * contrast(second, 2)
    edge = ndimage.binary_dilation(labels == 1) & (labels == 0)
    inner = (labels == 1) & ~ndimage.binary_erosion(labels == 1)
    assert abs(first[edge].mean() - first[inner].mean()) < 0.5 * np.ptp(first[labels == 2]), "the mask has an edge"

    shown = importlib.import_module("second_modality").two_modalities(
        image, labels, (1, 2), 0.3, "case_1", enhanced=0.4
    )
    for seen, bright, hidden in zip(shown, (2, 1), (1, 2), strict=True):
        assert contrast(seen, bright) > 4 * contrast(seen, hidden)
        core, around = (
            ndimage.binary_erosion(labels == bright),
            ndimage.binary_dilation(labels == bright) & (labels == 0),
        )
        assert 300 < np.median(seen[core]) - np.median(seen[around]) < 500, "the agent adds 0.4 of 1000"


def test_the_same_slices_are_hidden_in_every_arm(bench: SimpleNamespace, tmp_path: Path) -> None:
    """As 0, or as the ignore label."""
    setting = bench.settings.Setting("acdc_incomplete_3", None, tmp_path)
    groups = [group for entry in setting["datasets"].values() for group in entry.get("groups", [])]
    rules = [group["hidden"] for group in groups if "hidden" in group]
    assert len(rules) == 3 and rules.count(rules[0]) == 3
    old = np.zeros((8, 4, 4), np.uint8)
    old[:, 0], old[1:7, 1] = 3, 1
    files, maps = (tmp_path / "old.nii.gz", tmp_path / "new.nii.gz"), []
    tiny.write_nifti(old, files[0], (1.0, 1.0, 10.0))
    for gap in (0, 4):
        hide = bench.preparation.hiding_of(rules[0], setting["labels"], "patient001_frame01")
        bench.preparation.write_labels(*files, {3: 1, 1: 3}, hide=hide, gap=gap)
        maps.append(sitk.GetArrayFromImage(sitk.ReadImage(str(files[1]))))
    left, ignored = maps
    assert np.array_equal(left, np.where(ignored == 4, 0, ignored)) and np.array_equal(ignored == 0, old == 0)
    assert [(ignored[:, row] == 4).all(1).sum() for row in (0, 1)] == [4, 3], "half of the slices of each"
    entry = setting["datasets"]["ignored"]
    assert bench.preparation.labels_of(entry) == {"background": 0, "RV": 1, "MYO": 2, "LV": 3, "ignore": 4}


def test_an_arm_may_leave_out_a_source_of_its_draw(bench: SimpleNamespace) -> None:
    setting = bench.settings.Setting("acdc_incomplete_3", None)
    draw = setting.draws[1]
    assert setting.labelled_cases("complete_alone", 1) == {"all": setting.cases_of(draw["complete"])}
    both = setting.labelled_cases("some", 1)
    assert both == {"all": setting.cases_of(draw["complete"]), "in_part": setting.cases_of(draw["in_part"])}
    assert len(draw["in_part"]) == 9


def test_what_is_drawn_in_a_simulation(bench: SimpleNamespace, tmp_path: Path) -> None:
    suggesting = importlib.import_module("suggesting")
    simulation = suggesting.Simulation("hippocampus", None, tmp_path)
    first, second = simulation.draws[3]
    order = suggesting.shuffled(simulation, 3)
    assert len({*order}) == 2 * 138 and not {case for case, _ in order} & {first, second}
    assert order == suggesting.shuffled(simulation, 3) != suggesting.shuffled(simulation, 4)
    run = suggesting.Run(3, "suggest", 4)
    drawn = simulation.cases_with(3, [("x", "Posterior"), ("y", "Anterior"), ("x", "Anterior"), ("z", "Posterior")])
    simulation.add(run, drawn)
    found = simulation.labelled_cases("suggest4", 3)
    assert found == {"all": [first, second, "x"], "anterior": ["y"], "posterior": ["z"]}
    names = [simulation.dataset_name(*place) for place in (("suggest4", 3), ("suggest4", 1003), ("all", 0))]
    assert names[0] == names[1] == "Dataset745_SuggestinghippocampusSuggest42Draw3"
    assert names[2] == "Dataset741_SuggestinghippocampusAll"
    files = {run.file for draw in range(12) for run in simulation.runs(draw)}
    assert len(files) == 12 * 7 and {"start_draw0.json", "random16_draw11.json"} < files
