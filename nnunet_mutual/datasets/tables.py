"""Reads who annotated what from a CSV or JSON file that a data manager keeps."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import plain_cell, read_object
from nnunet_mutual.errors import MutualError, meant

_YES = {"yes", "y", "1", "true", "x"}
_NO = {"no", "n", "0", "false"}
_RESERVED = ("case", "labels", "source", "patient")
_ENTRY_KEYS = ("source", "annotated", "patient", "pseudo", "missing")


@dataclass(frozen=True)
class Entry:
    """One case of a table; ``more`` holds what only JSON can say (``pseudo``, ``missing``)."""

    case: str
    annotated: frozenset[str]
    source: str | None = None
    patient: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def read_table(path: Path, labels: Sequence[str]) -> list[Entry]:
    """Reads a table of case -> labels.

    JSON: ``{case: [label, ...]}`` or ``{case: {"annotated": [...], "source": ..., "patient": ...}}``.
    CSV: a column ``case`` with one column per label (yes/no, 1/0, or x and empty) or with one column ``labels``
    (separated by ``;``, or the word ``all`` or ``none``); columns ``source`` and ``patient`` may follow.

    Args:
        path: a file ending in .json or .csv.
        labels: the foreground labels of the dataset.

    Raises:
        MutualError: names the row or case, what it holds, and what was expected.
    """
    if path.suffix.lower() == ".json":
        entries = [_json_entry(case, value, labels, path) for case, value in read_object(path).items()]
    elif path.suffix.lower() in (".csv", ".tsv"):
        entries = _csv_entries(path, labels)
    else:
        raise MutualError(f"{path} is neither .csv nor .json; export the table as CSV (UTF-8)")
    if not entries:
        raise MutualError(f"{path} lists no case; every training case needs a row")
    return entries


def _json_entry(case: str, value: Any, labels: Sequence[str], path: Path) -> Entry:
    place = f'{path}, case "{case}"'
    if isinstance(value, list):
        value = {"annotated": value}
    if not isinstance(value, dict) or not isinstance(value.get("annotated"), list):
        raise MutualError(f'{place} holds {value!r}; expected a list of labels, or an object with "annotated": [...]')
    for key in value:
        if key not in _ENTRY_KEYS:
            raise MutualError(
                f"{place} has the unknown key {key!r}{meant(key, _ENTRY_KEYS)}; known: {', '.join(_ENTRY_KEYS)}"
            )
    for key in ("source", "patient"):
        if key in value and not (isinstance(value[key], str) and value[key].strip()):
            raise MutualError(f'{place} has "{key}": {value[key]!r}; expected text in quotes')
    more = {key: value[key] for key in ("pseudo", "missing") if key in value}
    return Entry(case, _labels(value["annotated"], labels, place), value.get("source"), value.get("patient"), more)


def _labels(names: Sequence[Any], labels: Sequence[str], place: str) -> frozenset[str]:
    for name in names:
        if name not in labels:
            raise MutualError(
                f"{place} names the unknown label {name!r}{meant(str(name), labels)}; dataset.json has: "
                f"{', '.join(labels)}"
            )
    if len(set(names)) != len(names):
        raise MutualError(f"{place} names a label twice: {', '.join(names)}; remove the repetition")
    return frozenset(names)


def _csv_entries(path: Path, labels: Sequence[str]) -> list[Entry]:
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
            f"{label_columns[0]!r}{meant(label_columns[0], ('source', 'patient'))}; use either one column 'labels' "
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
        if "labels" in header:
            drawn = _listed(row["labels"], labels, where)
        else:
            drawn = frozenset(name for name in label_columns if _marked(row[name], name, crosses, where))
        entries[case] = Entry(case, drawn, row.get("source"), row.get("patient") or None)
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
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)  # spreadsheets in many countries write ';'
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    header = [plain_cell(cell.strip()) for cell in next(lines, [])]
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
    for cells in lines:
        cells = [plain_cell(cell.strip()) for cell in cells]
        if not any(cells):
            continue
        if any(cells[len(header) :]):
            raise MutualError(
                f"{path}, line {lines.line_num} has {len(cells)} cells, but there are {len(header)} columns; "
                'put a list that holds the separator in quotes, for example "liver;spleen"'
            )
        cells += [""] * (len(header) - len(cells))
        rows.append((lines.line_num, dict(zip(header, cells, strict=False))))
    return header, rows


def _require_label_columns(columns: Sequence[str], labels: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in labels:
            raise MutualError(
                f"{path} has a column {name!r}, which is neither a label{meant(name, labels)} nor case, labels, "
                f"source or patient; dataset.json has: {', '.join(labels)}"
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
