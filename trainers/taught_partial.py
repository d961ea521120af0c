"""Networks learn from averaged weights what their cases do not draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from nnunet_mutual.annotation.label_groups import choose_label_groups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import ExchangedStreams
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.not_drawn import NotDrawnObjective
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import FROM_ANYWHERE, TwoStreamSettings, planned_memory, require_not_negative
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.unlabelled import ask_average, said, sizes_of, two_stream_needs, unlabelled_images

MOST_NETWORKS = 4


@dataclass(frozen=True)
class TaughtPartialSettings(TwoStreamSettings):
    """Settings of :class:`TaughtPartialTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        ema: decay of the moving averages, above 0; the first network's is deployed.
        networks: that learn, each from other initial weights, with views of its own.
        teachers: of several networks: the mean of all averages ("consensus"), or of all but the own one ("crossed").
        weight: of what averages teach, next to the supervised loss of weight 1; 0 leaves it out.
        sure: probability from which an average teaches.
        strong_intensity: whether networks see other intensities than the averages.
        boxes: whether samples of a batch exchange boxes, with labels.
    """

    ema: float = 0.99
    networks: int = 1
    teachers: Literal["consensus", "crossed"] = "consensus"
    weight: float = 0.5
    sure: float = 0.95
    strong_intensity: bool = False
    boxes: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema == 0:
            raise MutualError('setting "ema" must be above 0: without a moving average there is no teacher')
        if not 1 <= self.networks <= MOST_NETWORKS:
            raise MutualError(f'setting "networks" must be from 1 to {MOST_NETWORKS}, found {self.networks}')
        require_not_negative("weight", self.weight)
        if not 0 < self.sure < 1:
            raise MutualError(f'setting "sure" must be between 0 and 1, found {self.sure}')

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        found = {"teachers": "with one network"} if self.networks == 1 else {}
        found |= dict.fromkeys(("ramp", "sure"), "with weight=0") if self.weight == 0 else {}
        return found | FROM_ANYWHERE


class TaughtPartialTrainer(MutualTrainer):
    """PartialTrainer whose networks learn what a case does not draw from moving averages of their weights.

    Every voxel keeps what its own case says. Source: see
    :class:`~nnunet_mutual.objectives.not_drawn.NotDrawnObjective`.
    """

    paper = (
        "Tarvainen, Valpola: Mean teachers are better role models: Weight-averaged consistency targets improve "
        "semi-supervised deep learning results. NeurIPS (2017)"
    )
    settings_class = TaughtPartialSettings
    settings: TaughtPartialSettings
    stream: ExchangedStreams
    no_cascade = "whose second stage would need another first stage's prediction of every mixed image"

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """Networks and an average of each."""
        terms = ("soft targets",) if settings.weight > 0 else ()
        sizes = settings.labelled_per_batch or settings.unlabelled_per_batch  # a batch of more than the plans'
        common = two_stream_needs(settings, table, cases) if sizes else super().needs(settings, table, cases)
        number = settings.networks
        return replace(common, networks=number, averages=number, memory=planned_memory(settings), terms=terms)

    def build_stream(self) -> ExchangedStreams:
        """Returns the cases, of different groups in a batch, and images that nobody drew, mixed."""
        chosen = self.settings
        views = {"intensity": chosen.strong_intensity, "boxes": chosen.boxes, "views": chosen.networks}
        labelled = [key for key in self.do_split()[0] if self.table.case(key).drawn]
        groups = choose_label_groups(self.table, labelled) if chosen.boxes else []
        parts = self.fold_cases, self.label_manager, unlabelled_images(self), sizes_of(self)
        return said(self, ExchangedStreams(*parts, groups=groups, **views))

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks learn."""
        chosen, everyone = self.settings, range(self.settings.networks)
        alone = chosen.teachers == "consensus" or chosen.networks == 1
        teachers = [[n for n in everyone if alone or n != student] for student in everyone]
        # The patches that are drawn from anywhere; a single one with labels may hold foreground by force.
        anywhere = 0 if self.batch_size == 1 else round(self.batch_size * (1 - self.oversample_foreground_percent))
        forced = self.stream.unlabelled + anywhere
        options: dict[str, Any] = {"ramp_end": chosen.ramp, "sure": chosen.sure, "foreground_from": forced}
        parts = self.knowledge, self.supervised, self._ask, teachers
        return [NotDrawnObjective(*parts, weight=chosen.weight, **options)]

    def _ask(self, teacher: int, images: Tensor) -> Tensor:
        return ask_average(self, teacher, images)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns the networks."""
        return self.make_peers(objectives, self.settings.networks)
