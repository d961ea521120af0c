"""Learnable prototypes of every class, and the map of class scores with which they rectify a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_mutual.losses.numerics import without_autocast
from nnunet_mutual.modules.depthwise import depthwise
from nnunet_mutual.modules.resize import interpolated
from nnunet_mutual.modules.tap import feature_stage, levels_and_features

SIZE = 32  # D, of a prototype
MOST_SCORES, MOST_TOKENS = 256, 2**16  # prototypes in all, and voxels of the finer feature map
FEWEST_PROTOTYPES, MOST_PROTOTYPES = 2, 16  # per class
TRUST_AT_START = -4.0


@dataclass(frozen=True)
class FeatureMap:
    """A decoder stage at which the prototypes look.

    Attributes:
        stride: by which it is asked for.
        stage: of the decoder, 0 is the coarsest.
        channels: of its features.
        kernel: of the network's convolutions at this resolution.
    """

    stride: int
    stage: int
    channels: int
    kernel: Sequence[int]


def feature_maps(patch_size: Sequence[int], architecture: Mapping[str, object]) -> tuple[FeatureMap, FeatureMap]:
    """Returns the coarser and the finer decoder stage to look at: of strides 4 and 2, in large patches 8 and 4.

    Args:
        patch_size: voxels.
        architecture: keyword arguments of the network, as in the plans.
    """
    strides: Sequence = architecture["strides"]  # type: ignore[assignment]
    channels, kernels = (list(architecture[name]) for name in ("features_per_stage", "kernel_sizes"))  # type: ignore
    total = np.cumprod(np.asarray([np.atleast_1d(stride) for stride in strides]), 0)

    def found(stride: int) -> FeatureMap:
        stage = feature_stage(strides, stride)
        encoder_stage = len(channels) - 2 - stage
        kernel = np.broadcast_to(np.atleast_1d(kernels[encoder_stage]), (len(patch_size),))
        return FeatureMap(stride, stage, int(channels[encoder_stage]), [int(n) for n in kernel])

    fine = found(2)
    tokens = np.prod(np.ceil(np.asarray(patch_size) / total[len(total) - 2 - fine.stage]))
    return (found(4), fine) if tokens <= MOST_TOKENS else (found(8), found(4))


class DynamicInteraction(nn.Module):
    r"""Dynamic interaction module (DIM): R prototypes of each class look at an image and say where the class is.

    At the coarser feature map the prototypes attend to the voxels and change; at both maps their raw scores, one map
    for each prototype, become a cue for each class. The cues are added, mixed across classes and interpolated to a map
    of class scores M, which rectifies the logits of a network: :math:`z + (1 - \mu) M` with
    :math:`\mu_k = \sigma(a_k)` for each class, learnt. M starts at zero, so that a rectified network starts as the
    network itself.

    Args:
        maps: coarser and finer feature map.
        classes: K, outputs of the network: background and labels, or regions. Each has as many prototypes as make 256
            in all, from 2 to 16.

    Source: arXiv 2502.11456. Normalisation without a parameter per voxel, cues of each class kept apart until they are
        mixed, M without ReLU and mu per class are [E]; in region datasets K regions have prototypes, the background has
        none of its own.
    Fails when: the features of the last stages say nothing about the class, as in the first steps of a training.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int):
        super().__init__()
        number = prototypes_per_class(classes)
        self.prototypes = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes * number, SIZE), std=0.02))
        coarse, fine = maps
        self.coarse = _Level(coarse, classes, number, updates=True)
        self.fine = _Level(fine, classes, number, updates=False)
        convolution = nn.Conv3d if len(coarse.kernel) == 3 else nn.Conv2d
        self.mix = convolution(classes, classes, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type] # there is one
        self.trust = nn.Parameter(torch.full((classes,), TRUST_AT_START))

    def forward(self, coarse: Tensor, fine: Tensor, size: Sequence[int]) -> Tensor:
        """Returns M.

        Args:
            coarse: (B, F, *spatial) features of the coarser map.
            fine: (B, F', *spatial) of the finer one.
            size: spatial size of M.

        Returns:
            (B, K, *size) float32.
        """
        queries = self.prototypes.expand(len(coarse), -1, -1)
        first, queries = self.coarse(coarse, queries)
        second, _ = self.fine(fine, queries)
        mixed = self.mix(interpolated(first, fine.shape[2:]) + second)
        return interpolated(mixed.float(), size)

    @property
    def mu(self) -> Tensor:
        """How much each class is left to the network, (K,) between 0 and 1."""
        return self.trust.sigmoid()

    def rectify(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Returns the rectified logits.

        Args:
            logits: z, (B, K, *spatial).
            scores: M, likewise.
        """
        return logits.float() + (1 - self.mu).view(1, -1, *[1] * (logits.ndim - 2)) * scores


class _Level(nn.Module):
    """Prototypes at one feature map: scores, cues and, except at the last one, what the prototypes become."""

    def __init__(self, features: FeatureMap, classes: int, number: int, *, updates: bool):
        super().__init__()
        convolution: Any = nn.Conv3d if len(features.kernel) == 3 else nn.Conv2d
        together = classes * number
        self.embed = convolution(features.channels, SIZE, 1)
        self.token_norm, self.query_norm = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.to_query, self.to_key = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.cue = nn.Sequential(
            convolution(
                together,
                together,
                tuple(features.kernel),
                padding=tuple(n // 2 for n in features.kernel),
                groups=together,
            ),
            convolution(together, together, 1, groups=classes),
            nn.LeakyReLU(),
            convolution(together, classes, 1, groups=classes),
        )
        self.update: nn.ModuleDict | None = None
        if updates:
            self.update = nn.ModuleDict(
                {
                    "to_value": nn.Linear(SIZE, SIZE),
                    "out": nn.Linear(SIZE, SIZE),
                    "mix": nn.Sequential(
                        nn.LayerNorm(SIZE), nn.Linear(SIZE, 2 * SIZE), nn.GELU(), nn.Linear(2 * SIZE, SIZE)
                    ),
                }
            )

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Takes (B, F, *spatial) and (B, K R, D); returns cues (B, K, *spatial) and the changed queries."""
        with without_autocast(features.device):
            tokens = self.token_norm(self.embed(features.float()).flatten(2).transpose(1, 2))
            asked = self.to_query(self.query_norm(queries)) / SIZE**0.5
            scores = asked @ self.to_key(tokens).transpose(1, 2)
            if self.update is not None:
                found = scores.softmax(2) @ self.update["to_value"](tokens)
                queries = queries + self.update["out"](found)
                queries = queries + self.update["mix"](queries)
        cues: Tensor = self.cue[1:](depthwise(self.cue[0], scores.reshape(*scores.shape[:2], *features.shape[2:])))
        return cues, queries


class RectifiedNetwork(nn.Module):
    """A network of the plans' architecture and the prototypes that rectify its logits.

    Args:
        network: a U-Net of dynamic_network_architectures.
        interaction: its prototypes.
        maps: the stages at which they look.
        in_parts: return the logits of every deep-supervision level and M, instead of rectified logits.
    """

    def __init__(
        self, network: nn.Module, interaction: DynamicInteraction, maps: Sequence[FeatureMap], *, in_parts: bool = False
    ):
        super().__init__()
        self.network = network
        self.interaction = interaction
        self.stages = {features.stride: features.stage for features in maps}
        self.in_parts = in_parts

    @property
    def decoder(self) -> nn.Module:
        """The network's; nnU-Net switches deep supervision there."""
        decoder: nn.Module = self.network.decoder  # type: ignore[assignment] # a module
        return decoder

    def forward(self, data: Tensor) -> Tensor | tuple[list[Tensor], Tensor]:
        levels, features = levels_and_features(self.network, data, self.stages, every_level=self.in_parts)
        scores = self.interaction(*(features[stride] for stride in self.stages), data.shape[2:])
        return (levels, scores) if self.in_parts else self.interaction.rectify(levels[0], scores)


def prototypes_per_class(classes: int) -> int:
    """Returns R for K classes, as many as make 256 in all, from 2 to 16."""
    return min(MOST_PROTOTYPES, max(FEWEST_PROTOTYPES, round(MOST_SCORES / classes)))
