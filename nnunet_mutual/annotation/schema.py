"""Values of dataset.json, each verified or refused in a sentence that names its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_mutual.disk.names import safe_text
from nnunet_mutual.errors import MutualError, meant, shown


def known_keys(entry: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    """Verifies that an entry has no other keys; the place is where it stands in dataset.json."""
    for key in entry:
        if key not in known:
            raise MutualError(
                f"unknown key {key!r} in {place} of dataset.json{meant(key, known)}; known: {', '.join(known)}"
            )


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """Returns a value that must be an object."""
    if not isinstance(value, Mapping):
        found = "nothing" if value is None else type(value).__name__
        raise MutualError(f"{place} of dataset.json must be an object {{name: ...}}, found {found}; see docs/data.md")
    return value


def names_of(value: Any, known: Iterable[str], place: str, what: str) -> frozenset[str]:
    """Returns a list of known names, each once; the word says what they name."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise MutualError(f"{place} of dataset.json must be a list of {what} names, found {value!r}")
    known = tuple(known)
    for name in value:
        if name not in known:
            raise MutualError(
                f"unknown {what} {name!r} in {place} of dataset.json{meant(name, known)}; known: {', '.join(known)}"
            )
    if len(set(value)) != len(value):
        raise MutualError(f"{place} of dataset.json lists a {what} twice: {value}; keep one")
    return frozenset(value)


def group_name(name: str) -> str:
    """Returns the name of a modality group, by which folders and models are called."""
    if not name.isalnum() or not name.isascii():
        raise MutualError(
            f"the modality group {name!r} must be named with letters and digits alone: models are called by it"
        )
    if name == "full":
        raise MutualError("a group called full would have its results where nnU-Net's whole predictions are; rename it")
    return name


def integers(value: Any) -> tuple[int, ...]:
    """Returns the integers of a label: one, or several of a region."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    # nnU-Net takes "1" for 1 as well.
    if not items or not all(type(item) is int or (isinstance(item, str) and item.isdecimal()) for item in items):
        raise MutualError(f'"labels" of dataset.json holds {value!r}; expected an integer or a list of integers')
    return tuple(int(item) for item in items)


def require_ignore(value: Any) -> None:
    """Verifies the value of nnU-Net's ignore label, None without one."""
    if value is not None and type(value) is not int:
        raise MutualError(f'"ignore" in "labels" of dataset.json must be a whole number, found {value!r}')


def channels_of(entries: Any) -> tuple[str, ...]:
    """Names of the channels, whose keys are their numbers in order."""
    named = mapping(entries, '"channel_names"')
    names = tuple(named.values())
    if not names or list(map(str, named)) != list(map(str, range(len(names)))) or not all(map(_is_name, names)):
        raise MutualError(
            '"channel_names" of dataset.json must be {"0": name, "1": name, ...} in this order, found '
            f"{shown(dict(named))}"
        )
    return tuple(safe_text(name, "channel of dataset.json") for name in names)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def require_different(labels: Iterable[str], values: Mapping[str, tuple[int, ...]]) -> None:
    """Verifies that no two labels have the same integers."""
    first: dict[tuple[int, ...], str] = {}
    for label in labels:
        if (other := first.setdefault(values[label], label)) != label:
            raise MutualError(
                f"the labels {other} and {label} of dataset.json have the same value {values[label][0]}, so no voxel "
                "says which of them it is; give each a value of its own, or remove one of the names"
            )
