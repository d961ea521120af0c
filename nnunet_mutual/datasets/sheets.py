"""Reads the cells of a table as spreadsheets write it: CSV in several dialects and encodings, or .xlsx itself."""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import plain_cell
from nnunet_mutual.errors import MutualError, meant

WORKBOOKS = (".xlsx", ".xlsm")
TEXTS = (".csv", ".tsv", ".txt")
LARGEST_MB = 100  # of a table when unpacked; one of 100,000 cases has 10
_ENDLESS = f"has a cell of more than {csv.field_size_limit()} characters, as after a lost quotation mark"
_STRAY = "has a quotation mark in the middle of a cell that begins with one"
_NOT_TEXT = "is neither UTF-8 nor UTF-16 text; in the spreadsheet choose 'CSV UTF-8' or .xlsx when saving"
_SEPARATOR = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)
Line = tuple[int, list[str]]  # number in the file, cells


@dataclass(frozen=True)
class Sheet:
    """A table of cells.

    Attributes:
        header: names of the columns.
        rows: line number in the file, and column -> cell without surrounding blanks, of each line that is not empty.
        guesses: what was assumed to read it, for the user to look at.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    guesses: tuple[str, ...] = ()

    @property
    def first_line(self) -> str:
        """The header as a sentence quotes it."""
        return ",".join(self.header)


def read_sheet(path: Path, known: Sequence[str] = (), name: str | None = None) -> Sheet:
    """Reads a table: CSV separated by commas, semicolons or tabs, in UTF-8 or UTF-16, or a sheet of a workbook.

    Of formulas in a workbook the value counts that was stored with them.

    Args:
        path: the file.
        known: names of columns that are recognised in capitals, too.
        name: of the sheet, where a workbook has several.

    Raises:
        MutualError: the file cannot be read, or its shape is wrong; names the line.
    """
    if name is not None and path.suffix.lower() not in WORKBOOKS:
        raise MutualError(f"{path} has no sheets, only a workbook (.xlsx) has; leave --sheet {name} out")
    lines, guesses = _workbook(path, name) if path.suffix.lower() in WORKBOOKS else _text(path)
    filled = (cells for _, cells in lines if any(cell.strip() for cell in cells))  # rows before the first one are empty
    header = [plain_cell(cell.strip()) for cell in next(filled, [])]
    while header and not header[-1]:
        header.pop()
    header = [cell.lower() if cell.lower() in known else cell for cell in header]
    for column in header:
        if header.count(column) > 1:
            raise MutualError(f"{path} has two columns called {column!r}; keep one")
    rows = []
    for number, cells in lines:
        cells = [plain_cell(cell.strip()) for cell in cells]
        if not any(cells):
            continue
        if any(cells[len(header) :]):
            raise MutualError(
                f"{path}, line {number} has {len(cells)} cells, but there are {len(header)} columns; "
                f"{_too_many(path, header)}"
            )
        cells += [""] * (len(header) - len(cells))
        rows.append((number, dict(zip(header, cells, strict=False))))
    return Sheet(header, rows, guesses)


def _too_many(path: Path, header: Sequence[str]) -> str:
    if path.suffix.lower() in WORKBOOKS or len(header) == 1:
        return "the first line names the columns: delete lines above it, such as a title, and name every column"
    return 'put a list that holds the separator in quotes, for example "liver;spleen"'


def _text(path: Path) -> tuple[Iterator[Line], tuple[str, ...]]:
    text, encoding = _decoded(_content(path), path)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n") if "\0" in text else (), 1):
        if "\0" in line:
            raise MutualError(
                f"{path}, line {number} holds a NUL byte; in the spreadsheet choose 'CSV UTF-8' when saving"
            )
    said = _SEPARATOR.match(text)  # as Excel writes it for itself
    body = text[said.end() :] if said else text
    first = next((line for line in body.split("\n") if line.strip(',;\t "')), "")
    delimiter = said[1] if said else max(",;\t", key=first.count)  # spreadsheets in many countries write ';'
    return _csv_lines(body, delimiter, path, int(said is not None)), (encoding,) * (encoding != "UTF-8")


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_MB * 10**6:
            raise MutualError(f"{path} has more than {LARGEST_MB} MB, which no table of cases has; check the path")
        return path.read_bytes()
    except FileNotFoundError:
        raise MutualError(f"{path} does not exist; give the path of an existing table") from None
    except OSError as error:
        raise MutualError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _decoded(content: bytes, path: Path) -> tuple[str, str]:
    """Returns text and encoding; every second byte of Latin text in UTF-16 is 0."""
    sixteen = content[:2] in (b"\xff\xfe", b"\xfe\xff") and content[2:4] != b"\0\0"
    halves = {"utf-16-le": content[1::2], "utf-16-be": content[::2]}
    dense = [name for name, half in halves.items() if half.count(0) > len(content) / 5]
    encoding = "utf-16" if sixteen else dense[0] if len(dense) == 1 else "utf-8-sig"
    try:
        return content.decode(encoding), "UTF-16" if encoding.startswith("utf-16") else "UTF-8"
    except UnicodeDecodeError:
        raise MutualError(f"{path} {_NOT_TEXT}") from None


def _csv_lines(text: str, delimiter: str, path: Path, before: int) -> Iterator[Line]:
    """Yields (number of the first line, cells) of each row; a quotation mark that swallows the rest is an error."""
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    first = before + 1
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            reasons = {"unexpected end": "opens a quotation mark that is never closed", "field larger": _ENDLESS}
            reason = next((said for start, said in reasons.items() if str(error).startswith(start)), _STRAY)
            raise MutualError(
                f"{path}, line {first} {reason}; correct that line, where text that holds a quotation mark is written "
                'as "a ""b"" c"'
            ) from None
        yield first, cells
        first = before + lines.line_num + 1


def _workbook(path: Path, name: str | None) -> tuple[Iterator[Line], tuple[str, ...]]:
    """Reads values and formulas: a formula without a stored value is an empty cell to the former."""
    from openpyxl import load_workbook  # takes half a second

    content = io.BytesIO(_content(path))
    try:
        with zipfile.ZipFile(content) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST_MB * 10**6:
            raise MutualError(
                f"{path} unpacks to {size / 10**6:.0f} MB, a table of cases has at most {LARGEST_MB}; copy the table "
                "into a new workbook"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decorations that are not read
            books = [load_workbook(content, read_only=True, data_only=values) for values in (True, False)]
            with closing(books[0]), closing(books[1]):
                filled = {sheet.title: _filled(sheet) for sheet in books[0].worksheets if _visible(sheet)}
                chosen = _chosen([title for title, rows in filled.items() if rows], list(filled), name, path)
                _require_values(filled[chosen], books[1][chosen], path)
    except MutualError:
        raise
    except Exception as error:  # a damaged workbook fails in many ways
        raise MutualError(
            f"{path} cannot be read as a workbook ({type(error).__name__}: {str(error)[:80]}); save it anew as .xlsx "
            "without a password, or as CSV UTF-8"
        ) from None
    lines = ((number, [_shown(value) for value in cells]) for number, cells in filled[chosen].items())
    return lines, (f"sheet {chosen!r}",)


def _visible(sheet: Any) -> bool:
    return bool(sheet.sheet_state == "visible")


def _filled(sheet: Any) -> dict[int, list[Any]]:
    """Returns the cells of each row that has some, by its number."""
    sheet.reset_dimensions()  # what a file says of its size may be wrong
    found: dict[int, list[Any]] = {}
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        row = list(cells)
        while row and row[-1] is None:
            row.pop()
        if row:
            found[number] = row
    return found


def _chosen(filled: Sequence[str], titles: Sequence[str], name: str | None, path: Path) -> str:
    if name is not None:
        if name not in titles:
            raise MutualError(f"{path} has no sheet {name!r}{meant(name, titles)}; it has: {', '.join(titles)}")
        return name
    if len(filled) > 1:
        raise MutualError(
            f"{path} has several sheets with content: {', '.join(filled)}; say which one is meant, for example "
            f"--sheet '{filled[0]}'"
        )
    if not filled:
        raise MutualError(f"{path} has no visible sheet with content; every training case needs a row")
    return filled[0]


def _require_values(values: dict[int, list[Any]], formulas: Any, path: Path) -> None:
    """Refuses formulas whose value the file does not hold, as programs write them that compute nothing."""
    formulas.reset_dimensions()
    for number, cells in enumerate(formulas.iter_rows(values_only=True), 1):
        row = values.get(number, [])
        for column, cell in enumerate(cells):
            is_formula = isinstance(cell, str) and cell.startswith("=") or hasattr(cell, "ref")
            if is_formula and (column >= len(row) or row[column] is None):
                raise MutualError(
                    f"{path}, line {number} holds the formula {str(getattr(cell, 'text', cell))[:40]} without a value; "
                    "open and save the workbook in the spreadsheet program, or write the value"
                )


def _shown(value: Any) -> str:
    """Returns a cell as text: 7.0 is a case called 7."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def file_stem(name: str, endings: Iterable[str]) -> str:
    """Returns the case of the name of an image or label map: ``images/a_0000.nii.gz`` is of a."""
    name = re.split(r"[/\\]", name)[-1]
    for ending in endings:
        if ending and name.lower().endswith(ending.lower()):
            return re.sub(r"_\d{4}$", "", name[: -len(ending)])
    return name
