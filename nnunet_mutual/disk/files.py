"""JSON and CSV files that are never half-written, and suggestions for misspelt names."""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_mutual.errors import MutualError, spelling_key

_FEW = 50  # names that are compared one by one
_SHARED = 8  # names; a word that more of them share tells nothing
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
    path = path.resolve()  # a linked dataset.json stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(_layout(content) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MutualError(
            f"{path} could not be written ({error.strerror or error}) and is unchanged; free space or get write "
            "permission, then repeat"
        ) from None


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes a CSV file under a temporary name, then renames it.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_backup(path: Path) -> Path:
    """Copies a file to the first free name ``<name>.bak-<n>`` beside it and returns that path.

    Raises:
        MutualError: the copy cannot be written.
    """
    number = 1
    while (backup := path.with_name(f"{path.name}.bak-{number}")).exists():
        number += 1
    temporary = path.with_name(f".{backup.name}.{os.getpid()}.tmp")
    try:
        shutil.copy2(path, temporary)
        os.replace(temporary, backup)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MutualError(
            f"{path} could not be copied to {backup} ({error.strerror or error}); nothing was changed"
        ) from None
    return backup


class Spellings:
    """Known names, indexed once, so that many misspelt names are looked up in linear time.

    Args:
        known: the right names.
    """

    def __init__(self, known: Iterable[str]):
        self._plain = {spelling_key(name): name for name in known}
        self._near: dict[str, list[str]] = defaultdict(list)
        if len(self._plain) > _FEW:
            for key in self._plain:
                for part in _parts(key):
                    self._near[part].append(key)

    def closest(self, name: str) -> str | None:
        """Returns the known name that was probably meant (other case or separators, lost zeros, a slip), or None."""
        key = spelling_key(name)
        if key in self._plain:
            return self._plain[key]
        candidates: Iterable[str] = self._plain
        if len(self._plain) > _FEW:  # names that share a word with few others, or all but one letter
            shared = (self._near.get(part, ()) for part in _parts(key))
            candidates = dict.fromkeys(other for others in shared if len(others) <= _SHARED for other in others)
        near = difflib.get_close_matches(key, list(candidates), n=1)
        return self._plain[near[0]] if near else None

    def meant(self, name: str) -> str:
        """Returns ' (did you mean ...?)' or ''."""
        found = self.closest(name)
        return f" (did you mean {found!r}?)" if found else ""


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which case_2 comes before case_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


_spellings = lru_cache(maxsize=4)(Spellings)


def _parts(key: str) -> Iterator[str]:
    """Yields the words of a key, and the key without each of its letters."""
    yield from {f"_{word}" for word in key.split("_") if word}
    yield from {key, *(key[:i] + key[i + 1 :] for i in range(len(key)))}


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
