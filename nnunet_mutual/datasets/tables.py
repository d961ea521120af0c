"""Reads who annotated what from a CSV or JSON file that a data manager keeps."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import plain_cell, read_object
from nnunet_mutual.errors import MutualError, meant, shown

_YES = {"yes", "y", "1", "true", "x"}
_NO = {"no", "n", "0", "false"}
_RESERVED = ("case", "labels", "source", "patient", "missing")
_TOO_LARGE = f"has a cell of more than {csv.field_size_limit()} characters, as after a lost quotation mark"
_STRAY = "has a quotation mark in the middle of a cell that begins with one"
_ENTRY_KEYS = ("source", "annotated", "patient", "pseudo", "missing")


@dataclass(frozen=True)
class Entry:
    """One case of a table.

    Attributes:
        case: its name.
        annotated: labels that somebody drew wherever they are present; never one of ``pseudo``.
        source: None where the table names none.
        patient: None where the table names none.
        pseudo: labels that a model drew and nobody corrected.
        missing: channels that were not acquired.
        says: which of patient, pseudo and missing the table has a column or a key for.
    """

    case: str
    annotated: frozenset[str]
    source: str | None = None
    patient: str | None = None
    pseudo: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    says: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Known:
    """What a table may name.

    Attributes:
        labels: foreground labels of the dataset.
        channels: of its images.
        unlabelled: images in imagesUn/, whose rows need not say that nothing was drawn.
    """

    labels: Sequence[str]
    channels: Sequence[str] = ()
    unlabelled: Container[str] = ()


def read_table(path: Path, known: Known) -> list[Entry]:
    """Reads a table of case -> labels.

    JSON: ``{case: [label, ...]}`` or ``{case: {"annotated": [...], "source": ..., "patient": ...}}``.
    CSV: a column ``case`` with one column per label (yes/no, 1/0, or x and empty) or with one column ``labels``
    (separated by ``;``, or the word ``all`` or ``none``); columns ``source``, ``patient`` and ``missing`` (channels,
    separated by ``;``) may follow.

    Args:
        path: a file ending in .json or .csv.
        known: labels, channels and unlabelled images of the dataset.

    Raises:
        MutualError: names the row or case, what it holds, and what was expected.
    """
    if path.suffix.lower() == ".json":
        entries = [_json_entry(case, value, known, path) for case, value in read_object(path).items()]
    elif path.suffix.lower() in (".csv", ".tsv"):
        entries = _csv_entries(path, known)
    else:
        raise MutualError(f"{path} is neither .csv nor .json; export the table as CSV (UTF-8)")
    if not entries:
        raise MutualError(f"{path} lists no case; every training case needs a row")
    return entries


def _json_entry(case: str, value: Any, known: Known, path: Path) -> Entry:
    place = f'{path}, case "{case}"'
    if isinstance(value, list):
        value = {"annotated": value}
    if isinstance(value, dict) and case in known.unlabelled:
        value = {"annotated": [], **value}
    if not isinstance(value, dict) or not isinstance(value.get("annotated"), list):
        raise MutualError(
            f'{place} holds {shown(value)}; expected a list of labels, or an object with "annotated": [...]'
        )
    for key in value:
        if key not in _ENTRY_KEYS:
            raise MutualError(
                f"{place} has the unknown key {key!r}{meant(key, _ENTRY_KEYS)}; known: {', '.join(_ENTRY_KEYS)}"
            )
    for key in ("source", "patient"):
        if key in value and not (isinstance(value[key], str) and value[key].strip()):
            raise MutualError(f'{place} has "{key}": {shown(value[key])}; expected text in quotes')
    for key in ("pseudo", "missing"):
        if not isinstance(value.get(key, []), list):
            raise MutualError(f'{place} has "{key}": {shown(value[key])}; expected a list of names')
    pseudo = _labels(value.get("pseudo", []), known.labels, place)
    return Entry(
        case,
        _labels(value["annotated"], known.labels, place) - pseudo,
        value.get("source"),
        value.get("patient"),
        pseudo,
        _names(value.get("missing", []), known.channels, place, "channel"),
        frozenset(value),
    )


def _labels(names: Sequence[Any], labels: Sequence[str], place: str) -> frozenset[str]:
    return _names(names, labels, place, "label")


def _names(names: Sequence[Any], known: Sequence[str], place: str, what: str) -> frozenset[str]:
    for name in names:
        if name not in known:
            raise MutualError(
                f"{place} names the unknown {what} {shown(name)}{meant(str(name), known)}; dataset.json has: "
                f"{', '.join(known)}"
            )
    if len(set(names)) != len(names):
        raise MutualError(f"{place} names a {what} twice: {', '.join(names)}; remove the repetition")
    return frozenset(names)


def _csv_entries(path: Path, known: Known) -> list[Entry]:
    labels = known.labels
    header, rows = csv_rows(path)
    label_columns = [name for name in header if name not in _RESERVED]
    crosses = False
    if "labels" not in header:
        _require_label_columns(label_columns, labels, path)
        # In a table of crosses an empty cell means "not drawn"; in a table of yes and no it means "forgotten".
        crosses = all(row[name].lower() in ("x", "") for _, row in rows for name in label_columns)
    elif label_columns:
        raise MutualError(
            f"{path} has a column 'labels' and also "
            f"{label_columns[0]!r}{meant(label_columns[0], _RESERVED[2:])}; use either one column 'labels' "
            "or one column per label"
        )
    entries: dict[str, Entry] = {}
    for number, row in rows:
        place = f"{path}, line {number}"
        case = row["case"]
        if not case:
            raise MutualError(f"{place} has no case name; fill it in or delete the line")
        if case in entries:
            raise MutualError(f'{place} lists case "{case}" a second time; keep one line per case')
        if row.get("source") == "":
            raise MutualError(
                f'{place} has no source for case "{case}"; fill it in for every case or delete the column'
            )
        where = f'{place}, case "{case}"'
        nothing = crosses or case in known.unlabelled  # then an empty cell needs no word
        if "labels" in header:
            drawn = _listed(row["labels"] or ("none" if case in known.unlabelled else ""), labels, where)
        else:
            drawn = frozenset(name for name in label_columns if _marked(row[name], name, nothing, where))
        missing = [name.strip() for name in row.get("missing", "").split(";") if name.strip()]
        channels = _names(missing, known.channels, where, "channel")
        says = frozenset({"patient", "missing"} & set(header))
        entries[case] = Entry(case, drawn, row.get("source"), row.get("patient") or None, missing=channels, says=says)
    return list(entries.values())


def csv_rows(
    path: Path, known: Sequence[str] = _RESERVED, example: str = "case,labels"
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Reads a CSV as spreadsheets write it: separated by commas, semicolons or tabs, with empty lines and columns.

    Args:
        path: the file.
        known: names of columns that are recognised in any case.
        example: of a first line, for the sentence about a wrong one.

    Returns:
        The columns, and (line number, column -> cell without surrounding blanks) of each line.

    Raises:
        MutualError: the file cannot be read, or its shape is wrong; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MutualError(f"{path} does not exist; give the path of an existing table") from None
    except UnicodeDecodeError:
        raise MutualError(f"{path} is not UTF-8 text; in the spreadsheet choose 'CSV UTF-8' when saving") from None
    except OSError as error:
        raise MutualError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if "\0" in text:  # damaged, or UTF-16 without its mark
        line = text.count("\n", 0, text.index("\0")) + 1
        raise MutualError(
            f"{path}, line {line} holds a NUL byte, so it is not UTF-8 text; in the spreadsheet choose 'CSV UTF-8' "
            "when saving"
        )
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)  # spreadsheets in many countries write ';'
    lines = _csv_lines(text, delimiter, path)
    header = [plain_cell(cell.strip()) for cell in next(lines, (0, []))[1]]
    while header and not header[-1]:
        header.pop()
    header = [cell.lower() if cell.lower() in known else cell for cell in header]
    if "case" not in header:
        raise MutualError(
            f"{path} has no column 'case'; its first line is {first.strip()!r}, expected for example: {example}"
        )
    for name in header:
        if header.count(name) > 1:
            raise MutualError(f"{path} has two columns called {name!r}; keep one")
    rows = []
    for number, cells in lines:
        cells = [plain_cell(cell.strip()) for cell in cells]
        if not any(cells):
            continue
        if any(cells[len(header) :]):
            raise MutualError(
                f"{path}, line {number} has {len(cells)} cells, but there are {len(header)} columns; "
                'put a list that holds the separator in quotes, for example "liver;spleen"'
            )
        cells += [""] * (len(header) - len(cells))
        rows.append((number, dict(zip(header, cells, strict=False))))
    return header, rows


def _csv_lines(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the first line, cells) of each row; a quotation mark that swallows the rest is an error."""
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    first = 1
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            reasons = {"unexpected end": "opens a quotation mark that is never closed", "field larger": _TOO_LARGE}
            reason = next((said for start, said in reasons.items() if str(error).startswith(start)), _STRAY)
            raise MutualError(
                f"{path}, line {first} {reason}; correct that line, where text that holds a quotation mark is written "
                'as "a ""b"" c"'
            ) from None
        yield first, cells
        first = lines.line_num + 1


def _require_label_columns(columns: Sequence[str], labels: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in labels:
            raise MutualError(
                f"{path} has a column {name!r}, which is neither a label{meant(name, labels)} nor case, labels, "
                f"source, patient or missing; dataset.json has: {', '.join(labels)}"
            )
    absent = [name for name in labels if name not in columns]
    if absent:
        raise MutualError(
            f"{path} has no column for {', '.join(absent)}; add it with yes or no for each case (no everywhere if "
            "nobody drew it), or use one column 'labels'"
        )


def _marked(cell: str, label: str, crosses: bool, place: str) -> bool:
    if cell.lower() in _YES:
        return True
    if cell.lower() in _NO or (crosses and not cell):
        return False
    found = repr(cell) if cell else "an empty cell"
    raise MutualError(f"{place} has {found} for {label}; expected yes or no (or 1 or 0, or x and empty throughout)")


def _listed(cell: str, labels: Sequence[str], place: str) -> frozenset[str]:
    names = [name.strip() for name in cell.split(";") if name.strip()]
    if not names:
        raise MutualError(
            f"{place} has an empty list of labels; write none if nothing was drawn there, all if everything was"
        )
    if len(names) == 1 and names[0] not in labels and names[0].lower() in ("all", "none"):
        return frozenset(labels) if names[0].lower() == "all" else frozenset()
    return _labels(names, labels, place)
