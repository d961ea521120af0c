"""Pseudo labels of unlabelled images, rectified by prototypes that learn the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import TwoStreams
from nnunet_mutual.disk.trainings import FINAL
from nnunet_mutual.engine.checkpoints import plain, save_atomically
from nnunet_mutual.engine.online import annotated_counts
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.engine.rectifier import Rectifier
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.mean_teacher import FilteredTeacherObjective
from nnunet_mutual.objectives.prototypes import PrototypeLoss
from nnunet_mutual.objectives.rectification import STRIDE, RectificationObjective
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import SoftTeacherSettings
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.rectified import RectifiedPredictor
from nnunet_mutual.trainers.unlabelled import NO_CASCADE, taught_streams, two_stream_needs

RECTIFIED_CHECKPOINT = "checkpoint_rectified.pth"


@dataclass(frozen=True)
class MutualPrototypeSettings(SoftTeacherSettings):
    """Settings of :class:`MutualPrototypeTrainer`, beside those of every trainer with a teacher.

    Attributes:
        loss: weights of the terms.
        role: what prototypes do to the teacher: "rectify" its logits, or "filter": its probabilities are learnt as by
            :class:`MeanTeacherTrainer`, where prototypes decide alike.
        confidence: probability from which a voxel of a pseudo label counts, if rectified.
        published: the form of the paper, to compare with: equal weights, cross-entropy alone on unlabelled images,
            weighted by the share of confident voxels.
    """

    ema: float = 0.999
    ramp: float = 0.15
    loss: PrototypeLoss = field(default_factory=PrototypeLoss)
    role: Literal["rectify", "filter"] = "rectify"
    confidence: float = 0.8
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.confidence < 1:
            raise MutualError(f'setting "confidence" must be between 0 and 1, found {self.confidence}')
        if self.published and self.role != "rectify":
            raise MutualError('published=true has role="rectify"; leave the setting out')

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        names = (
            ("confidence", "loss.contrast") if self.role == "filter" else ("temperature", "soft_loss", "strong_pose")
        )
        found = super().unused() | dict.fromkeys(names, f'with role="{self.role}"')
        return found | (dict.fromkeys(("loss", "confidence"), "with published=true") if self.published else {})


class MutualPrototypeTrainer(MutualTrainer):
    """A student learns from its moving average, whose logits prototypes of the labelled images rectify.

    The moving average is validated and deployed, alone as stock nnU-Net's ``checkpoint_final.pth`` and together with
    the prototypes as ``checkpoint_rectified.pth``.

    Attributes:
        filtered: what is learnt with ``role="filter"``.

    Source: Wang et al., Med. Image Anal. 2025, arXiv 2502.11456; what differs is marked [E] where it is done.
    """

    paper = (
        "Wang et al.: Leveraging Labelled Data Knowledge: A Cooperative Rectification Learning Network for "
        "Semi-supervised 3D Medical Image Segmentation. Medical Image Analysis (2025). doi:10.1016/j.media.2025.103461"
    )
    settings_class = MutualPrototypeSettings
    settings: MutualPrototypeSettings
    filtered: type[FilteredTeacherObjective] = FilteredTeacherObjective
    stream: TwoStreams
    no_cascade = NO_CASCADE

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """A student, its moving average, and prototypes with theirs."""
        weights = settings.loss
        terms = {"soft targets of all levels": weights.pseudo, "contrast": weights.contrast}
        if settings.role == "filter":
            terms = {"soft targets": weights.pseudo}
        used = tuple(name for name, weight in terms.items() if weight > 0)
        return replace(two_stream_needs(settings, table, cases), prototypes=True, terms=used)

    def build_stream(self) -> TwoStreams:
        """Returns labelled and unlabelled images."""
        return taught_streams(self)

    def build_objectives(self) -> list[Objective]:
        """Returns what student and prototypes learn, or supervision alone without unlabelled images."""
        if not self.stream.unlabelled:
            return [self.supervised]
        chosen, loss = self.settings, self.settings.loss
        if chosen.published:
            loss = PrototypeLoss(prototypes=0.5, pseudo=0.5, contrast=0.5)
        self.rectifier = Rectifier(self.networks, self.supervised, self.decay, loss.prototypes)
        if chosen.role == "filter":
            return [self.rectifier.objective, self._filtered()]
        rectification = RectificationObjective(
            self.knowledge,
            self.supervised,
            self.rectifier.objective,
            feature_size=self.networks.feature_channels(STRIDE),
            loss=loss,
            supervised_weight=0.5 if chosen.published else 1.0,
            confidence=chosen.confidence,
            ramp_end=chosen.ramp,
            published=chosen.published,
        )
        return [self.rectifier.objective, rectification]

    def _filtered(self) -> FilteredTeacherObjective:
        chosen = self.settings
        options: dict[str, Any] = {"temperature": chosen.temperature, "form": chosen.soft_loss}
        teaching = Teaching(self.knowledge, self.supervised.ignore_label, None, [[0]], **options)
        weights = {"weight": chosen.loss.pseudo, "ramp_end": chosen.ramp}
        return self.filtered(self.supervised, teaching, self.rectifier.objective, **weights)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns the student; its moving average is the teacher."""
        peers = self.make_peers(objectives)
        if self.stream.unlabelled:
            self.rectifier.attach(peers)
        return peers

    @property
    def pseudo_labelling(self) -> list[nn.Module]:
        """The rectified teacher."""
        return [self.rectifier.network] if self.stream.unlabelled else super().pseudo_labelling

    # Validation: the teacher as it is, the class scores alone, and both

    def on_validation_epoch_start(self) -> None:
        """Forgets the counts of the last epoch (nnU-Net's hook)."""
        super().on_validation_epoch_start()
        self._counts: dict[str, list[np.ndarray]] = {"class scores": [], "rectified": []}

    def evaluate(self, candidate: int, images: Tensor) -> list[Tensor]:
        """The teacher's logits; keeps the class scores that come with them."""
        if not self.stream.unlabelled:
            return super().evaluate(candidate, images)
        levels, scores = self.rectifier.ask(images)
        rectified = self.rectifier.network.interaction.rectify(levels[0], scores)
        self._opinions = {"class scores": scores, "rectified": rectified}
        return levels

    def validation_step(self, batch: dict) -> dict:
        """Counts voxels of the class scores and of the rectified teacher, too (nnU-Net's hook)."""
        moved = self.validation_batch(batch)
        scored = self.online.score(moved, self.evaluate, self.autocast)
        if self.stream.unlabelled:
            annotated, heirs, left_open = self.knowledge.scoring(moved.pattern_index)
            for name, logits in self._opinions.items():
                counts = annotated_counts(logits, moved.target[0], annotated, heirs, left_open, self.label_manager)
                self._counts[name].append(counts)
        return scored

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Says how good class scores and rectified teacher are, next to the teacher's Pseudo dice (nnU-Net's hook)."""
        super().on_validation_epoch_end(val_outputs)
        if not self.stream.unlabelled:
            return
        found = {name: self.online.dice_of(counts) for name, counts in self._counts.items()}
        for name, dice in found.items():
            self.print_to_log_file(f"Pseudo dice, {name}", {label: round(value, 4) for label, value in dice.items()})
        numbers = {f"Dice of {label}, {name}": v for name, dice in found.items() for label, v in dice.items()}
        self.log.validation(self.current_epoch, numbers)

    # Checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Writes the rectified teacher beside the final checkpoint (nnU-Net's hook)."""
        super().save_checkpoint(filename)
        final = Path(filename).name == FINAL
        if final and self.stream.unlabelled and self.local_rank == 0 and not self.disable_checkpointing:
            checkpoint = {
                "network_weights": self.rectifier.network.state_dict(),
                "init_args": plain(self.my_init_kwargs),
                "trainer_name": RectifiedPredictor.__name__,
                "inference_allowed_mirroring_axes": plain(self.inference_allowed_mirroring_axes),
            }
            save_atomically(checkpoint, Path(filename).with_name(RECTIFIED_CHECKPOINT))
