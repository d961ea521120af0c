"""What spreadsheets make of a table: encodings, workbooks, headings and words of other languages."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from annotating import LONG, SAME, annotated, table
from raw_dataset import DRAWN, RawDataset

from nnunet_mutual.datasets.annotate import annotate
from nnunet_mutual.errors import MutualError


@pytest.mark.parametrize(
    "text",
    [
        LONG.replace("\n", "\r"),
        "sep=;\r\n" + SAME["spreadsheet with semicolons"],
        "\n,,\n" + LONG,
    ],
    ids=["line ends of a Macintosh", "the separator said in a line of its own", "empty first lines"],
)
def test_what_spreadsheets_write_before_and_between_lines(raw: RawDataset, tmp_path: Path, text: str) -> None:
    annotate(777, table(tmp_path, text))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    with pytest.raises(MutualError, match=f"line {lines + 1} opens a quotation mark that is never closed"):
        annotate(777, table(tmp_path, text + '"toy_1'), force=True)


def test_table_file_that_cannot_be_read(raw: RawDataset, tmp_path: Path) -> None:
    with pytest.raises(MutualError, match="nothing.csv does not exist"):
        annotate(777, tmp_path / "nothing.csv")
    with pytest.raises(MutualError, match="neither .xlsx, .csv nor .json"):
        annotate(777, tmp_path / "table.ods")
    for encoding in ("latin-1", "utf-32"):
        with pytest.raises(MutualError, match="neither UTF-8 nor UTF-16 text; in the spreadsheet choose"):
            annotate(777, table(tmp_path, LONG + "tö", encoding=encoding))
    with pytest.raises(MutualError, match="line 3 holds a NUL byte"):
        annotate(777, table(tmp_path, LONG.replace("toy_002", "toy\0_002")))
    with pytest.raises(MutualError, match="has no sheets"):
        annotate(777, table(tmp_path, LONG), sheet="A")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_of_spreadsheets(
    raw: RawDataset, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotate(777, table(tmp_path, LONG.replace(",", "\t"), encoding=encoding))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert "is read so: UTF-16" in capsys.readouterr().out


def workbook(tmp_path: Path, *, sheets: int = 1, **cells: Any) -> Path:
    """A table of yes and no as a spreadsheet holds it; ``cells`` are written last."""
    book = openpyxl.Workbook()
    for number in range(sheets):
        sheet = book.active if not number else book.create_sheet()
        sheet.title = f"Tabelle{number + 1}"
        sheet.append(["Patient ID", "liver", "spleen", "kidney"])
        for case, names in DRAWN.items():
            sheet.append([f"{case}_0000.nii.gz", *(label in names for label in ("liver", "spleen", "kidney"))])
        for place, value in cells.items():
            sheet[place] = value
    book.create_sheet("empty")
    book.save(tmp_path / "drawn.xlsx")
    return tmp_path / "drawn.xlsx"


def test_a_workbook_and_what_was_guessed(raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotate(777, workbook(tmp_path))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert "sheet 'Tabelle1'" in capsys.readouterr().out


BAD_WORKBOOKS: dict[str, tuple[dict[str, Any], str]] = {
    "formula without a value": ({"C3": "=B3"}, r"line 3 holds the formula =B3 without a value; open and save"),
    "several sheets": ({"sheets": 2}, r"several sheets with content: Tabelle1, Tabelle2; .*--sheet 'Tabelle1'"),
    "a forgotten cell": ({"C3": None}, r"line 3, case \"toy_002\" has an empty cell for spleen"),
    "a title": ({"A1": "Who drew what", "B1": None, "C1": None, "D1": None}, "4 cells, but there are 1 .* a title"),
    "an error of the spreadsheet": ({"C3": "#N/A"}, r"line 3, case \"toy_002\" has '#N/A' for spleen"),
}


@pytest.mark.parametrize(("cells", "message"), BAD_WORKBOOKS.values(), ids=BAD_WORKBOOKS)
def test_bad_workbook(raw: RawDataset, tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    before = raw.json.read_bytes()
    with pytest.raises(MutualError, match=message):
        annotate(777, workbook(tmp_path, **cells))
    assert raw.json.read_bytes() == before


def test_a_title_above_a_text_table(raw: RawDataset, tmp_path: Path) -> None:
    with pytest.raises(MutualError, match="line 2 has 2 cells, but there are 1 columns; .* a title"):
        annotate(777, table(tmp_path, "Who drew what\n" + LONG))


def test_the_sheet_that_is_meant(raw: RawDataset, tmp_path: Path) -> None:
    path = workbook(tmp_path, sheets=2)
    with pytest.raises(MutualError, match="no sheet 'tabelle2' .did you mean 'Tabelle2'"):
        annotate(777, path, sheet="tabelle2")
    annotate(777, path, sheet="Tabelle2")
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}


def test_workbooks_that_are_none_or_too_large(raw: RawDataset, tmp_path: Path) -> None:
    path = tmp_path / "drawn.xlsx"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(MutualError, match="cannot be read as a workbook .*save it anew as .xlsx without a password"):
        annotate(777, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(101 * 10**6))
    assert path.stat().st_size < 10**6
    with pytest.raises(MutualError, match="unpacks to 101 MB"):
        annotate(777, path)


WORDS = {"German": ("WAHR", "FALSCH"), "ja": ("ja", "Nein"), "oui": ("oui", "non"), "French": ("VRAI", "FAUX")}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_yes_and_no_in_other_languages(
    raw: RawDataset, tmp_path: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ";".join([case, *(words[label not in names] for label in ("liver", "spleen", "kidney"))])
        for case, names in DRAWN.items()
    ]
    annotate(777, table(tmp_path, "\n".join(["Fall;liver;spleen;kidney", *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    said = capsys.readouterr().out
    assert f"'case' is the column 'Fall'; {words[0]} = drawn; {words[1]} = not drawn" in said


def test_file_names_and_a_patient_id_beside_the_case(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"imagesTr/{case}.nii.gz,p7,{';'.join(names) or 'none'}" for case, names in DRAWN.items()]
    annotate(777, table(tmp_path, "\n".join(["File name,Patient ID,labels", *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert {case["patient"] for case in raw.block["cases"].values()} == {"p7"}
    said = capsys.readouterr().out
    assert "'case' is the column 'File name'; 'patient' is the column 'Patient ID'; file names are cases" in said


HEADINGS = {
    "German": ("Fall-Nr.", "Quelle", "Patienten-ID", "Eingezeichnet", "keine", "alle"),
    "French": ("Cas", "Hôpital", "N\u0075me\u0301ro patient", "Étiquettes", "aucune", "toutes"),  # e and accent apart
    "English": ("Scan ID", "Site", "Subject", "Organs", "none", "all"),
}


@pytest.mark.parametrize("words", HEADINGS.values(), ids=HEADINGS)
def test_headings_in_other_languages(
    raw: RawDataset, tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    *heading, nothing, everything = words
    cells = {0: nothing, 3: everything}
    rows = [f"{case};A;p_{case};{cells.get(len(n), ' '.join(n))}" for case, n in DRAWN.items() if len(n) != 2]
    rows += [f'{case};A;p_{case};"{";".join(names)}"' for case, names in DRAWN.items() if len(names) == 2]
    annotate(777, table(tmp_path, "\n".join([";".join(heading), *rows])))
    assert annotated(raw) == {case: set(names) for case, names in DRAWN.items()}
    assert list(raw.block["sources"]) == ["A"]
    assert all(entry["patient"] == f"p_{case}" for case, entry in raw.block["cases"].items())
    ours = ("case", "source", "patient", "labels")
    guesses = [f"{our!r} is the column {column!r}" for our, column in zip(ours, heading, strict=True)]
    assert "; ".join(guesses) in capsys.readouterr().out


def test_a_heading_that_is_a_label_is_one(raw: RawDataset, tmp_path: Path) -> None:
    """Nothing is guessed about a column 'Organe' beside one column for each label."""
    rows = [
        f"{case};A;" + ";".join("yes" if x in n else "no" for x in ("liver", "spleen", "kidney"))
        for case, n in DRAWN.items()
    ]
    with pytest.raises(MutualError, match="has a column 'Organe', which is neither a label"):
        annotate(777, table(tmp_path, "\n".join(["Fall;Organe;liver;spleen;kidney", *rows])))
    assert "mutual" not in raw.json.read_text()


def test_the_guess_is_printed_before_anything_is_written(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MutualError, match="--contains"):
        annotate(777, workbook(tmp_path), contains=["liver"])
    said = capsys.readouterr().out
    assert (
        "sheet 'Tabelle1'; 'case' is the column 'Patient ID'; file names are cases, such as toy_001_0000.nii.gz" in said
    )
    assert "True = drawn; False = not drawn" in said and "mutual" not in raw.json.read_text()
