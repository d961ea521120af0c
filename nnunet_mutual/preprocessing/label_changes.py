"""Which labels a training began with, so that a change under it is noticed."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import table_fingerprint
from nnunet_mutual.datasets.sync import first_difference
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.label_maps import TRUTH, Maps, read_maps, record_of, stat_of
from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.settings import BLOCK


def renew_truth(truth: Path, labels: Mapping[str, Path], ending: str) -> None:
    """Makes gt_segmentations what the raw label maps are: nnU-Net copies only files that are newer, and removes none.

    Args:
        truth: the folder.
        labels: the label map of each case.
        ending: of label maps.

    Raises:
        OSError: the disk is full or not writable; every file is the old or the new one.
    """
    for key, label in labels.items():
        copy = truth / (key + ending)
        if not copy.is_file() or not filecmp.cmp(label, copy, shallow=False):
            with written(copy) as temporary:
                shutil.copyfile(label, temporary)
    for path in truth.glob(f"[!.]*{ending}"):
        if path.name.removesuffix(ending) not in labels:
            path.unlink()


def difference(then: Mapping[str, Any], now: Mapping[str, Any], maps_then: Maps | None, maps_now: Maps) -> str | None:
    """Says what became different.

    Args:
        then: dataset.json.
        now: dataset.json.
        maps_then: label maps; None if nobody noted them.
        maps_now: label maps.
    """
    found = []
    if table_fingerprint(then) != table_fingerprint(now) or then.get("labels") != now.get("labels"):
        before, after = ({key: content.get(key) for key in (BLOCK, "labels")} for content in (then, now))
        place = first_difference(before, after)
        found.append(f"the annotation table in dataset.json ({place})")
    if maps_then is not None:
        common = [key for key in maps_now if key in maps_then and _differ(maps_then[key], maps_now[key])]
        if common:
            found.append(f"the label map{'s' if common[1:] else ''} of {shorten(common)}")
        for keys, what in ((maps_now.keys() - maps_then, "new"), (maps_then.keys() - maps_now, "gone")):
            if keys:
                found.append(f"the cases of the fold ({shorten(sorted(keys), 3)} {what})")
    return " and ".join(found) or None


class Labels:
    """What a fold learns from and is scored by: read once, then watched.

    Args:
        data: folder of the preprocessed cases.
        content: dataset.json of the training.
        keys: cases of the fold.
    """

    def __init__(self, data: Path, content: Mapping[str, Any], keys: Iterable[str]):
        self._data = data
        self._content = content
        self._keys = sorted(set(keys))
        self.maps = self._read()
        self._seen = self._state()
        self._changed: str | None = None

    def since(self, content: Mapping[str, Any], maps: Maps | None) -> str | None:
        """Says what became different since a checkpoint was written."""
        return difference(content, self._content, maps, self.maps)

    def news(self) -> str | None:
        """Says what became different since this process began; cheap while nothing did."""
        if (state := self._state()) != self._seen:
            self._seen = state
            try:
                now = read_object(self._data.parent / "dataset.json")
            except MutualError as error:  # a training must not end because of that
                self._changed = str(error)
            else:
                self._changed = difference(self._content, now, self.maps, self._read())
        return self._changed

    def _read(self) -> Maps:
        return read_maps(self._data, self._keys, self._content["file_ending"])

    def _state(self) -> list[Any]:
        """Changes whenever a file of a case is replaced, by which the folders that hold it change."""
        base = self._data.parent
        paths = [base / "dataset.json", record_of(self._data), self._data, base / TRUTH]
        return [(s.st_mtime_ns, s.st_size) if (s := stat_of(path)) else None for path in paths]


class LabelWatch:
    """What a training says and refuses when its labels change; the first process reads, and the others hear of it.

    Args:
        labels: of the fold; None in other processes than the first.
        agree: returns the value of the first process.
        say: prints to the log.
        folder: output folder of the training.
    """

    def __init__(
        self,
        labels: Labels | None,
        agree: Callable[[str | None], str | None],
        say: Callable[[str], Any],
        folder: str,
    ):
        self._labels = labels
        self._agree = agree
        self._say = say
        self._folder = folder
        self._began = None if labels is None else labels.maps
        self._other: str | None = None  # how they differ from those of the checkpoint that was loaded

    @property
    def began(self) -> Maps | None:
        """Label maps with which the training began; None where nobody knows."""
        return self._began

    def compare(self, content: Mapping[str, Any], maps: Maps | None) -> None:
        """Notes how the labels differ from those that a checkpoint was trained with.

        Args:
            content: dataset.json of the checkpoint.
            maps: its label maps; None in those of version 0.1.0.
        """
        said = None
        if self._labels is not None:
            said = self._labels.since(content, maps)
            self._began = self._labels.maps if maps is None else maps
            if maps is None:
                self._say(
                    "The checkpoint does not say with which label maps the training began (version 0.1.0 did not note "
                    "them), so a change of them since would not be noticed"
                )
        self._other = self._agree(said)

    def require_same(self) -> None:
        """Refuses to train on with other labels.

        Raises:
            MutualError: says what changed, and what can be done.
        """
        if self._other:
            raise MutualError(
                f"{self._other} changed since this training began, and going on would mix what was learnt from "
                f"either: train anew without --c (copy {self._folder} first if you need it; -pretrained_weights COPY/"
                "checkpoint_latest.pth starts from its weights), or put the old labels back (nnunet_mutual accept "
                "keeps them in labelsTr_before_1) and preprocess again; a finished model can be scored with the new "
                "labels by --val instead of --c"
            )

    def look(self) -> None:
        """Says, in the first process, that labels changed under the training."""
        said = self._labels.news() if self._labels is not None else None
        if said:
            self._say(
                f"WARNING: {said} changed since this process began: from now on it may learn from either; the training "
                "goes on and is kept, but nobody should use its model without asking why; --c will refuse it, train "
                "anew"
            )

    def before_validation(self) -> None:
        """Says that a model is scored with other labels than those it learnt.

        Raises:
            MutualError: they changed since this process read the table, which no longer says what the label maps hold.
        """
        said = self._agree(self._labels.news() if self._labels is not None else None)
        if said:
            raise MutualError(
                f"{said} changed while this process trained; the training is over and saved in {self._folder}, but its "
                "table is the old one, so nothing was validated: train anew, or score this model with the new labels "
                "by --val"
            )
        if self._other:
            self._say(
                f"WARNING: {self._other} changed since this training began: the model learnt the old labels and is "
                "scored with the new ones"
            )


def _differ(then: Sequence[Any], now: Sequence[Any]) -> bool:
    if then[2] and now[2]:
        return bool(then[2] != now[2])
    return list(then[:2]) != list(now[:2])
