"""The preprocessed cases of a fold of a training: how they are split, and whether their labels change under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_mutual.annotation.group_notes import grouped_otherwise
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.datasets.split_problems import fold_problems
from nnunet_mutual.datasets.splits import provide_splits
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ
from nnunet_mutual.disk.label_maps import outdated
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.log import RunLog
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.label_changes import Labels, LabelWatch
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED, unlabelled_keys

Split = tuple[list[str], list[str]]


class FoldData:
    """What a training knows about its cases.

    Args:
        table: who drew what.
        fold: number, or "all".
        folder: of the configuration's preprocessed cases.
        previous_stage: folder with the segmentations of a cascade's first stage.
        dataset_json: of the preprocessed dataset.
        ranks: of the training; the first process reads labels.
        say: prints to the log.
        output: folder of the fold of the training.
        preprocess: the command that makes the preprocessed cases.

    Attributes:
        asked: whether networks are only asked: cases that came after their training are left out then.
    """

    def __init__(
        self,
        table: AnnotationTable,
        fold: int | str,
        folder: str,
        previous_stage: str | None,
        dataset_json: dict[str, Any],
        *,
        ranks: Ranks,
        say: Callable[[str], Any],
        output: str,
        preprocess: str,
    ):
        self.table = table
        self.fold = fold
        self.folder = folder
        self.previous_stage = previous_stage
        self.dataset_json = dataset_json
        self.ranks = ranks
        self.say = say
        self.output = output
        self.preprocess = preprocess
        self._split: Split | None = None
        self.asked = False

    @cached_property
    def dataset_class(self) -> Any:
        """nnU-Net's, of the folder's files."""
        return infer_dataset_class(self.folder)

    def keys(self) -> list[str]:
        """Returns all cases of the folder."""
        return self._known(self.dataset_class.get_identifiers(self.folder))

    def _known(self, keys: Sequence[str]) -> list[str]:
        """Leaves out cases that came after a training that is only asked: its table does not list them."""
        return [key for key in keys if not (self.asked and self.table.declared) or key in self.table.cases]

    def split(self, draw: Callable[[], Split]) -> Split:
        """Returns the training and the validation cases of the fold.

        By annotated set with patients together, or as an existing splits_final.json says.

        Args:
            draw: nnU-Net's way, from splits_final.json.

        Raises:
            MutualError: raw and preprocessed tables differ, the table lacks a case, or splits_final.json is wrong.
        """
        if self._split is None:
            difference = raw_and_preprocessed_differ(Path(self.folder).parent.name)
            if difference:  # before a split is made of a wrong table
                raise MutualError(difference)
            keys = self._preprocessed()
            self.table.require(keys)
            file = Path(self.folder).parent / "splits_final.json"
            if self.fold != "all" and not (self.asked and file.is_file()):
                said = provide_splits(self.table, keys, self.fold, file)
                if said:
                    self.say(said)
            training, validation = draw()
            split = self._known(training), self._known(validation)
            self._require_first_stage(sorted({*split[0], *split[1]}))
            self._split = split
        return list(self._split[0]), list(self._split[1])

    def _preprocessed(self) -> list[str]:
        """Returns all cases of the folder, which must be there, made of the label maps that are in gt_segmentations."""
        if not Path(self.folder).is_dir():
            raise MutualError(
                f"{self.folder} does not exist, so its configuration is not preprocessed; run {self.preprocess}"
            )
        keys = self.keys()
        stale = [] if self.asked else outdated(Path(self.folder), keys, self.dataset_json["file_ending"])
        if stale:
            raise MutualError(
                f"the label maps of {len(stale)} case(s) ({shorten(stale, 3)}) were drawn anew, and preprocessed for "
                f"another configuration than this one; run {self.preprocess}"
            )
        other = [] if self.asked else grouped_otherwise(Path(self.folder), self.table, keys)
        if other:
            raise MutualError(
                f"{len(other)} case(s) of {self.folder} ({shorten(other, 3)}) were preprocessed for other modality "
                f"groups, or lacked other channels, than dataset.json declares; run {self.preprocess}"
            )
        return keys

    def _require_first_stage(self, keys: Sequence[str]) -> None:
        """Verifies that the first stage of a cascade has predicted every case: each fold those that it validates."""
        place = self.previous_stage
        endings = (".b2nd", ".npz", ".npy")  # the last two of data of an older nnU-Net
        files = [] if place is None else [(key, Path(place) / key) for key in keys]
        absent = [key for key, file in files if not any(Path(f"{file}{ending}").is_file() for ending in endings)]
        if absent:
            raise MutualError(
                f"the first stage has not predicted {len(absent)} case(s) ({shorten(absent, 3)}; {place}); train and "
                "validate all its folds, and list a case that no fold validates among those of one (splits_final.json)"
            )

    @property
    def cases(self) -> Fold:
        """The cases of the fold, once they are split."""
        assert self._split is not None
        return Fold(self.table, *self._split, self.dataset_class, self.folder, self.previous_stage)

    @cached_property
    def labels(self) -> LabelWatch:
        """Whether the labels of the fold change under the training; what they were when it was first asked for."""
        read = None
        if self.ranks.rank == 0:
            read = Labels(Path(self.folder), self.dataset_json, [*self.cases.training, *self.cases.validation])
        return LabelWatch(read, self.ranks.first, self.say, self.output)

    def warn(self, log: RunLog, trainer: str, acted: Acted) -> None:
        """Says what to know of the split, and of images that are preprocessed and not learnt from."""
        images = Path(self.folder).parent / UNLABELLED / Path(self.folder).name
        found = [] if acted.unlabelled or acted.idle else [path.stem for path in images.glob("*.pkl")]
        left_out = len(unlabelled_keys(self.table, found, () if self.fold == "all" else self.cases.validation))
        if left_out:
            said = f"{left_out} unlabelled image(s) are at hand, and {trainer} does not learn from them"
            log.say(f"{said}; MeanTeacherTrainer does")
        split = {"train": list(self.cases.training), "val": list(self.cases.validation)}
        for problem in [] if self.fold == "all" else fold_problems(self.table, split, int(self.fold)):
            log.warn(f"{problem.place}: {problem.text}")
