"""The folder that a demo works in: its own, never a user's, and what is finished in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_json, write_json
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.errors import MutualError

DEFAULT = "nnunet_mutual_demo"
RECORD = "demo.json"
MARK = "made by"
MARK_TEXT = "nnunet_mutual demo"
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_SHAPE: Shape = {"settings": dict, "finished": [str]}
HEAVY = (*ROOTS, "predictions", "truth")
RESULTS = ("demo_results.json", "demo.png", "report", "logs")


@dataclass
class DemoFolder:
    """A folder with the record of the steps that are finished in it.

    Attributes:
        path: the folder, absolute.
        settings: what the results depend on; a demo with other settings starts over.
        finished: names of finished steps.
    """

    path: Path
    settings: Mapping[str, Any]
    finished: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: str | None, settings: Mapping[str, Any], last: str) -> DemoFolder:
        """Prepares a new folder, or one of an interrupted demo to go on with.

        Args:
            folder: where to work; ``./nnunet_mutual_demo`` if None.
            settings: what the results depend on.
            last: name of the last step: once it is finished, a demo starts from the beginning.

        Raises:
            MutualError: the folder holds something else, lies in a folder of the user's nnU-Net, or cannot be written.
        """
        path = Path(folder or DEFAULT).expanduser().resolve()
        _refuse_foreign(path)
        record = path / RECORD
        demo = cls(path, settings)
        before = read_json(record) if record.is_file() else {}
        if before.get("settings") == settings and last not in before["finished"]:
            demo.finished = list(before["finished"])
            if demo.finished:
                print(f"Going on with the demo in {path}; finished: {', '.join(demo.finished)}")
            return demo
        try:
            path.mkdir(parents=True, exist_ok=True)
            demo._save()
            demo.remove((*HEAVY, *RESULTS))
        except OSError as error:
            raise MutualError(
                f"{path} cannot be written ({error.strerror or error}); give another folder with --folder"
            ) from None
        return demo

    def finish(self, step: str) -> None:
        """Records that a step is finished."""
        self.finished.append(step)
        self._save()

    def remove(self, names: tuple[str, ...]) -> None:
        """Deletes files and folders that a demo makes."""
        for name in names:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _save(self) -> None:
        content = {MARK: MARK_TEXT, "settings": dict(self.settings), "finished": self.finished}
        write_json(self.path / RECORD, content)


def _refuse_foreign(path: Path) -> None:
    for root in ROOTS:
        if os.environ.get(root):
            own = Path(os.environ[root]).expanduser().resolve()
            if path == own or own in path.parents:
                raise MutualError(
                    f"{path} lies in your {root} ({own}), which the demo never touches; give another folder with "
                    "--folder"
                )
    if path.exists() and not path.is_dir():
        raise MutualError(f"{path} is a file; give a folder with --folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    record = path / RECORD
    content = read_json(record) if record.is_file() else None
    if not isinstance(content, dict) or content.get(MARK) != MARK_TEXT:
        raise MutualError(
            f"{path} is not empty and was not made by a demo, so nothing in it was touched; give an empty or new "
            "folder with --folder"
        )
    require_shape(content, _SHAPE, record, f"delete {path} to begin anew, or give another folder with --folder")
