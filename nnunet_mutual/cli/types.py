"""Types of arguments: what cannot be meant is refused before anything is read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

LARGEST_SEED = 2**32 - 1  # of NumPy's generators


def fold(text: str) -> str:
    """Returns a fold as folders are named after it: '0', '1', ... or 'all'."""
    if text != "all" and not re.fullmatch("0|[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"a fold is a number such as 0, or 'all', found {text!r}")
    return text


def seed(text: str) -> int:
    """Returns a seed that every generator takes."""
    return _whole(text, 0, LARGEST_SEED, "a seed")


def at_least(least: int) -> Callable[[str], int]:
    """Returns the type of a whole number from ``least``."""
    return lambda text: _whole(text, least, 1_000_000, "it")


def axes(text: str) -> list[int]:
    """Returns a number for each axis of a stage, such as 1,2,2."""
    return [_whole(part, 1, 1_000_000, "each number of a stage, as in 1,2,2,") for part in text.split(",")]


def positive(text: str) -> float:
    """Returns a positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"it must be a positive number, found {text!r}")
    return value


def _whole(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch("-?[0-9]{1,20}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{what} must be a whole number from {least} to {most}, found {text!r}")
    return int(text)
