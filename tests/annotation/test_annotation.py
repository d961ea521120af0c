"""The annotation table: the whole schema parses, everything else is one sentence that names the place and the fix."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.errors import MutualError

EXAMPLE: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {
        "background": 0,
        "liver": 1,
        "liver_tumour": 2,
        "spleen": 3,
        "kidney": 4,
        "aorta": 5,
        "heart": 6,
        "ignore": 7,
    },
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "mutual": {
        "version": 1,
        "sources": {
            "siteA": {"annotated": ["liver"], "contains": {"liver": ["liver_tumour"]}},
            "siteB": {"annotated": ["spleen", "kidney"]},
        },
        "cases": {
            "siteA_001": {"source": "siteA", "patient": "p17"},
            "siteB_007": {"source": "siteB", "annotated": ["spleen"], "pseudo": [], "missing": ["T1"]},
        },
        "labels": {"spleen": {"single": True}},
        "may_overlap": [["aorta", "heart"]],
        "modality_groups": {"T1": ["T1"], "all": ["T1", "FLAIR"]},
    },
}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def parsed(content: dict[str, Any] = EXAMPLE) -> AnnotationTable:
    # Through JSON, as the file goes.
    return AnnotationTable.from_dataset_json(json.loads(json.dumps(content)))


def changed(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(EXAMPLE)
    edit(content["mutual"])
    return content


def with_labels(names: dict[str, Any], **block: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": names}
    sources = {"a": {"annotated": []}}
    return content | ({"mutual": {"version": 1, "sources": sources, "cases": {}, **block}} if block else {})


def test_the_whole_schema() -> None:
    table = parsed()
    assert table.declared and not table.is_regions
    assert table.labels == ("liver", "liver_tumour", "spleen", "kidney", "aorta", "heart")
    assert table.values["kidney"] == (4,) and "ignore" not in table.values
    assert table.channels == ("T1", "FLAIR")
    assert table.case("siteA_001") == Case("siteA_001", "siteA", frozenset({"liver"}), patient="p17")
    assert table.case("siteB_007") == Case(
        "siteB_007", "siteB", frozenset({"spleen"}), patient=None, pseudo=frozenset(), missing=frozenset({"T1"})
    )
    assert table.sources["siteA"].contains == {"liver": frozenset({"liver_tumour"})}
    assert table.sources["siteB"].annotated == {"spleen", "kidney"} and table.sources["siteB"].contains == {}
    assert table.singles == {"spleen"}
    assert table.may_overlap == {frozenset({"aorta", "heart"})}
    assert table.overlap_partners("heart") == {"aorta"} and table.overlap_partners("liver") == frozenset()
    assert table.modality_groups == {"T1": ("T1",), "all": ("T1", "FLAIR")}


def test_only_version_sources_and_cases_are_needed() -> None:
    def strip(block: dict[str, Any]) -> None:
        for key in ("labels", "may_overlap", "modality_groups"):
            del block[key]

    table = parsed(changed(strip))
    assert table.singles == frozenset() and table.may_overlap == frozenset() and table.modality_groups == {}


def test_an_empty_annotated_list_is_an_unlabelled_case() -> None:
    table = parsed(changed(lambda block: block["cases"]["siteA_001"].update(annotated=[])))
    assert table.case("siteA_001").annotated == frozenset()


def test_plain_labels_are_in_the_order_of_the_outputs() -> None:
    table = parsed(with_labels({"spleen": 2, "background": 0, "liver": 1}))
    assert table.labels == ("liver", "spleen")
    # nnU-Net takes integers in quotes as well.
    assert parsed(with_labels({"background": 0, "b": "10", "a": "9"})).labels == ("a", "b")


def test_regions_are_in_the_order_of_the_file() -> None:
    table = parsed(with_labels(REGIONS | {"nothing": [0, 0]}, labels={}))
    assert table.is_regions and table.labels == ("whole", "core", "enhancing")
    assert table.values == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def test_without_a_block_every_case_is_fully_annotated() -> None:
    table = parsed({key: value for key, value in EXAMPLE.items() if key != "mutual"})
    assert not table.declared and list(table.sources) == ["dataset"] and table.cases == {}
    assert table.case("whatever") == Case("whatever", "dataset", frozenset(table.labels))
    table.require(["whatever", "else"])
    assert table.contained(table.case("whatever")) == {}
    assert table_fingerprint({"labels": {}}) == ""


def test_contains_reaches_through_several_labels() -> None:
    def nest(block: dict[str, Any]) -> None:
        block["sources"]["siteA"]["contains"] = {"heart": ["liver", "aorta"], "liver": ["liver_tumour"]}

    table = parsed(changed(nest))
    assert table.contained(table.case("siteA_001")) == {
        "heart": {"liver", "aorta", "liver_tumour"},
        "liver": {"liver_tumour"},
    }
    # Another source drew its labels in another way.
    assert table.contained(table.case("siteB_007")) == {}


@settings(deadline=None, max_examples=50)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] < pair[1])))
def test_contains_is_transitively_closed(pairs: set[tuple[int, int]]) -> None:
    names = parsed().labels
    contains: dict[str, list[str]] = {}
    for outer, inner in pairs:
        contains.setdefault(names[outer], []).append(names[inner])
    table = parsed(changed(lambda block: block["sources"]["siteA"].update(contains=contains)))
    found = table.contained(table.case("siteA_001"))
    related = {(outer, inner) for outer, inside in found.items() for inner in inside}
    direct = {(names[outer], names[inner]) for outer, inner in pairs}
    assert direct <= related
    assert {(a, d) for a, b in related for c, d in related if b == c} <= related
    # Nothing more than that: every pair is a path of direct ones.
    for outer, inner in related - direct:
        assert any((outer, step) in direct and (step, inner) in related for step in names)


def test_drawn_in_part_is_inherited_unless_the_case_says_otherwise() -> None:
    def case(**entry: Any) -> Case:
        def change(block: dict[str, Any]) -> None:
            block["sources"]["siteA"].update(annotated=["liver"], incomplete=["liver_tumour"])
            block["cases"]["siteA_001"] = {"source": "siteA", **entry}

        return parsed(changed(change)).case("siteA_001")

    liver, tumour = frozenset({"liver"}), frozenset({"liver_tumour"})
    assert (case().annotated, case().incomplete, case().drawn) == (liver, tumour, liver | tumour)
    assert case(annotated=["liver", "liver_tumour"]).incomplete == frozenset(), "drawn completely in this one"
    assert (case(incomplete=["liver"]).annotated, case(incomplete=["liver"]).incomplete) == (frozenset(), liver)
    assert case(annotated=[], incomplete=[]).drawn == frozenset()
    assert case(pseudo=["liver_tumour"]).drawn == liver
    with pytest.raises(MutualError, match='lists liver under "incomplete" and under "pseudo"'):
        case(incomplete=["liver"], pseudo=["liver"])


def test_a_label_that_is_only_drawn_in_part_cannot_be_learnt() -> None:
    def change(block: dict[str, Any]) -> None:
        block["sources"]["siteA"].update(annotated=[], incomplete=["liver"])

    table = parsed(changed(change))
    with pytest.raises(MutualError, match=r"annotates .*liver.* completely: where only a part .* never wrong \(1 case"):
        table.require_annotated(["siteA_001"], 0)


def test_require_names_the_missing_cases() -> None:
    table = parsed()
    table.require(["siteA_001", "siteB_007"])
    with pytest.raises(MutualError, match=r"^1 case\(s\) are not listed in \"mutual\" of dataset.json: new_1; add"):
        table.require(["siteA_001", "new_1"])
    with pytest.raises(MutualError, match=r"^8 case.*: c0, c1, c2, c3, c4 and 3 more; .*nnunet_mutual annotate"):
        table.require(f"c{i}" for i in range(8))
    with pytest.raises(MutualError, match="siteA_002"):
        table.case("siteA_002")


SOURCE, CASE = ("sources", "siteA"), ("cases", "siteB_007")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Unknown keys, at every depth.
        (("source",), {}, r"unknown key 'source' in \"mutual\" .*did you mean 'sources'\?\); known: version, sources"),
        ((*SOURCE, "anotated"), [], r"'anotated' in source .*did you mean 'annotated'.*incomplete, contains"),
        ((*CASE, "patients"), "p", r"'patients' in case \"siteB_007\" .*did you mean 'patient'"),
        (("labels", "spleen", "one"), True, r"unknown key 'one' in \"mutual.labels.spleen\" .*known: single"),
        # Unknown names.
        ((*SOURCE, "annotated"), ["livr"], r"unknown label 'livr' in annotated of source \"siteA\".*mean 'liver'"),
        ((*SOURCE, "annotated"), ["background"], "unknown label 'background'"),
        ((*SOURCE, "annotated"), ["ignore"], "unknown label 'ignore'"),
        ((*SOURCE, "contains"), {"lung": ["liver"]}, r"unknown label 'lung' in contains of source \"siteA\""),
        ((*SOURCE, "contains"), {"liver": ["cyst"]}, r"'cyst' in contains \"liver\" of source \"siteA\""),
        ((*CASE, "annotated"), ["spleeen"], r"annotated of case \"siteB_007\".*mean 'spleen'"),
        ((*CASE, "pseudo"), ["lung"], r"'lung' in pseudo of case"),
        ((*CASE, "incomplete"), ["lung"], r"unknown label 'lung' in incomplete of case"),
        ((*CASE, "incomplete"), "spleen", r"must be a list of label names, found 'spleen'"),
        ((*CASE, "incomplete"), ["spleen"], "case .* lists spleen under \"incomplete\" and under \"annotated\""),
        ((*SOURCE, "incomplete"), ["liver"], "source .* lists liver under \"incomplete\" and under \"annotated\""),
        ((*CASE, "missing"), ["T2"], r"unknown channel 'T2' in missing of case \"siteB_007\".*known: T1, FLAIR"),
        ((*CASE, "source"), "siteC", r"has the source 'siteC' \(did you mean 'site[AB]'\?\); declared sources: "),
        (("labels", "splen"), {}, "unknown label 'splen'.*mean 'spleen'"),
        (("may_overlap",), [["aorta", "hart"]], "unknown label 'hart'.*mean 'heart'"),
        (("modality_groups", "x"), ["Flair"], r"unknown channel 'Flair' in modality group \"x\""),
        # Wrong types.
        (("sources",), ["siteA"], r"\"mutual.sources\" of dataset.json must be an object .*found list"),
        (("cases",), None, r"\"mutual.cases\" of dataset.json must be an object .*found nothing"),
        (SOURCE, ["liver"], r"^source \"siteA\" of dataset.json must be an object .*found list"),
        ((*SOURCE, "annotated"), "liver", "must be a list of label names, found 'liver'"),
        ((*SOURCE, "annotated"), {"liver": 1}, "must be a list of label names"),
        ((*SOURCE, "annotated"), [1], r"must be a list of label names, found \[1\]"),
        ((*SOURCE, "contains"), ["liver"], r"^contains of source \"siteA\" .*must be an object"),
        ((*SOURCE, "contains"), {"liver": "liver_tumour"}, "must be a list of label names"),
        (CASE, "siteB", r"^case \"siteB_007\" of dataset.json must be an object .*found str"),
        ((*CASE, "source"), ["siteB"], r"has the source \['siteB'\]"),
        ((*CASE, "source"), None, "has the source None"),
        ((*CASE, "annotated"), None, "must be a list of label names, found None"),
        ((*CASE, "patient"), 17, "\"patient\" of case .*must be text, found 17; put it in quotes"),
        ((*CASE, "patient"), " ", "\"patient\" of case .* is empty; name the patient, or leave the entry out"),
        ((*CASE, "missing"), "T1", "must be a list of channel names"),
        (("labels",), ["spleen"], r"\"mutual.labels\" of dataset.json must be an object"),
        (("labels", "spleen"), True, r"\"mutual.labels.spleen\" of dataset.json must be an object"),
        (("labels", "spleen", "single"), "yes", "must be true or false, found 'yes'"),
        (("may_overlap",), {"aorta": "heart"}, "must be a list of pairs"),
        (("may_overlap",), ["aorta", "heart"], "must be a list of label names"),
        (("modality_groups",), ["T1"], r"\"mutual.modality_groups\" of dataset.json must be an object"),
        (("modality_groups", "T1"), "T1", "must be a list of channel names"),
        # Entries that say nothing, or too much.
        (("may_overlap",), [["aorta"]], r"must hold pairs of two labels, found \['aorta'\]"),
        (("may_overlap",), [["aorta", "heart", "liver"]], "must hold pairs of two labels"),
        (("may_overlap",), [["aorta", "aorta"]], "lists a label twice"),
        ((*SOURCE, "annotated"), ["liver", "liver"], "lists a label twice.*keep one"),
        ((*CASE, "missing"), ["T1", "T1"], "lists a channel twice"),
        (("modality_groups", "T1"), [], "modality group \"T1\" of dataset.json is empty; list its channels: T1, FLAIR"),
        (("modality_groups", "T1_post"), ["T1"], "the modality group 'T1_post' must be named with letters and digits"),
        (("modality_groups", "full"), ["T1"], "a group called full would have its results where"),
        ((*SOURCE, "contains"), {"liver": ["liver"]}, "\"liver\" contains itself"),
        ((*SOURCE, "contains"), {"liver": ["heart"], "heart": ["aorta"], "aorta": ["liver"]}, "contains itself"),
        (("version",), 2, "has version 2, this release reads version 1; .*install the release that wrote it"),
        (("version",), "1", "has version '1'"),
        (("version",), True, "has version True"),
    ],
)  # fmt: skip
def test_strictness(path: tuple[str, ...], value: Any, message: str) -> None:
    content = copy.deepcopy(EXAMPLE)
    place = content["mutual"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(MutualError, match=message) as error:
        parsed(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [("version",), ("sources",), ("cases",), (*SOURCE, "annotated"), (*CASE, "source")])
def test_needed_entries(path: tuple[str, ...]) -> None:
    content = copy.deepcopy(EXAMPLE)
    place = content["mutual"]
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(MutualError, match=path[-1]):
        parsed(content)


@pytest.mark.parametrize("block", [None, [], "yes", 1])
def test_a_block_that_is_no_object(block: Any) -> None:
    with pytest.raises(MutualError, match='"mutual" of dataset.json must be an object'):
        parsed(EXAMPLE | {"mutual": block})


def test_regions_take_no_contains_and_no_overlap() -> None:
    assert parsed(with_labels(REGIONS, may_overlap=[])).is_regions
    with pytest.raises(MutualError, match='labels are regions.*remove "contains" and "may_overlap"'):
        parsed(with_labels(REGIONS, may_overlap=[["core", "whole"]]))
    with pytest.raises(MutualError, match="labels are regions"):
        parsed(with_labels(REGIONS, sources={"a": {"annotated": ["core"], "contains": {"whole": ["core"]}}}))


@pytest.mark.parametrize("value", [1.5, True, None, "one", [1, "x"], [], {"x": 1}])
def test_label_values_are_integers(value: Any) -> None:
    with pytest.raises(MutualError, match='"labels" of dataset.json holds .*expected an integer or a list'):
        parsed(with_labels({"background": 0, "liver": value}))


@pytest.mark.parametrize("key", ["labels", "channel_names"])
def test_a_dataset_without_labels_or_channels(key: str) -> None:
    with pytest.raises(MutualError, match=f'"{key}" of dataset.json must be an object .*found nothing'):
        parsed({k: v for k, v in EXAMPLE.items() if k != key})


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=12))
def test_unknown_keys_are_errors_whatever_they_are(key: str) -> None:
    for path in ((), SOURCE, CASE):
        content = copy.deepcopy(EXAMPLE)
        place = content["mutual"]
        for step in path:
            place = place[step]
        if key in place or key in ("contains", "patient"):
            continue
        place[key] = []
        with pytest.raises(MutualError, match="unknown key"):
            parsed(content)


def test_the_fingerprint_sees_content_not_order() -> None:
    shuffled = copy.deepcopy(EXAMPLE)
    shuffled["mutual"] = dict(reversed(shuffled["mutual"].items()))
    assert table_fingerprint(shuffled) == table_fingerprint(EXAMPLE) != ""
    assert table_fingerprint(EXAMPLE | {"numTraining": 9}) == table_fingerprint(EXAMPLE)
    other = changed(lambda block: block["cases"]["siteA_001"].update(patient="p18"))
    assert table_fingerprint(other) != table_fingerprint(EXAMPLE)
