"""What trainers with unlabelled images share: which images, batches of two streams, and what to do without any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.transforms import marking, split_mark
from nnunet_mutual.batches.two_streams import TwoStreamDataset, TwoStreamLoader
from nnunet_mutual.batches.views import Partners, strengthen
from nnunet_mutual.engine.foreground import PredictedForeground
from nnunet_mutual.engine.signals import StopSignals
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Batch, Views
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.preprocessing.unlabelled import unlabelled_dataset
from nnunet_mutual.settings import PeersSettings
from nnunet_mutual.trainers.base import MutualTrainer


@dataclass(frozen=True)
class TwoStreamSettings(PeersSettings):
    """Settings of trainers with unlabelled images.

    Attributes:
        labelled_per_batch: labelled patches in a batch (of one GPU); null: half of the plans' batch.
        unlabelled_per_batch: unlabelled ones; null: the other half, at least one.
        ramp: share of the training during which the weights of unlabelled terms rise.
        unlabelled_foreground: share of the unlabelled patches that are centred on what the network predicts as
            foreground, which is worth its time where organs are small; 0 for patches from anywhere.
        unlabelled_foreground_epochs: epochs after which the predictions of all unlabelled images are renewed.
    """

    labelled_per_batch: int | None = None
    unlabelled_per_batch: int | None = None
    ramp: float = 0.2
    unlabelled_foreground: float = 0.0
    unlabelled_foreground_epochs: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labelled_per_batch", "unlabelled_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise MutualError(f'setting "{name}" must be at least 1, found {getattr(self, name)}')
        if not 0 <= self.unlabelled_foreground <= 1:
            raise MutualError(
                f'setting "unlabelled_foreground" must be a share, from 0 to 1, found {self.unlabelled_foreground}'
            )
        if self.unlabelled_foreground_epochs < 1:
            raise MutualError(
                f'setting "unlabelled_foreground_epochs" must be at least 1, found {self.unlabelled_foreground_epochs}'
            )
        if not 0 < self.ramp <= 1:
            raise MutualError(f'setting "ramp" must be a share of the training, above 0, found {self.ramp}')


@dataclass(frozen=True)
class TeacherSettings(TwoStreamSettings):
    """Settings of trainers whose student sees stronger views of unlabelled images than its teacher.

    Attributes:
        ema: decay of the teacher's moving average, above 0.
        strong_intensity: whether the student sees unlabelled images with other intensities than the teacher.
        paste_from: samples of which boxes are pasted into the student's unlabelled images: "any", "unlabelled",
            "labelled" or "off".
    """

    ema: float = 0.99
    strong_intensity: bool = True
    paste_from: Partners = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema == 0:
            raise MutualError('setting "ema" must be above 0: without a moving average there is no teacher')


class TwoStreamTrainer(MutualTrainer):
    """Batches hold unlabelled patches, then labelled ones; a base class.

    Unlabelled are the images of imagesUn, except those of validation patients, and training cases that annotate
    nothing. ``batch_size`` is the number of labelled patches.
    """

    settings_class = TwoStreamSettings
    settings: TwoStreamSettings
    asks_nobody = True  # whether training cases that annotate nothing are of use, without anything but the image
    batch_size: int
    oversample_foreground_percent: float
    unlabelled_per_batch: int

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """A batch has a patch of each stream at least, or as many as the settings say."""
        labelled, unlabelled = settings.labelled_per_batch or 1, settings.unlabelled_per_batch or 1
        return replace(super().needs(settings, table, cases), labelled=labelled, unlabelled=unlabelled)

    def plan_stages(self) -> None:
        """Finds the unlabelled images and divides the batch."""
        if self.is_cascaded:
            raise MutualError(
                f"{type(self).__name__} does not train cascades, whose second stage would need the first one's "
                "prediction of every unlabelled image; train 3d_fullres, or the cascade with PartialTrainer"
            )
        self.forced_share = self.oversample_foreground_percent  # before nnU-Net makes it 0 or 1 in a process of DDP
        self.foreground = PredictedForeground(Path(self.output_folder) / "unlabelled_foreground")
        training, validation = self.do_split()
        self.labelled_keys = [key for key in training if self.table.case(key).annotated]
        self.images = self.open_unlabelled(() if self.fold == "all" else validation)
        further = [] if self.images is None else list(self.images.identifiers)
        self.unlabelled_keys = (sorted({*training} - {*self.labelled_keys}) if self.asks_nobody else []) + further
        if not self.unlabelled_keys:
            self.unlabelled_per_batch = 0
            self.print_to_log_file(
                "There are no unlabelled images (imagesUn, or cases that annotate nothing), so there is nothing to be "
                "mutual about; trained as by PartialTrainer"
            )
            return
        whole = ceil(self.configuration_manager.batch_size / (self.ranks.size if self.is_ddp else 1))
        whole = max(2, whole)
        labelled, unlabelled = self.settings.labelled_per_batch, self.settings.unlabelled_per_batch
        self.unlabelled_per_batch = unlabelled or max(1, whole - (labelled or ceil(whole / 2)))
        self.labelled_per_batch = labelled or max(1, whole - self.unlabelled_per_batch)
        self.print_to_log_file(
            f"{len(self.labelled_keys)} cases with labels, {len(self.unlabelled_keys)} unlabelled images; a batch "
            f"holds {self.labelled_per_batch} and {self.unlabelled_per_batch} of them (the plans' batch size is "
            f"{self.configuration_manager.batch_size})"
        )

    def open_unlabelled(self, validation: Iterable[str]) -> Any:
        """Opens the images of imagesUn, except those of the patients of validation cases; None without any."""
        return unlabelled_dataset(
            Path(self.preprocessed_dataset_folder_base),
            self.plans_manager,
            self.configuration_manager,
            self.table,
            validation,
        )

    def start_stage(self) -> None:
        """Composes batches, after nnU-Net set the size of its own; in each process of DDP as in a single one."""
        if self.unlabelled_per_batch:
            self.batch_size, self.oversample_foreground_percent = self.labelled_per_batch, self.forced_share
        super().start_stage()

    def before_epoch(self, signals: StopSignals) -> None:
        """Renews, from time to time, where foreground is predicted in unlabelled images."""
        if not self.unlabelled_per_batch or not self.settings.unlabelled_foreground:
            return
        if self.current_epoch == 0:
            self.foreground.forget()
        elif self.current_epoch % self.settings.unlabelled_foreground_epochs == 0:
            self.print_to_log_file(f"predicting {len(self.unlabelled_keys)} unlabelled images to draw patches from")
            dataset, _ = self.get_tr_and_val_datasets()
            self.foreground.renew(self, dataset, self.unlabelled_keys)

    def build_knowledge(self) -> Knowledge:
        """Unlabelled images annotate nothing."""
        further = [] if self.images is None else self.images.identifiers
        return Knowledge(self.table, self._table_keys(), self.label_manager.num_segmentation_heads, unlabelled=further)

    # Data

    @property
    def _mark(self) -> int:
        """Value of the background inside of images, in the training loader."""
        return int(max(self.label_manager.all_labels)) + 2  # one more may be the ignore label

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Training loads from both streams (nnU-Net's hook)."""
        training, validation = super().get_tr_and_val_datasets()
        if not self.unlabelled_per_batch:
            return training, validation
        return TwoStreamDataset(training, self.images, self.labelled_keys, self.foreground), validation

    def training_loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """Adds the unlabelled stream."""
        if not self.unlabelled_per_batch:
            return super().training_loader(keys)
        return partial(
            TwoStreamLoader,
            unlabelled=self.unlabelled_keys,
            number=self.unlabelled_per_batch,
            forced=self.settings.unlabelled_foreground,
        )

    def training_transforms(self, transforms: Any) -> Any:
        """Marks where the images are."""
        return marking(self._mark, transforms) if self.unlabelled_per_batch else transforms

    def training_regions(self, regions: Any) -> Any:
        """One more region: the image."""
        if regions is None or not self.unlabelled_per_batch:
            return regions
        return [*regions, tuple(range(1, self._mark + 1))]

    def training_batch(self, batch: dict) -> Batch:
        """Reads the mark; where there is a teacher, the student's view of the unlabelled images is a stronger one."""
        moved = self.to_batch(batch)
        if not self.unlabelled_per_batch:
            return moved
        regions = len(self.table.labels) if self.label_manager.has_regions else None
        target, inside = split_mark(moved.target, self._mark, regions)
        moved = replace(moved, target=target, views=Views(self.unlabelled_per_batch, inside))
        if not isinstance(self.settings, TeacherSettings):
            return moved
        return strengthen(moved, intensity=self.settings.strong_intensity, partners=self.settings.paste_from)
