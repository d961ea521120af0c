"""Whether JSON that somebody may have edited has the shape that its reader expects, said with the place of a slip.

A shape is a type (``float`` takes whole numbers, too; ``None`` is null), a tuple of alternatives, a list with the shape
of every item, or a dictionary: key -> shape. There, a key that ends in "?" may be missing, and ``...`` stands for all
other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_mutual.errors import MutualError

Shape = Any

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object {...}",
    list: "a list [...]",
    None: "null",
}


def require_shape(content: Any, shape: Shape, file: object, fix: str, place: str = "") -> None:
    """Verifies content of a JSON file.

    Args:
        content: as it was read.
        shape: what it must be.
        file: its path, or words for it.
        fix: what to do about it, as the end of a sentence: 'correct it or plan again'.
        place: of ``content`` in the file, such as 'configurations.3d_fullres'.

    Raises:
        MutualError: names the place, what is there and what is expected.
    """
    if isinstance(shape, tuple):
        if any(_is(content, one) for one in shape):
            return
    elif _is(content, shape):
        _require_inner(content, shape, file, fix, place)
        return
    where = f'"{place}" in {file}' if place else str(file)
    raise MutualError(f"{where} must be {_expected(shape)}, found {_shown(content)}; {fix}")


def _require_inner(content: Any, shape: Shape, file: object, fix: str, place: str) -> None:
    if isinstance(shape, list):
        for number, item in enumerate(content):
            require_shape(item, shape[0], file, fix, f"{place}[{number}]")
    if not isinstance(shape, Mapping):
        return
    prefix = f"{place}." if place else ""
    for key, inner in shape.items():
        name = "" if key is ... else key.removesuffix("?")
        if name in content:
            require_shape(content[name], inner, file, fix, prefix + name)
        elif name and not key.endswith("?"):
            where = f' in "{place}"' if place else ""
            raise MutualError(f'{file} has no "{name}"{where}, expected {_expected(inner)}; {fix}')
    named = {key.removesuffix("?") for key in shape if key is not ...}
    for name in content if ... in shape else ():
        if name not in named:
            require_shape(content[name], shape[...], file, fix, prefix + name)


def _is(content: Any, shape: Shape) -> bool:
    """Whether the outermost value is of the kind."""
    if shape is None:
        return content is None
    if isinstance(shape, (list, Mapping)):
        shape = list if isinstance(shape, list) else dict
    if shape in (int, float) and isinstance(content, bool):
        return False
    return isinstance(content, (int, float) if shape is float else shape)


def _expected(shape: Shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_expected, shape))
    if isinstance(shape, list):
        return "a list [...]"
    return _WORDS[dict if isinstance(shape, Mapping) else shape]


def _shown(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 60 else f"{text[:57]}..."
