"""The rule of what may truly be at a voxel: by hand, and everybody who derives something from it says the same."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from partial_oracle import dataset
from random_tables import LABELS, REGIONS, plain_datasets, region_datasets

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.possible import agreeing_integers, hypotheses, left_open, unseen_labels
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.merge.readings import BACKGROUND, IGNORE, PlainView, RegionView
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.labeller import PseudoLabeller
from nnunet_mutual.pseudo_labels.review.rules import rules_for

NONE: frozenset[str] = frozenset()


def test_by_hand() -> None:
    liver, tumour = frozenset({"liver"}), frozenset({"tumour"})
    labels = frozenset({"liver", "tumour", "spleen"})
    nested, apart = {"liver": tumour}, {"spleen": liver}
    assert unseen_labels("liver", labels, liver, {}, {}) == NONE, "a voxel of a liver is no spleen"
    assert unseen_labels(None, labels, liver, {}, {}) == {"tumour", "spleen"}, "outside of it may be one"
    assert unseen_labels("liver", labels, liver, nested, {}) == tumour, "drawn with its tumours"
    assert unseen_labels(None, labels, liver, nested, {}) == {"spleen"}, "which then are nowhere else"
    assert unseen_labels("spleen", labels, frozenset({"spleen"}), {}, apart) == liver, "they may overlap"
    regions = {"whole": {1, 2}, "core": {2}}
    assert agreeing_integers(0, regions, {"whole"}) == {0} and agreeing_integers(2, regions, {"whole"}) == {1, 2}
    assert agreeing_integers(2, regions, set()) == {0, 1, 2}
    assert agreeing_integers(2, regions, {"whole"}, {"core"}) == {2}, "some of the core is drawn: here it is"
    assert agreeing_integers(1, regions, {"whole"}, {"core"}) == {1, 2}, "and here it may be"


def test_a_label_drawn_in_part_may_be_wherever_nothing_else_was_drawn() -> None:
    source = {"annotated": ["liver"], "incomplete": ["lesion"]}
    labels = {"liver": 1, "lesion": 2, "vessel": 3}
    table = AnnotationTable.from_dataset_json(dataset(labels, {"a": source}))
    assert left_open(table, table.case("a")) == {0: {"lesion", "vessel"}, 1: NONE, 2: NONE}
    within = dataset(labels, {"a": {**source, "contains": {"liver": ["lesion"]}}}, may_overlap=[["lesion", "vessel"]])
    table = AnnotationTable.from_dataset_json(within)
    assert left_open(table, table.case("a")) == {0: {"vessel"}, 1: {"lesion"}, 2: {"vessel"}}


def labeller(table: AnnotationTable) -> PseudoLabeller:
    class Labels:
        ignore_label = None

    return PseudoLabeller(table, Labels(), (), [], [frozenset(table.labels)], FilterSettings())  # type: ignore


@settings(max_examples=100, deadline=None)
@given(plain_datasets())
def test_everybody_says_the_same_of_labels(content: dict[str, Any]) -> None:
    table = AnnotationTable.from_dataset_json(content)
    known = Knowledge(table, table.cases, len(LABELS) + 1)
    assert known.tables.possible is not None
    names = {value: name for name, value in LABELS.items()}
    pairs = set(PseudoCodes.from_table(table).pairs)
    for key, case in table.cases.items():
        opened = left_open(table, case)
        row = known.tables.possible[known.patterns([key])[0]]
        overlaps = {label: table.overlap_partners(label) for label in LABELS}
        values = {BACKGROUND: 0, **LABELS, IGNORE: 9}
        view = PlainView(case.annotated, table.contained(case), overlaps, names, values)
        unknown = [label for label in LABELS if label not in case.annotated]
        rules = {label: rules_for(table, case, label) for label in unknown}
        of_labeller = labeller(table)._open_values(case, unknown)
        assert opened.keys() == {0, *(LABELS[label] for label in case.drawn)}
        for drawn, labels in opened.items():
            assert {names[k] for k in range(1, len(LABELS) + 1) if row[drawn, k] and k != drawn} == labels
            assert view.possible(names.get(drawn, BACKGROUND)) == {names.get(drawn, BACKGROUND)} | labels
            assert {names[value] for value in of_labeller[drawn]} == labels
            assert names.get(drawn) not in labels, "what is drawn leaves itself no choice"
            assert all((drawn, LABELS[label]) in pairs for label in labels), "what is open can be decided"
            stays = {label for label in unknown if rules[label][drawn].inside is not None}
            assert labels <= stays, "a mask contradicts nothing that leaves it open"


@settings(max_examples=60, deadline=None)
@given(region_datasets())
def test_everybody_says_the_same_of_regions(content: dict[str, Any]) -> None:
    table = AnnotationTable.from_dataset_json(content)
    regions = {name: frozenset(values) for name, values in REGIONS.items()}
    for case in table.cases.values():
        view = RegionView(case.annotated, regions, None, None, case.incomplete)
        of_labeller, _ = labeller(table)._hypotheses(case)
        for drawn, integers in hypotheses(table, case).items():
            assert view.possible(drawn) == integers == set(of_labeller[drawn])
            for label in set(REGIONS) - case.annotated:
                rule = rules_for(table, case, label)[drawn]
                assert {rule.outside} | ({rule.inside} - {None}) <= integers
                if label in case.incomplete and drawn in regions[label]:
                    assert rule.outside in regions[label], "a mask takes nothing away that was drawn"
