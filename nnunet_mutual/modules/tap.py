"""A stock network that also returns the features of decoder stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_mutual.errors import MutualError


def feature_stage(strides: Sequence[Sequence[int]], coarsest: int = 4) -> int:
    """Returns the first decoder stage whose features have at most a given stride on every axis.

    Args:
        strides: of each encoder stage, highest resolution first, as in the plans.
        coarsest: the largest stride, at least 1.
    """
    total = np.cumprod(np.asarray([np.atleast_1d(stride) for stride in strides]), 0)
    fine = [stage for stage in range(len(total) - 1) if (total[-2 - stage] <= coarsest).all()]
    return fine[0]  # the last stage has the resolution of the first encoder stage, which has stride 1


class FeatureTap(nn.Module):
    """Runs nnU-Net's own sub-modules; in training mode it returns (logits per level, features by stride).

    Compiled as a whole it needs no hooks, which torch.compile may ignore.

    Args:
        network: a U-Net of dynamic_network_architectures, as nnU-Net builds it from the plans.
        stages: decoder stage, 0 is the coarsest, of each stride for which features are wanted.

    Raises:
        MutualError: the architecture has no decoder stages.
    """

    def __init__(self, network: nn.Module, stages: Mapping[int, int]):
        super().__init__()
        if not all(
            hasattr(getattr(network, "decoder", None), part) for part in ("stages", "transpconvs", "seg_layers")
        ):
            raise MutualError(
                f"{type(network).__name__} has no decoder stages to take features from; set the weights of the terms "
                "that compare features to 0, or plan a U-Net (PlainConvUNet or ResidualEncoderUNet)"
            )
        self.network = network
        self.stages = dict(stages)

    def forward(self, data: Tensor) -> list[Tensor] | Tensor | tuple[list[Tensor], dict[int, Tensor]]:
        if not self.training:
            return self.network(data)
        return levels_and_features(self.network, data, self.stages, every_level=self.network.decoder.deep_supervision)  # type: ignore[union-attr, arg-type]


def levels_and_features(
    network: nn.Module, data: Tensor, stages: Mapping[int, int], *, every_level: bool
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Runs a U-Net of dynamic_network_architectures by its sub-modules.

    Args:
        network: the U-Net.
        data: (B, M, *spatial).
        stages: decoder stage of each stride for which features are wanted.
        every_level: whether to give logits of every deep-supervision level, not of the highest resolution only.

    Returns:
        Logits, highest resolution first, and features (B, F, *spatial) by stride.
    """
    skips = network.encoder(data)  # type: ignore[operator]
    decoder: Any = network.decoder
    x, levels, features = skips[-1], [], {}
    for stage, (upsample, convolve, segment) in enumerate(
        zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True)
    ):
        x = convolve(torch.cat((upsample(x), skips[-2 - stage]), 1))
        features.update({stride: x for stride, chosen in stages.items() if chosen == stage})
        if every_level or stage == len(skips) - 2:
            levels.append(segment(x))
    return levels[::-1], features
