"""Settings as they are made from a block or from words of the command line: each wrong one is a sentence."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.settings.blocks import BLOCK, IN_PLANS, PLANNED, UNSET, deep_merge
from nnunet_mutual.settings.classes import LARGEST, Settings

S = TypeVar("S")


def read_settings(cls: type[S], block: Mapping[str, Any], place: str = BLOCK, origin: str = IN_PLANS) -> S:
    """Makes typed settings from a block.

    Args:
        cls: a class of settings.
        block: names and values.
        place: of the block, such as "mutual"; "" for words of the command line.
        origin: where that is, for the sentences.

    Raises:
        MutualError: an unknown key (the known ones are listed), a value of the wrong type, or one without effect.
    """
    made = _read(cls, block, place, origin)
    for name, why in made.unused().items() if isinstance(made, Settings) else ():
        given, now, plain = (_at(of, name) for of in (block, made, cls()))
        switched_off = name.startswith("loss.") and now == 0  # a term that is not there, anyway
        if given is not UNSET and now != plain and not switched_off:
            raise MutualError(f'setting "{name}" has no effect {why}; leave it out')
    return typing.cast(S, made)


def _at(settings: Any, name: str) -> Any:
    """A setting by its full name, in a block or as it was made; UNSET where the block does not have it."""
    for part in name.split("."):
        settings = settings.get(part, UNSET) if isinstance(settings, Mapping) else getattr(settings, part, UNSET)
    return settings


def groups_of_settings(cls: type[Any]) -> dict[str, type[Any] | None]:
    """Returns the names of all settings of a class, each with its class where it is a group of settings."""
    hints = typing.get_type_hints(cls)
    found = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return {name: typing.cast(type, hint) if dataclasses.is_dataclass(hint) else None for name, hint in found.items()}


def _read(cls: type[Any], block: Mapping[str, Any], place: str, origin: str) -> Any:
    if not isinstance(block, Mapping):
        raise MutualError(f'"{place}" {origin} must be an object, found {block!r}')
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    inside = f'in "{place}" {origin}' if place else origin
    for key in block:
        if key not in known:
            raise MutualError(f'unknown setting "{key}" {inside}{meant(key, known)}; known: {", ".join(known)}')
    prefix = f"{place}." if place else ""
    return cls(**{key: _value(hints[key], value, f"{prefix}{key}", origin) for key, value in block.items()})


def _value(hint: Any, value: Any, place: str, origin: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast(type, hint), value, place, origin)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise MutualError(
                f'setting "{place}" must be one of {", ".join(map(str, typing.get_args(hint)))}, found {value!r}'
            )
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            if option is int and abs(value) > LARGEST:
                raise MutualError(f'setting "{place}" must be {LARGEST} at most, found {value}')
            return value
    expected = " or ".join("null" if o is type(None) else o.__name__ for o in options)
    raise MutualError(f'setting "{place}" must be {expected}, found {value!r}')


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` pairs into a nested object.

    Raises:
        MutualError: an entry without ``=``, a name twice, or what is no setting.
    """
    block: dict[str, Any] = {}
    names = [setting.partition("=")[0] for setting in settings]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise MutualError(f"--set {setting!r} is not of the form key=value, such as num_epochs=250")
        if names.count(key) > 1:
            raise MutualError(f"--set gives {key} twice; keep one of {', '.join(settings)}")
        if key.split(".")[0] == PLANNED:
            raise MutualError(f"--set {setting}: {PLANNED!r} is what planners write for themselves, leave it out")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        except (ValueError, RecursionError):  # thousands of digits or brackets
            raise MutualError(f"--set {key}: its value cannot be read, {text[:20]}...; give a plain number") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        block = deep_merge(block, value)
    return block
