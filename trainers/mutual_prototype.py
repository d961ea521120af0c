"""Pseudo labels of unlabelled images, rectified by prototypes that learn the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.checkpoints import plain, save_atomically
from nnunet_mutual.engine.networks import feature_channels, make_peers
from nnunet_mutual.engine.online import annotated_counts, dice_of, score_batch
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.engine.rectifier import Rectifier
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.rectification import STRIDE, RectificationObjective, RectificationWeights
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import TermWeights
from nnunet_mutual.trainers.rectified import RectifiedPredictor
from nnunet_mutual.trainers.two_streams import TeacherSettings, TwoStreamTrainer

RECTIFIED_CHECKPOINT = "checkpoint_rectified.pth"


@dataclass(frozen=True)
class PrototypeLoss(TermWeights):
    """Weights of the terms, next to the supervised loss of weight 1.

    Attributes:
        prototypes: of the class scores M, on labelled images.
        pseudo: of rectified pseudo labels.
        contrast: of uncertain voxels with their class.
    """

    prototypes: float = 1.0
    pseudo: float = 1.0
    contrast: float = 0.1


@dataclass(frozen=True)
class MutualPrototypeSettings(TeacherSettings):
    """Settings of :class:`MutualPrototypeTrainer`, beside those of every trainer with a teacher.

    Attributes:
        loss: weights of the terms.
        confidence: probability from which a voxel of a pseudo label counts.
        published: the form of the paper, to compare with: equal weights, cross-entropy alone on unlabelled images,
            weighted by the share of confident voxels.
    """

    ema: float = 0.999
    ramp: float = 0.15
    loss: PrototypeLoss = field(default_factory=PrototypeLoss)
    confidence: float = 0.8
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.confidence < 1:
            raise MutualError(f'setting "confidence" must be between 0 and 1, found {self.confidence}')


class MutualPrototypeTrainer(TwoStreamTrainer):
    """A student learns from its moving average, whose logits prototypes of the labelled images rectify.

    The moving average is validated and deployed, alone as stock nnU-Net's ``checkpoint_final.pth`` and together with
    the prototypes as ``checkpoint_rectified.pth``.

    Source: Wang et al., Med. Image Anal. 2025, arXiv 2502.11456; what differs is marked [E] where it is done.
    """

    settings_class = MutualPrototypeSettings
    settings: MutualPrototypeSettings

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """A student, its moving average, and prototypes with theirs."""
        weights = settings.loss
        terms = {"soft targets of all levels": weights.pseudo, "contrast": weights.contrast}
        used = tuple(name for name, weight in terms.items() if weight > 0)
        return replace(super().needs(settings, table, cases), prototypes=True, terms=used)

    def build_objectives(self) -> list[Objective]:
        """Returns what student and prototypes learn, or supervision alone without unlabelled images."""
        if not self.unlabelled_per_batch:
            return [self.supervised]
        chosen, loss = self.settings, self.settings.loss
        weights = RectificationWeights(1.0, loss.pseudo, loss.contrast, chosen.confidence)
        if chosen.published:
            weights = RectificationWeights(0.5, 0.5, 0.5, chosen.confidence, published=True)
        self.rectifier = Rectifier(self, chosen.ema, 0.5 if chosen.published else loss.prototypes)
        rectification = RectificationObjective(
            self.knowledge,
            self.supervised,
            self.rectifier.objective,
            feature_size=feature_channels(self, STRIDE),
            weights=weights,
            ramp_end=chosen.ramp,
        )
        return [self.rectifier.objective, rectification]

    def build_peers(self) -> Peers:
        """Returns the student; its moving average is the teacher."""
        peers = make_peers(self, 1)
        if self.unlabelled_per_batch:
            self.rectifier.attach(peers)
        return peers

    @property
    def pseudo_labelling(self) -> list[nn.Module]:
        """The rectified teacher."""
        return [self.rectifier.network] if self.unlabelled_per_batch else super().pseudo_labelling

    # Validation: the teacher as it is, the class scores alone, and both

    def on_validation_epoch_start(self) -> None:
        """Forgets the counts of the last epoch (nnU-Net's hook)."""
        super().on_validation_epoch_start()
        self._counts: dict[str, list[np.ndarray]] = {"class scores": [], "rectified": []}

    def evaluate(self, candidate: int, images: Tensor) -> list[Tensor]:
        """The teacher's logits; keeps the class scores that come with them."""
        if not self.unlabelled_per_batch:
            return super().evaluate(candidate, images)
        levels, scores = self.rectifier.ask(images)
        rectified = self.rectifier.network.interaction.rectify(levels[0], scores)
        self._opinions = {"class scores": scores, "rectified": rectified}
        return levels

    def validation_step(self, batch: dict) -> dict:
        """Counts voxels of the class scores and of the rectified teacher, too (nnU-Net's hook)."""
        moved = self.to_batch(batch)
        scored = score_batch(self, moved)
        if self.unlabelled_per_batch:
            annotated, heirs, left_open = self.knowledge.scoring(moved.pattern_index)
            for name, logits in self._opinions.items():
                counts = annotated_counts(logits, moved.target[0], annotated, heirs, left_open, self.label_manager)
                self._counts[name].append(counts)
        return scored

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Says how good class scores and rectified teacher are, next to the teacher's Pseudo dice (nnU-Net's hook)."""
        super().on_validation_epoch_end(val_outputs)
        if not self.unlabelled_per_batch:
            return
        found = {name: dice_of(self, counts) for name, counts in self._counts.items()}
        for name, dice in found.items():
            self.print_to_log_file(f"Pseudo dice, {name}", {label: round(value, 4) for label, value in dice.items()})
        if self.local_rank == 0:
            numbers = {f"Dice of {label}, {name}": v for name, dice in found.items() for label, v in dice.items()}
            self.term_log.append_validation(self.current_epoch, numbers)

    # Checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Writes the rectified teacher beside the final checkpoint (nnU-Net's hook)."""
        super().save_checkpoint(filename)
        final = Path(filename).name == "checkpoint_final.pth"
        if final and self.unlabelled_per_batch and self.local_rank == 0 and not self.disable_checkpointing:
            checkpoint = {
                "network_weights": self.rectifier.network.state_dict(),
                "init_args": plain(self.my_init_kwargs),
                "trainer_name": RectifiedPredictor.__name__,
                "inference_allowed_mirroring_axes": plain(self.inference_allowed_mirroring_axes),
            }
            save_atomically(checkpoint, Path(filename).with_name(RECTIFIED_CHECKPOINT))
