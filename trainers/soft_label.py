"""A network that learns unlabelled images from another model's soft labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.transforms import SoftChannels
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Batch, Objective
from nnunet_mutual.objectives.soft_labels import SoftLabelObjective
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.preprocessing.soft_labels import soft_dataset
from nnunet_mutual.trainers.two_streams import TwoStreamSettings, TwoStreamTrainer

KNOWN = 0.5  # the probabilities of a voxel add up to 1 inside of an image and to 0 where there is no soft label


@dataclass(frozen=True)
class SoftLabelSettings(TwoStreamSettings):
    """Settings of :class:`SoftLabelTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        relearning: weight of the soft labels, next to the supervised loss of weight 1.
        relearning_contrast: share of the area-similarity contrast in it.
    """

    relearning: float = 1.0
    relearning_contrast: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.relearning < float("inf"):
            raise MutualError(f'setting "relearning" must be 0 or more, found {self.relearning}')
        if not 0 <= self.relearning_contrast <= 1:
            raise MutualError(f'setting "relearning_contrast" must be a share, found {self.relearning_contrast}')


class SoftLabelTrainer(TwoStreamTrainer):
    """One network learns labelled images from their labels and unlabelled ones from another model's soft labels.

    Source: pseudo-label re-learning (PReL) of Zhang et al., Med. Image Anal. 83, 102656 (2023), for any two models.
    """

    settings_class = SoftLabelSettings
    settings: SoftLabelSettings
    asks_nobody = False

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """One network."""
        return replace(super().needs(settings, table, cases), terms=("soft labels",))

    def open_unlabelled(self, validation: Iterable[str]) -> Any:
        """Opens the images that have soft labels."""
        return soft_dataset(
            Path(self.preprocessed_dataset_folder_base),
            self.plans_manager,
            self.configuration_manager,
            self.table,
            validation,
            len(self.table.channels) + self.label_manager.num_segmentation_heads,
        )

    def build_objectives(self) -> list[Objective]:
        """Returns what the network learns."""
        chosen = self.settings
        return [
            SoftLabelObjective(
                self.knowledge,
                self.supervised,
                self._soft,
                weight=chosen.relearning,
                area=chosen.relearning_contrast,
            )
        ]

    def training_transforms(self, transforms: Any) -> Any:
        """Moves soft labels with their images."""
        outputs = self.label_manager.num_segmentation_heads
        return SoftChannels(super().training_transforms(transforms), self.num_input_channels, outputs)

    def training_batch(self, batch: dict) -> Batch:
        """Takes the soft labels out of the images."""
        moved = super().training_batch(batch)
        assert moved.views is not None
        images = self.num_input_channels
        self._labels = moved.data[: moved.views.unlabelled, images:]
        return replace(moved, data=moved.data[:, :images])

    def _soft(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.views is not None
        inside = batch.views.inside[: len(self._labels)]
        if self.table.is_regions:
            return self._labels.clamp(0, 1), inside
        total = self._labels.sum(1, keepdim=True)
        return self._labels / total.clamp_min(KNOWN), inside & (total > KNOWN)
