"""The order of suggestions, by numbers that can be reckoned by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunet_mutual.pseudo_labels.suggest.measuring import _size, look
from nnunet_mutual.pseudo_labels.suggest.ranking import Pair, rank

ONE = {"spleen": 1.0, "liver": 1.0}


def pair(case: str, label: str = "spleen", agreement: float | None = 0.5, **changed: Any) -> Pair:
    """A pair of usual size, unlike every other one of its label unless its look says otherwise."""
    values: dict[str, Any] = {"source": "a", "patient": None, "size": 1.0, "expected": False, "look": ()}
    return Pair(case, label, agreement=agreement, **{**values, **changed})


def order(pairs: list[Pair], minutes: dict[str, float] | None = None, most: int | None = None) -> list[str]:
    return [one.pair.case for one in rank(pairs, minutes or ONE, most)]


def line(*places: float, **changed: Any) -> list[Pair]:
    """Pairs along a line, the earlier ones with more disagreement."""
    agreements = np.linspace(0.1, 0.2, len(places))
    return [
        pair(f"{place:g}", agreement=a, look=(place,), **changed) for place, a in zip(places, agreements, strict=True)
    ]


def test_what_a_drawing_would_teach_for_a_minute() -> None:
    pairs = [
        pair("sure", agreement=0.95),  # 0.05
        pair("doubtful", agreement=0.4),  # 0.6
        pair("small", agreement=0.4, size=0.5),  # 0.3
        pair("large", agreement=0.6, size=7.0),  # 0.4 x 1
        pair("long", "liver", agreement=0.0),  # 1 / 4
    ]
    apart = [Pair(**{**vars(one), "look": (10.0 * 3**n,)}) for n, one in enumerate(pairs)]
    of_all = {one.pair.case: one for one in rank(apart, {"spleen": 1, "liver": 4})}
    worth = {case: one.disagreement * one.size / one.minutes for case, one in of_all.items()}
    assert worth == pytest.approx({"sure": 0.05, "doubtful": 0.6, "small": 0.3, "large": 0.4, "long": 0.25})
    assert next(iter(of_all)) == "doubtful"
    assert order([apart[1], apart[4]], {"spleen": 2, "liver": 3}) == ["long", "doubtful"], "1 / 3 is more than 0.6 / 2"
    assert order([apart[1], apart[4]], {"spleen": 2, "liver": 4}) == ["doubtful", "long"]


def test_no_ten_alike() -> None:
    alike, other = line(*[0] * 10), pair("other", agreement=0.8, look=(1,))
    assert order([*alike, other], most=2) == ["0", "other"], "a tenth of the doubt, but unlike the first one"
    ranked = rank([*alike, other], ONE)
    assert [one.variety for one in ranked] == [1, 1, *[0] * 9]
    disagreements = [one.disagreement for one in ranked[2:]]
    assert disagreements == sorted(disagreements, reverse=True), "of those that are alike, the most doubtful first"


def test_variety_is_a_share_of_the_median_distance() -> None:
    pairs = line(0, 1, 2, 4)  # distances 1 2 4 1 3 2: the median is 2
    ranked = rank(pairs, ONE)
    assert [one.pair.case for one in ranked] == ["0", "2", "4", "1"]
    assert [one.variety for one in ranked] == pytest.approx([1, 1, 1, 0.5])


def test_patients_and_sources() -> None:
    twice = [*line(0, 3, patient="p"), pair("unknown", agreement=0.9, look=(0.1,))]
    assert order(twice) == ["0", "unknown", "3"], "another scan of the same patient comes last"
    sources = [pair("a1", agreement=0.1), pair("a2", agreement=0.2), pair("b", agreement=0.6, source="b")]
    assert order(sources) == ["a1", "b", "a2"]


def test_labels_do_not_stand_in_each_other_s_way() -> None:
    same = [pair("case", agreement=0.2), pair("case", "liver", agreement=0.3), pair("other", "liver", agreement=0.9)]
    assert [(one.pair.label, one.variety) for one in rank(same, ONE, 2)] == [("spleen", 1), ("liver", 1)]


def test_nothing_found() -> None:
    missed = pair("missed", agreement=1.0, size=0.0, expected=True)
    absent = pair("absent", agreement=1.0, size=0.0)
    (first, second) = rank([absent, missed], ONE)
    assert (first.pair.case, first.disagreement, first.size) == ("missed", 1.0, 0.1)
    assert (second.pair.case, second.disagreement, second.size, second.score) == ("absent", 0.01, 0.0, 0.0)


def test_without_a_second_opinion_size_decides() -> None:
    assert order([pair("small", agreement=None, size=0.2), pair("large", agreement=None, size=0.9)]) == [
        "large",
        "small",
    ]


def test_equal_pairs_keep_their_order_and_most_is_a_limit() -> None:
    equal = [pair(name) for name in "cab"]
    assert order(equal) == ["c", "a", "b"] and order(equal, most=1) == ["c"] and order(equal, most=9) == ["c", "a", "b"]
    assert rank([], ONE) == []


def test_size_is_a_multiple_of_the_median() -> None:
    assert _size(3.0, [2.0, 1.0, 9.0]) == (1.5, True)
    assert _size(3.0, [2.0, 0.0]) == (1.5, False), "absent somewhere, so nothing found is no alarm"
    assert _size(3.0, []) == (1.0, False) and _size(0.0, []) == (0.0, False)


def test_looks_are_of_the_place_of_the_structure() -> None:
    image = np.zeros((2, 4, 4, 4), np.float32)
    image[:, 1:3, 1:3, 1:3] = [[[[5.0]]], [[[7.0]]]]
    mask = image[0] > 0
    assert look(image, mask) == pytest.approx([*[5.0] * 5, *[7.0] * 5, *np.log1p([2, 2, 2, 8])])
    assert look(image, np.zeros_like(mask)) == pytest.approx([*[0] * 4, 5, *[0] * 4, 7, *[0] * 4])
