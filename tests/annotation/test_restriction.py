"""Predictions restricted to what a case annotates: where each unannotated label goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mutual.annotation.restriction import Restriction, restriction_for, vouched
from nnunet_mutual.annotation.table import AnnotationTable

NAMES = ["liver", "tumour", "spleen", "vessel"]
# Integers in another order than dataset.json's.
VALUES = {"liver": 2, "tumour": 4, "spleen": 1, "vessel": 3}


def table_of(
    annotated: list[str], contains: dict[str, list[str]] | None = None, overlaps: list[list[str]] | None = None
) -> AnnotationTable:
    return AnnotationTable.from_dataset_json(
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **VALUES},
            "mutual": {
                "version": 1,
                "sources": {"a": {"annotated": annotated, "contains": contains or {}}},
                "cases": {"x": {"source": "a"}},
                "may_overlap": overlaps or [],
            },
        }
    )


def one_voxel(**probabilities: float) -> np.ndarray:
    column = np.zeros(5)
    for name, value in probabilities.items():
        column[VALUES.get(name, 0)] = value
    return column[:, None]


def restricted(table: AnnotationTable, probabilities: np.ndarray) -> np.ndarray:
    restriction = restriction_for(table, table.case("x"))
    assert restriction is not None
    return restriction.apply(probabilities)


def test_a_fully_annotated_case_is_left_alone() -> None:
    table = table_of(NAMES)
    assert restriction_for(table, table.case("x")) is None
    plain = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, **VALUES}})
    assert restriction_for(plain, plain.case("any case")) is None


def test_a_contained_label_goes_to_its_container() -> None:
    table = table_of(["liver"], {"liver": ["tumour"], "tumour": ["vessel"]}, [["tumour", "spleen"]])
    found = restricted(table, one_voxel(background=0.2, liver=0.1, tumour=0.4, vessel=0.3))
    np.testing.assert_allclose(found, one_voxel(background=0.2, liver=0.4))
    # A container that is not annotated is none.
    table = table_of(["spleen"], {"liver": ["tumour"]})
    assert restriction_for(table, table.case("x")) == Restriction(((2, (0,)), (3, (0,)), (4, (0,))))


def test_without_a_container_the_likelier_of_background_and_overlap_partners() -> None:
    table = table_of(["liver", "spleen"], overlaps=[["vessel", "liver"], ["spleen", "vessel"], ["vessel", "tumour"]])
    spleen = restricted(table, one_voxel(background=0.1, liver=0.1, spleen=0.2, vessel=0.6))
    np.testing.assert_allclose(spleen, one_voxel(background=0.1, liver=0.1, spleen=0.6))
    background = restricted(table, one_voxel(background=0.2, liver=0.1, spleen=0.1, vessel=0.6))
    np.testing.assert_allclose(background, one_voxel(background=0.6, liver=0.1, spleen=0.1))


def test_a_label_drawn_in_part_stays() -> None:
    content = {"annotated": ["spleen"], "incomplete": ["liver"], "contains": {"liver": ["tumour"]}}
    table = AnnotationTable.from_dataset_json(
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **VALUES},
            "mutual": {"version": 1, "sources": {"a": content}, "cases": {"x": {"source": "a"}}},
        }
    )
    assert restriction_for(table, table.case("x")) == Restriction(((3, (0,)), (4, (2,)))), "tumours are of the liver"
    drawn = np.array([0, 1, 2, 3, 4])
    np.testing.assert_array_equal(vouched(drawn, table, table.case("x")), [0, 1, 2, 0, 4])


def test_everything_else_goes_to_background() -> None:
    found = restricted(table_of(["liver"]), one_voxel(background=0.1, liver=0.3, spleen=0.35, vessel=0.25))
    np.testing.assert_allclose(found, one_voxel(background=0.35, liver=0.3))


def test_an_unlikely_unannotated_label_changes_no_decision() -> None:
    found = restricted(table_of(["liver"]), one_voxel(background=0.1, liver=0.5, spleen=0.4))
    np.testing.assert_allclose(found, one_voxel(background=0.4, liver=0.5))


def test_an_unlabelled_case_becomes_background() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3, 4)).transpose(3, 0, 1, 2)
    assert (restricted(table_of([]), probabilities).argmax(0) == 0).all()


def expected_label(case: dict[str, Any], p: np.ndarray) -> int:
    """The label that a voxel ends up with, from its probabilities alone."""
    winner = int(p.argmax())
    name = next((n for n, value in VALUES.items() if value == winner), None)
    if name is None or name in case["annotated"]:
        return winner

    def reach(outer: str) -> set[str]:
        direct = set(case["contains"].get(outer, ()))
        return direct.union(*(reach(inner) for inner in direct)) if direct else direct

    heirs = [VALUES[b] for b in case["annotated"] if name in reach(b)]
    if not heirs:
        pairs = [set(pair) for pair in case["overlaps"]]
        heirs = [0, *(VALUES[b] for b in case["annotated"] if {name, b} in pairs)]
    return max(heirs, key=lambda heir: p[heir])


@pytest.mark.parametrize("seed", range(60))
def test_the_argmax_is_the_restricted_label_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [[a, b] for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    annotated = [name for name in NAMES if rng.random() < 0.5][:3]
    case: dict[str, Any] = {
        "annotated": annotated,
        "overlaps": [pair for pair in pairs if rng.random() < 0.3],
        "contains": {},
    }
    for outer, inner in pairs:
        if rng.random() < 0.25:
            case["contains"].setdefault(outer, []).append(inner)
    table = table_of(case["annotated"], case["contains"], case["overlaps"])
    probabilities = rng.dirichlet(np.full(5, 0.7), 60).T.reshape(5, 3, 4, 5)
    before = probabilities.copy()
    found = restricted(table, probabilities)
    assert np.array_equal(probabilities, before)
    labels = found.argmax(0)
    for voxel in np.ndindex(3, 4, 5):
        p = probabilities[(slice(None), *voxel)]
        assert labels[voxel] == expected_label(case, p)
    kept = [0, *(VALUES[name] for name in case["annotated"])]
    removed = [channel for channel in range(5) if channel not in kept]
    assert (found[removed] == 0).all() and (found[kept] >= probabilities[kept]).all()
    # Where an annotated label or background won, it keeps its probability to the bit.
    winner = probabilities.argmax(0)
    for channel in kept:
        assert np.array_equal(found[channel][winner == channel], probabilities[channel][winner == channel])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_shape_and_type_stay(dtype: type) -> None:
    probabilities = np.random.default_rng(1).random((5, 2, 3)).astype(dtype)
    found = restricted(table_of(["spleen"]), probabilities)
    assert found.dtype == dtype and found.shape == probabilities.shape


BRATS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def regions(labels: dict[str, Any], annotated: list[str]) -> AnnotationTable:
    return AnnotationTable.from_dataset_json(
        {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, **labels},
            "mutual": {
                "version": 1,
                "sources": {"a": {"annotated": annotated}},
                "cases": {"x": {"source": "a"}},
            },
        }
    )


def label_map(table: AnnotationTable, order: list[int], probabilities: np.ndarray) -> np.ndarray:
    """The label map that stock nnU-Net writes."""
    labels = {"background": 0, **{name: list(table.values[name]) for name in table.labels}}
    return np.asarray(LabelManager(labels, order).convert_probabilities_to_segmentation(probabilities))


@pytest.mark.parametrize(
    ("annotated", "painted"),
    [
        (["whole"], [0, 1, 1, 1, 1]),
        (["whole", "core"], [0, 1, 2, 2, 2]),
        (["whole", "enhancing"], [0, 1, 1, 3, 3]),
        (["core"], [0, 0, 2, 2, 2]),
        ([], [0, 0, 0, 0, 0]),
    ],
)
def test_an_unannotated_region_counts_for_the_annotated_ones_around_it(
    annotated: list[str], painted: list[int]
) -> None:
    table = regions(BRATS, annotated)
    # Nothing; whole; core alone; all three; enhancing alone, which the full map counts as whole and core.
    columns = np.array([[0.2, 0.3, 0.1], [0.9, 0.3, 0.1], [0.4, 0.7, 0.2], [0.9, 0.8, 0.6], [0.1, 0.2, 0.7]]).T
    restriction = restriction_for(table, table.case("x"), [1, 2, 3])
    assert restriction is not None
    found = restriction.apply(columns)
    assert label_map(table, [1, 2, 3], found).tolist() == painted
    assert (found[[n for n, name in enumerate(BRATS) if name not in annotated]] == 0).all()
    if annotated == ["whole"]:
        np.testing.assert_array_equal(found[0], columns.max(0))  # also where nothing is decided, for ensembles


def random_family(rng: np.random.Generator) -> tuple[dict[str, Any], list[int]]:
    """Regions of any relation, and an order in which they are painted: proper ones and improper ones."""
    highest = int(rng.integers(2, 6))
    labels: dict[str, Any] = {"r0": sorted(rng.choice(np.arange(1, highest + 1), 2, replace=False).tolist())}
    for n in range(1, int(rng.integers(2, 5))):
        size = int(rng.integers(1, highest + 1))
        labels[f"r{n}"] = sorted(rng.choice(np.arange(1, highest + 1), size, replace=False).tolist())
    return labels, [int(rng.choice(labels[name])) for name in labels]


@pytest.mark.parametrize("seed", range(120))
def test_the_restricted_map_says_of_annotated_regions_what_the_full_one_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, order = random_family(rng)
    annotated = [name for name in labels if rng.random() < 0.5]
    table = regions(labels, annotated)
    restriction = restriction_for(table, table.case("x"), order)
    probabilities = rng.random((len(labels), 6, 7)).astype(np.float32)
    probabilities[:, 0, :3] = 0.5  # undecided counts as no
    full = label_map(table, order, probabilities)
    if restriction is None:
        assert len(annotated) == len(labels)
        return
    before = probabilities.copy()
    found = restriction.apply(probabilities)
    assert np.array_equal(probabilities, before) and found.dtype == np.float32
    written = label_map(table, order, found)
    for name in annotated:
        np.testing.assert_array_equal(np.isin(written, labels[name]), np.isin(full, labels[name]))

    def said(integer: int) -> set[str]:
        return {name for name in annotated if integer in labels[name]}

    for voxel in np.ndindex(*full.shape):
        possible = [other for other in (0, *order) if said(other) == said(full[voxel])]
        unknown = {i: sum(i in labels[name] for name in labels if name not in annotated) for i in possible}
        assert unknown[written[voxel]] == min(unknown.values()), "stock tools score no more than they must"


def test_ensembles_of_restricted_regions_score_what_ensembles_of_full_ones_score() -> None:
    """Stock averages the probabilities of several models, then paints."""
    rng = np.random.default_rng(5)
    outer, inner = rng.random((2, 2, 1, 4000))
    models = np.concatenate([np.maximum(outer, inner), inner], 1)  # (models, regions, voxels), nested
    labels, order = {"whole": [1, 2], "core": 2}, [1, 2]
    table = regions(labels, ["whole"])
    restriction = restriction_for(table, table.case("x"), order)
    assert restriction is not None
    full = label_map(table, order, models.mean(0))
    written = label_map(table, order, np.mean([restriction.apply(model) for model in models], 0))
    np.testing.assert_array_equal(np.isin(written, [1, 2]), np.isin(full, [1, 2]))
    assert set(written.tolist()) == {0, 1}


def test_regions_need_their_integers() -> None:
    table = regions(BRATS, ["whole"])
    with pytest.raises(ValueError, match="3 regions"):
        restriction_for(table, table.case("x"))
