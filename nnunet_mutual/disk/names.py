"""Names from datasets, plans, tables and archives that become paths: they never leave their folder."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_mutual.errors import MutualError

_FORBIDDEN = re.compile(r"[/\\:\x00-\x1f\x7f]")  # separators of any system, drive letters, control characters


def safe_name(name: object, what: str) -> str:
    """Returns a name that is one component of a path.

    Args:
        name: from a file that somebody else may have written.
        what: it names, for the sentence: 'case', 'configuration', '"file_ending" of dataset.json'.

    Raises:
        MutualError: not a string, empty, or it would name another folder.
    """
    if not isinstance(name, str) or not name.strip() or name in (".", "..") or _FORBIDDEN.search(name):
        raise MutualError(
            f"the {what} {name!r} cannot be used as a file name (it is empty or holds a slash, a colon or a control "
            "character); rename it"
        )
    return name


def inside(folder: Path, path: str | Path, what: str) -> Path:
    """Returns ``folder / path``, after symbolic links are resolved, if that lies in the folder.

    Args:
        folder: what must not be left.
        path: relative to it; absolute is refused unless it lies inside.
        what: the path names, for the sentence: 'journal entry'.

    Raises:
        MutualError: it lies outside.
    """
    root = folder.resolve()
    found = (root / path).resolve()
    if found != root and root not in found.parents:
        raise MutualError(
            f"the {what} {str(path)!r} leads out of {folder} (to {found}); nothing there was touched, correct the entry"
        )
    return found
