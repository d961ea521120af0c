"""Attention within and across the samples of a batch, and the auxiliary network that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.resize import interpolated

Inter = Literal["pooled", "position"]
MOST_TOKENS = 4096
POOL = 4
HEADS = (4, 2, 1)  # the paper's 4, unless a head would be smaller than the paper's
HEAD_SIZE = 32


class _Attention(nn.Module):
    """Pre-norm multi-head attention, added with a scale that starts at zero, so that it first changes nothing."""

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_query = nn.Linear(channels, channels)
        self.to_key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Lets tokens x (B, T, C) attend to ``context`` (B, S, C)."""
        batch, tokens, channels = x.shape
        query = self.to_query(self.norm(x)).view(batch, tokens, self.heads, -1).transpose(1, 2)
        key, value = (
            part.view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
            for part in self.to_key_value(self.norm(context)).chunk(2, -1)
        )
        found = F.scaled_dot_product_attention(query, key, value)  # with dropout it would write out T x S weights
        return x + self.scale * self.out(found.transpose(1, 2).reshape(batch, tokens, channels))


class CrossSampleAttention(nn.Module):
    """Cross-sample mutual attention (CMA): tokens attend to their own image, then to the other images of the batch.

    Args:
        channels: of the feature map.
        inter: "position": to the same place of the other images, as published, which supposes aligned images; "pooled":
            to 4 x 4 x 4 (4 x 4) averages of all places of the other images.
        dropout: share of what the attention adds.
        dimensions: of the images, 2 or 3.

    Source: arXiv 2307.06312. Pre-norm, the residual scales, fewer heads for few channels and "pooled" are [E].
    Fails when: used alone, as in inference: what it returns depends on the other images.
    """

    def __init__(self, channels: int, *, inter: Inter = "pooled", dropout: float = 0.1, dimensions: int = 3):
        super().__init__()
        heads = next(n for n in HEADS if n == 1 or (channels % n == 0 and channels // n >= HEAD_SIZE))
        self.inter = inter
        self.pool = nn.AvgPool3d(POOL, ceil_mode=True) if dimensions == 3 else nn.AvgPool2d(POOL, ceil_mode=True)
        self.within = _Attention(channels, heads, dropout)
        self.across = _Attention(channels, heads, dropout)
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Takes and returns (B, C, *spatial)."""
        x = features.flatten(2).transpose(1, 2)
        x = self.within(x, x)
        x = self._across(x, features.shape)
        x = x + self.scale * self.mix(self.norm(x))
        return x.transpose(1, 2).reshape(features.shape)

    def _across(self, x: Tensor, shape: torch.Size) -> Tensor:
        batch = len(x)
        if self.inter == "position":
            by_place = x.transpose(0, 1)
            return self.across(by_place, by_place).transpose(0, 1)
        pooled = self.pool(x.transpose(1, 2).reshape(shape)).flatten(2).transpose(1, 2)
        if batch == 1:  # nobody else to look at
            return self.across(x, pooled)
        others = torch.cat([pooled.roll(-k, 0) for k in range(1, batch)], 1)
        return self.across(x, others)


class Interpolation(nn.Module):
    """Upsampling by a 1 x 1 convolution and interpolation, in place of a transposed convolution.

    Args:
        transposed: whose channels, stride and bias are taken over.
    """

    def __init__(self, transposed: nn.ConvTranspose2d | nn.ConvTranspose3d):
        super().__init__()
        three = isinstance(transposed, nn.ConvTranspose3d)
        convolution = nn.Conv3d if three else nn.Conv2d
        self.factors = [int(factor) for factor in transposed.stride]
        self.project = convolution(transposed.in_channels, transposed.out_channels, 1, bias=transposed.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        return interpolated(projected, [n * factor for n, factor in zip(x.shape[2:], self.factors, strict=True)])


def attention_stage(patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> int:
    """Returns the first encoder stage below full resolution with at most 4096 voxels per patch, else the last one.

    Args:
        patch_size: voxels.
        strides: of each encoder stage, as in the plans.
    """
    total = np.cumprod(np.asarray([np.atleast_1d(stride) for stride in strides]), 0)
    tokens = np.prod(np.ceil(np.asarray(patch_size) / total), 1)
    return next((stage for stage in range(1, len(tokens)) if tokens[stage] <= MOST_TOKENS), len(tokens) - 1)


def make_auxiliary(network: nn.Module, stage: int, channels: int, *, inter: Inter, dropout: float) -> nn.Module:
    """Turns a U-Net of nnU-Net into the auxiliary network: CMA after an encoder stage, interpolating upsampling.

    The encoder keeps its names in the state dict, so that it takes pretrained weights.

    Args:
        network: fresh, as built from the plans; changed in place.
        stage: of the encoder.
        channels: of that stage.
        inter: see :class:`CrossSampleAttention`.
        dropout: likewise.

    Raises:
        MutualError: the architecture has no stages to change.
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if not isinstance(getattr(encoder, "stages", None), nn.Sequential) or not hasattr(decoder, "transpconvs"):
        raise MutualError(
            f"{type(network).__name__} has no encoder stages for the attention of the auxiliary network; plan a U-Net "
            "(PlainConvUNet or ResidualEncoderUNet)"
        )
    transposed = decoder.transpconvs  # type: ignore[union-attr]
    decoder.transpconvs = nn.ModuleList(Interpolation(layer) for layer in transposed)  # type: ignore[union-attr]
    attention = CrossSampleAttention(
        channels, inter=inter, dropout=dropout, dimensions=3 if isinstance(transposed[0], nn.ConvTranspose3d) else 2
    )
    chosen = encoder.stages[stage]  # type: ignore[union-attr]
    (chosen if isinstance(chosen, nn.Sequential) else chosen.blocks).append(attention)  # ResidualEncoder has blocks
    return network
