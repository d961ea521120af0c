"""The one exception that carries a sentence for the user."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunet_mutual.disk.files import _spellings


class MutualError(Exception):
    """Bad input or a state that cannot be used.

    The message is one sentence: what was found, what was expected, and the command or edit that fixes it. The command
    line prints it after ``error:`` and ends with exit status 2; inside nnU-Net's commands it ends the run.
    """


def closest(name: str, known: Iterable[str]) -> str | None:
    """Looks up one name; for many names make :class:`Spellings` once."""
    return _spellings(tuple(known)).closest(name)


def meant(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' or ''; for many names make :class:`Spellings` once."""
    return _spellings(tuple(known)).meant(name)


def spelling_key(name: str) -> str:
    """Returns a form in which 'HN-007', 'hn_7' and 'hn 007' are equal."""
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[\s_.\-]+", "_", name.strip().casefold()))


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Joins names, at most ``most`` of them: 'a, b and 7 more'."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
