"""Label maps between the grid of the image and that of the networks, with nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, insert_crop_into_image
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.codes import UNDECIDED


def in_image_space(plans: PlansManager, values: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
    """Undoes nnU-Net's resampling, cropping and transposition of a label map, with nearest neighbours.

    Args:
        plans: of the configuration.
        values: (*spatial) integers, preprocessed.
        properties: of the case.

    Returns:
        Integers in the shape of the image as its reader gives it; -1 outside of the crop.
    """
    cropped = _resized(values, properties["shape_after_cropping_and_before_resampling"])
    whole = np.full(properties["shape_before_cropping"], UNDECIDED, np.int16)
    whole = insert_crop_into_image(whole, cropped.astype(np.int16), properties["bbox_used_for_cropping"])
    return whole.transpose(plans.transpose_backward)


def in_network_space(
    plans: PlansManager, values: np.ndarray, properties: dict[str, Any], shape: Sequence[int]
) -> np.ndarray:
    """Transposes, crops and resamples a label map as nnU-Net did the image; see :func:`in_image_space`.

    Args:
        plans: of the configuration.
        values: integers in the shape of the image as its reader gives it.
        properties: of the case.
        shape: (*spatial) of the preprocessed image.
    """
    turned = values.transpose(plans.transpose_forward)
    return _resized(turned[bounding_box_to_slice(properties["bbox_used_for_cropping"])], shape)


def _resized(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    tensor = torch.from_numpy(values.astype(np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, size=tuple(map(int, shape)), mode="nearest-exact")
    return resized[0, 0].numpy().astype(np.int16)
