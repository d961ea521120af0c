"""Unlabelled images: what stock preprocessing would make of them, only what has changed, beside a stock dataset."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import status_of_copy
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from tiny import REGIONS, image_and_labels, two_sources, write_nifti
from unlabelled_images import DATA, Tiny

from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing import update
from nnunet_mutual.preprocessing.unlabelled import (
    UNLABELLED,
    plans_fingerprint,
    state_of,
    unlabelled_dataset,
    unlabelled_keys,
)
from nnunet_mutual.preprocessing.update import preprocess_unlabelled


@pytest.fixture()
def tiny(nnunet_folders: Path) -> Tiny:
    return Tiny(nnunet_folders)


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_lowres", "2d"])
def test_voxels_are_those_of_stock_preprocessing_with_an_empty_label_map(
    nnunet_folders: Path, configuration: str
) -> None:
    tiny = Tiny(nnunet_folders, images=0)
    image = image_and_labels(7)[0]
    image[:3] = image[:, :, 15:] = 0  # cropped away
    image[5, 5, 5] = 0  # a hole inside is not
    path = tiny.raw / "imagesUn" / "un_0_0000.nii.gz"
    write_nifti(image, path, spacing=(1.3, 1.0, 0.8))
    empty = tiny.root / "empty.nii.gz"
    write_nifti(np.zeros(image.shape, np.uint8), empty, spacing=(1.3, 1.0, 0.8))
    assert tiny.run("-c", configuration) == 0

    manager = tiny.plans
    chosen = manager.get_configuration(configuration)
    stock = tiny.root / "stock"
    stock.mkdir()
    DefaultPreprocessor(verbose=False).run_case_save(
        str(stock / "un_0"),
        [str(path)],
        str(empty),
        manager,
        chosen,
        json.loads((tiny.raw / "dataset.json").read_text()),
    )
    ours = nnUNetDatasetBlosc2(str(tiny.preprocessed / UNLABELLED / chosen.data_identifier)).load_case("un_0")
    theirs = nnUNetDatasetBlosc2(str(stock)).load_case("un_0")
    for mine, reference in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_array_equal(mine[:], reference[:])
        assert (mine.dtype, mine.chunks, mine.blocks) == (reference.dtype, reference.chunks, reference.blocks)
    assert ours[0].shape[1:] != image.shape
    assert ours[3].keys() == theirs[3].keys()
    assert ours[3]["class_locations"] == theirs[3]["class_locations"] == {1: [], 2: [], 3: []}
    assert ours[3]["shape_after_cropping_and_before_resampling"] == (13, 20, 15)


@pytest.mark.parametrize(("labels", "ignore"), [(None, True), (REGIONS, False), (REGIONS, True)])
def test_class_locations_have_the_keys_of_labelled_cases(
    nnunet_folders: Path, labels: dict[str, Any] | None, ignore: bool
) -> None:
    tiny = Tiny(nnunet_folders, images=1, labels=labels, ignore=ignore)
    assert tiny.run() == 0
    labelled = pickle.loads((tiny.preprocessed / DATA / "case_00.pkl").read_bytes())["class_locations"]
    unlabelled = pickle.loads((tiny.folder / "un_0.pkl").read_bytes())["class_locations"]
    assert unlabelled == dict.fromkeys(labelled, [])


def test_the_labelled_folder_stays_a_stock_dataset(tiny: Tiny) -> None:
    before = tiny.state()
    assert tiny.run() == 0
    assert tiny.identifiers == ["un_0", "un_1", "un_2"]
    assert {path: content for path, content in tiny.state().items() if UNLABELLED not in path} == before
    for folder in (tiny.preprocessed / DATA, tiny.folder):
        assert infer_dataset_class(str(folder)) is nnUNetDatasetBlosc2
    assert sorted(nnUNetDatasetBlosc2(str(tiny.preprocessed / DATA)).identifiers) == ["case_00", "case_01"]
    assert sorted(path.name for path in tiny.folder.parent.iterdir()) == [DATA, f"{DATA}.jsonl"]


def test_only_what_has_changed_is_done(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.run() == 0
    first = tiny.times()
    tiny.image("un_1", 77)
    tiny.image("un_3", 78)
    (tiny.raw / "imagesUn" / "un_0_0000.nii.gz").unlink()
    capsys.readouterr()
    assert tiny.run() == 0
    assert f"{DATA}: 1 unlabelled image(s) up to date, 2 to preprocess, 1 to remove" in capsys.readouterr().out
    now = tiny.times()
    assert {name for name in now if first.get(name) == now[name]} == {"un_2.b2nd", "un_2_seg.b2nd", "un_2.pkl"}
    assert tiny.identifiers == ["un_1", "un_2", "un_3"]
    assert len(now) == 9
    data = nnUNetDatasetBlosc2(str(tiny.folder)).load_case("un_1")[0][:]
    image = image_and_labels(77)[0]
    np.testing.assert_allclose(data[0], (image - image.mean()) / image.std(), atol=1e-4)
    assert tiny.run() == 0
    assert "3 unlabelled image(s) up to date, 0 to preprocess" in capsys.readouterr().out
    assert tiny.times() == now


def test_an_image_of_equal_size_and_a_lost_file(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.run() == 0
    os.utime(tiny.raw / "imagesUn" / "un_1_0000.nii.gz", ns=(1, 1))
    (tiny.folder / "un_2_seg.b2nd").unlink()
    capsys.readouterr()
    assert tiny.run() == 0
    assert "1 unlabelled image(s) up to date, 2 to preprocess, 0 to remove" in capsys.readouterr().out
    assert len(tiny.times()) == 9


def test_spacing_beside_a_tif_and_missing_channels_count(tmp_path: Path) -> None:
    image = tmp_path / "un_0000.tif"
    image.write_bytes(b"")
    files = CaseFiles("un", {0: image}, tmp_path / "un.tif")
    plain = state_of(files, "plans")
    assert state_of(files, "plans", ["FLAIR"]) != plain
    (tmp_path / "un.json").write_text('{"spacing": [1, 1, 1]}')
    beside = state_of(files, "plans")
    os.utime(tmp_path / "un.json", ns=(1, 1))
    assert plain != beside != state_of(files, "plans") != plain


@pytest.mark.parametrize(
    ("entries", "redone"),
    [
        ({"spacing": [2.0, 1.0, 1.0]}, True),
        ({"normalization_schemes": ["NoNormalization"]}, True),
        ({"use_mask_for_norm": [True]}, True),
        ({"patch_size": [8, 16, 16], "batch_size": 3, "mutual": {"num_epochs": 3}}, False),
    ],
)
def test_other_plans(tiny: Tiny, entries: dict[str, Any], redone: bool) -> None:
    assert tiny.run() == 0
    first = tiny.times()
    tiny.change_plans(**entries)
    if redone:
        with pytest.raises(MutualError, match=r"3 unlabelled image\(s\) .* with other plans \(un_0, un_1, un_2\); run"):
            tiny.open(tiny.table)
    assert tiny.run() == 0
    assert all(first[name] != now for name, now in tiny.times().items()) == redone
    found = tiny.open(tiny.table)
    assert found is not None and found.identifiers == ["un_0", "un_1", "un_2"]


def test_intensities_of_the_dataset_count(tiny: Tiny) -> None:
    """CT normalisation uses them, and they change with the labelled cases."""
    plans = tiny.plans
    configuration = plans.get_configuration("3d_fullres")
    other = json.loads(json.dumps(plans.plans))
    other["foreground_intensity_properties_per_channel"]["0"]["mean"] = 3.0
    assert plans_fingerprint(plans.plans, configuration) != plans_fingerprint(other, configuration)


def test_data_that_two_configurations_share_are_made_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.run("-c", "3d_cascade_fullres", "3d_fullres", "2d") == 0
    shown = capsys.readouterr().out
    assert shown.count(f"{DATA}: 0 unlabelled image(s) up to date, 3 to preprocess") == 1
    assert shown.count("to preprocess") == 2


def test_real_processes(nnunet_folders: Path, spawned_pools: None) -> None:
    tiny = Tiny(nnunet_folders, images=6)
    tiny.image("un_1", 3).write_bytes(b"broken")
    with pytest.raises(MutualError, match=r"1 unlabelled image\(s\) cannot be used, the others are done; .*un_1"):
        preprocess_unlabelled(901, processes=2)
    assert tiny.identifiers == ["un_0", "un_2", "un_3", "un_4", "un_5"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("half", [False, True])
def test_killed_and_repeated(tiny: Tiny, capsys: pytest.CaptureFixture[str], half: bool) -> None:
    def killed() -> None:
        add = update.add_to_record

        def adding(path: Path, key: str, state: str) -> None:
            if key == "un_1":
                if half:
                    (tiny.folder / "un_1.b2nd").unlink()
                with path.open("a") as stream:
                    stream.write('{"case": "un_1", "pl')
                os.kill(os.getpid(), signal.SIGKILL)
            add(path, key, state)

        update.add_to_record = adding
        tiny.run()

    assert status_of_copy(killed) == -signal.SIGKILL
    stale = tiny.folder.with_name(f".{DATA}.preprocessing")
    assert stale.is_dir() and tiny.identifiers == (["un_0"] if half else ["un_0", "un_1"])
    first = tiny.times()
    assert tiny.run() == 0
    assert "1 unlabelled image(s) up to date, 2 to preprocess" in capsys.readouterr().out
    assert not stale.exists() and tiny.identifiers == ["un_0", "un_1", "un_2"]
    assert tiny.times()["un_0.b2nd"] == first["un_0.b2nd"]
    assert tiny.run() == 0
    assert "3 unlabelled image(s) up to date, 0 to preprocess" in capsys.readouterr().out


def patients() -> dict[str, Any]:
    block = two_sources(["liver", "tumour", "spleen"], ["liver", "tumour", "spleen"], ["case_00", "case_01"])
    block["cases"]["case_00"]["patient"] = "p"
    block["cases"] |= {"un_0": {"source": "a", "patient": "p"}, "un_1": {"source": "b", "patient": "q"}}
    return block


def test_images_of_validation_patients_are_left_out(nnunet_folders: Path) -> None:
    tiny = Tiny(nnunet_folders, block=patients())
    table = tiny.table
    assert unlabelled_keys(table, ["un_2", "un_1", "un_0"], ["case_01"]) == ["un_0", "un_1", "un_2"]
    assert tiny.run() == 0
    found = tiny.open(table, ("case_00", "case_01"))
    assert found is not None and found.identifiers == ["un_1", "un_2"]
    assert found.load_case("un_1")[0].shape == (1, 16, 20, 18)


def test_nothing_to_open(tiny: Tiny) -> None:
    command = r"run nnunet_mutual preprocess_unlabelled -d 901 -p nnUNetPlans"
    with pytest.raises(MutualError, match=rf"imagesUn are not preprocessed for {DATA}; {command}"):
        tiny.open(tiny.table)
    shutil.rmtree(tiny.raw / "imagesUn")
    assert tiny.open(tiny.table) is None
    table = tiny.table
    shutil.rmtree(tiny.raw)
    assert tiny.open(table) is None, "trainings run on machines without raw data"


def test_no_unlabelled_images(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tiny.raw / "imagesUn")
    assert tiny.run() == 0
    assert "imagesUn holds no images, there is nothing to preprocess" in capsys.readouterr().out
    assert not tiny.folder.parent.exists()


def test_new_and_changed_images_are_said(tiny: Tiny) -> None:
    assert tiny.run("-np", "1") == 0
    said: list[str] = []
    plans = tiny.plans
    options = (tiny.preprocessed, plans, plans.get_configuration("3d_fullres"), tiny.table, (), said.append)
    unlabelled_dataset(*options)
    os.utime(tiny.raw / "imagesUn" / "un_0_0000.nii.gz")  # as in a copy
    unlabelled_dataset(*options)
    assert not said
    tiny.image("un_1", 55)
    tiny.image("un_9", 56)
    found = unlabelled_dataset(*options)
    assert found is not None and "un_9" not in found.identifiers
    assert said[0].startswith("WARNING: 2 image(s) of imagesUn are new or changed since they were preprocessed")
    assert "(un_1, un_9); for that, run nnunet_mutual preprocess_unlabelled -d 901 -p nnUNetPlans" in said[0]
