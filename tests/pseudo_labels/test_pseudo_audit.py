"""The record of decisions: what is written is read, a damaged file is named, and the log says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.batches.decisions import ALONE, Decision, read_decisions, write_decisions
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.audit import summarise

ACCEPTED = Decision("a_1", "siteA", "liver", True, "plausible: 12 ml", 1523.4567, 0.98765, -0.012344, 0.875, "0+2")
REJECTED = Decision("b_2", "siteB", "spleen", False, 'missing: "none", they say', 0.0, None, None, None, "1")
HEADER = "case,source,label,accepted,reason,volume_ml,agreement,z,decided_share,networks"
NUMBERS = ("volume_ml", "agreement", "z", "decided_share")


def rounded(decision: Decision) -> Decision:
    values = {name: getattr(decision, name) for name in NUMBERS}
    return dataclasses.replace(
        decision, **{name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}
    )


def test_the_file_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    write_decisions(file, [ACCEPTED, dataclasses.replace(REJECTED, volume_ml=123456.0)])
    assert file.read_text().splitlines() == [
        HEADER,
        "a_1,siteA,liver,yes,plausible: 12 ml,1523,0.9877,-0.01234,0.875,0+2",
        'b_2,siteB,spleen,no,"missing: ""none"", they say",123500,,,,1',
    ]
    write_decisions(file, [])
    assert file.read_text().splitlines() == [HEADER]
    assert read_decisions(file) == []
    assert [path.name for path in tmp_path.iterdir()] == ["decisions.csv"], "temporary files are left"


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
OPTIONAL = st.none() | st.floats(-1e9, 1e9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(Decision, TEXT, TEXT, TEXT, st.booleans(), TEXT, *[OPTIONAL] * 4, TEXT),
        unique_by=lambda decision: (decision.case, decision.label),
    )
)
def test_round_trip(decisions: list[Decision]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "decisions.csv"
        write_decisions(file, decisions)
        once = read_decisions(file)
        assert once == [rounded(decision) for decision in decisions]
        write_decisions(file, once)
        assert read_decisions(file) == once


def test_lines_in_a_cell_and_a_mark_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    write_decisions(file, [dataclasses.replace(REJECTED, reason="two\nlines")])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_decisions(file)[0].reason == "two\nlines"


def test_an_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "decisions.csv"
    write_decisions(file, [ACCEPTED])
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MutualError, match="decisions.csv could not be written .No space left on device.; free space"):
        write_decisions(file, [REJECTED])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(MutualError, match="could not be written .No such file"):
        write_decisions(tmp_path / "missing" / "decisions.csv", [ACCEPTED])
    with pytest.raises(MutualError, match="decisions.csv cannot be read .No such file"):
        read_decisions(tmp_path / "decisions.csv")


GOOD = "a,s,liver,yes,fine,1.5,0.9,,1,0"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1: the columns are none, expected case,source"),
        (HEADER.replace(",", ";"), "line 1: the columns are case;source"),
        (HEADER.replace("case,source", "source,case"), "line 1: the columns are source,case"),
        (f"{HEADER}\n{GOOD}\na,s,liver,yes,fi", "line 3: 5 cells, expected 10"),
        (f"{HEADER}\n{GOOD}\n\n{GOOD}", "line 3: 0 cells, expected 10"),
        (f"{HEADER}\n{GOOD},9", "line 2: 11 cells"),
        (f"{HEADER}\n{GOOD.replace('yes', 'TRUE')}", "line 2: \"accepted\" is 'TRUE', expected yes or no"),
        (f"{HEADER}\n{GOOD.replace('1.5', '-')}", "line 2: \"volume_ml\" is '-', expected a number"),
        (f"{HEADER}\n{GOOD.replace('0.9', 'nan')}", "line 2: \"agreement\" is 'nan', expected a number"),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace(',,', ',x,')}", "line 3: \"z\" is 'x', expected a number"),
        (f'{HEADER}\na,s,"liver', "line 2: unexpected end of data"),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('yes', 'no')}", "line 3: liver of a is there a second time"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "decisions.csv"
    file.write_text(content)
    with pytest.raises(MutualError) as error:
        read_decisions(file)
    assert str(error.value).startswith(f"{file}, {expected}")
    assert str(error.value).endswith("delete the file and make the pseudo labels again")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    file.write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(MutualError, match="decisions.csv is not UTF-8 text; delete it"):
        read_decisions(file)


def test_summary_for_the_log() -> None:
    def decision(label: str, accepted: bool, reason: str) -> Decision:
        return dataclasses.replace(ACCEPTED, label=label, accepted=accepted, reason=reason)

    decisions = [
        *[decision("spleen", True, f"plausible: {volume} ml") for volume in range(10)],
        decision("liver_tumour", True, "absent: nothing was found, as in 1 of 5"),
        *[decision("spleen", False, f"too small: {volume} ml") for volume in range(2)],
        decision("spleen", False, "predictions disagree: their Dice is 0.1"),
        decision("spleen", True, "not judged"),
    ]
    assert summarise(decisions).splitlines() == [
        "label         accepted  rejected  commonest reasons",
        "spleen              11         3  too small (2), predictions disagree (1), plausible (10)",
        "liver_tumour         1         0  absent (1)",
    ]
    assert summarise([decision("spleen", False, f"{ALONE}: plausible"), decisions[-1]]).splitlines() == [
        "label   accepted  rejected  no second opinion  commonest reasons",
        "spleen         1         0                  1  no second opinion (1), not judged (1)",
    ]
    assert summarise([]) == "no pseudo label was judged"
