"""Deep mutual learning among partially labelled datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.engine.rectifier import Rectifier
from nnunet_mutual.engine.two_stages import TwoStages
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.full_organs import SimilarityObjective
from nnunet_mutual.objectives.partial_organs import STRIDE, DifferenceObjective, PartialLoss, Ramp
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.settings import PeersSettings, planned_memory
from nnunet_mutual.trainers.two_stages import TwoStageTrainer


@dataclass(frozen=True)
class PseudoLabelSettings(FilterSettings):
    """How pseudo labels are made, beside the filter.

    Attributes:
        given: begin with the pseudo labels that ``nnunet_mutual pseudo_label --from`` has made of masks of other tools,
            instead of stage 1.
        weight: how much accepted pseudo labels count next to drawn labels, above 0 and at most 1.
        rectify: let prototypes that learn in stage 1 rectify the logits, as in
            :class:`~nnunet_mutual.trainers.MutualPrototypeTrainer`; needs ``ema`` and one network in stage 1.
    """

    given: bool = False
    weight: float = 1.0
    rectify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight <= 1:
            raise MutualError(f'setting "pseudo_labels.weight" must be above 0 and at most 1, found {self.weight}')


@dataclass(frozen=True)
class MutualPartialSettings(PeersSettings):
    """Settings of :class:`MutualPartialTrainer`, beside those of every trainer.

    ``num_epochs`` counts epochs of one network: a stage of P networks has its share of them divided by P, so the total
    number of network updates is that of one network trained for ``num_epochs``.

    Attributes:
        loss: weights of the terms.
        ramp: of the weights.
        fd_form: "projected" or "own"; see :class:`~nnunet_mutual.objectives.partial_organs.DifferenceObjective`.
        stage1_share: share of the updates for the partial-organ networks.
        stage1_networks: "one" is a single network for all labels, supervised as by PartialTrainer; "groups" one
            partial-organ network per group of cases, as published.
        stage2_networks: likewise, of the full-organ networks.
        pseudo_labels: how they are made, and the filter.
    """

    loss: PartialLoss = field(default_factory=PartialLoss)
    ramp: Ramp = field(default_factory=Ramp)
    fd_form: Literal["projected", "own"] = "projected"
    stage1_share: float = 0.4
    stage1_networks: Literal["groups", "one"] = "one"
    stage2_networks: Literal["groups", "one"] = "one"
    pseudo_labels: PseudoLabelSettings = field(default_factory=PseudoLabelSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.stage1_share < 1:
            raise MutualError(f'setting "stage1_share" must be between 0 and 1, found {self.stage1_share}')
        if self.pseudo_labels.rectify and (self.ema == 0 or self.stage1_networks != "one"):
            raise MutualError(
                'setting "pseudo_labels.rectify" needs one network in stage 1 and its moving average; set '
                'stage1_networks="one" and ema, to 0.999 for example'
            )

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        found = super().unused()
        if self.stage1_networks == "one":
            found |= dict.fromkeys(("loss.pd", "loss.fd", "fd_form"), 'with stage1_networks="one"')
        if self.stage2_networks == "one":
            found |= dict.fromkeys(("loss.ps", "loss.dfs"), 'with stage2_networks="one"')
        if self.stage1_networks == self.stage2_networks == "one":
            found["ramp"] = "with one network in each stage"
        if self.pseudo_labels.given:
            names = ("stage1_share", "stage1_networks", "loss.pd", "loss.fd", "fd_form", "pseudo_labels.rectify")
            found |= dict.fromkeys(names, "with pseudo_labels.given=true, which leaves stage 1 out")
        return found


def two_stages(settings: MutualPartialSettings, table: AnnotationTable, cases: Sequence[str]) -> TwoStages:
    """Returns how a training with these settings and cases proceeds."""
    grouped = settings.stage1_networks == "groups", settings.stage2_networks == "groups"
    given = settings.pseudo_labels.given
    return TwoStages.of(
        table, cases, epochs=settings.num_epochs, share=settings.stage1_share, grouped=grouped, given=given
    )


class MutualPartialTrainer(TwoStageTrainer):
    """Two stages around pseudo labels, in one training [S]; how each part is done is our reading [I] or choice [E].

    Stage 1 trains a network per group of cases that annotate the same labels; they learn from other groups' labels
    where their own are not. They make pseudo labels of what cases do not annotate. Stage 2 trains networks of all
    labels with true and pseudo labels; the one with the best validation Dice is deployed. Either stage has a single
    network for all labels unless its setting asks for groups: at an equal number of network updates that is better on
    real data (benchmarks/README.md).

    Source: after Liu et al., arXiv 2407.12611.
    """

    paper = (
        "Liu et al.: Deep Mutual Learning among Partially Labeled Datasets for Multi-Organ Segmentation. IEEE "
        "Transactions on Medical Imaging (2025). doi:10.1109/TMI.2025.3614853"
    )
    settings_class = MutualPartialSettings
    settings: MutualPartialSettings

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """The stage with more networks."""
        stages = two_stages(settings, table, cases)
        number, differ = stages.most_networks, bool(stages.first) and settings.loss.pd > 0
        common = super().needs(settings, table, cases)
        return replace(
            common,
            networks=number,
            averages=number * common.averages,
            memory=planned_memory(settings),
            terms=("prediction difference",) if differ else (),
            features=(STRIDE,) if number > 1 and (settings.loss.fd > 0 or settings.loss.dfs > 0) else (),
            prototypes=settings.pseudo_labels.rectify,
        )

    def find_stages(self, training: Sequence[str]) -> TwoStages:
        """Returns the stages that the settings ask for."""
        return two_stages(self.settings, self.table, training)

    @property
    def filter_settings(self) -> PseudoLabelSettings:
        """As the settings say."""
        return self.settings.pseudo_labels

    @property
    def pseudo_weight(self) -> float:
        """As the settings say."""
        return self.settings.pseudo_labels.weight

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns a network per group, or one."""
        peers = self.make_peers(objectives, max(1, len(self.stage_groups)))
        if self._rectifies():
            self.rectifier.attach(peers)
        return peers

    def _rectifies(self) -> bool:
        return self.stage_number == 1 and self.settings.pseudo_labels.rectify

    @property
    def pseudo_labelling(self) -> list[nn.Module]:
        """The rectified network, if the settings ask for it."""
        return [self.rectifier.network] if self._rectifies() else super().pseudo_labelling

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks of this stage learn."""
        chosen = self.settings
        size = self.networks.feature_channels()
        common: dict[str, Any] = {"loss": chosen.loss, "rise": chosen.ramp, "feature_size": size}
        if self.stage_number == 2:
            return [SimilarityObjective(self.knowledge, self.supervised, self.stages.second, **common)]
        if not self.stages.first:
            if not self._rectifies():
                return [self.supervised]
            self.rectifier = Rectifier(self.networks, self.supervised, self.settings.ema, 1.0)
            return [self.supervised, self.rectifier.objective]
        forced = round(self.batch_size * (1 - self.oversample_foreground_percent))
        return [
            DifferenceObjective(
                self.knowledge,
                self.supervised,
                self.stages.first,
                form=chosen.fd_form,
                foreground_from=forced,
                **common,
            )
        ]
