"""Metrics of boxes and spheres with known surfaces, of empty masks, and the statistics over cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation import surfaces
from nnunet_mutual.evaluation.comparison import compare, pair_scores, worst
from nnunet_mutual.evaluation.metrics import measure, parse_tolerances
from nnunet_mutual.evaluation.statistics import describe

SPACING = (3.0, 1.0, 1.0)  # thick slices
VOXEL_ML = float(np.prod(SPACING)) / 1000
SHAPE = (24, 60, 60)
EMPTY = np.zeros(SHAPE, bool)
NOBODY = {f"c{n}": f"c{n}" for n in range(200)}  # every case its own patient


def box(z: int = 6, y: int = 10, x: int = 10) -> np.ndarray:
    """A box of 36 x 40 x 40 mm."""
    mask = EMPTY.copy()
    mask[z : z + 12, y : y + 40, x : x + 40] = True
    return mask


def ball(radius: float, shape: tuple[int, int, int] = (30, 80, 80)) -> np.ndarray:
    """A ball in mm in the middle of the image."""
    axes = [(np.arange(n) - n / 2 + 0.5) * size for n, size in zip(shape, SPACING, strict=True)]
    return sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) < radius**2


def measured(predicted: np.ndarray, drawn: np.ndarray, tolerance: float = 1.0) -> dict[str, float]:
    return measure(predicted, drawn, SPACING, tolerance=tolerance, voxel_ml=VOXEL_ML)


def test_overlap_and_volumes_by_hand() -> None:
    found = measure(box(y=14), box(), SPACING, tolerance=None, voxel_ml=VOXEL_ML)
    assert found["Dice"] == pytest.approx(36 / 40)
    assert found["IoU"] == pytest.approx(36 / 44)
    assert found["volume_ml"] == found["reference_volume_ml"] == pytest.approx(57.6)
    half = box()
    half[6:9] = False
    found = measure(half, box(), SPACING, tolerance=None, voxel_ml=VOXEL_ML)
    assert found["volume_error_ml"] == pytest.approx(-14.4)
    assert found["volume_error_percent"] == pytest.approx(-25)
    assert "surface_dice" not in found and "hd95_mm" not in found


def test_a_shifted_box_by_hand() -> None:
    # 4 mm along y. Of 2 * (40 * 40 + 36 * 40 + 36 * 40) = 8960 mm2 of each surface these lie more than 1 mm away: the
    # two faces across y (2880), but for a rim of 1 mm of the one inside the other box (148), and 3 mm of the sides
    wrong = 2880 - 148 + 2 * 3 * 40 + 2 * 3 * 36
    found = measured(box(y=14), box())
    assert found["surface_dice"] == pytest.approx(1 - wrong / 8960, abs=0.02)
    assert found["hd95_mm"] == 4
    assert measured(box(y=14), box(), tolerance=4)["surface_dice"] == 1
    assert measured(box(z=8), box())["hd95_mm"] == 6  # two slices of 3 mm
    assert measured(box(z=8), box(), tolerance=5.9)["surface_dice"] < 0.9
    assert measured(box(z=8), box(), tolerance=6)["surface_dice"] == 1


def test_concentric_balls() -> None:
    small, large = ball(25), ball(30)
    assert measured(small, large)["hd95_mm"] == pytest.approx(5, abs=1)
    assert measured(small, large, tolerance=2)["surface_dice"] < 0.02
    assert measured(small, large, tolerance=7)["surface_dice"] == 1
    assert measured(large, large) == {**measured(large, large), "Dice": 1, "surface_dice": 1, "hd95_mm": 0}


def test_hd95_by_a_slow_derivation() -> None:
    rng = np.random.default_rng(8)
    drawn = ndimage.gaussian_filter(rng.normal(size=(20, 40, 40)), (1.5, 4, 4)) > 0.02
    predicted = np.roll(drawn, (1, 3, -2), (0, 1, 2))
    surfaces = [
        np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0)) * SPACING for mask in (predicted, drawn)
    ]
    distances = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=2)
    expected = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
    assert measured(predicted, drawn)["hd95_mm"] == pytest.approx(expected, rel=1e-5)


def test_a_mask_ends_at_the_border_of_the_image() -> None:
    full = np.ones((5, 6, 7), bool)
    assert measured(full, full)["surface_dice"] == 1
    assert measured(full, full)["hd95_mm"] == 0


@pytest.mark.parametrize(
    ("predicted", "drawn", "share", "distance"),
    [
        (box(), box(), 1, 0),
        (EMPTY, box(), 0, math.hypot(24 * 3, 60, 60)),
        (box(), EMPTY, 0, math.hypot(24 * 3, 60, 60)),
        (EMPTY, EMPTY, math.nan, math.nan),
    ],
    ids=["both", "missed", "invented", "absent"],
)
def test_empty_masks(predicted: np.ndarray, drawn: np.ndarray, share: float, distance: float) -> None:
    found = measured(predicted, drawn)
    for metric in ("Dice", "IoU", "surface_dice"):
        assert found[metric] == pytest.approx(share, nan_ok=True)
    assert found["hd95_mm"] == pytest.approx(distance, nan_ok=True)
    assert math.isnan(found["volume_error_percent"]) == (not drawn.any())
    assert math.isnan(found["volume_error_ml"]) == (not drawn.any() and not predicted.any())


def test_one_slice_is_measured_in_its_plane() -> None:
    first, second = (mask[8:9] for mask in (box(y=14), box()))
    found = measure(first, second, (999, 1, 1), tolerance=1, voxel_ml=None)
    # of 160 pixels around each square: two sides of 40, but for a rim, and 3 of each side
    assert found["surface_dice"] == pytest.approx(1 - (80 - 2 + 6) / 160, abs=0.03)
    assert found["hd95_mm"] == 4
    assert "volume_ml" not in found  # an image without a third dimension has none


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1), (1.0, 1.0), (0.4, 2.5)])
def test_surfaces_are_those_of_monai(spacing: tuple[float, ...]) -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    table, kernel = pytest.importorskip("monai.metrics.utils").get_code_to_measure_table(spacing)
    order = [int(np.log2(value)) for value in kernel.numpy().ravel()]
    codes = np.arange(len(table))
    own = sum((codes >> bit & 1) << n for n, bit in enumerate(order))
    assert np.allclose(surfaces._table(spacing)[own], table, rtol=1e-5)

    rng = np.random.default_rng(5)
    shape = (14, 40, 32)[-len(spacing) :]
    for sigma in (0.0, 1.5):  # noise has every way to cut a block, blobs are as organs are
        first = ndimage.gaussian_filter(rng.normal(size=shape), sigma) > 0.05
        second = np.roll(first, 2, 0) ^ (rng.random(shape) > 0.99)
        pair = [torch.from_numpy(mask)[None, None] for mask in (first, second)]
        share = monai.compute_surface_dice(*pair, [0.8], True, spacing=spacing, use_subvoxels=True).item()
        assert not sigma or 0.05 < share < 0.999
        assert surfaces.surface_dice(first, second, spacing, 0.8) == pytest.approx(share, rel=1e-5)
        distance = monai.compute_hausdorff_distance(*pair, True, percentile=95, spacing=spacing).item()
        assert surfaces.hd95(first, second, spacing) == pytest.approx(distance, rel=1e-5)


def test_tolerances() -> None:
    labels = ("liver", "spleen")
    assert parse_tolerances([], labels) == {"liver": 1, "spleen": 1}
    assert parse_tolerances(["2", "liver=5"], labels) == {"liver": 5, "spleen": 2}
    for word, sentence in (
        ("livr=3", "did you mean 'liver'"),
        ("liver=thick", "expected millimetres"),
        ("-1", "expected millimetres"),
        ("inf", "expected millimetres"),
    ):
        with pytest.raises(MutualError, match=sentence):
            parse_tolerances([word], labels)


def test_statistics_by_hand() -> None:
    values = {"c0": {"a": 1.0, "b": 0.2}, "c1": {"a": 2.0, "b": math.nan}, "c2": {"a": 6.0}, "c3": {"b": 0.4}}
    found = describe(values, ("a", "b", "c"), NOBODY, seed=1)
    one = found["a"]
    assert (one.n, one.mean, one.median, one.sd) == (3, 3, 2, pytest.approx(math.sqrt(7)))
    assert 1 <= one.low < 3 < one.high <= 6
    assert (found["b"].n, found["b"].mean) == (2, pytest.approx(0.3))
    assert found["c"].n == 0 and math.isnan(found["c"].mean) and math.isnan(found["c"].low)
    assert (found["overall"].n, found["overall"].mean) == (2, pytest.approx(1.65))


def test_the_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(5, 2, 200)
    found = describe({f"c{n}": {"a": float(x)} for n, x in enumerate(draws)}, ("a",), NOBODY, seed=1)["a"]
    expected = 1.96 * draws.std(ddof=1) / math.sqrt(200)
    assert found.high - found.mean == pytest.approx(expected, rel=0.06)
    assert found.mean - found.low == pytest.approx(expected, rel=0.06)
    again = describe({f"c{n}": {"a": float(x)} for n, x in enumerate(draws)}, ("a",), NOBODY, seed=1)["a"]
    assert again == found  # seeded


def test_scans_of_one_patient_are_not_independent() -> None:
    single = {f"c{n}": {"a": float(n % 7)} for n in range(20)}
    double = single | {f"c{n + 20}": scores for n, scores in enumerate(single.values())}
    patients = {f"c{n}": f"p{n % 20:02d}" for n in range(40)}
    once = describe(single, ("a",), {key: patients[key] for key in single}, seed=2)["a"]
    twice = describe(double, ("a",), patients, seed=2)["a"]
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    independent = describe(double, ("a",), NOBODY, seed=2)["a"]
    assert independent.high - independent.low < 0.8 * (twice.high - twice.low)


def scores(**cases: float) -> dict[str, dict[str, dict[str, float]]]:
    return {key: {"a": {"Dice": value, "hd95_mm": 10 * (1 - value)}} for key, value in cases.items()}


def test_comparison_by_hand() -> None:
    first = scores(c0=0.80, c1=0.80, c2=0.80, c3=math.nan, c4=math.nan, c5=0.0)
    second = scores(c0=0.81, c1=0.90, c2=0.70, c3=0.0, c4=math.nan, c5=math.nan)
    rows = pair_scores(first, second, margin=0.01, tolerances={"a": 1.0})
    dice = {row.case: row for row in rows if row.metric == "Dice"}
    assert {key: row.verdict for key, row in dice.items()} == {
        "c0": "stable",  # by exactly the margin
        "c1": "improved",
        "c2": "worsened",
        "c3": "worsened",  # a false positive where A rightly had none
        "c5": "improved",
    }
    assert dice["c3"].difference == -1
    found = compare(rows, ("a",), NOBODY, seed=0)
    one = found["Dice"]["a"]
    assert one.difference.n == 5 and one.difference.mean == pytest.approx((0.01 + 0.1 - 0.1 - 1 + 1) / 5)
    assert one.verdicts == {"improved": 2, "stable": 1, "worsened": 2} == found["Dice"]["overall"].verdicts
    # a smaller distance is an improvement; one mm is the tolerance
    assert found["hd95_mm"]["a"].verdicts == {"improved": 1, "stable": 3, "worsened": 1}
    assert [(row.case, row.a, row.b) for row in worst(rows, "Dice", 5)] == [("c3", 1, 0), ("c2", 0.8, 0.7)]
    assert "surface_dice" not in found
