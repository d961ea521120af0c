"""Stronger views of unlabelled images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_mutual.batches import views
from nnunet_mutual.batches.views import change_intensity, draw_boxes, strengthen
from nnunet_mutual.objectives import Batch, Views


def batch(unlabelled: int = 2, labelled: int = 2, size: tuple[int, ...] = (8, 10, 12)) -> Batch:
    number = unlabelled + labelled
    data = torch.randn(number, 2, *size, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(number, 1, *size, dtype=torch.bool)
    return Batch(data, [], ["x"] * number, [0] * number, torch.zeros(number), views=Views(unlabelled, inside))


@pytest.mark.parametrize("size", [(8, 10, 12), (16, 16), (1, 16, 16)])
def test_intensities_change_and_shapes_stay(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    image = torch.randn(2, *size)
    before = image.clone()
    found = [change_intensity(image) for _ in range(30)]
    assert torch.equal(image, before), "the teacher's view was changed"
    assert all(x.shape == image.shape and x.isfinite().all() for x in found)
    assert 0.8 < np.mean([not torch.equal(x, image) for x in found]) <= 1
    flat = change_intensity(torch.zeros(1, *size))
    assert flat.isfinite().all()


def test_only_unlabelled_images_change() -> None:
    np.random.seed(1)
    weak = batch()
    strong = strengthen(weak, intensity=True, partners="any")
    assert strong.views is not None and strong.views.weak is not None
    assert torch.equal(strong.views.weak, weak.data[:2]) and torch.equal(strong.data[2:], weak.data[2:])
    assert not torch.equal(strong.data[:2], weak.data[:2])


def test_boxes_hold_what_their_origin_holds() -> None:
    np.random.seed(2)
    seen = set()
    for _ in range(50):
        weak = batch()
        strong = strengthen(weak, intensity=False, partners="any")
        assert strong.views is not None
        expected = weak.data.clone()
        for paste in strong.views.pasted:
            assert not paste.around
            place = (slice(None), *paste.box)
            expected[paste.into][place] = weak.data[paste.origin][place]
            seen.add((paste.into, paste.origin))
            share = np.prod([s.stop - s.start for s in paste.box]) / (8 * 10 * 12)
            assert 0.01 < share < 0.6
        assert torch.equal(strong.data, expected)
    assert seen == {(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)}


@pytest.mark.parametrize(
    ("partners", "origins"), [("any", {0, 1, 2}), ("unlabelled", {0, 1}), ("labelled", {2}), ("off", set())]
)
def test_where_boxes_may_come_from(partners: views.Partners, origins: set[int]) -> None:
    np.random.seed(3)
    drawn = [paste for _ in range(100) for paste in draw_boxes(2, 3, (8, 8), partners)]
    assert {paste.origin for paste in drawn} == origins
    assert all(paste.origin != paste.into < 2 for paste in drawn)
    assert not draw_boxes(1, 1, (8, 8), "any"), "one image alone has no partner"


def test_every_sample_has_a_box_half_of_them_with_a_labelled_partner_in_both_directions() -> None:
    np.random.seed(5)
    kinds = []
    for _ in range(200):
        weak = batch()
        strong = strengthen(weak, intensity=False, partners="every")
        assert strong.views is not None
        assert [paste.into for paste in strong.views.pasted] == [0, 1]
        for paste in strong.views.pasted:
            mine, other = weak.data[paste.into], weak.data[paste.origin]
            box = torch.zeros(8, 10, 12, dtype=torch.bool)
            box[paste.box] = True
            expected = torch.where(box != paste.around, other, mine)
            assert torch.equal(strong.data[paste.into], expected)
            kinds.append((paste.origin >= 2, paste.around))
    shares = {kind: kinds.count(kind) / len(kinds) for kind in {*kinds}}
    assert shares.keys() == {(False, False), (True, False), (True, True)}
    assert shares[False, False] == pytest.approx(0.5, abs=0.1)
    assert shares[True, True] == pytest.approx(0.25, abs=0.1)
    assert all(paste.origin == 1 for _ in range(9) for paste in draw_boxes(1, 2, (8, 8), "every"))


def test_each_network_has_a_view_of_its_own_and_the_same_boxes() -> None:
    np.random.seed(6)
    weak = batch()
    strong = strengthen(weak, intensity=True, partners="every", views=2)
    assert strong.views is not None and len(strong.views.further) == 1
    first, second = strong.seen_by(0), strong.seen_by(1)
    assert first is strong.data and second is strong.views.further[0]
    assert not torch.equal(first[:2], second[:2]) and torch.equal(first[2:], second[2:])
    assert torch.equal(first[2:], weak.data[2:]) and torch.equal(strong.weak, weak.data[:2])
    for paste in strong.views.pasted:
        if paste.origin >= 2 and not paste.around:
            place = (slice(None), *paste.box)
            assert torch.equal(first[paste.into][place], second[paste.into][place])
    one = strengthen(batch(), intensity=False, partners="every")
    assert one.seen_by(1) is one.data, "networks without a view of their own see the first one's"


def test_the_random_numbers_come_from_the_host() -> None:
    np.random.seed(4)
    torch.manual_seed(4)
    first = strengthen(batch(), intensity=True, partners="any").data
    np.random.seed(4)
    torch.manual_seed(4)
    assert torch.equal(first, strengthen(batch(), intensity=True, partners="any").data)
