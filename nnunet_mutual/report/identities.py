"""Cases by number instead of by name: a page travels further than the data that it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.files import natural

_SAID = r"\b(?:cases?|patients?|label maps? of) "
# Folders may have spaces and quotation marks in their names: where a path is quoted, and after the letter of a drive.
_QUOTED = re.compile(r"""(?<!\w)(['"])(?:[A-Za-z]:)?[/\\][^"\n]*?\1(?!\w)""")
_DRIVE = re.compile(r"""(?<!\w)[A-Za-z]:\\(?:[^\\/:*?"<>|\n]+\\)*""")
_PATH = re.compile(r"(?<![\w<])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:,;'\"()]+){2,}")


class Identities:
    """Turns names of cases and patients into numbers, unless names are wanted.

    Args:
        keys: all cases that may be spoken of; numbered in natural order.
        patients: names of patients.
        shown: whether names stay as they are.
    """

    def __init__(self, keys: Iterable[str], patients: Iterable[str] = (), *, shown: bool = False):
        self.shown = shown
        self._alias = {name: f"patient {n}" for n, name in enumerate(sorted(set(patients), key=natural), 1)}
        self._alias |= {name: f"case {n}" for n, name in enumerate(sorted(set(keys), key=natural), 1)}
        # The longest name first, and "_0000" may follow: case_1 is neither in case_10 nor hidden in case_1_b. A short
        # number is a name only where the text says so: in "case 3", "'3'" and 3_0000.nii.gz, not in "3 cases".
        every, numbers = _any_of(self._alias), _any_of(filter(_is_number, self._alias))
        names = _any_of(name for name in self._alias if not _is_number(name))
        places = [rf"(?<![A-Za-z0-9]){names}(?![A-Za-z0-9])"] * bool(names)
        if numbers:
            places += [rf"{_SAID}{numbers}(?:(?:, | and ){every})*\b(?!\.\d)", rf"(?<=['\"]){numbers}(?=['\"])"]
            places += [rf"(?<![A-Za-z0-9.]){numbers}(?=_\d{{4}}\b|\.[a-z])"]
        self._pattern = re.compile("|".join(places)) if places else None

    @classmethod
    def of(cls, table: AnnotationTable, keys: Iterable[str], *, shown: bool = False) -> Identities:
        """Numbers all cases of a table, and others that belong to it."""
        patients = {case.patient for case in table.cases.values() if case.patient is not None}
        return cls({*table.cases, *keys}, patients, shown=shown)

    def case(self, key: str) -> str:
        """Returns what a case is called on the page."""
        return key if self.shown else self._alias.get(key, "a case")

    def clean(self, text: str) -> str:
        """Returns a text without names of cases and patients, and with no more than the last part of paths."""
        if self.shown:
            return text
        text = _QUOTED.sub(lambda found: found[1] + re.split(r"[/\\]", found[0])[-1], text)
        text = _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], _DRIVE.sub("", text))
        return self._pattern.sub(self._aliases, text) if self._pattern else text

    def _aliases(self, found: re.Match[str]) -> str:
        whole = found[0]
        if whole in self._alias:
            return self._alias[whole]
        said = re.match(_SAID, whole)
        assert said is not None
        parts = re.split("(, | and )", whole[said.end() :])
        named = "".join(self._alias.get(part, part) for part in parts)
        return named if said[0] in ("case ", "patient ") else said[0] + named


def _any_of(names: Iterable[str]) -> str:
    """Returns a pattern; "" of no name."""
    found = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return f"(?:{found})" if found else ""


def _is_number(name: str) -> bool:
    """Whether a name is as short as numbers of cases and epochs are; other ones are somebody's."""
    return name.isdigit() and len(name) < 5 and str(int(name)) == name
