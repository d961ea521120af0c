"""The one exception that carries a sentence for the user."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

_FEW = 50  # names that are compared one by one
_LONGEST = 255  # letters, as in a file name; the likeness of longer texts takes too long and tells nothing
_SHARED = 8  # names; a word that more of them share tells nothing
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class MutualError(Exception):
    """Bad input or a state that cannot be used.

    The message is one sentence: what was found, what was expected, and the command or edit that fixes it. The command
    line prints it after ``error:`` and ends with exit status 2; inside nnU-Net's commands it ends the run.
    """


def shown(value: object) -> str:
    """Returns a value as a sentence quotes it: short, however long or deep it is."""
    return _SHORT.repr(value)


def telling(value: float, *limits: float, digits: int = 4) -> str:
    """Returns a number with so many digits, or as many more as tell it from its limits: 0.9999999 is not 1."""
    for number in range(digits, 17):
        text = f"{value:.{number}g}"
        if float(text) == value or float(text) not in limits:
            return text
    return repr(float(value))


class Spellings:
    """Known names, indexed once, so that many misspelt names are looked up in linear time.

    Args:
        known: the right names.
    """

    def __init__(self, known: Iterable[str]):
        self._plain = {spelling_key(name): name for name in known if len(name) <= _LONGEST}
        self._near: dict[str, list[str]] = defaultdict(list)
        if len(self._plain) > _FEW:
            for key in self._plain:
                for part in _parts(key):
                    self._near[part].append(key)

    def closest(self, name: str) -> str | None:
        """Returns the known name that was probably meant (other case or separators, lost zeros, a slip), or None."""
        if len(name) > _LONGEST:
            return None
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


_spellings = lru_cache(maxsize=4)(Spellings)


def _parts(key: str) -> Iterator[str]:
    """Yields the words of a key, and the key without each of its letters."""
    yield from {f"_{word}" for word in key.split("_") if word}
    yield from {key, *(key[:i] + key[i + 1 :] for i in range(len(key)))}


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


def typed(word: object) -> str:
    """Returns a path or another word as it is typed in a command, quoted where a shell would part it."""
    return subprocess.list2cmdline([str(word)]) if os.name == "nt" else shlex.quote(str(word))
