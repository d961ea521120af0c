"""Several modalities in training, one network for each group of them, each deployed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.annotation.modality_groups import ModalityGroups, require_preprocessed_by_group
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.checkpoints import pack_network, save_atomically
from nnunet_mutual.engine.networks import make_peers
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.area_similarity import PUBLISHED, ROBUST
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.modules.input_columns import clear_unused
from nnunet_mutual.objectives import Batch, Objective, Sight
from nnunet_mutual.objectives.crossmodal import CrossModalObjective, CrossModalWeights
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import TermWeights, planned_memory
from nnunet_mutual.trainers.two_streams import TwoStreamSettings, TwoStreamTrainer

LEAST_UNLABELLED = 2  # one sample alone has no opposite


@dataclass(frozen=True)
class CrossModalLoss(TermWeights):
    """Weights of the terms, next to the supervised loss of weight 1.

    Attributes:
        contrast: area-similarity contrast (ASC).
        consistency: squared difference of the predictions.
        relearning: re-learning from soft labels (PReL).
    """

    contrast: float = 0.4
    consistency: float = 0.2
    relearning: float = 1.0


@dataclass(frozen=True)
class MutualCrossModalSettings(TwoStreamSettings):
    """Settings of :class:`MutualCrossModalTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        loss: weights of the terms.
        relearn_from: share of the training after which worse networks re-learn from better ones.
        all_from: share after which all re-learn from each other.
        relearning_contrast: share of the contrast in re-learning.
        passes: views of an image over which a teacher's soft label is averaged: as it is, then mirrored and noised.
        queue: earlier images with which samples are contrasted; 0 for none.
        published: the contrast of the paper, to compare with: without queue, mass gate, mask of similar places and
            positive term.
    """

    ema: float = 0.99
    ramp: float = 0.4
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


class MutualCrossModalTrainer(TwoStreamTrainer):
    """One network per modality group; they learn from each other and are exported one by one.

    Source: Zhang et al., Med. Image Anal. 83, 102656 (2023); what differs is marked [E] where it is done.
    """

    settings_class = MutualCrossModalSettings
    settings: MutualCrossModalSettings
    # nnU-Net would feed all stored channels to one network: better it finds no trainer of this name.
    checkpoint_trainer = "Export_first_with_nnunet_mutual_export"
    by_group = True
    unlabelled_per_batch: int

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
        number, common = len(ModalityGroups.of(table).names), super().needs(settings, table, cases)
        return replace(
            common,
            networks=number,
            averages=number,
            memory=planned_memory(settings),
            unlabelled=max(LEAST_UNLABELLED, common.unlabelled),
            terms=("consistency of unlabelled",) if settings.loss.consistency > 0 else (),
            held=True,
        )

    def plan_stages(self) -> None:
        """Sees to it that a batch holds two unlabelled samples."""
        super().plan_stages()
        if 0 < self.unlabelled_per_batch < LEAST_UNLABELLED:
            self.unlabelled_per_batch = LEAST_UNLABELLED
            self.print_to_log_file(f"unlabelled patches raised to {LEAST_UNLABELLED}: one alone has no opposite")

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks learn."""
        chosen = self.settings
        weights = CrossModalWeights(
            chosen.loss.contrast,
            chosen.loss.consistency,
            chosen.loss.relearning,
            area=chosen.relearning_contrast,
            ramp_end=chosen.ramp,
            relearn_from=chosen.relearn_from,
            all_from=chosen.all_from,
            form=PUBLISHED if chosen.published else ROBUST,
            queue=0 if chosen.published else chosen.queue,
        )
        return [
            CrossModalObjective(
                self.knowledge,
                self.supervised,
                networks=len(self.groups.names),
                weights=weights,
                teacher=self._soft_label,
                standing=lambda: self.ranking.by_label.tolist(),
            )
        ]

    def build_peers(self) -> Peers:
        """Returns a network per group, of the plans' shape; columns of channels that it does not see are zero."""
        peers = make_peers(self, len(self.groups.names))
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
            self._clear(self.peers)
            self.peers.restart_averages()

    # What each network sees

    def seen_by(self, network: int, images: Tensor) -> Tensor:
        """Puts the stored channels of a group where dataset.json has them, zeros elsewhere."""
        name = self.groups.names[network]
        seen = images.new_zeros(len(images), len(self.groups.all_channels), *images.shape[2:])
        channels = images[:, self.groups.stored[name]].unbind(1)
        for place, channel in zip(self.groups.channels[name], channels, strict=True):
            seen[:, place] = channel  # a list of places would be copied to the device, and waited for
        return seen

    def can_see(self, network: int, key: str) -> bool:
        """Whether a case has all channels of a group; an image that the table does not list has."""
        if key not in self.table.cases:
            return True
        return self.groups.available(self.table.cases[key])[network]

    def to_batch(self, batch: dict) -> Batch:
        """Notes who sees what, and takes noise out of channels that are missing."""
        moved = super().to_batch(batch)
        host = [[self.can_see(n, key) for n in range(len(self.groups.names))] for key in moved.keys]
        if all(all(row) for row in host) and not self._gathers_of_some:
            return moved
        sight = Sight(host, torch.tensor(host).to(self.device, non_blocking=True))
        stored = self.groups.stored.values()
        there = torch.cat([sight.device[:, n : n + 1].expand(-1, s.stop - s.start) for n, s in enumerate(stored)], 1)
        data = moved.data * there.view(*there.shape, *[1] * (moved.data.ndim - 2))
        return replace(moved, data=data, sight=sight)

    @property
    def _gathers_of_some(self) -> bool:
        """Whether processes of DDP gather Dice statistics, so that all must take one path, and cases lack channels."""
        complete = all(all(self.groups.available(case)) for case in self.table.cases.values())
        return self.is_ddp and not complete

    def _soft_label(self, network: int, images: Tensor) -> Tensor:
        """Probabilities of a moving average, over an image as it is and mirrored, noised views of it."""
        seen, regions = self.seen_by(network, images), self.table.is_regions
        total = probabilities(self._logits(network, seen), regions=regions)
        axes = [2 + axis for axis in self.inference_allowed_mirroring_axes or ()]
        for n in range(1, self.settings.passes):
            flipped = [axes[(n - 1) % len(axes)]] if axes else []
            noised = seen + 0.1 * torch.randn_like(seen) * (seen != 0)
            found = probabilities(self._logits(network, noised.flip(flipped)), regions=regions)
            total = total + found.flip(flipped)
        return total / self.settings.passes

    def _logits(self, network: int, images: Tensor) -> Tensor:
        return self.ranks.answer(network, lambda: self.peers.ask(network, images)[0])

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
        averages = dict(zip(self.groups.names, self.ranking.averages, strict=True))
        known = {name: value for name, value in averages.items() if value is not None}
        self.print_to_log_file("moving average of the Pseudo dice", {n: round(v, 4) for n, v in known.items()})
        if self.local_rank == 0:
            self.term_log.append_validation(self.current_epoch, {f"Dice of {n}": v for n, v in known.items()})
        if self.ranking.improved and not self.disable_checkpointing:
            self.peers.collect()
        if self.local_rank == 0 and not self.disable_checkpointing:
            for n in self.ranking.improved:
                file = Path(self.output_folder) / f"checkpoint_best_{self.groups.names[n]}.pth"
                save_atomically(pack_network(self, n), file)
