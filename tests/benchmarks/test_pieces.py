"""Labels in one piece: against scipy, and by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import ndimage

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("forms.pieces")


def snake(size: tuple[int, ...]) -> torch.Tensor:
    """Every second row, joined at its ends in turn."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[..., ::2, :] = True
    mask[..., 1::4, -1] = mask[..., 3::4, 0] = True
    return mask


@pytest.mark.parametrize(("size", "share"), [((9, 30), 0.35), ((32, 32), 0.4), ((4, 9, 12), 0.15), ((16, 20, 16), 0.1)])
def test_the_largest_piece_is_what_scipy_finds(pieces: ModuleType, size: tuple[int, ...], share: float) -> None:
    masks = torch.rand(6, 2, *size, generator=torch.manual_seed(0)) < share
    masks[0, 0], masks[1, 1], masks[2, 0] = False, True, snake(size)
    found = pieces.largest_pieces(masks)
    for mask, kept in zip(masks.flatten(0, 1).numpy(), found.flatten(0, 1).numpy(), strict=True):
        found_by_scipy, number = ndimage.label(mask, np.ones([3] * len(size)))
        counts = np.bincount(found_by_scipy.ravel(), minlength=2)[1:]
        assert kept.sum() == (counts.max() if number else 0)
        assert not (kept & ~mask).any() and len(np.unique(found_by_scipy[kept])) <= 1


LARGE, SMALL, CORNER = slice(0, 3), slice(-3, -1), slice(-1, None)


def two_pieces(size: tuple[int, ...], apart: slice = SMALL) -> torch.Tensor:
    """A larger piece of the second label and a smaller one apart from it."""
    said = torch.zeros(1, 3, *size)
    said[:, 0] = 1
    for place in ((LARGE,) * len(size), (apart,) * len(size)):
        for channel, value in enumerate((0.1, 0.2, 0.7)):
            said[(0, channel, *place)] = value
    return said


@pytest.mark.parametrize("size", [(6, 9), (4, 6, 9), (33, 70), (5, 33, 70)])
def test_what_lies_apart_is_taught_as_background(pieces: ModuleType, size: tuple[int, ...]) -> None:
    said = two_pieces(size)
    kept = pieces.in_one_piece(said, border=True)
    first, apart = (0,) * len(size), (-3,) * len(size)
    torch.testing.assert_close(kept[(0, slice(None), *first)], torch.tensor([0.1, 0.2, 0.7]))
    torch.testing.assert_close(kept[(0, slice(None), *apart)], torch.tensor([0.8, 0.2, 0.0]))
    torch.testing.assert_close(kept.sum(1), said.sum(1))


@pytest.mark.parametrize("size", [(6, 9), (4, 6, 9)])
def test_what_reaches_the_border_may_be_joined_beyond_it(pieces: ModuleType, size: tuple[int, ...]) -> None:
    said = two_pieces(size, CORNER)
    assert torch.equal(pieces.in_one_piece(said, border=True), said)
    alone = pieces.in_one_piece(said, border=False)
    assert alone[(0, 2, *(-1,) * len(size))] == 0 and alone[(0, 2, *(0,) * len(size))] > 0


def test_pieces_of_large_patches_are_told_apart_in_cells(pieces: ModuleType) -> None:
    said = torch.zeros(1, 2, 64, 320)  # cells of 2 x 10
    said[:, 0] = 1
    for place in (np.s_[0:20, 0:40], np.s_[4:8, 45:50], np.s_[40:44, 200:230]):
        said[0, 0][place], said[0, 1][place] = 0.2, 0.8
    kept = pieces.in_one_piece(said, border=True)[0, 1]
    assert kept[0, 0] > 0 and kept[5, 47] > 0, "nearer than a cell"
    assert kept[41, 210] == 0
