"""Transforms of the loader's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor


class MarkInside(SegOnlyTransform):
    """Gives the background a value of its own, before nnU-Net turns what lies outside of the image into background.

    Args:
        value: above all labels.
    """

    def __init__(self, value: int):
        super().__init__()
        self.value = value

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return torch.where(segmentation == 0, self.value, segmentation)


def marking(value: int, transforms: BasicTransform) -> BasicTransform:
    """Returns nnU-Net's transforms with the mark before them."""
    return ComposeTransforms([MarkInside(value), transforms])


def split_mark(target: Sequence[Tensor], value: int, regions: int | None) -> tuple[list[Tensor], Tensor]:
    """Takes the mark out of a target again.

    Args:
        target: per level; labels (B, 1, *spatial) with the mark, or regions (B, R + 1[+1], *spatial), of which channel
            R says where the image is.
        value: of the mark.
        regions: R, None for labels.

    Returns:
        The target as nnU-Net's loader gives it, and (B, 1, *spatial) bool at full resolution: inside of the image.
    """
    if regions is None:
        return [torch.where(level == value, 0, level) for level in target], target[0] != 0
    kept = [torch.cat([level[:, :regions], level[:, regions + 1 :]], 1) for level in target]
    return kept, target[0][:, regions : regions + 1].bool()


class SoftChannels(BasicTransform):
    """Takes channels with soft labels through nnU-Net's transforms: moved with the image, intensities left alone.

    Args:
        transforms: nnU-Net's.
        images: number of channels of the image; what follows are soft labels.
        outputs: number of soft labels; an image without any gets zeros.
    """

    def __init__(self, transforms: BasicTransform, images: int, outputs: int):
        super().__init__()
        self.transforms = transforms
        self.images = images
        self.outputs = outputs

    def __call__(self, **data: Any) -> dict[str, Any]:
        """Applies the transforms."""
        image: Tensor = data["image"]
        soft = image[self.images :]
        if not len(soft):
            soft = image.new_zeros(self.outputs, *image.shape[1:])
        done: dict[str, Any] = self.transforms(**{**data, "image": image[: self.images], "regression_target": soft})
        done["image"] = torch.cat([done["image"], done.pop("regression_target")])
        return done
