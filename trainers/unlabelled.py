"""What trainers with unlabelled images share: which images, and how a batch is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import StreamSizes, TaughtStreams, TwoStreams
from nnunet_mutual.planning.needs import Needs, one_network
from nnunet_mutual.preprocessing.unlabelled import unlabelled_dataset
from nnunet_mutual.settings import TwoStreamSettings
from nnunet_mutual.trainers.base import MutualTrainer

NO_CASCADE = "whose second stage would need the first one's prediction of every unlabelled image"

T = TypeVar("T", bound=TwoStreams)


def two_stream_needs(settings: TwoStreamSettings, table: AnnotationTable, cases: Sequence[str]) -> Needs:
    """A batch has a patch of each stream at least, or as many as the settings say."""
    labelled, unlabelled = settings.labelled_per_batch or 1, settings.unlabelled_per_batch or 1
    return replace(one_network(settings, table, cases), labelled=labelled, unlabelled=unlabelled)


def sizes_of(trainer: MutualTrainer) -> StreamSizes:
    """Divides the batch of a process as the settings, of two streams, say."""
    chosen: Any = trainer.settings
    planned = ceil(trainer.configuration_manager.batch_size / (trainer.ranks.size if trainer.is_ddp else 1))
    return StreamSizes.of(
        planned,
        chosen.labelled_per_batch,
        chosen.unlabelled_per_batch,
        forced=chosen.unlabelled_foreground,
        foreground_epochs=min(chosen.unlabelled_foreground_epochs, max(1, trainer.num_epochs // 20)),
    )


def unlabelled_images(trainer: MutualTrainer) -> Any:
    """Opens the images of imagesUn, except those of the patients of validation cases; None without any."""
    folder = Path(trainer.preprocessed_dataset_folder_base)
    validation = () if trainer.fold == "all" else trainer.do_split()[1]
    managers = trainer.plans_manager, trainer.configuration_manager
    return unlabelled_dataset(folder, *managers, trainer.table, validation, trainer.print_to_log_file)


def said(trainer: MutualTrainer, stream: T) -> T:
    """Tells the log what is in a batch, and returns the stream."""
    trainer.print_to_log_file(stream.describe(trainer.configuration_manager.batch_size))
    return stream


def taught_streams(trainer: MutualTrainer, *, students: int = 1) -> TwoStreams:
    """Returns labelled and unlabelled images, of which students see stronger views than their teachers.

    Args:
        trainer: with the settings of a teacher.
        students: how many see a view of their own; 0 where there is no teacher, and all see the images as they are.
    """
    parts = trainer.fold_cases, trainer.label_manager, unlabelled_images(trainer), sizes_of(trainer)
    predicted = trainer.foreground.locations
    chosen: Any = trainer.settings
    if not students:
        return said(trainer, TwoStreams(*parts, predicted=predicted))
    views: dict[str, Any] = {"partners": chosen.paste_from, "views": students}
    views |= {"intensity": chosen.strong_intensity, "pose": chosen.strong_pose}
    return said(trainer, TaughtStreams(*parts, **views, predicted=predicted))


def ask_average(trainer: MutualTrainer, number: int, images: Tensor) -> Tensor:
    """Returns the logits of a moving average, which another process may have.

    Args:
        trainer: whose averages are asked.
        number: of the average.
        images: (B, M, *spatial).
    """
    alone = len(images) == 1 and images.device.type == "cpu"
    # PyTorch convolves a single sample on a CPU without oneDNN, which takes longer than two samples with it.
    shown = images.expand(2, *images.shape[1:]) if alone else images
    logits = trainer.ranks.answer(number, lambda: trainer.peers.ask(number, shown)[0])
    return logits[:1] if alone else logits
