"""The three levels of the filter: against loops over voxels, by hand, and what must hold for any prediction."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.filter import (
    FilterSettings,
    decide_regions,
    decide_voxels,
    judge_label,
    keep_main_component,
)
from nnunet_mutual.settings import read_settings

DEFAULT = FilterSettings()
OPEN: dict[int, tuple[int, ...]] = {0: (2, 3), 1: (2,), 4: ()}
# 1: whole only, 2: core, 3: enhancing core, 4: the same regions as 2.
MEMBERSHIP = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]], bool)
HYPOTHESES = {0: (0,), 1: (1, 2, 3, 4), 2: (1, 2, 3, 4), 4: (1, 2, 3, 4)}
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from([(7,), (3, 5), (2, 3, 4)])


def is_present(p: float, options: FilterSettings) -> bool | None:
    """Present, absent or neither."""
    if not options.voxel:
        return bool(p > 0.5)
    return True if p >= np.float32(options.high) else False if p <= np.float32(options.low) else None


def voxels_oracle(
    probability: np.ndarray, drawn: np.ndarray, conflict: np.ndarray | None, options: FilterSettings
) -> np.ndarray:
    decided = np.full(drawn.shape, -1)
    for place in np.ndindex(drawn.shape):
        y = int(drawn[place])
        if not OPEN.get(y):
            continue
        chances = {u: probability[(u, *place)] for u in OPEN[y]}
        likeliest = max(OPEN[y], key=chances.__getitem__)
        found = is_present(chances[likeliest], options)
        if conflict is not None and conflict[place] and options.voxel:
            found = None
        if found is not None:
            decided[place] = likeliest if found else y
    return decided


def regions_oracle(probability: np.ndarray, drawn: np.ndarray, options: FilterSettings) -> np.ndarray:
    decided = np.full(drawn.shape, -1)
    for place in np.ndindex(drawn.shape):
        y = int(drawn[place])
        open_values = HYPOTHESES.get(y, ())
        differing = [r for r in range(3) if len({bool(MEMBERSHIP[z, r]) for z in open_values}) > 1]
        found = {r: is_present(probability[(r, *place)], options) for r in differing}
        fitting = [z for z in open_values if all(found[r] is bool(MEMBERSHIP[z, r]) for r in differing)]
        if differing and fitting:
            decided[place] = y if y in fitting else fitting[0]
    return decided


def prediction(seed: int, rows: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (ties and exact thresholds among them), drawn values (unlisted ones too), conflicts."""
    rng = np.random.default_rng(seed)
    probability = rng.choice([0.0, 0.1, 0.3, 0.31, 0.5, 0.69, 0.7, 0.9, 1.0], (rows, *shape)).astype(np.float32)
    return probability, rng.integers(-1, 6, shape).astype(np.int16), rng.random(shape) < 0.2


FILTERS = st.builds(
    FilterSettings, voxel=st.booleans(), low=st.sampled_from([0.0, 0.1, 0.3]), high=st.sampled_from([0.31, 0.7, 1.0])
)


@settings(max_examples=150, deadline=None)
@given(SEEDS, SHAPES, FILTERS, st.booleans())
def test_voxels_are_decided_as_by_a_loop(
    seed: int, shape: tuple[int, ...], options: FilterSettings, has_conflict: bool
) -> None:
    probability, drawn, conflict = prediction(seed, 5, shape)
    given_conflict = conflict if has_conflict else None
    decided = decide_voxels(probability, drawn, OPEN, given_conflict, options)
    assert decided.dtype == np.int16
    np.testing.assert_array_equal(decided, voxels_oracle(probability, drawn, given_conflict, options))


@settings(max_examples=150, deadline=None)
@given(SEEDS, SHAPES, FILTERS)
def test_regions_are_decided_as_by_a_loop(seed: int, shape: tuple[int, ...], options: FilterSettings) -> None:
    probability, drawn, _ = prediction(seed, 3, shape)
    decided = decide_regions(probability, drawn, HYPOTHESES, MEMBERSHIP, options)
    assert decided.dtype == np.int16
    np.testing.assert_array_equal(decided, regions_oracle(probability, drawn, options))


@settings(max_examples=100, deadline=None)
@given(SEEDS, FILTERS)
def test_decisions_are_among_what_is_open(seed: int, options: FilterSettings) -> None:
    probability, drawn, conflict = prediction(seed, 5, (4, 10))
    for y, z in zip(drawn.flat, decide_voxels(probability, drawn, OPEN, conflict, options).flat, strict=True):
        assert z == -1 or (OPEN.get(y) and z in (y, *OPEN[y]))
    for y, z in zip(drawn.flat, decide_regions(probability, drawn, HYPOTHESES, MEMBERSHIP, options).flat, strict=True):
        assert z == -1 or z in HYPOTHESES[y]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.floats(0.3, 1, exclude_min=True), st.floats(0.3, 1, exclude_min=True))
def test_a_higher_threshold_never_decides_more(seed: int, a: float, b: float) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.random((5, 40), dtype=np.float32)
    drawn = rng.integers(0, 5, 40)
    mild, strict = (FilterSettings(high=high) for high in sorted((a, b)))
    for decide in (
        lambda options: decide_voxels(probability, drawn, OPEN, None, options),
        lambda options: decide_regions(probability[:3], drawn, HYPOTHESES, MEMBERSHIP, options),
    ):
        loose, tight = decide(mild), decide(strict)
        kept = tight != -1
        np.testing.assert_array_equal(tight[kept], loose[kept])
        assert kept.sum() <= (loose != -1).sum()


def test_voxels_by_hand() -> None:
    # Value 1 may be refined into 2; where nothing is drawn, 2 and 3 are open; 4 leaves nothing open; 5 is unknown.
    drawn = np.array([0, 0, 0, 0, 1, 1, 1, 4, 5])
    probability = np.zeros((5, 9), np.float32)
    probability[2] = [0.8, 0.1, 0.5, 0.9, 0.7, 0.3, 0.5, 0.9, 0.9]
    probability[3] = [0.9, 0.2, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
    conflict = np.array([False] * 3 + [True] + [False] * 5)
    np.testing.assert_array_equal(
        decide_voxels(probability, drawn, OPEN, conflict, DEFAULT), [3, 0, -1, -1, 2, 1, -1, -1, -1]
    )
    off = FilterSettings(voxel=False)
    np.testing.assert_array_equal(decide_voxels(probability, drawn, OPEN, conflict, off), [3, 0, 0, 2, 2, 1, 1, -1, -1])


def test_regions_by_hand() -> None:
    drawn = np.array([1, 1, 1, 1, 1, 0, 4, 2])
    # rows: whole (annotated, so its own uncertainty is no matter), core, enhancing
    probability = np.array(
        [
            [0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9],
            [0.1, 0.9, 0.9, 0.2, 0.5, 0.9, 0.9, 0.9],
            [0.1, 0.1, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1],
        ],
        np.float32,
    )
    # Enhancing outside the core is nothing that can be drawn; 2 and 4 lie in the same regions, the drawn one stays.
    expected = [1, 2, 3, -1, -1, -1, 4, 2]
    np.testing.assert_array_equal(decide_regions(probability, drawn, HYPOTHESES, MEMBERSHIP, DEFAULT), expected)


@pytest.mark.parametrize("voxel", [True, False])
def test_a_probability_that_is_no_number_decides_nothing(voxel: bool) -> None:
    options = FilterSettings(voxel=voxel)
    probability = np.full((5, 3), 0.9, np.float32)
    probability[2, 0] = probability[3, 1] = np.nan
    drawn = np.array([0, 0, 0])
    np.testing.assert_array_equal(decide_voxels(probability, drawn, OPEN, None, options), [-1, -1, 2])
    core = np.array([[np.nan] * 2, [0.9, np.nan], [0.1, 0.1]], np.float32)
    decided = decide_regions(core, np.array([1, 1]), {1: (1, 2, 3)}, MEMBERSHIP, options)
    np.testing.assert_array_equal(decided, [2, -1])


def pieces(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Connected pieces, by walking from voxel to voxel over faces, edges and corners."""
    remaining, found = {tuple(map(int, place)) for place in np.argwhere(mask)}, []
    while remaining:
        piece, pending = set(), [remaining.pop()]
        while pending:
            here = pending.pop()
            piece.add(here)
            near = {other for other in remaining if all(abs(a - b) <= 1 for a, b in zip(here, other, strict=True))}
            remaining -= near
            pending += near
        found.append(piece)
    return found


@settings(max_examples=60, deadline=None)
@given(SEEDS, SHAPES, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans())
def test_components_are_kept_as_by_a_walk(seed: int, shape: tuple[int, ...], fraction: float, component: bool) -> None:
    decided = np.random.default_rng(seed).choice([-1, 0, 1, 2], (*shape[:-1], 9), p=[0.3, 0.3, 0.2, 0.2])
    before = decided.copy()
    expected = decided.copy()
    for piece_list in [pieces(decided == value) for value in (1, 2)] if component else []:
        largest = max(map(len, piece_list), default=0)
        for piece in piece_list:
            if len(piece) < fraction * largest:
                expected[tuple(np.transpose(list(piece)))] = -1
    options = FilterSettings(min_component=fraction, component=component)
    np.testing.assert_array_equal(keep_main_component(decided, [1, 2], options), expected)
    np.testing.assert_array_equal(decided, before)


def two_organs() -> np.ndarray:
    """Per organ a body of 20 voxels, a piece of 2 (exactly 10 %) that touches nothing, and one of 1."""
    decided = np.zeros((3, 10, 9), np.int16)
    for value, column in ((1, 0), (2, 6)):
        decided[0, :, column : column + 2] = value
        decided[2, :2, column] = value
        decided[2, 4, column] = value
    return decided


def test_a_lesion_keeps_its_small_pieces() -> None:
    decided = two_organs()
    filtered = keep_main_component(decided, [1], DEFAULT)
    assert [(filtered == value).sum() for value in (1, 2, -1)] == [22, 23, 1]
    assert filtered[2, 4, 0] == -1
    np.testing.assert_array_equal(keep_main_component(decided, [], DEFAULT), decided)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_only_single_labels_change_and_only_to_undecided(seed: int) -> None:
    decided = np.random.default_rng(seed).choice([-1, 0, 1, 2, 3], (4, 5, 5), p=[0.2, 0.4, 0.1, 0.1, 0.2])
    filtered = keep_main_component(decided, [2], FilterSettings(min_component=1.0))
    changed = filtered != decided
    assert (decided[changed] == 2).all() and (filtered[changed] == -1).all()


def test_corners_connect_and_a_region_is_one_thing() -> None:
    decided = np.zeros((5, 5, 5), np.int16)
    for i in range(5):
        decided[i, i, i] = 1 + i % 2
    only_largest = FilterSettings(min_component=1.0)
    np.testing.assert_array_equal(keep_main_component(decided, [(1, 2)], only_largest), decided)
    decided[0, 4, 4] = 2
    filtered = keep_main_component(decided, [(1, 2)], only_largest)
    assert filtered[0, 4, 4] == -1 and (filtered == -1).sum() == 1


def test_an_absent_label_has_no_component() -> None:
    decided = np.array([[-1, 0], [2, 2]])
    np.testing.assert_array_equal(keep_main_component(decided, [1, np.int64(7)], DEFAULT), decided)


CASES = [100.0, 120.0, 150.0]


@pytest.mark.parametrize(
    ("volume", "dice", "true", "accepted", "reason"),
    [
        (110, 0.9, CASES, True, r"plausible: 110 ml, usual 122 ml in 3 .* \(z = -0.5\d\); .* agree with Dice 0.9$"),
        (110, None, CASES, True, r"plausible: [^;]*$"),
        (110, 0.52, CASES, False, "predictions disagree: their Dice is 0.52, at least 0.7 is needed"),
        (110, 0.7, CASES, True, "plausible"),
        (1500, 0.9, CASES, False, r"too large: 1500 ml, usual 122 ml .*z = 12.\d+, limit 3\); .*0.9"),
        (1.5, 0.9, CASES, False, r"too small: 1.5 ml, .*z = -2\d.\d+, limit 3"),
        (1.5, 0.9, [100, 120, 0], True, r"volume not judged: 1.5 ml, but only 2 .*case\(s\) .* at least 3 are needed"),
        (1.5, 0.2, [], False, "predictions disagree"),
        (0, 1.0, CASES, False, "missing: nothing was found, but all 3 truly labelled cases have it"),
        (0, 1.0, [*CASES, 0, 0], True, "absent: nothing was found, as in 2 of 5 truly labelled cases"),
        (0, None, [0.0, 0.0], True, "absent: .* in 2 of 2"),
        (0, 0.0, [*CASES, 0], False, "predictions disagree: their Dice is 0, "),
        (0, None, CASES[:2], False, "missing: nothing was found, but all 2 truly labelled cases have it"),
    ],
)
def test_verdicts(volume: float, dice: float | None, true: list[float], accepted: bool, reason: str) -> None:
    verdict = judge_label(volume_ml=volume, agreement=dice, true_volumes_ml=true, settings=DEFAULT)
    assert verdict.accepted is accepted
    assert re.match(reason, verdict.reason), verdict.reason
    measured = volume > 0 and sum(other > 0 for other in true) >= 3
    assert (verdict.z is not None) == measured
    switched_off = judge_label(
        volume_ml=volume, agreement=dice, true_volumes_ml=true, settings=FilterSettings(label=False)
    )
    assert (switched_off.accepted, switched_off.z) == (True, None)
    assert switched_off.reason.startswith("not judged")


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.01, 1e5),
    st.lists(st.floats(0.01, 1e5), min_size=3, max_size=6),
    st.integers(0, 2),
    st.floats(0.1, 10),
)
def test_the_z_score(volume: float, present: Sequence[float], absent: int, limit: float) -> None:
    logs = [math.log(other) for other in present]
    expected = (math.log(volume) - statistics.fmean(logs)) / max(statistics.stdev(logs), 0.2)
    verdict = judge_label(
        volume_ml=volume,
        agreement=None,
        true_volumes_ml=[*present, *[0.0] * absent],
        settings=FilterSettings(max_z=limit),
    )
    assert type(verdict.z) is float
    assert verdict.z == pytest.approx(expected, abs=1e-6)
    if abs(abs(expected) - limit) > 1e-6:
        assert verdict.accepted == (abs(expected) < limit)


def test_a_refusal_tells_the_number_from_its_limit() -> None:
    verdict = judge_label(volume_ml=10, agreement=0.69999, true_volumes_ml=CASES, settings=DEFAULT)
    assert verdict.reason == "predictions disagree: their Dice is 0.69999, at least 0.7 is needed"
    verdict = judge_label(
        volume_ml=math.e, agreement=None, true_volumes_ml=[1, 1, 1], settings=FilterSettings(max_z=4.99999)
    )
    assert "(z = 5, limit 4.99999)" in verdict.reason
    verdict = judge_label(
        volume_ml=1, agreement=None, true_volumes_ml=[1, 1, 1], settings=DEFAULT, said=lambda v: f"{v:g} pixels"
    )
    assert verdict.reason == "plausible: 1 pixels, usual 1 pixels in 3 truly labelled cases (z = 0.00)"


def test_the_floor_of_the_spread() -> None:
    verdict = judge_label(volume_ml=math.e, agreement=None, true_volumes_ml=[1, 1, 1], settings=DEFAULT)
    assert verdict.z == pytest.approx(5)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (
            {"low": 0.7, "high": 0.3},
            '"pseudo_labels.low" and "pseudo_labels.high" .* low below high, found 0.7 and 0.3',
        ),
        ({"low": 0.5, "high": 0.5}, "found 0.5 and 0.5"),
        ({"low": -0.1}, "found -0.1 and 0.7"),
        ({"high": 1.5}, "found 0.3 and 1.5"),
        ({"high": math.nan}, "found 0.3 and nan"),
        ({"min_component": 10}, 'setting "pseudo_labels.min_component" must be from 0 to 1, found 10'),
        ({"min_agreement": -1}, 'setting "pseudo_labels.min_agreement" must be from 0 to 1, found -1'),
        ({"max_z": 0}, 'setting "pseudo_labels.max_z" must be positive, found 0'),
        ({"max_z": math.inf}, "must be positive, found inf"),
        ({"hihg": 0.8}, 'unknown setting "hihg".*did you mean'),
    ],
)
def test_wrong_settings_are_named(block: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(MutualError, match=expected):
        read_settings(FilterSettings, block, "pseudo_labels")


def test_settings_come_from_json() -> None:
    block = json.loads('{"voxel": false, "low": 0, "high": 1, "min_component": 1, "max_z": 2}')
    assert read_settings(FilterSettings, block) == FilterSettings(
        voxel=False, low=0.0, high=1.0, min_component=1.0, max_z=2.0
    )
