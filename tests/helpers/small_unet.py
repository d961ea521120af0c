"""A small U-Net as nnU-Net builds it."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn


def unet(kind: type[nn.Module] = PlainConvUNet, outputs: int = 3, *, dropout: float = 0.0, **more: Any) -> nn.Module:
    blocks = {"n_blocks_per_stage": [1, 1, 1]} if kind is ResidualEncoderUNet else {"n_conv_per_stage": [1, 1, 1]}
    options: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [3, 3, 3],
        "strides": [1, 2, 2],
        "num_classes": outputs,
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"affine": True},
        "dropout_op": nn.Dropout3d if dropout else None,
        "dropout_op_kwargs": {"p": dropout} if dropout else None,
        "nonlin": nn.LeakyReLU,
        "deep_supervision": True,
    }
    return kind(**{**options, **blocks, **more})
