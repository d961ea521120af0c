"""Omni-correlation, the feature bank and the attention across images, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_mutual.engine.networks import share_encoder
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.omni_correlation import (
    NEVER,
    correlation,
    correlation_cross_entropy,
    most_and_any,
    row_entropy,
    scale_of,
)
from nnunet_mutual.modules.attention import CrossSampleAttention, attention_stage, make_auxiliary
from nnunet_mutual.modules.bank import FeatureBank
from nnunet_mutual.modules.tap import FeatureTap


def vectors(seed: int, number: int, size: int = 8) -> torch.Tensor:
    return torch.randn(number, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cosine", [True, False])
def test_correlation_by_hand(cosine: bool) -> None:
    queries, memory = vectors(0, 5), vectors(1, 6)
    usable = torch.tensor([True, True, False, True, True, False])
    found = correlation(queries, memory, usable, temperature=0.1, cosine=cosine)
    for n, q in enumerate(queries.double()):
        similarities = []
        for r in memory.double()[usable]:
            dot = float(q @ r)
            similarities.append(math.exp((dot / float(q.norm() * r.norm()) if cosine else dot) / 0.1))
        expected = torch.tensor([s / sum(similarities) for s in similarities])
        torch.testing.assert_close(found[n, usable].exp(), expected, atol=1e-5, rtol=1e-4)
    assert (found[:, ~usable].exp() == 0).all() and found.isfinite().all()


def test_cosines_are_blind_to_length_and_dot_products_saturate() -> None:
    queries, memory, usable = vectors(2, 20), vectors(3, 100), torch.ones(100, dtype=torch.bool)
    counted = torch.ones(20, dtype=torch.bool)
    cosines = [correlation(queries * k, memory, usable, temperature=0.1) for k in (1, 30)]
    torch.testing.assert_close(cosines[0], cosines[1])
    dots = correlation(queries * 30, memory, usable, temperature=0.1, cosine=False)
    assert row_entropy(dots, counted) < 0.01 < 0.05 < row_entropy(cosines[0], counted) < 0.98


def standardised(x: Tensor, reference: Tensor, usable: Tensor) -> Tensor:
    mean, deviation = scale_of(reference, usable)
    return (x - mean) / deviation


def test_standardised_by_hand() -> None:
    x, reference, usable = vectors(4, 5), vectors(5, 6) * 3 + 2, torch.tensor([True, False, True, True, True, False])
    rows = reference[usable].double()
    expected = (x.double() - rows.mean(0)) / (rows.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(standardised(x, reference, usable).double(), expected, atol=1e-5, rtol=1e-5)
    with_gradient = reference.clone().requires_grad_()
    assert not standardised(x, with_gradient, usable).requires_grad


def test_what_all_vectors_have_in_common_does_not_make_them_alike() -> None:
    usable, counted = torch.ones(100, dtype=torch.bool), torch.ones(20, dtype=torch.bool)
    queries, memory = vectors(2, 20) * 0.1 + 5, vectors(3, 100) * 0.1 + 5
    assert row_entropy(correlation(queries, memory, usable, temperature=0.1), counted) > 0.98
    relative = standardised(queries, memory, usable), standardised(memory, memory, usable)
    assert 0.05 < row_entropy(correlation(*relative, usable, temperature=0.1), counted) < 0.98


def test_the_entropy_is_a_share_of_the_highest() -> None:
    usable = torch.arange(10) < 7
    uniform = torch.zeros(4, 10).masked_fill(~usable, NEVER).log_softmax(1)
    assert row_entropy(uniform, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(1)
    half = torch.tensor([True, True, False, False])
    mixed = uniform.clone()
    mixed[:2] = torch.where(torch.arange(10) == 3, 0.0, torch.where(usable, -1e4, NEVER))
    assert row_entropy(mixed, half).item() == 0
    assert row_entropy(mixed, ~half).item() == pytest.approx(1)


def test_cross_entropy_of_correlations() -> None:
    usable = torch.arange(6) < 4
    q, other = vectors(4, 3).requires_grad_(), vectors(5, 3).requires_grad_()
    memory = vectors(6, 6)
    prediction, target = (correlation(x, memory, usable, temperature=0.1) for x in (q, other))
    counted = torch.tensor([True, False, True])
    loss = correlation_cross_entropy(prediction, target, counted)
    expected = -(target.exp()[:, :4] * prediction[:, :4]).sum(1)[counted].mean()
    torch.testing.assert_close(loss, expected)
    mine, theirs = torch.autograd.grad(loss, (q, other), retain_graph=True)
    for gradient in (mine, theirs):
        assert gradient.isfinite().all() and (gradient[1] == 0).all() and gradient[0].abs().max() > 0
    stopped = correlation_cross_entropy(prediction, target.detach(), counted)
    assert torch.autograd.grad(stopped, other, allow_unused=True)[0] is None
    assert correlation_cross_entropy(prediction, target, ~(counted | True)).item() == 0


def test_half_of_the_queries_are_the_surest_and_half_are_any() -> None:
    torch.manual_seed(0)
    score, eligible = torch.rand(2, 1000), torch.rand(2, 1000) > 0.5
    seen = torch.zeros(2, 1000)
    for _ in range(200):
        chosen, usable = most_and_any(score, eligible, 40)
        assert chosen.shape == usable.shape == (2, 40) and usable.all()
        best = torch.where(eligible, score, -1).topk(20, 1).indices
        assert torch.equal(chosen[:, :20].sort(1).values, best.sort(1).values)
        assert all(len(set(row)) == 20 for row in chosen[:, 20:].tolist())
        seen.scatter_add_(1, chosen[:, 20:], torch.ones(2, 20))
    assert (seen[~eligible] == 0).all()
    share = seen[eligible] / 200
    assert share.mean() == pytest.approx(40 / eligible.sum().item(), rel=0.01) and (share > 0).float().mean() > 0.95


def test_too_few_voxels_are_said_so() -> None:
    eligible = torch.zeros(1, 10, dtype=torch.bool)
    eligible[0, 3] = True
    chosen, usable = most_and_any(torch.rand(1, 10), eligible, 6)
    assert (chosen[usable] == 3).all() and usable.sum() == 2


def test_the_bank_keeps_its_size_and_what_it_was_given() -> None:
    bank = FeatureBank(2, 3, 4, 5, torch.device("cpu"))
    torch.manual_seed(0)
    memory, usable = bank.draw(7)
    assert memory.shape == (14, 5) and not usable.any()
    size = bank.vectors.numel()
    for step in range(20):
        given = torch.full((1, 2, 4, 5), float(step))
        use = torch.zeros(1, 2, 4, dtype=torch.bool)
        use[0, 0, :2] = True
        bank.put(torch.tensor([1]), given, use)
    assert bank.vectors.numel() == size and int(bank.filled.sum()) == 2
    memory, usable = bank.draw(7)
    assert usable.tolist() == [True] * 7 + [False] * 7 and (memory[:7] == 19).all()
    copy = FeatureBank(2, 3, 4, 5, torch.device("cpu"))
    copy.load_state_dict(bank.state_dict())
    assert torch.equal(copy.vectors, bank.vectors) and torch.equal(copy.filled, bank.filled)


def test_the_bank_draws_from_all_cases() -> None:
    bank = FeatureBank(1, 4, 2, 1, torch.device("cpu"))
    for case in range(4):
        bank.put(torch.tensor([case]), torch.full((1, 1, 2, 1), float(case)), torch.ones(1, 1, 2, dtype=torch.bool))
    torch.manual_seed(0)
    drawn, _ = bank.draw(400)
    assert torch.bincount(drawn.flatten().long(), minlength=4).min() > 60


def unet(dimensions: int = 3, kind: type = PlainConvUNet) -> Any:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dimensions == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    strides = [list(s)[-dimensions:] for s in ((1, 1, 1), (1, 2, 2), (2, 2, 2))]
    torch.manual_seed(1)
    return kind(
        1, 3, [4, 6, 8], conv, 3, strides, 1, 3, 1, conv_bias=True, norm_op=norm, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, deep_supervision=True,
    )  # fmt: skip


def test_the_auxiliary_network_takes_a_pretrained_encoder() -> None:
    for kind in (PlainConvUNet, ResidualEncoderUNet):
        plain, auxiliary = unet(kind=kind), unet(kind=kind)
        make_auxiliary(auxiliary, 1, 6, inter="pooled", dropout=0.0)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(1)
        share_encoder([plain, auxiliary])
        found = auxiliary.encoder.state_dict()
        assert all(torch.equal(found[name], value) for name, value in plain.encoder.state_dict().items())
        x = torch.randn(2, 1, 8, 16, 16)
        assert auxiliary(x)[0].shape == plain(x)[0].shape
        assert len(found) > len(plain.encoder.state_dict())


@pytest.mark.parametrize("inter", ["pooled", "position"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_auxiliary_network(inter: Any, dimensions: int) -> None:
    network = make_auxiliary(unet(dimensions), 1, 6, inter=inter, dropout=0.0)
    x = torch.randn(3, 1, *(8, 16, 16)[-dimensions:], generator=torch.Generator().manual_seed(0))
    shapes = [level.shape for level in unet(dimensions)(x)]
    assert [level.shape for level in network(x)] == shapes
    tap = FeatureTap(network, {4: 1})
    levels, features = tap(x)
    torch.testing.assert_close(levels[0], network(x)[0])
    assert features[4].shape == (3, 4, *x.shape[2:])
    assert len(network.state_dict()) > len(unet(dimensions).state_dict())


@pytest.mark.parametrize("inter", ["pooled", "position"])
def test_attention_starts_as_nothing_and_then_looks_across(inter: Any) -> None:
    torch.manual_seed(0)
    attention = CrossSampleAttention(8, inter=inter, dropout=0.0)
    x = torch.randn(3, 8, 5, 4, 6)
    torch.testing.assert_close(attention(x), x)
    for name, parameter in attention.named_parameters():
        if name.endswith("scale"):
            nn.init.ones_(parameter)
    changed = x.clone()
    changed[2] = torch.randn(8, 5, 4, 6)
    difference = (attention(changed) - attention(x))[0].abs().flatten(1).amax(0)
    assert (difference > 1e-6).all(), "the first image does not see the third"
    one = attention(x[:1])
    assert one.shape == (1, 8, 5, 4, 6) and one.isfinite().all()
    if inter == "position":  # only the same place of the other images
        moved = x.clone()
        moved[2, :, 0, 0, 0] = torch.randn(8) * 10
        seen = (attention.across(moved.flatten(2).permute(2, 0, 1), moved.flatten(2).permute(2, 0, 1))[:, 0]
                - attention.across(x.flatten(2).permute(2, 0, 1), x.flatten(2).permute(2, 0, 1))[:, 0])  # fmt: skip
        assert seen[0].abs().max() > 1e-4 and seen[1:].abs().max() < 1e-6


def test_pooled_attention_leaves_out_the_image_itself() -> None:
    torch.manual_seed(0)
    attention = CrossSampleAttention(4, inter="pooled", dropout=0.0)
    seen: list[torch.Tensor] = []
    attention.across.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    x = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 4, 4, 4, 4).contiguous()
    attention(x)
    assert [sorted(set(row.flatten().tolist())) for row in seen[0]] == [[1.0, 2.0], [0.0, 2.0], [0.0, 1.0]]


def test_where_the_attention_goes() -> None:
    cube = [[1] * 3, [2] * 3, [2] * 3, [2] * 3, [2] * 3]
    assert attention_stage([128, 128, 128], cube) == 3  # 16^3
    assert attention_stage([40, 56, 40], cube[:4]) == 2
    assert attention_stage([16, 16, 16], cube[:3]) == 1  # never at full resolution
    assert attention_stage([28, 256, 256], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]) == 4
    assert attention_stage([512, 512], [1, 2, 2, 2, 2]) == 3
    assert attention_stage([512, 512], [1, 2]) == 1


def test_other_architectures_are_refused() -> None:
    with pytest.raises(MutualError, match="plan a U-Net"):
        make_auxiliary(nn.Conv3d(1, 1, 1), 0, 1, inter="pooled", dropout=0.0)
