"""Several modalities in training, one network for each group of them, each deployed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nnunet_mutual.annotation.modality_groups import ModalityGroups, require_preprocessed_by_group
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import ModalityStreams, TwoStreams
from nnunet_mutual.engine.checkpoints import save_atomically
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.engine.soft_views import over_views
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.area_similarity import PUBLISHED, ROBUST
from nnunet_mutual.modules.input_columns import clear_unused, fill_unseen
from nnunet_mutual.objectives import Batch, Objective
from nnunet_mutual.objectives.crossmodal import CrossModalCourse, CrossModalLoss, CrossModalObjective
from nnunet_mutual.objectives.crossmodal_teaching import ModalTeacherObjective, ModalTeaching
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import FROM_ANYWHERE, TwoStreamSettings, planned_memory, require_not_negative
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.unlabelled import (
    NO_CASCADE,
    ask_average,
    said,
    sizes_of,
    two_stream_needs,
    unlabelled_images,
)

LEAST_UNLABELLED = 2  # one sample alone has no opposite
TEMPERATURE = 0.5  # of what averages say together, as of a mean teacher


@dataclass(frozen=True)
class MutualCrossModalSettings(TwoStreamSettings):
    """Settings of :class:`MutualCrossModalTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        form: "averages": from ramp to end, of each class the moving average that knows it best teaches all networks
            unlabelled images, while these see other intensities and boxes of other images; "contrast": contrast and
            consistency, then re-learning from the better network, as in the paper.
        loss: weights of the terms of "contrast".
        taught: weight of what averages teach, next to the supervised loss of weight 1; of "averages".
        relearn_from: share of the training after which worse networks re-learn from better ones.
        all_from: share after which all re-learn from each other.
        relearning_contrast: share of the contrast in re-learning.
        passes: views of an image over which a teacher's soft label is averaged: as it is, then mirrored and noised.
        queue: earlier images with which samples are contrasted; 0 for none.
        published: the contrast of the paper, to compare with: without queue, mass gate, mask of similar places and
            positive term.
    """

    earlier: ClassVar[dict[str, Any]] = {"form": "contrast"}
    ema: float = 0.99
    form: Literal["averages", "contrast"] = "averages"
    taught: float = 0.5
    loss: CrossModalLoss = field(default_factory=CrossModalLoss)
    relearn_from: float = 0.63
    all_from: float = 0.93
    relearning_contrast: float = 0.1
    passes: int = 2
    queue: int = 32
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema == 0:
            raise MutualError('setting "ema" must be above 0: without moving averages there are no teachers')
        if not 0 <= self.relearn_from <= self.all_from <= 1:
            raise MutualError(
                'settings "relearn_from" and "all_from" must be shares of the training in this order, found '
                f"{self.relearn_from} and {self.all_from}"
            )
        if not 0 <= self.relearning_contrast <= 1:
            raise MutualError(f'setting "relearning_contrast" must be a share, found {self.relearning_contrast}')
        if self.passes < 1 or self.queue < 0:
            raise MutualError(
                f'settings "passes" and "queue" must be at least 1 and 0, found {self.passes} and {self.queue}'
            )
        require_not_negative("taught", self.taught)

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        course = ("loss", "relearn_from", "all_from", "relearning_contrast", "passes", "queue", "published")
        if self.form == "contrast":
            without = {"taught": 'with form="contrast"'}
        else:
            without = dict.fromkeys(course, 'with form="averages" (it belongs to form="contrast")')
        without |= {"queue": "with published=true"} if self.published else {}
        return without | FROM_ANYWHERE


class MutualCrossModalTrainer(MutualTrainer):
    """One network per modality group; they learn from each other and are exported one by one.

    Source: the setting and ``form="contrast"`` after Zhang et al., Med. Image Anal. 83, 102656 (2023), what differs is
        marked [E] where it is done; averages that teach together are our own.
    """

    paper = (
        "Zhang et al.: Multi-modal contrastive mutual learning and pseudo-label re-learning for semi-supervised "
        "medical image segmentation. Medical Image Analysis 83, 102656 (2023)"
    )
    settings_class = MutualCrossModalSettings
    settings: MutualCrossModalSettings
    stream: TwoStreams
    no_cascade = NO_CASCADE
    # nnU-Net would feed all stored channels to one network: better it finds no trainer of this name.
    checkpoint_trainer = "Export_first_with_nnunet_mutual_export"
    by_group = True
    objective: type[CrossModalObjective] = CrossModalObjective
    teaching: type[ModalTeaching] = ModalTeaching

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        self.groups = ModalityGroups.of(AnnotationTable.from_dataset_json(dataset_json))
        require_preprocessed_by_group(plans, self.groups, int(plans["dataset_name"][7:10]))
        super().__init__(plans, configuration, fold, dataset_json, device)

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """A network and a moving average for each group; contrast needs two unlabelled patches."""
        number, common = len(ModalityGroups.of(table).names), two_stream_needs(settings, table, cases)
        return replace(
            common,
            networks=number,
            averages=number,
            memory=planned_memory(settings),
            unlabelled=max(LEAST_UNLABELLED, common.unlabelled),
            terms=cls._terms(settings),
            held=settings.form == "contrast",
        )

    @staticmethod
    def _terms(settings: MutualCrossModalSettings) -> tuple[str, ...]:
        if settings.form == "averages":
            return ("soft targets",)
        return ("consistency of unlabelled",) if settings.loss.consistency > 0 else ()

    def build_stream(self) -> TwoStreams:
        """Returns labelled and unlabelled images by modality; one unlabelled sample alone has no opposite."""
        sizes = sizes_of(self)
        enough = replace(sizes, unlabelled=max(LEAST_UNLABELLED, sizes.unlabelled))
        parts = self.fold_cases, self.label_manager, unlabelled_images(self), enough
        views = {"intensity": True, "partners": "every"} if self.settings.form == "averages" else None
        stream = said(self, ModalityStreams(*parts, groups=self.groups, all_take_part=self.is_ddp, views=views))
        if stream.unlabelled > sizes.unlabelled:
            self.print_to_log_file(f"unlabelled patches raised to {LEAST_UNLABELLED}: one alone has no opposite")
        return stream

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks learn."""
        chosen = self.settings
        if chosen.form == "averages":
            return [self._taught()]
        course = CrossModalCourse(
            area=chosen.relearning_contrast,
            ramp_end=chosen.ramp,
            relearn_from=chosen.relearn_from,
            all_from=chosen.all_from,
            form=PUBLISHED if chosen.published else ROBUST,
            queue=0 if chosen.published else chosen.queue,
        )
        return [
            self.objective(
                self.knowledge,
                self.supervised,
                networks=len(self.groups.names),
                loss=chosen.loss,
                course=course,
                teacher=self._soft_label,
                standing=lambda: self.online.ranking.by_label.tolist(),
            )
        ]

    def _taught(self) -> Objective:
        parts = len(self.groups.names), self.knowledge, self.supervised.ignore_label, self._ask_average
        teaching = self.teaching(*parts, temperature=TEMPERATURE, again=self.stream.again)
        return ModalTeacherObjective(
            self.supervised, teaching, weight=self.settings.taught, ramp_end=self.settings.ramp
        )

    def _ask_average(self, network: int, batch: Batch) -> Tensor:
        return ask_average(self, network, self.stream.seen_by(network, batch.weak))

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns a network per group, of the plans' shape; columns of channels that it does not see are zero."""
        peers = self.make_peers(objectives, len(self.groups.names))
        self._clear(peers)
        peers.restart_averages()
        return peers

    def _clear(self, peers: Peers) -> None:
        for network, used in zip(peers.networks, self.groups.channels.values(), strict=True):
            clear_unused(unwrap(network), used)

    def on_train_start(self) -> None:
        """Clears the columns again that pretrained weights filled (nnU-Net's hook)."""
        super().on_train_start()
        if self.current_epoch == self.iteration == 0:
            for name, network in zip(self.groups.names, self.peers.networks, strict=True):
                if fill_unseen(unwrap(network), self.groups.channels[name]):
                    self.print_to_log_file(f"the pretrained weights did not see all channels of {name}: filled in")
            self._clear(self.peers)
            self.peers.restart_averages()

    def _soft_label(self, network: int, images: Tensor) -> Tensor:
        """Probabilities of a moving average, over an image as it is and mirrored, noised views of it."""
        return over_views(
            lambda seen: self.ranks.answer(network, lambda: self.peers.ask(network, seen)[0]),
            self.stream.seen_by(network, images),
            axes=self.inference_allowed_mirroring_axes or (),
            passes=self.settings.passes,
            regions=self.table.is_regions,
        )

    # Validation and checkpoints, group by group

    @property
    def candidates(self) -> tuple[int, ...]:
        """All networks are judged: their order says who teaches whom."""
        return tuple(range(len(self.groups.names)))

    @property
    def validated(self) -> dict[str, int]:
        """Every group's network, since every one is deployed."""
        return {f"_{name}": n for n, name in enumerate(self.groups.names)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Says how good each group's network is, and keeps the best of each (nnU-Net's hook)."""
        super().on_validation_epoch_end(val_outputs)
        ranking = self.online.ranking
        averages = dict(zip(self.groups.names, ranking.averages, strict=True))
        known = {name: value for name, value in averages.items() if value is not None}
        self.print_to_log_file("moving average of the Pseudo dice", {n: round(v, 4) for n, v in known.items()})
        self.log.validation(self.current_epoch, {f"Dice of {n}": v for n, v in known.items()})
        if self.disable_checkpointing or not ranking.improved:
            return
        self.peers.collect()
        for n in ranking.improved if self.local_rank == 0 else []:
            file = Path(self.output_folder) / f"checkpoint_best_{self.groups.names[n]}.pth"
            part = self.predicting_part(self.peers.evaluated[n], ranking.averages[n], self.current_epoch + 1)
            save_atomically(part, file)
