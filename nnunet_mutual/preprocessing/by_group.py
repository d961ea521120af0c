"""Preprocessing by modality group, on nnU-Net's own preprocessor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from numpy.typing import NDArray

from nnunet_mutual.annotation.modality_groups import ModalityGroups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.locate import require_root
from nnunet_mutual.errors import MutualError


class GroupPreprocessor(DefaultPreprocessor):
    """Normalises each modality group as a stock model of that group would, on the grid of all channels.

    Channels that a case lacks are declared in the annotation table, found by the numbers of the files, and zero.
    Nothing here is needed for prediction: an exported group is preprocessed by nnU-Net.

    Source: [E]; with resampling, the grid of all channels and that of one group are rounded differently, so voxels then
        differ a little from those that the exported model sees.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[NDArray[Any], NDArray[Any], dict]:
        """Reads a case, of which channels may be missing, and preprocesses it (nnU-Net's hook).

        Raises:
            MutualError: a channel is missing that is not declared so, or there is none at all.
        """
        content: dict = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        reader = plans_manager.image_reader_writer_class()
        found, properties = reader.read_images(image_files)
        table = AnnotationTable.from_dataset_json(content)
        listed = _listed(plans_manager.dataset_name).get(tuple(image_files)) if "dataset" in content else None
        present = present_channels(image_files, content, table, listed)
        data = np.zeros((len(table.channels), *found.shape[1:]), np.float32)
        data[list(present.values())] = found[list(present)]
        seg = None if seg_file is None else reader.read_seg(seg_file)[0]
        return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, content)

    def run_case_npy(
        self,
        data: NDArray[Any],
        seg: NDArray[Any] | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[NDArray[Any], NDArray[Any], dict]:
        """Preprocesses (C, *spatial); what comes out has the stored channels of :class:`ModalityGroups`."""
        content: dict = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        self.groups = ModalityGroups.of(AnnotationTable.from_dataset_json(content))
        return super().run_case_npy(data, seg, properties, plans_manager, configuration_manager, content)

    def _normalize(
        self,
        data: NDArray[Any],
        seg: NDArray[Any],
        configuration_manager: ConfigurationManager,
        foreground_intensity_properties_per_channel: dict,
    ) -> NDArray[Any]:
        """Crops, normalises and puts back each group; zero outside of its own crop."""
        schemes = configuration_manager.normalization_schemes
        masks = configuration_manager.use_mask_for_norm
        parts = []
        for numbers in self.groups.channels.values():
            own = data[list(numbers)]
            result = np.zeros_like(own)
            if own.any():
                cropped, inside, box = crop_to_nonzero(own)
                one = _Configuration([schemes[n] for n in numbers], [masks[n] for n in numbers])
                properties = {
                    str(i): foreground_intensity_properties_per_channel[str(n)] for i, n in enumerate(numbers)
                }
                place = (slice(None), *bounding_box_to_slice(box))
                result[place] = super()._normalize(cropped.copy(), inside, one, properties)
            parts.append(result)
        return np.concatenate(parts)


class _Configuration:
    """The part of nnU-Net's configuration that normalisation reads, of one group."""

    def __init__(self, schemes: Sequence[str], masks: Sequence[bool]):
        self.normalization_schemes = schemes
        self.use_mask_for_norm = masks


@lru_cache(maxsize=1)
def _listed(dataset: str) -> dict[tuple[str, ...], str]:
    """Returns the case of each list of image files, as "dataset" of dataset.json says."""
    files = get_filenames_of_train_images_and_targets(str(require_root("nnUNet_raw") / dataset))
    return {tuple(entry["images"]): key for key, entry in files.items()}


def present_channels(
    files: Sequence[str | Path], dataset_json: Mapping[str, Any], table: AnnotationTable, case: str | None = None
) -> dict[int, int]:
    """Tells which channels the files of one case are.

    Args:
        files: in the order in which nnU-Net lists them.
        dataset_json: the dataset's.
        table: its annotation table.
        case: of the files; None: their names say it.

    Returns:
        Position in ``files`` -> number of the channel, without those that the table declares missing.

    Raises:
        MutualError: a channel is missing that is not declared so, or there is none at all.
    """
    ending = dataset_json["file_ending"]
    matches = [re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", Path(file).name) for file in files]
    named = all(matches)
    if not named and len(files) != len(table.channels):
        raise MutualError(
            f"{Path(files[0]).name}: {len(files)} of {len(table.channels)} channels, and the names do not say which; "
            f"call them CASE_0000{ending}, CASE_0001{ending} and so on"
        )
    key = case or (str(matches[0][1]) if matches[0] else "")
    entry = table.cases.get(key)
    missing = entry.missing if entry is not None else frozenset()
    # Files of any name are listed in dataset.json, in the order of the channels.
    numbers = [int(match[2]) for match in matches if match is not None] if named else list(range(len(files)))
    if numbers and max(numbers) >= len(table.channels):
        raise MutualError(
            f"case {key} has an image of channel {max(numbers):04d}, and dataset.json names {len(table.channels)} "
            "channels; remove the file, or name the channel"
        )
    absent = [c for n, c in enumerate(table.channels) if n not in numbers and c not in missing]
    if absent:
        raise MutualError(
            f"case {key} has no image of channel {', '.join(absent)}; add it, or list it under "
            '"missing" of this case in the annotation table'
        )
    there = {i: n for i, n in enumerate(numbers) if table.channels[n] not in missing}
    if not there:
        raise MutualError(f'case {key} has no channel at all; remove it, or correct its "missing"')
    return there
