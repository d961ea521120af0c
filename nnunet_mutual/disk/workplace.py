"""Folders of commands that keep everything in a place of their own: never a user's, never another command's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_json
from nnunet_mutual.disk.locate import ROOTS
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.errors import MutualError

MARK = "made by"


def read_workplace(path: Path, record: str, shape: Shape, *, maker: str, option: str) -> dict[str, Any] | None:
    """Returns the record of a folder that the command made before; None where it is new or empty.

    Args:
        path: the folder, resolved.
        record: name of the JSON file in it that says who made it.
        shape: of that file.
        maker: the command, 'nnunet_mutual demo'.
        option: that names another folder.

    Raises:
        MutualError: it is a file, lies in a folder of the user's nnU-Net, or holds something else.
    """
    what = maker.removeprefix("nnunet_mutual ")
    for root in ROOTS:
        if os.environ.get(root):
            own = Path(os.environ[root]).expanduser().resolve()
            if path == own or own in path.parents:
                raise MutualError(
                    f"{path} lies in your {root} ({own}), which a {what} never touches; give another folder with "
                    f"{option}"
                )
    if path.exists() and not path.is_dir():
        raise MutualError(f"{path} is a file; give a folder with {option}")
    if not path.is_dir() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return None  # hidden ones may be what a killed process left
    file = path / record
    content = read_json(file) if file.is_file() else None
    if not isinstance(content, dict) or content.get(MARK) != maker:
        raise MutualError(
            f"{path} is not empty and was not made by a {what}, so nothing in it was touched; give an empty or new "
            f"folder with {option}"
        )
    require_shape(content, shape, file, f"delete {path} to begin anew, or give another folder with {option}")
    return content


@contextmanager
def own_roots(path: Path) -> Iterator[None]:
    """Points nnU-Net's variables to folders in a workplace, as long as the context lasts."""
    before = {name: os.environ.get(name) for name in ROOTS}
    for name in ROOTS:
        (path / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(path / name)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
