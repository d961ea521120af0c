"""Pseudo labels of one fold on disk, case by case, and the dataset that hands them to nnU-Net's loader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision, write_decisions
from nnunet_mutual.batches.locations import read_locations, write_locations
from nnunet_mutual.disk.case_files import Stored, open_stored
from nnunet_mutual.disk.files import read_json, write_json
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.disk.trainings import LATEST
from nnunet_mutual.disk.writing import full_disk_named, sweep, written
from nnunet_mutual.errors import MutualError

IDENTITY = "made_by.json"
CSV = "decisions.csv"
_DECISION: Shape = {
    **dict.fromkeys(("case", "source", "label", "reason", "networks"), str),
    "accepted": bool,
    **dict.fromkeys(("volume_ml", "agreement", "z", "decided_share"), (float, None)),
}


class PseudoStore:
    """A folder with, per case, a compressed map of codes, one of candidates, locations of every label, and decisions.

    A case is there when its decisions are: they are written last, each file under a temporary name first.

    Args:
        folder: below the output folder of the fold, so that two folds never meet.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def claim(self, identity: Mapping[str, Any]) -> bool:
        """Prepares the folder; empties it if what is there was made by other networks or settings.

        Returns:
            Whether something was thrown away.
        """
        file = self.folder / IDENTITY
        if file.exists() and read_json(file) == json.loads(json.dumps(identity)):
            for folder in (self.folder, self.folder / "candidates"):
                sweep(folder)
            return False
        old = self.folder.exists() and any(self.folder.iterdir())
        file.unlink(missing_ok=True)  # first: what is left of an interrupted removal must belong to nobody
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(file, identity)
        return old

    def has(self, case: str) -> bool:
        """Whether the pseudo labels of a case are complete."""
        return self._decisions(case).exists()

    def note(self, case: str, preprocessed: str | os.PathLike[str]) -> None:
        """Notes which files a case is made of; a copy of them has other times.

        Args:
            case: identifier.
            preprocessed: folder of nnU-Net's files of the cases.
        """
        self._noted(case).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._noted(case), self._sizes(case, preprocessed))

    def outdated(self, case: str, preprocessed: str | os.PathLike[str]) -> bool:
        """Whether a case that is there was preprocessed again since, as far as sizes of its compressed files tell.

        Args:
            case: identifier.
            preprocessed: folder of nnU-Net's files of the cases.
        """
        noted = self._noted(case)
        return noted.is_file() and read_json(noted) != self._sizes(case, preprocessed)

    @staticmethod
    def _sizes(case: str, preprocessed: str | os.PathLike[str]) -> list[int]:
        files = [Path(preprocessed) / f"{case}{ending}" for ending in (".b2nd", "_seg.b2nd")]
        return [file.stat().st_size if file.exists() else 0 for file in files]

    def _noted(self, case: str) -> Path:
        return self.folder / "candidates" / f"{case}.json"

    def forget(self, case: str) -> None:
        """Has the pseudo labels of a case made anew."""
        self._decisions(case).unlink()

    def require(self, table: AnnotationTable, cases: Iterable[str], labels: frozenset[str], stage1: str) -> None:
        """Verifies that stage 2 goes on with what it began with: it would be another training, and nobody would notice.

        Args:
            table: who drew what.
            cases: of the training.
            labels: of which pseudo labels were made.
            stage1: name of the checkpoint at the end of stage 1.

        Raises:
            MutualError: cases that lack one of these labels have no pseudo labels.
        """
        lost = [key for key in cases if labels - table.case(key).annotated and not self.has(key)]
        if lost:
            raise MutualError(
                f"{self.folder} lacks the pseudo labels of {len(lost)} cases ({', '.join(lost[:5])}"
                f"{', ...' if len(lost) > 5 else ''}) with which stage 2 began; put them back and continue with --c, "
                f"or repeat stage 2: copy {stage1} over {LATEST} and continue with --c"
            )

    def write(
        self,
        case: str,
        codes: np.ndarray,
        locations: Mapping[Any, np.ndarray],
        decisions: Sequence[Decision],
        *,
        candidates: np.ndarray | None = None,
        like: Any = None,
    ) -> None:
        """Writes a case.

        Args:
            case: identifier.
            codes: (1, *spatial) int16.
            locations: as nnU-Net's ``class_locations``: label or tuple of integers -> (n, 4).
            decisions: one per label that the case does not annotate.
            candidates: (1, *spatial) int16, likelier values for a reader, sure or not; -1 where nothing is open.
            like: nnU-Net's compressed label map, whose chunks fit the patches that a loader will read.
        """
        write_locations(self.folder / f"{case}.npz", locations)
        chunks = {name: getattr(like, name) for name in ("chunks", "blocks") if hasattr(like, name)}
        if candidates is not None:
            self._candidates(case).parent.mkdir(exist_ok=True)
            _write_map(self._candidates(case), candidates, **chunks)
        _write_map(self.folder / f"{case}.b2nd", codes, **chunks)
        write_json(self._decisions(case), [asdict(decision) for decision in decisions])

    def codes(self, case: str) -> Stored:
        """Returns the codes of a case, (1, *spatial) int16, decompressed where they are read."""
        return open_stored(self.folder / f"{case}.b2nd", self._anew())

    def candidates(self, case: str) -> np.ndarray | None:
        """Returns the likelier values of a case, (1, *spatial) int16; None if it was written without."""
        file = self._candidates(case)
        return open_stored(file, self._anew())[:] if file.exists() else None

    def locations(self, case: str) -> dict[Any, np.ndarray]:
        """Returns the voxels of each label of a case, as nnU-Net's ``class_locations``."""
        return read_locations(self.folder / f"{case}.npz", self._anew())

    def decisions(self, cases: Iterable[str]) -> list[Decision]:
        """Returns all decisions about some cases."""
        found = []
        for case in cases:
            entries = read_json(self._decisions(case))
            require_shape(entries, [_DECISION], self._decisions(case), self._anew())
            found += [Decision(**{name: entry[name] for name in _DECISION}) for entry in entries]
        return found

    def accepted(self, cases: Iterable[str]) -> dict[str, frozenset[str]]:
        """Returns the accepted labels of every case that has any."""
        found: dict[str, set[str]] = {}
        for decision in self.decisions(case for case in cases if self.has(case)):
            if decision.accepted:
                found.setdefault(decision.case, set()).add(decision.label)
        return {case: frozenset(labels) for case, labels in found.items()}

    def summarise(self, cases: Iterable[str]) -> list[Decision]:
        """Writes the CSV of all decisions and returns them."""
        decisions = self.decisions(cases)
        write_decisions(self.folder / CSV, decisions)
        return decisions

    def _anew(self) -> str:
        return f"delete {self.folder} and make the pseudo labels again: nnunet_mutual pseudo_label"

    def _decisions(self, case: str) -> Path:
        return self.folder / f"{case}.json"

    def _candidates(self, case: str) -> Path:
        return self.folder / "candidates" / f"{case}.b2nd"


def _write_map(file: Path, values: np.ndarray, **chunks: Any) -> None:
    codec = {"codec": blosc2.Codec.ZSTD, "nthreads": 1}  # others would not survive the fork of the loader's workers
    with written(file, ending=".b2nd", sweeping=False) as temporary, full_disk_named(file.parent):
        blosc2.asarray(np.ascontiguousarray(values), urlpath=str(temporary), cparams=codec, **chunks)


class PseudoDataset:
    """A dataset of nnU-Net in which the labels of some cases are codes of true and pseudo labels.

    Args:
        dataset: nnU-Net's.
        store: the pseudo labels.
    """

    def __init__(self, dataset: Any, store: PseudoStore):
        self.dataset = dataset
        self.parts = [dataset]
        self.store = store
        self.pseudo = frozenset(key for key in dataset.identifiers if store.has(key))

    @property
    def identifiers(self) -> list[str]:
        """The cases, as nnU-Net's loader asks for them."""
        return self.dataset.identifiers

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Returns data, labels, previous stage and properties of a case."""
        data, seg, previous, properties = self.dataset.load_case(identifier)
        if identifier in self.pseudo:
            seg = self.store.codes(identifier).array
            properties = {**properties, "class_locations": self.store.locations(identifier)}
        return data, seg, previous, properties
