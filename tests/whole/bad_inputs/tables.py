"""CSV tables: of annotations, decisions and reviews."""

from __future__ import annotations

from bad_inputs.rows import ACCEPT, REVIEW, STORE, Row, Spoil, row, text

KIND = "Tables"
ANNOTATE = "annotate 777 cases.csv --force"
ALL = "toy_001,liver\ntoy_002,liver\ntoy_003,spleen;kidney\ntoy_004,spleen;kidney\n"
HEADER = "case,label,decision,corrected_file,comment\n"


def annotations(name: str, content: str | bytes, *words: str) -> Row:
    """A table for annotate."""
    return row(f"annotate: {name}", text("cases.csv", content), ANNOTATE, "cases.csv", *words)


def review(name: str, content: str | bytes, *words: str) -> Row:
    """A table for accept."""
    return row(f"accept: {name}", text("review/review.csv", content), ACCEPT, "review.csv", *words)


def decisions(name: str, content: str | bytes, *words: str) -> Row:
    """Decisions of pseudo labels, which review reads."""
    spoil: Spoil = text(STORE + "decisions.csv", content)
    return row(f"review: {name}", spoil, REVIEW, "decisions.csv", *words)


LONG = "x" * 140_000
ROWS = [
    annotations("a cell of 140,000 characters", f"case,labels\n{ALL}toy_010,{LONG}\n", "line 6"),
    annotations("a quote that is never closed", f'case,labels\n{ALL}toy_010,"liver\n', "quot"),
    annotations("a quote that is never closed, in the first line", f'case,"labels\n{ALL}', "quot"),
    annotations("not UTF-8", f"case,labels\n{ALL}toy_010,l\xe4ber\n".encode("latin-1"), "UTF-8"),
    annotations("an unknown label", f"case,labels\n{ALL}toy_010,livr\n", "line 6", "did you mean 'liver'"),
    annotations("an unknown case", f"case,labels\n{ALL}toy_010,liver\ntoy_011,liver\n", "toy_011"),
    annotations("a case that is missing", f"case,labels\n{ALL}", "toy_010"),
    annotations("a case twice", f"case,labels\n{ALL}toy_010,liver\ntoy_010,liver\n", "line 7", "keep one"),
    annotations(
        "a label drawn completely and in part",
        f"case,labels,incomplete\n{ALL}toy_010,liver,liver\n",
        "line 6",
        "incomplete",
        "keep one",
    ),
    annotations("a cell too many", f"case,labels\n{ALL}toy_010,liver,spleen\n", "line 6"),
    annotations("empty", "", "case"),
    annotations("without the column case", f"name,labels\n{ALL}toy_10,liver\n", "case"),
    annotations("a NUL byte", f"case,labels\n{ALL}toy_010,li\0ver\n", "line 6", "NUL"),
    row("annotate: a table that is a folder", text("table.csv/x", ""), "annotate 777 table.csv --force", "table.csv"),
    row(
        "annotate: JSON whose labels are a number",
        text("cases.json", '{"toy_001": 5}'),
        "annotate 777 cases.json --force",
        "cases.json",
        "toy_001",
        "list of labels",
    ),
    row(
        "annotate: a spreadsheet",
        text("cases.xlsx", b"PK\x03\x04"),
        "annotate 777 cases.xlsx --force",
        "cases.xlsx",
        "CSV",
    ),
    review("a cell of 140,000 characters", f"{HEADER}case_00,spleen,accept,,{LONG}\n", "line 2"),
    review("a quote that is never closed", f'{HEADER}case_00,spleen,accept,,"never\n', "quot"),
    review("a decision that is no word", f"{HEADER}case_00,spleen,acept,,\n", "line 2", "did you mean 'accept'"),
    review("an unknown case", f"{HEADER}case_77,spleen,accept,,\n", "line 2", "case_77"),
    review(
        "a corrected mask that does not exist",
        f"{HEADER}case_00,spleen,corrected,none.nii.gz,\n",
        "line 2",
        "none.nii.gz",
    ),
    review("a NUL byte", f"{HEADER}case_00,spleen,accept,,\0\n", "line 2", "NUL"),
    review("not UTF-8", HEADER.encode() + b"case_00,spleen,accept,,\xe9\n", "UTF-8"),
    review("without the column decision", "case,label\ncase_00,spleen\n", "decision"),
    decisions("a cell of 140,000 characters", f"case\n{LONG}\n", "line 1"),
    decisions("empty", "", "line 1"),
    decisions("not UTF-8", b"\xff\xfe\x00", "UTF-8"),
]
