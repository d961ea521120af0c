"""A student and the moving average of itself: the simple way to use unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import TwoStreams
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.objectives import Batch, Objective
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import SoftTeacherSettings, require_not_negative
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.unlabelled import NO_CASCADE, ask_average, taught_streams, two_stream_needs


@dataclass(frozen=True)
class MeanTeacherSettings(SoftTeacherSettings):
    """Settings of :class:`MeanTeacherTrainer`, beside those of every trainer with a teacher.

    Attributes:
        consistency: weight of what the teacher says, next to the supervised loss of weight 1.
    """

    consistency: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("consistency", self.consistency)


class MeanTeacherTrainer(MutualTrainer):
    """One network learns labelled images from their labels and unlabelled ones from its moving average.

    The moving average is what is validated and deployed.

    Attributes:
        teaching: how moving averages teach.

    Source: Tarvainen & Valpola, NeurIPS 2017.
    """

    paper = (
        "Tarvainen, Valpola: Mean teachers are better role models: Weight-averaged consistency targets improve "
        "semi-supervised deep learning results. NeurIPS (2017)"
    )
    settings_class = MeanTeacherSettings
    settings: MeanTeacherSettings
    stream: TwoStreams
    teaching: type[Teaching] = Teaching
    no_cascade = NO_CASCADE

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """The teacher is a moving average."""
        return replace(two_stream_needs(settings, table, cases), terms=("soft targets",))

    def build_stream(self) -> TwoStreams:
        """Returns labelled and unlabelled images."""
        return taught_streams(self)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns the student; its moving average is the teacher."""
        return self.make_peers(objectives)

    def build_objectives(self) -> list[Objective]:
        """Returns what the student learns."""
        if not self.stream.unlabelled:
            return [self.supervised]
        chosen = self.settings
        teaching = self.teaching(
            self.knowledge,
            self.supervised.ignore_label,
            self.ask_teacher,
            [[0]],
            temperature=chosen.temperature,
            form=chosen.soft_loss,
        )
        return [self.build_taught(teaching, weight=chosen.consistency, ramp_end=chosen.ramp)]

    def build_taught(self, teaching: Teaching, **options: float) -> MeanTeacherObjective:
        """Returns what is learnt of labelled and unlabelled images; options are of the objective."""
        return MeanTeacherObjective(self.supervised, teaching, **options)

    def ask_teacher(self, teacher: int, batch: Batch) -> Tensor:
        """Returns a teacher's logits of a batch's weak views, (unlabelled, C, *spatial)."""
        return ask_average(self, teacher, batch.weak)
