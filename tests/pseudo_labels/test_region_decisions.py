"""What decisions about regions leave of what was drawn, in label maps and for readers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from partial_oracle import dataset
from reviewing import decided
from test_pseudo_generate import Says, labeller
from training import SHORT, region_block

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.possible import fitting_pairs
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.pseudo_labels.command import _write_label_maps
from nnunet_mutual.pseudo_labels.geometry import in_network_space

NESTED = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_lowres"])
def test_rejected_regions_are_not_written_and_drawn_ones_stay(
    nnunet_folders: Path, tmp_path: Path, configuration: str
) -> None:
    """case_00 draws the whole; the enhancing part lies in the accepted core, and is rejected."""
    options = {"block": region_block(), "settings": SHORT, "configurations": (configuration,)}
    preprocessed = tiny.make_dataset(nnunet_folders, labels=tiny.REGIONS, **options)
    content = json.loads((preprocessed / "dataset.json").read_text())
    table, plans, key = AnnotationTable.from_dataset_json(content), PlansManager(tiny.plans()), "case_00"
    data = preprocessed / f"nnUNetPlans_{configuration}"
    _, seg, _, properties = nnUNetDatasetBlosc2(str(data)).load_case(key)
    drawn, truth = np.asarray(seg[:]), tiny.image_and_labels(0)[1].astype(np.int16)
    found = in_network_space(plans, truth, properties, drawn.shape[1:])[None]
    found = np.where(drawn > 0, np.maximum(found, 1), -1).astype(np.int16)
    store = PseudoStore(tmp_path / "store")
    store.claim({})
    codes = PseudoCodes.from_table(table).encode(drawn, found)
    store.write(key, codes, {}, [decided(key, "core", True), decided(key, "enhancing", False)])
    window = SimpleNamespace(plans=plans, dataset_json=content, labels=plans.get_label_manager(content))
    (tmp_path / "maps").mkdir()
    _write_label_maps(window, Fold(table, [key], [], nnUNetDatasetBlosc2, str(data)), store, tmp_path / "maps")
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr"
    written, before = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(f / f"{key}.nii.gz"))) for f in (tmp_path / "maps", raw)
    )
    assert np.array_equal(written > 0, before > 0), "the annotated whole is not as it was drawn"
    assert (written == 2).sum() > 50 and not (written == 3).any(), "what was rejected is in the map"


def test_a_reader_sees_every_voxel_that_is_likelier_the_whole_than_not() -> None:
    """Also where the regions inside of it, of 0.45 and 0.55, fit no integer."""
    content = dataset(NESTED, {"n": {"annotated": []}})
    image = torch.tensor([[0.9, 0.9, 0.95, 0.9, 0.1], [0.1, 0.45, 0.3, 0.9, 0.1], [0.1, 0.55, 0.6, 0.9, 0.1]])
    judge = labeller(content, [Says(True)], [{*NESTED}], label=False)
    case = judge.table.case("n")
    said = judge.predict(case, image[:, None, None])
    _, candidates, _ = judge.judge(case, said, np.zeros((1, 1, 5), np.int16), 1.0)
    assert candidates.ravel().tolist() == [1, 1, 1, 3, 0]


def test_what_may_be_decided_where_something_was_drawn() -> None:
    regions = AnnotationTable.from_dataset_json(dataset(NESTED, {"w": {"annotated": ["whole"]}}))
    inside = {(y, z) for y in (1, 2, 3) for z in (1, 2, 3)}
    assert fitting_pairs(regions, regions.case("w")) == {(0, 0), *inside}
    content = dataset({"liver": 1, "tumour": 2}, {"l": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}}})
    plain = AnnotationTable.from_dataset_json(content)
    assert fitting_pairs(plain, plain.case("l")) == {(0, 0), (1, 1), (1, 2)}, "a tumour outside of the drawn liver"
