"""Look-up tables as partial-organ networks and pseudo labels see them, against sets of names for random datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partial_oracle import annotated_names, dataset, left_open, may_hide_in, names_in_part, possible_names, region_state
from random_tables import LABELS, NAMES, PAIRS, REGIONS, SUBSETS, plain_datasets, region_datasets
from torch import Tensor

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.objectives.knowledge import Knowledge, Tables

BY_HAND = dataset(
    LABELS,
    {
        "livers": {"annotated": ["liver"], "contains": {"liver": ["tumour"], "tumour": ["cyst"]}},
        "spleens": {"annotated": ["spleen"]},
        "nothing": {"annotated": []},
    },
    may_overlap=[["kidney", "spleen"]],
)


def knowledge(content: dict[str, Any], accepted: dict[str, set[str]] | None = None) -> Knowledge:
    """Of all cases; with pseudo labels if any case has accepted ones."""
    table = AnnotationTable.from_dataset_json(content)
    outputs = len(table.labels) + (not table.is_regions)
    if accepted is None:
        return Knowledge(table, list(content["mutual"]["cases"]), outputs)
    sets = {key: frozenset(labels) for key, labels in accepted.items()}
    return Knowledge(table, list(content["mutual"]["cases"]), outputs, PseudoCodes.from_table(table), sets)


def classes(row: Tensor) -> set[str]:
    return {NAMES[k] for k, value in enumerate(row.tolist()) if value}


def in_part(tables: Tables, pattern: int) -> set[str]:
    return set() if tables.incomplete is None else classes(tables.incomplete[pattern])


def regions_in(row: Tensor) -> set[str]:
    return {name for name, value in zip(REGIONS, row.tolist(), strict=True) if value}


@settings(max_examples=150, deadline=None)
@given(st.data(), plain_datasets())
def test_every_code_says_what_it_means(data: st.DataObject, content: dict[str, Any]) -> None:
    cases = list(content["mutual"]["cases"])
    accepted = {key: set(data.draw(SUBSETS)) - annotated_names(content, key) for key in cases}
    known = knowledge(content, accepted)
    pseudo, true = known.pseudo_tables, known.tables
    assert known.codes is not None and pseudo.possible is not None and true.possible is not None
    assert pseudo.drawn is not None and true.drawn is not None
    meaning = [(value, None) for value in range(known.codes.offset)] + list(known.codes.pairs)
    for key in cases:
        pattern = known.patterns([key])[0]
        annotated = annotated_names(content, key)
        assert classes(true.annotated[pattern]) == annotated
        assert classes(pseudo.annotated[pattern]) == annotated | accepted[key]
        for code, (y, z) in enumerate(meaning):
            drawn, decided = NAMES[y], None if z is None else NAMES[z]
            assert int(true.drawn[code]) == y and int(pseudo.drawn[code]) == (y if z is None else z)
            by_drawing = possible_names(content, key, drawn)
            can_be_decided = {None, drawn} | (by_drawing & accepted[key])
            if drawn not in {"background"} | annotated | names_in_part(content, key) or decided not in can_be_decided:
                continue  # such a voxel never comes
            assert classes(true.possible[pattern, code]) == by_drawing, "true labels know of no decision"
            expected = left_open(content, key, accepted[key], drawn, decided)
            assert classes(pseudo.possible[pattern, code]) == expected, (key, drawn, decided)
            assert expected <= by_drawing, "a decision never opens what the drawing excludes"


def test_codes_by_hand() -> None:
    known = knowledge(BY_HAND, {"spleens": {"liver"}, "nothing": {"liver", "tumour", "spleen"}})
    assert known.codes is not None and known.pseudo_tables.possible is not None
    code = {pair: number for number, pair in enumerate(known.codes.pairs, known.codes.offset)}

    def row(key: str, y: str, z: str) -> set[str]:
        assert known.pseudo_tables.possible is not None
        place = code[NAMES.index(y), NAMES.index(z)]
        return classes(known.pseudo_tables.possible[known.patterns([key])[0], place])

    # Nobody vouches for tumours in the pseudo livers of "spleens", and who learnt livers learnt them with tumours.
    assert row("spleens", "background", "liver") == {"liver", "tumour", "cyst"}
    assert row("spleens", "background", "background") == {"background", "tumour", "cyst", "kidney"}
    assert row("spleens", "spleen", "spleen") == {"spleen", "kidney"}
    assert row("nothing", "background", "liver") == {"liver", "cyst"}
    assert row("nothing", "background", "tumour") == {"tumour", "cyst"}
    assert row("nothing", "background", "spleen") == {"spleen", "kidney"}
    assert row("livers", "liver", "liver") == {"liver", "tumour", "cyst"}


@settings(max_examples=150, deadline=None)
@given(plain_datasets(), SUBSETS.filter(bool))
def test_networks_of_some_labels(content: dict[str, Any], own: list[str]) -> None:
    known, labels = knowledge(content), set(own)
    tables, rivals = known.limited(frozenset(labels)), known.rivals(frozenset(labels))
    assert tables.possible is not None and not any(tables.is_full)
    rest = {"background"} | (set(LABELS) - labels)
    for key in content["mutual"]["cases"]:
        pattern, annotated = known.patterns([key])[0], annotated_names(content, key)
        by_hand = annotated | names_in_part(content, key)
        assert classes(tables.annotated[pattern]) == annotated & labels
        assert in_part(tables, pattern) == names_in_part(content, key) & labels
        for drawn in ["background", *by_hand]:
            found = classes(tables.possible[pattern, NAMES.index(drawn)])
            everything = possible_names(content, key, drawn)
            if drawn in labels:
                assert found == everything & labels, "what lies in an organ of the network is that organ to it"
            elif drawn == "background":
                assert found == rest | (everything & labels)
            else:
                assert found == rest | (labels - annotated), "what it does not know is left to the rivals"
            foes = classes(rivals[pattern, NAMES.index(drawn)])
            expected = set()
            if drawn in by_hand - labels:
                strangers = {a for a in labels - annotated if drawn not in may_hide_in(content, a)}
                expected = strangers - may_hide_in(content, drawn)
            assert foes == expected
        nobody = [NAMES.index(name) for name in NAMES if name not in by_hand]
        assert not rivals[pattern, nobody].any()


@settings(max_examples=50, deadline=None)
@given(plain_datasets(), st.sampled_from(PAIRS))
def test_exclusive_labels(content: dict[str, Any], pair: tuple[str, str]) -> None:
    a, b = pair
    known = knowledge(content)
    related = a in may_hide_in(content, b) or b in may_hide_in(content, a)
    assert known.exclusive(a, b) == known.exclusive(b, a) == (not related)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("whole", "core", False), ("whole", "other", True), ("both", "other", False), ("core", "other", True)],
)
def test_exclusive_regions(a: str, b: str, expected: bool) -> None:
    known = knowledge(dataset(REGIONS, {"a": {"annotated": ["whole"]}}))
    assert known.exclusive(a, b) == known.exclusive(b, a) == expected


def state(tables: Tables, pattern: int, drawn: set[str], asked: str) -> bool | None:
    """What the relations say about a region, given the regions that were drawn at the voxel."""
    assert tables.relations is not None
    row = list(REGIONS).index(asked)
    opinions = set()
    for column, name in enumerate(REGIONS):
        place = pattern, row, column
        present = name in drawn
        opinions |= {False} if tables.relations.absent_if_present[place] and present else set()
        opinions |= {False} if tables.relations.absent_if_absent[place] and not present else set()
        opinions |= {True} if tables.relations.present_if_present[place] and present else set()
    return opinions.pop() if len(opinions) == 1 else None


@settings(max_examples=100, deadline=None)
@given(region_datasets(), st.lists(st.sampled_from(list(REGIONS)), unique=True, min_size=1))
def test_networks_of_some_regions(content: dict[str, Any], own: list[str]) -> None:
    known, labels = knowledge(content), set(own)
    tables, rivals = known.limited(frozenset(labels)), known.rivals(frozenset(labels))
    for key in content["mutual"]["cases"]:
        pattern, annotated = known.patterns([key])[0], annotated_names(content, key)
        partly = names_in_part(content, key)
        assert regions_in(tables.annotated[pattern]) == annotated & labels
        for y in range(5):
            drawn = {name: y in values for name, values in REGIONS.items()}
            present = {name for name in annotated | partly if drawn[name]}
            for asked in set(REGIONS) - annotated:
                own = annotated & labels, drawn, asked, partly & labels
                expected = region_state(content, *own) if asked in labels else None
                assert state(tables, pattern, present, asked) == expected
        for b, name in enumerate(REGIONS):
            expected_foes = {a for a in labels - annotated if set(REGIONS[a]).isdisjoint(REGIONS[name])}
            assert regions_in(rivals[pattern, b]) == (expected_foes if name in (annotated | partly) - labels else set())


@settings(max_examples=50, deadline=None)
@given(st.data(), region_datasets())
def test_regions_with_pseudo_labels(data: st.DataObject, content: dict[str, Any]) -> None:
    subsets = st.lists(st.sampled_from(list(REGIONS)), unique=True)
    accepted = {key: set(data.draw(subsets)) - annotated_names(content, key) for key in content["mutual"]["cases"]}
    known = knowledge(content, accepted)
    assert known.pseudo_tables.relations is known.tables.relations and known.tables.decided is None
    assert known.pseudo_tables.decided is not None
    for key in content["mutual"]["cases"]:
        pattern, annotated = known.patterns([key])[0], annotated_names(content, key)
        assert regions_in(known.tables.annotated[pattern]) == annotated
        assert regions_in(known.pseudo_tables.annotated[pattern]) == annotated | accepted[key]
        assert regions_in(known.pseudo_tables.decided[pattern]) == accepted[key]


def test_cases_share_a_pattern_only_if_the_same_labels_were_accepted() -> None:
    content = dataset(LABELS, {"a": {"annotated": ["liver"]}})
    content["mutual"]["cases"] = {key: {"source": "a"} for key in ("one", "two", "three", "validation")}
    known = knowledge(content, {"one": {"spleen"}, "two": {"spleen"}, "three": {"spleen", "kidney"}})
    one, two, three, validation = known.patterns(["one", "two", "three", "validation"])
    assert one == two and len({one, three, validation}) == 3
    assert torch.equal(known.tables.annotated[one], known.tables.annotated[three])


def test_without_codes_both_views_are_the_same() -> None:
    known = knowledge(BY_HAND)
    assert known.pseudo_tables is known.tables and known.tables.drawn is None


def test_an_ignore_label_has_a_row_that_is_never_asked_for() -> None:
    """The loss masks ignored voxels; codes then begin above the ignore label."""
    table = AnnotationTable.from_dataset_json(BY_HAND)
    codes = PseudoCodes.from_table(replace(table, ignore=6))
    known = Knowledge(table, ["livers"], 6, codes, {"livers": frozenset({"spleen"})})
    plain = knowledge(BY_HAND, {"livers": {"spleen"}})
    assert known.pseudo_tables.possible is not None and plain.pseudo_tables.possible is not None
    pattern = plain.patterns(["livers"])[0]
    assert known.pseudo_tables.possible.shape[1] == codes.size == plain.pseudo_tables.possible.shape[1] + 1
    assert torch.equal(known.pseudo_tables.possible[0, 7:], plain.pseudo_tables.possible[pattern, 6:])


def test_all_tables_move_to_the_device_of_the_loss() -> None:
    regions = dataset(REGIONS, {"a": {"annotated": ["whole"]}})
    for content, accepted in ((BY_HAND, {"livers": {"spleen"}}), (regions, {"a": {"core"}})):
        known = knowledge(content, accepted).to(torch.device("meta"))
        own = frozenset({"liver"} if content is BY_HAND else {"core"})
        for tables in (known.tables, known.pseudo_tables, known.limited(own)):
            found = [tables.annotated, tables.possible, tables.drawn, tables.decided]
            found += [] if tables.relations is None else [*vars(tables.relations).values()]
            assert {part.device.type for part in found if part is not None} == {"meta"}
        assert known.rivals(own).device.type == "meta"
