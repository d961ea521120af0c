"""Prototypes that look at feature maps: kept apart by class, neutral at first, of any patch size and dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_unet import unet

from nnunet_mutual.modules.interaction import (
    DynamicInteraction,
    FeatureMap,
    RectifiedNetwork,
    feature_maps,
    prototypes_per_class,
)

CUBE = [3, 3, 3]
FIVE_STAGES = {
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "features_per_stage": [8, 16, 32, 64, 96],
    "kernel_sizes": [CUBE] * 5,
}


def module(classes: int, kernel: Any = (3, 3, 3)) -> DynamicInteraction:
    torch.manual_seed(0)
    return DynamicInteraction([FeatureMap(4, 0, 6, kernel), FeatureMap(2, 1, 4, kernel)], classes)


def features(size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 6, *(n // 2 for n in size)), torch.randn(2, 4, *size)


def opened(interaction: DynamicInteraction) -> DynamicInteraction:
    """As after some training: the mixing convolution lets something through."""
    torch.nn.init.normal_(interaction.mix.weight, generator=torch.Generator().manual_seed(2))
    return interaction


@pytest.mark.parametrize("classes", [2, 5, 15])
@pytest.mark.parametrize(
    ("size", "kernel"), [((8, 8, 8), (3, 3, 3)), ((4, 8, 8), (1, 3, 3)), ((8, 12), (3, 3))], ids=["3d", "thick", "2d"]
)
def test_scores_of_every_kind_of_network(classes: int, size: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    interaction = module(classes, kernel)
    maps, full = features(size), [2 * n for n in size]
    at_first = interaction(*maps, full)
    assert at_first.shape == (2, classes, *full) and at_first.dtype == torch.float32
    assert not at_first.any(), "it rectifies before it has learnt anything"
    assert opened(interaction)(*maps, full).std() > 0
    bigger = interaction(*features(tuple(n + 4 for n in size)), full)
    assert bigger.isfinite().all(), "parameters are tied to the patch size"


def test_a_prototype_reaches_the_cue_of_its_class_only() -> None:
    interaction, classes = module(5), 5
    maps, full = features((8, 8, 8)), (16, 16, 16)
    with torch.no_grad():  # cues reach the scores as they are
        interaction.mix.weight.copy_(torch.eye(classes).view(classes, classes, 1, 1, 1))
    before = interaction(*maps, full)
    number = prototypes_per_class(classes)
    for k in range(classes):
        changed = module(classes)
        changed.load_state_dict(interaction.state_dict())
        with torch.no_grad():
            changed.prototypes[k * number : (k + 1) * number] += torch.randn(number, 32)
        differs = (changed(*maps, full) - before).flatten(2).abs().amax((0, 2)) > 1e-6
        assert differs.tolist() == [other == k for other in range(classes)]


def test_every_prototype_of_a_class_counts() -> None:
    interaction = opened(module(2))
    scores = interaction(*features((8, 8, 8)), (16, 16, 16))
    scores.square().mean().backward()
    for name, parameter in interaction.named_parameters():
        if name != "trust":
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert (interaction.prototypes.grad.abs().sum(1) > 0).all()


def test_rectified_logits_by_hand() -> None:
    interaction = module(2)
    with torch.no_grad():
        interaction.trust.copy_(torch.tensor([0.0, 2.0]))
    z, m = torch.randn(3, 2, 4, 4, 4), torch.randn(3, 2, 4, 4, 4)
    mu = [0.5, 1 / (1 + 2.718281828459045**-2)]
    expected = torch.stack([z[:, k] + (1 - mu[k]) * m[:, k] for k in (0, 1)], 1)
    torch.testing.assert_close(interaction.rectify(z, m), expected)
    assert ((module(3).mu > 0) & (module(3).mu < 0.05)).all()


@pytest.mark.parametrize(("classes", "expected"), [(2, 16), (15, 16), (16, 16), (40, 6), (105, 2), (300, 2)])
def test_number_of_prototypes(classes: int, expected: int) -> None:
    assert prototypes_per_class(classes) == expected


def test_which_feature_maps() -> None:
    coarse, fine = feature_maps([64, 64, 64], FIVE_STAGES)
    assert coarse == FeatureMap(4, 1, 32, CUBE) and fine == FeatureMap(2, 2, 16, CUBE)
    # 80 cubed at stride 2 is 64,000 voxels, the next one is too many.
    assert [m.stride for m in feature_maps([80] * 3, FIVE_STAGES)] == [4, 2]
    assert [m.stride for m in feature_maps([82] * 3, FIVE_STAGES)] == [8, 4]
    thick = {**FIVE_STAGES, "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]}
    thick["kernel_sizes"] = [[1, 3, 3], [1, 3, 3], CUBE, CUBE, CUBE]
    coarse, fine = feature_maps([20, 64, 64], thick)
    assert coarse == FeatureMap(4, 1, 32, CUBE) and fine == FeatureMap(2, 2, 16, [1, 3, 3])
    flat = {"strides": [1, 2, 2], "features_per_stage": (4, 6, 8), "kernel_sizes": [3, 3, 3]}
    assert feature_maps([32, 32], flat)[1] == FeatureMap(2, 0, 6, [3, 3])


@pytest.mark.parametrize("deep", [True, False])
def test_a_rectified_network_is_the_network_at_first(deep: bool) -> None:
    network = unet(deep_supervision=deep).eval()
    maps = [FeatureMap(4, 0, 6, CUBE), FeatureMap(2, 1, 4, CUBE)]
    interaction = DynamicInteraction(maps, 3)
    data = torch.randn(1, 1, 16, 16, 16)
    plain = network(data)[0] if deep else network(data)
    torch.testing.assert_close(RectifiedNetwork(network, interaction, maps)(data), plain)
    rectified = RectifiedNetwork(network, opened(interaction), maps)
    levels, scores = RectifiedNetwork(network, interaction, maps, in_parts=True)(data)
    torch.testing.assert_close(levels[0], plain)
    torch.testing.assert_close(rectified(data), interaction.rectify(plain, scores))
    assert (rectified(data) - plain).abs().max() > 1e-3


def test_attention_is_computed_in_float32_under_autocast() -> None:
    interaction = opened(module(3))
    maps = features((8, 8, 8))
    expected = interaction(*maps, (16, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found = interaction(*(x.bfloat16() for x in maps), (16, 16, 16))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
