"""When two drawings of one image can both be right, against a slow enumeration of what may truly be there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.datasets.merge.readings import Agreed, PlainView, RegionView, resolve
from nnunet_mutual.datasets.merge.sources import BACKGROUND, IGNORE

NAMES = ("liver", "tumour", "spleen")
VALUES = {BACKGROUND: 0, "liver": 1, "tumour": 2, "spleen": 3, IGNORE: 4}


def plain(*annotated: str, contains: Mapping[str, set[str]] | None = None) -> PlainView:
    contained = {outer: frozenset(inner) for outer, inner in (contains or {}).items()}
    return PlainView(frozenset(annotated), contained, {}, {v: n for n, v in VALUES.items()}, VALUES)


def says(view: PlainView, word: str, truth: str) -> bool:
    """Would somebody who looked for ``view.annotated`` have written ``word`` at a voxel that truly is ``truth``?"""
    if word == IGNORE:
        return True
    if truth in view.annotated or truth == BACKGROUND:
        return word == truth
    for outer in view.annotated:
        if truth in view.contained.get(outer, ()):
            return word == outer  # drawn as part of the organ
    return word == BACKGROUND


@st.composite
def drawings(draw: st.DrawFn) -> tuple[list[PlainView], list[str]]:
    views, words = [], []
    for _ in range(draw(st.integers(2, 3))):
        annotated = draw(st.sets(st.sampled_from(NAMES)))
        contains = {"liver": {"tumour"}} if draw(st.booleans()) else {}
        view = plain(*annotated, contains=contains)
        views.append(view)
        words.append(draw(st.sampled_from([BACKGROUND, IGNORE, *sorted(annotated)])))
    return views, words


@settings(deadline=None, max_examples=200)
@given(drawings())
def test_agrees_with_enumeration(case: tuple[list[PlainView], list[str]]) -> None:
    views, words = case
    truths = {
        truth
        for truth in (BACKGROUND, *NAMES)
        if all(says(view, word, truth) for view, word in zip(views, words, strict=True))
    }
    verdict = resolve(words, views, [0] * len(views))
    if verdict.contradicted:
        # either nothing can be true, or only something that nobody wrote and no label map could tell
        assert not truths & {word for word in words if word != IGNORE}
    elif verdict.word != IGNORE:
        assert verdict.word in truths
        assert verdict.word in words
        known = frozenset().union(*(v.annotated for v in views))
        assert not (truths - {verdict.word}) & known or verdict.word in known
    else:
        # what only a silent drawing looked for is open
        silent = frozenset().union(*(v.annotated for v, w in zip(views, words, strict=True) if w == IGNORE))
        assert all(word == IGNORE for word in words) or truths & silent


@settings(deadline=None, max_examples=200)
@given(drawings())
def test_order_does_not_matter_without_contradiction(case: tuple[list[PlainView], list[str]]) -> None:
    views, words = case
    found = {
        (verdict.word, verdict.contradicted)
        for order in itertools.permutations(range(len(views)))
        for verdict in [resolve([words[i] for i in order], [views[i] for i in order], [0] * len(views))]
    }
    assert len({contradicted for _, contradicted in found}) == 1
    if not next(iter(found))[1]:
        assert len(found) == 1


def test_by_hand() -> None:
    with_tumour = plain("liver", contains={"liver": {"tumour"}})
    without = plain("liver")
    tumour = plain("tumour", "spleen")
    assert resolve(["liver", "tumour"], [with_tumour, tumour], [0, 0]).word == "tumour"
    assert resolve(["liver", "tumour"], [without, tumour], [0, 0]).contradicted
    assert resolve([BACKGROUND, "tumour"], [with_tumour, tumour], [0, 0]).contradicted  # it would be in the liver
    assert resolve([BACKGROUND, "tumour"], [without, tumour], [0, 0]).word == "tumour"
    assert resolve([IGNORE, BACKGROUND], [without, tumour], [0, 0]).word == IGNORE  # a liver there?
    assert resolve([IGNORE, "spleen"], [without, tumour], [0, 0]).word == "spleen"
    for order in itertools.permutations([("liver", with_tumour), (BACKGROUND, without), ("tumour", tumour)]):
        words, views = zip(*order, strict=True)  # a tumour at the liver's border fits all three, no two tell
        assert resolve(words, views, [0, 0, 0]) == Agreed("tumour", False, True)
    preferred = resolve(["liver", BACKGROUND], [without, plain("liver", "spleen")], [1, 0])
    assert (preferred.word, preferred.contradicted, preferred.decided) == (BACKGROUND, True, True)
    assert not resolve(["liver", BACKGROUND], [without, without], [0, 0]).decided


def test_overlapping_labels_need_a_decision() -> None:
    aorta = PlainView(frozenset({"a"}), {}, {"a": frozenset({"b"})}, {}, {BACKGROUND: 0, "a": 1, "b": 2})
    heart = PlainView(frozenset({"b"}), {}, {"b": frozenset({"a"})}, {}, {BACKGROUND: 0, "a": 1, "b": 2})
    assert resolve(["a", BACKGROUND], [aorta, heart], [0, 0]).word == "a"
    assert resolve(["a", "b"], [aorta, heart], [0, 0]).contradicted  # one voxel holds one label


def test_regions_by_hand() -> None:
    sets = {"whole": frozenset({1, 2}), "core": frozenset({2})}
    whole, core, both = (RegionView(frozenset(a), sets, 3, 3) for a in (["whole"], ["core"], ["whole", "core"]))
    assert resolve([1, 2], [whole, core], [0, 0]).word == 2
    assert resolve([1, 0], [whole, core], [0, 0]).word == 1
    assert resolve([2, 1], [whole, both], [0, 0]).word == 1
    assert resolve([0, 2], [whole, core], [0, 0]).contradicted
    assert resolve([IGNORE, 1], [core, whole], [0, 0]).word == IGNORE  # core or not?
    assert resolve([IGNORE, 0], [core, whole], [0, 0]).word == 0  # outside of the whole there is no core
