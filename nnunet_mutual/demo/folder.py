"""The folder that a demo works in: its own, never a user's, and what is finished in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.locate import ROOTS
from nnunet_mutual.disk.shapes import Shape
from nnunet_mutual.disk.workplace import MARK, read_workplace
from nnunet_mutual.errors import MutualError

DEFAULT = "nnunet_mutual_demo"
RECORD = "demo.json"
MARK_TEXT = "nnunet_mutual demo"
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
        before = read_workplace(path, RECORD, _SHAPE, maker=MARK_TEXT, option="--folder") or {}
        demo = cls(path, settings)
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
