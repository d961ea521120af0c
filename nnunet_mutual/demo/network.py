"""A small network for the demo, as a configuration of nnU-Net's plans file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_object, write_json

BASE = "3d_fullres"
SMALL = "3d_small"


def small_configuration(patch_size: Sequence[int], features: Sequence[int]) -> dict[str, Any]:
    """Returns nnU-Net's plain U-Net with few features, for images with thick slices.

    Args:
        patch_size: (Z, Y, X) voxels.
        features: channels of each stage, at least two.
    """
    deeper = len(features) - 1
    return {
        "inherits_from": BASE,
        "patch_size": list(patch_size),
        "batch_size": 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": len(features),
                "features_per_stage": list(features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                # As nnU-Net plans for thick slices: no filtering and no pooling across them at high resolution.
                "kernel_sizes": [[1, 3, 3]] * 2 + [[3, 3, 3]] * (deeper - 1),
                "strides": [[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * (deeper - 1),
                "n_conv_per_stage": [1] + [2] * deeper,
                "n_conv_per_stage_decoder": [1] * deeper,
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def add_small_configuration(plans_file: Path, patch_size: Sequence[int], features: Sequence[int]) -> None:
    """Adds the configuration :data:`SMALL` to a plans file.

    Args:
        plans_file: nnUNetPlans.json of the preprocessed dataset.
        patch_size: (Z, Y, X) voxels.
        features: channels of each stage.
    """
    plans = read_object(plans_file)
    plans["configurations"][SMALL] = small_configuration(patch_size, features)
    write_json(plans_file, plans)
