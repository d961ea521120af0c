"""Label maps of drawn and accepted pseudo labels, written on the grid of the image."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tifffile
import tiny
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reviewing import decided, fabricate, raw_label

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.pseudo_labels.command import _write_label_maps

SPACING = [3.0, 0.5, 0.7]


def test_3d_tif_has_the_spacing_of_its_image(nnunet_folders: Path, tmp_path: Path) -> None:
    """nnU-Net copies label maps into gt_segmentations without the file that says the spacing of a tif."""
    store = PseudoStore(fabricate(nnunet_folders, [decided("case_00", "spleen")]))
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    drawn = raw_label(nnunet_folders, "case_00")
    tifffile.imwrite(preprocessed / "gt_segmentations" / "case_00.tif", drawn, photometric="minisblack")
    data = preprocessed / "nnUNetPlans_3d_fullres"
    properties = pickle.loads((data / "case_00.pkl").read_bytes())
    del properties["sitk_stuff"]
    (data / "case_00.pkl").write_bytes(pickle.dumps({**properties, "spacing": SPACING}))
    content = json.loads((preprocessed / "dataset.json").read_text())
    plans = PlansManager(tiny.plans() | {"image_reader_writer": "Tiff3DIO"})
    window: Any = SimpleNamespace(
        plans=plans, dataset_json=content | {"file_ending": ".tif"}, labels=plans.get_label_manager(content)
    )
    table = AnnotationTable.from_dataset_json(content)
    (tmp_path / "maps").mkdir()
    _write_label_maps(window, Fold(table, ["case_00"], [], nnUNetDatasetBlosc2, str(data)), store, tmp_path / "maps")
    found, described = Tiff3DIO().read_seg(str(tmp_path / "maps" / "case_00.tif"))
    np.testing.assert_array_equal(found[0], drawn)  # nothing was decided there
    assert described == {"spacing": SPACING}
