"""A network that learns unlabelled images from another model's soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import SoftStreams, TwoStreams
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.relearning import SoftLabelObjective
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.preprocessing.soft_labels import soft_dataset
from nnunet_mutual.settings import FROM_ANYWHERE, TwoStreamSettings, require_not_negative
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.mutual_cross_modal import MutualCrossModalTrainer
from nnunet_mutual.trainers.unlabelled import (
    NO_CASCADE,
    said,
    sizes_of,
    two_stream_needs,
)


@dataclass(frozen=True)
class SoftLabelSettings(TwoStreamSettings):
    """Settings of :class:`SoftLabelTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        relearning: weight of the soft labels, next to the supervised loss of weight 1.
        relearning_contrast: share of the area-similarity contrast in it.
    """

    relearning: float = 1.0
    relearning_contrast: float = 0.1

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        return FROM_ANYWHERE

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("relearning", self.relearning)
        if not 0 <= self.relearning_contrast <= 1:
            raise MutualError(f'setting "relearning_contrast" must be a share, found {self.relearning_contrast}')


class SoftLabelTrainer(MutualTrainer):
    """One network learns labelled images from their labels and unlabelled ones from another model's soft labels.

    Source: pseudo-label re-learning (PReL) of Zhang et al., Med. Image Anal. 83, 102656 (2023), for any two models.
    """

    paper = MutualCrossModalTrainer.paper
    settings_class = SoftLabelSettings
    settings: SoftLabelSettings
    stream: TwoStreams
    no_cascade = NO_CASCADE

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """One network."""
        return replace(two_stream_needs(settings, table, cases), terms=("soft labels",))

    def build_stream(self) -> TwoStreams:
        """Returns labelled images and those that have soft labels."""
        folder = Path(self.preprocessed_dataset_folder_base)
        validation = () if self.fold == "all" else self.do_split()[1]
        channels = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        outputs = self.label_manager.num_segmentation_heads
        managers = self.plans_manager, self.configuration_manager
        images = soft_dataset(folder, *managers, self.table, validation, channels + outputs)
        parts = self.fold_cases, self.label_manager, images, sizes_of(self)
        return said(self, SoftStreams(*parts, channels=channels, outputs=outputs))

    def build_objectives(self) -> list[Objective]:
        """Returns what the network learns."""
        chosen = self.settings
        return [
            SoftLabelObjective(
                self.knowledge,
                self.supervised,
                weight=chosen.relearning,
                area=chosen.relearning_contrast,
            )
        ]

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns one network, and its moving average where that is asked for."""
        return self.make_peers(objectives)
