"""The one exception that carries a sentence for the user."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable


class MutualError(Exception):
    """Bad input or a state that cannot be used.

    The message is one sentence: what was found, what was expected, and the command or edit that fixes it. The command
    line prints it after ``error:`` and ends with exit status 2; inside nnU-Net's commands it ends the run.
    """


def shown(value: object) -> str:
    """Returns a value as a sentence quotes it: short, however long or deep it is."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that was probably meant (other case or separators, lost zeros, a slip), or None."""
    known = list(known)
    plain = {spelling_key(other): other for other in known}
    if spelling_key(name) in plain:
        return plain[spelling_key(name)]
    near = difflib.get_close_matches(spelling_key(name), list(plain), n=1)
    return plain[near[0]] if near else None


def spelling_key(name: str) -> str:
    """Returns a form in which 'HN-007', 'hn_7' and 'hn 007' are equal."""
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[\s_.\-]+", "_", name.strip().casefold()))


def meant(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' or ''."""
    found = closest(name, known)
    return f" (did you mean {found!r}?)" if found else ""


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Joins names, at most ``most`` of them: 'a, b and 7 more'."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
