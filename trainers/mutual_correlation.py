"""Correlation-aware mutual learning from few labelled and many unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import TwoStreams
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.attention import Inter, attention_stage, make_auxiliary
from nnunet_mutual.modules.ema import decay_of
from nnunet_mutual.objectives import Batch, Objective
from nnunet_mutual.objectives.correlation import PUBLISHED_TEMPERATURE, STRIDE, CorrelationLoss, CorrelationObjective
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.settings import SoftTeacherSettings, planned_memory
from nnunet_mutual.trainers.base import MutualTrainer
from nnunet_mutual.trainers.unlabelled import (
    NO_CASCADE,
    ask_average,
    taught_streams,
    two_stream_needs,
)

PUBLISHED_DROPOUT = 0.5
Form = Literal["partner", "consensus", "crossed", "alternating"]
TEACHERS: dict[Form, list[list[int]]] = {
    "consensus": [[0, 1], [0, 1]],
    "crossed": [[1], [0]],
    "alternating": [[0, 1]],
}  # of each network, the moving averages that teach it


@dataclass(frozen=True)
class MutualCorrelationSettings(SoftTeacherSettings):
    """Settings of :class:`MutualCorrelationTrainer`, beside those of every trainer with unlabelled images.

    Attributes:
        ema: decay of a moving average of V, deployed in its place; 0 for none. Moving averages that teach have
            ``ema_age`` instead.
        form: who teaches unlabelled images: "partner", the other network as it is, of the same view; moving averages of
            both networks of the weak view, their mean ("consensus") or the other's ("crossed"); or "alternating", the
            mean of two moving averages of V alone, which follow it in turn.
        second: the other network: "attention" for A, or "equal" for one more of the plans.
        own_views: whether each network sees strong intensities of its own.
        loss: weights of the terms.
        inter: what attends to what in the auxiliary network across images: "pooled" or "position".
        dropout: of the attention.
        published: the form of the paper, to compare with: consistency of all images by squared differences with targets
            of temperature 0.1, dot products, gradients through targets, correlation in one direction, dropout 0.5,
            constant learning rate, supervision by Dice alone at half weight. Needs labelled cases that annotate every
            label.
    """

    ema: float = 0.0
    ema_age: float | None = 0.1
    form: Form = "partner"
    second: Literal["attention", "equal"] = "attention"
    own_views: bool = True
    loss: CorrelationLoss = field(default_factory=CorrelationLoss)
    inter: Inter = "pooled"
    dropout: float = 0.1
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise MutualError(f'setting "dropout" must be from 0 to below 1, found {self.dropout}')
        if self.published and (self.form, self.second) != ("partner", "attention"):
            raise MutualError('published=true has form="partner" and second="attention"; leave these settings out')

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        found = super().unused()
        if not self.attends:
            found |= dict.fromkeys(("inter", "dropout"), "without a network with attention")
        if self.published:
            found |= dict.fromkeys(("loss", "temperature", "dropout"), "with published=true")
        if self.networks == 1:
            found |= dict.fromkeys(
                ("second", "own_views", "loss.correlation"), f'with form="{self.form}", which has one network'
            )
        if not self.taught:
            names = ["own_views", "strong_intensity", "strong_pose", "paste_from", "soft_loss"]
            names += ["ema_age"] if self.ema_age else []
            found |= dict.fromkeys(names, f'with form="{self.form}", in which no moving average teaches')
        return found

    @property
    def taught(self) -> bool:
        """Whether moving averages teach."""
        return self.form != "partner"

    @property
    def networks(self) -> int:
        """How many learn."""
        return 1 if self.form == "alternating" else 2

    @property
    def attends(self) -> bool:
        """Whether the second network is A."""
        return self.networks == 2 and self.second == "attention"


def loss_of(settings: MutualCorrelationSettings) -> CorrelationLoss:
    """Returns the weights of the terms; those of the paper where it is asked for, none that needs a second network."""
    loss = CorrelationLoss(consistency=1.0, correlation=0.05) if settings.published else settings.loss
    return loss if settings.networks == 2 else replace(loss, correlation=0.0)


class MutualCorrelationTrainer(MutualTrainer):
    """Network V and an auxiliary network A with attention across images learn from each other; V is deployed.

    Attributes:
        teaching: how moving averages teach.
        objective: what both networks learn.

    Source: Gao et al., MICCAI 2023, arXiv 2307.06312; what differs is marked [E] where it is done.
    """

    paper = (
        "Gao et al.: Correlation-Aware Mutual Learning for Semi-supervised Medical Image Segmentation. MICCAI (2023). "
        "arXiv:2307.06312"
    )
    settings_class = MutualCorrelationSettings
    settings: MutualCorrelationSettings
    teaching: type[Teaching] = Teaching
    objective: type[CorrelationObjective] = CorrelationObjective
    stream: TwoStreams
    no_cascade = NO_CASCADE

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """V and, beside it, another network or two moving averages."""
        loss = loss_of(settings)
        terms = {"consistency" if settings.published else "soft targets": loss.consistency}
        terms["correlation"] = loss.correlation
        common = two_stream_needs(settings, table, cases)
        return replace(
            common,
            networks=settings.networks - settings.attends,
            auxiliary=settings.attends,
            averages=2 if settings.taught else common.averages * (settings.networks - settings.attends),
            memory=planned_memory(settings),
            terms=tuple(name for name, weight in terms.items() if weight > 0),
            features=(STRIDE,) if loss.correlation > 0 else (),
        )

    def build_stream(self) -> TwoStreams:
        """Returns labelled and unlabelled images; the published form knows no partial labels."""
        students = self.settings.networks if self.settings.own_views else 1
        stream = taught_streams(self, students=students if self.settings.taught else 0)
        partial = [k for k in stream.labelled_keys if self.table.case(k).annotated != frozenset(self.table.labels)]
        if self.settings.published and partial:
            raise MutualError(
                f"published=true needs cases that annotate every label, but {partial[0]} annotates "
                f"{', '.join(sorted(self.table.case(partial[0]).annotated))}; leave the setting out"
            )
        return stream

    def build_objectives(self) -> list[Objective]:
        """Returns what the two networks learn, or supervision alone without unlabelled images."""
        if not self.stream.unlabelled:
            return [self.supervised]
        return [
            self.objective(
                self.knowledge,
                self.supervised,
                self.stream.labelled_keys,
                feature_size=self.networks.feature_channels(STRIDE),
                loss=loss_of(self.settings),
                temperature=PUBLISHED_TEMPERATURE if self.settings.published else self.settings.temperature,
                teaching=self._teaching(),
                published=self.settings.published,
                ramp_end=self.settings.ramp,
            )
        ]

    def _teaching(self) -> Teaching | None:
        chosen = self.settings
        if not chosen.taught:
            return None
        return self.teaching(
            self.knowledge,
            self.supervised.ignore_label,
            self._ask_teacher,
            TEACHERS[chosen.form],
            temperature=chosen.temperature,
            form=chosen.soft_loss,
        )

    def _ask_teacher(self, teacher: int, batch: Batch) -> Tensor:
        """A mixes samples, so its average sees the whole weak batch."""
        weak = batch.weak
        if not (self.settings.attends and teacher == 1):
            return ask_average(self, teacher, weak)
        return ask_average(self, teacher, torch.cat([weak, batch.data[len(weak) :]]))[: len(weak)]

    @property
    def decay(self) -> float:
        """Of moving averages that teach, by the length of the training; those that alternate share its steps."""
        chosen = self.settings
        if not chosen.taught:
            return chosen.ema
        if chosen.networks == 2 or chosen.ema_age is None:
            return super().decay
        return decay_of(chosen.ema_age, self.num_epochs * self.num_iterations_per_epoch / 2)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns V, and the second network unless there is nothing to be mutual about."""
        if not self.stream.unlabelled:
            return self.make_peers(objectives)
        if self.settings.networks == 1:
            return self.make_peers(objectives, followed=(0, 0), alternate=True)
        if not self.settings.attends:
            return self.make_peers(objectives, 2)
        averages = {"followed": (0, 1)} if self.settings.taught else {}
        return self.make_peers(objectives, 1, [self._auxiliary()], **averages)

    def _auxiliary(self) -> nn.Module:
        stage = attention_stage(self.configuration_manager.patch_size, self.networks.strides)
        channels = self.configuration_manager.network_arch_init_kwargs["features_per_stage"][stage]
        dropout = PUBLISHED_DROPOUT if self.settings.published else self.settings.dropout
        network = self.networks.new()
        return make_auxiliary(network, stage, int(channels), inter=self.settings.inter, dropout=dropout).to(self.device)

    def build_supervision(self) -> Any:
        """The published form is supervised by Dice alone."""
        if self.settings.published:
            loss: Any = getattr(self.loss, "loss", self.loss)  # inside of nnU-Net's deep supervision
            loss.weight_ce = 0
        return super().build_supervision()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The published form keeps its learning rate (nnU-Net's hook)."""
        optimizer, scheduler = super().configure_optimizers()
        if self.settings.published:
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0)
        return optimizer, scheduler
