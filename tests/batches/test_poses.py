"""Poses of what students see, and of what they are taught there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_mutual.batches.poses import draw_poses, posed, posed_counts
from nnunet_mutual.batches.views import strengthen
from nnunet_mutual.objectives import Batch, Views


def steps_of(size: tuple[int, ...]) -> torch.Tensor:
    """Where one step along each axis of the posed patch goes to in the patch, in voxels: (samples, axes, axes)."""
    places = draw_poses(5, size) * torch.tensor(size[::-1]) / 2
    origin = places[(slice(None), *[0] * len(size))]
    ahead = [tuple(int(a == b) for b in range(len(size))) for a in range(len(size))]
    return torch.stack([places[(slice(None), *place)] - origin for place in ahead], 1)


@pytest.mark.parametrize("size", [(20, 24, 48), (12, 30)])
def test_a_pose_keeps_angles_in_patches_of_unequal_sides(size: tuple[int, ...]) -> None:
    steps = steps_of(size)
    products = steps @ steps.mT
    scales = products.diagonal(dim1=1, dim2=2).mean(1)
    torch.testing.assert_close(products, scales[:, None, None] * torch.eye(len(size)), atol=1e-3, rtol=0)
    assert (scales.sqrt() > 0.69).all() and (scales.sqrt() < 1.41).all() and scales.std() > 0.01
    assert (steps - steps.sign() * steps.abs().mean()).abs().max() > 0.1, "nothing was turned"


def test_a_flat_patch_is_turned_in_its_plane() -> None:
    steps = steps_of((4, 32, 32))  # grid_sample counts axes from the last one
    torch.testing.assert_close(steps[:, 0], torch.tensor([0.0, 0.0, 1.0]).expand(5, 3), atol=1e-4, rtol=0)
    assert (steps[:, 1:, 2].abs() < 1e-4).all() and (steps[:, 1, 0].abs() > 1e-3).all()


@pytest.mark.parametrize("size", [(12, 16, 16), (16, 16)])
def test_students_see_poses_of_unlabelled_images_with_their_boxes(size: tuple[int, ...]) -> None:
    data = torch.randn(4, 1, *size)
    inside = torch.ones(4, 1, *size, dtype=torch.bool)
    plain = Batch(data, [], ["x"] * 4, [0] * 4, torch.zeros(4), views=Views(2, inside))
    np.random.seed(1)
    upright = strengthen(plain, intensity=False, partners="every", views=2)
    np.random.seed(1)
    turned = strengthen(plain, intensity=False, partners="every", pose=True, views=2)
    assert turned.views is not None and turned.views.pose is not None
    for network in (0, 1):
        expected = posed(upright.seen_by(network)[:2], turned.views.pose)
        assert torch.equal(turned.seen_by(network)[:2], expected)
        assert torch.equal(turned.seen_by(network)[2:], data[2:]), "a labelled image was turned"
    assert torch.equal(turned.weak, data[:2]) and not torch.equal(turned.data[:2], upright.data[:2])
    counts = posed_counts(inside[:2], turned.views.pose)
    assert 0.1 < turned.views.inside_as_seen.float().mean() <= 1
    assert torch.equal(turned.views.inside_as_seen, counts > 0.5)
    assert upright.views is not None and upright.views.inside_as_seen.all()
