"""A student and the moving average of itself: the simple way to use unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nnunet_mutual.building import compiled, make_peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Batch, Objective
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective
from nnunet_mutual.peers import Peers
from nnunet_mutual.trainers.two_streams import TwoStreamSettings, TwoStreamTrainer
from nnunet_mutual.views import Partners, strengthen


@dataclass(frozen=True)
class MeanTeacherSettings(TwoStreamSettings):
    """Settings of :class:`MeanTeacherTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        ema: decay of the teacher's moving average, above 0.
        consistency: weight of what the teacher says, next to the supervised loss of weight 1.
        temperature: sharpens the teacher's predictions if below 1.
        strong_intensity: whether the student sees unlabelled images with other intensities than the teacher.
        paste_from: samples of which boxes are pasted into the student's unlabelled images: "any", "unlabelled",
            "labelled" or "off".
    """

    ema: float = 0.99
    consistency: float = 0.5
    temperature: float = 0.5
    strong_intensity: bool = True
    paste_from: Partners = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema == 0:
            raise MutualError('setting "ema" must be above 0: without a moving average there is no teacher')
        if not 0 <= self.consistency < float("inf"):
            raise MutualError(f'setting "consistency" must be 0 or more, found {self.consistency}')
        if not 0 < self.temperature < float("inf"):
            raise MutualError(f'setting "temperature" must be above 0, found {self.temperature}')


class MeanTeacherTrainer(TwoStreamTrainer):
    """One network learns labelled images from their labels and unlabelled ones from its moving average.

    The moving average is what is validated and deployed.

    Source: Tarvainen & Valpola, NeurIPS 2017.
    """

    settings_class = MeanTeacherSettings
    settings: MeanTeacherSettings

    def build_peers(self) -> Peers:
        """Returns the student; its moving average is the teacher."""
        peers = make_peers(self, 1)
        self._teacher: nn.Module = compiled(self, peers.averages[0].network)
        return peers

    def build_objectives(self) -> list[Objective]:
        """Returns what the student learns."""
        if not self.unlabelled_per_batch:
            return [self.supervised]
        chosen = self.settings
        return [
            MeanTeacherObjective(
                self.knowledge,
                self.supervised,
                self._ask_teacher,
                weight=chosen.consistency,
                ramp_end=chosen.ramp,
                temperature=chosen.temperature,
            )
        ]

    def _ask_teacher(self, images: Tensor) -> Tensor:
        output = self._teacher(images)
        return output[0] if isinstance(output, (list, tuple)) else output

    def training_batch(self, batch: dict) -> Batch:
        """The student's view of the unlabelled images is a stronger one."""
        moved = super().training_batch(batch)
        if moved.views is None:
            return moved
        return strengthen(moved, intensity=self.settings.strong_intensity, partners=self.settings.paste_from)
