"""The cases of a fold, as training, validation and pseudo labels open them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.label_maps import TRUTH
from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class Fold:
    """The preprocessed cases of a fold.

    Attributes:
        table: who drew what.
        training: keys of the training cases.
        validation: keys of the validation cases.
        dataset_class: nnU-Net's, of the folder's files.
        folder: of the configuration's preprocessed cases.
        previous_stage: folder with the segmentations of a cascade's first stage.
    """

    table: AnnotationTable
    training: Sequence[str]
    validation: Sequence[str]
    dataset_class: Any
    folder: str
    previous_stage: str | None = None

    def open(self, keys: Iterable[str]) -> Any:
        """Returns nnU-Net's dataset of some cases."""
        return self.dataset_class(self.folder, list(keys), self.previous_stage)

    @property
    def references(self) -> Path:
        """The folder of the reference label maps, as they were drawn."""
        return Path(self.folder).parent / TRUTH

    def require_references(self, ending: str) -> None:
        """Verifies that there is a reference label map of every validation case.

        Args:
            ending: of label maps.

        Raises:
            MutualError: one is missing.
        """
        files = [self.references / (key + ending) for key in self.validation]
        if missing := [file for file in files if not file.is_file()]:
            raise MutualError(
                f"{missing[0]} is missing, with which a prediction is compared ({len(missing)} of {len(files)} cases); "
                "copy it there from labelsTr of the raw dataset"
            )
