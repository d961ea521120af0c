"""JSON and CSV files that are never half-written, and suggestions for misspelt names."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError

_BEGIN, _FORMULA = r"^|[;\t\r\n]", r"'*\s*[=+\-@＝＋－＠\t\r\n]"  # apostrophes count, so that ours can be undone
_LINE = 110  # longest entry that stays on one line, so that a case of the table is one line


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        MutualError: missing, unreadable or malformed file, or an object that holds a key twice (Python would silently
            keep the last one).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise MutualError(f"{path} does not exist; give the path of an existing file") from None
    except json.JSONDecodeError as error:
        raise MutualError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}; correct it there"
        ) from None
    except _DuplicateKey as error:
        raise MutualError(f'{path} lists "{error}" twice in the same place; keep one of the two entries') from None
    except UnicodeDecodeError:
        raise MutualError(f"{path} is not UTF-8 text; save it with the encoding UTF-8") from None
    except RecursionError:
        raise MutualError(
            f"{path} is nested too deeply to be read; no file of nnU-Net or this package is, replace it"
        ) from None
    except ValueError as error:  # Python refuses whole numbers of thousands of digits
        raise MutualError(f"{path} holds a value that cannot be read ({error}); correct it there") from None
    except OSError as error:
        raise MutualError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object, such as dataset.json.

    Raises:
        MutualError: as :func:`read_json`, or the file holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise MutualError(f"{path} holds a {type(content).__name__}, expected an object {{...}}; correct the file")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file under a temporary name, then renames it: the old content stays until the new one is whole.

    Raises:
        MutualError: the folder cannot be written (full disk, permissions); the old file is then untouched.
    """
    try:
        with written(path) as temporary:
            temporary.write_text(_layout(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise MutualError(
            f"{path} could not be written ({error.strerror or error}) and is unchanged; free space or get write "
            "permission, then repeat"
        ) from None


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file, whole or not at all; no cell of it is a formula to a spreadsheet.

    Raises:
        OSError: the folder cannot be written.
    """
    with written(path) as temporary:
        temporary.write_text(csv_text(rows), encoding="utf-8", newline="")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as CSV in which text that a spreadsheet would take for a formula begins with an apostrophe.

    So do parts of a text that become cells where ';' or tabs separate them. Numbers stay numbers; :func:`plain_cell`
    undoes it.
    """
    stream = io.StringIO()
    csv.writer(stream).writerows([_as_text(cell) for cell in row] for row in rows)
    return stream.getvalue()


def plain_cell(cell: str) -> str:
    """Returns what :func:`csv_text` was given for a cell."""
    return re.sub(rf"({_BEGIN})'(?={_FORMULA})", r"\1", cell)


def _as_text(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    try:
        float(text)
    except ValueError:
        return re.sub(rf"({_BEGIN})(?={_FORMULA})", r"\1'", text)
    return text


def keep_backup(path: Path) -> Path:
    """Copies a file to the first free name ``<name>.bak-<n>`` beside it and returns that path.

    Raises:
        MutualError: the copy cannot be written.
    """
    number = 1
    while (backup := path.with_name(f"{path.name}.bak-{number}")).exists():
        number += 1
    try:
        with written(backup) as temporary:
            shutil.copy2(path, temporary)
    except OSError as error:
        raise MutualError(
            f"{path} could not be copied to {backup} ({error.strerror or error}); nothing was changed"
        ) from None
    return backup


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which case_2 comes before case_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


class _DuplicateKey(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(key)
        found[key] = value
    return found


def _layout(value: Any, depth: int = 0) -> str:
    """Returns indented JSON in which whatever fits stays on one line."""
    flat = json.dumps(value)
    if depth and len(flat) + 2 * depth <= _LINE or not isinstance(value, (dict, list)) or not value:
        return flat
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(str(key))}: {_layout(item, depth + 1)}" for key, item in value.items()]
        opening, closing = "{}"
    else:
        items = [_layout(item, depth + 1) for item in value]
        opening, closing = "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{'  ' * depth}{closing}"
