"""Names from datasets, plans, tables and archives that become paths: they never leave their folder."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_mutual.errors import MutualError, shown

_LONGEST = 255  # bytes, on usual file systems
# Control characters, line breaks, what turns the reading direction around, and halves of characters.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNREADABLE = re.compile(f"[{_CONTROL}]")
_FORBIDDEN = re.compile(rf"[/\\:{_CONTROL}]")  # also separators of any system and drive letters


def safe_name(name: object, what: str) -> str:
    """Returns a name that is one component of a path.

    Args:
        name: from a file that somebody else may have written.
        what: it names, for the sentence: 'case', 'configuration', '"file_ending" of dataset.json'.

    Raises:
        MutualError: not a string, empty, or it would name another folder.
    """
    # Windows drops dots and spaces at the end of a name, so that ".. ." is "..".
    if not isinstance(name, str) or not name.strip(" .") or _FORBIDDEN.search(name) or not _fits(name):
        raise MutualError(
            f"the {what} {shown(name)} cannot be used as a file name (it is empty, too long or no UTF-8, or holds a "
            "slash, a colon or a control character, or nothing but dots); rename it"
        )
    return name


def _fits(name: str) -> bool:
    """Whether a disk takes a name, and readers in C++ do."""
    try:
        return len(name.encode()) <= _LONGEST
    except UnicodeEncodeError:
        return False


def require_text(path: str | Path) -> None:
    """Verifies that a path is text: readers of images, which are written in C++, end the whole process otherwise.

    Raises:
        MutualError: a name in it is no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise MutualError(
            f"{str(path)!r} has a name that is no UTF-8 text; rename it, without that character"
        ) from None


def safe_text(text: object, what: str) -> str:
    """Returns a name that is printed in sentences and tables, and that can change nothing else on a terminal.

    Args:
        text: from a file that somebody else may have written.
        what: it names, for the sentence: 'label of dataset.json'.

    Raises:
        MutualError: not a string, or with a line break or another control character.
    """
    if not isinstance(text, str) or _UNREADABLE.search(text):
        raise MutualError(f"the {what} {shown(text)} is no text of one line without control characters; rename it")
    return text


def written_at(path: Path) -> Path:
    """Returns where a file is written that may be a link: at its target in the same folder, else in the link's place.

    So nothing is written through a link that leads out of the folder; a file takes the place of the link.
    """
    root = path.parent.resolve()
    found = path.resolve()
    return found if root in found.parents else root / path.name


def inside(folder: Path, path: str | Path, what: str, *, followed: bool = True, fix: str = "correct the entry") -> Path:
    """Returns ``folder / path``, after symbolic links are resolved, if that lies in the folder.

    Args:
        folder: what must not be left.
        path: relative to it; absolute is refused unless it lies inside.
        what: the path names, for the sentence: 'journal entry'.
        followed: whether a last component that is a link counts as what it points to; False for what is replaced or
            deleted under its own name, which then must not be the folder itself.
        fix: end of the sentence.

    Raises:
        MutualError: it lies outside.
    """
    root = folder.resolve()
    place = root / path
    try:
        if "\0" in str(path):
            raise ValueError("zero byte")
        if not all(map(_fits, Path(path).parts)):
            raise ValueError("a name in it is too long or no UTF-8")
        found = place.resolve() if followed or place.name == ".." else place.parent.resolve() / place.name
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise MutualError(f"the {what} {shown(str(path))} is no usable path ({error}); {fix}") from None
    if root not in found.parents and not (followed and found == root):
        raise MutualError(
            f"the {what} {str(path)!r} leads out of {folder} (to {found}); nothing there was touched, {fix}"
        )
    return found
