"""Deep mutual learning among partially labelled datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from batchgenerators.utilities.file_and_folder_operations import join
from torch import nn

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.label_groups import LabelGroup
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.batches.streams import PooledStream, PseudoStream, Stream
from nnunet_mutual.disk.trainings import LATEST
from nnunet_mutual.engine.acted import Acted, in_stages
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.engine.rectifier import Rectifier
from nnunet_mutual.engine.signals import Stopping
from nnunet_mutual.engine.two_stages import TwoStages
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.objectives.full_organs import SimilarityObjective
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.partial_organs import STRIDE, DifferenceObjective, PartialLoss, Ramp
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.pseudo_labels.audit import summarise
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import Experts, make_pseudo_labels
from nnunet_mutual.settings import PeersSettings, planned_memory
from nnunet_mutual.trainers.base import MutualTrainer

STAGE_1_CHECKPOINT = "checkpoint_stage1.pth"


@dataclass(frozen=True)
class PseudoLabelSettings(FilterSettings):
    """How pseudo labels are made, beside the filter.

    Attributes:
        rectify: let prototypes that learn in stage 1 rectify the logits, as in
            :class:`~nnunet_mutual.trainers.MutualPrototypeTrainer`; needs ``ema`` and one network in stage 1.
    """

    rectify: bool = False


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


def two_stages(settings: MutualPartialSettings, table: AnnotationTable, cases: Sequence[str]) -> TwoStages:
    """Returns how a training with these settings and cases proceeds."""
    grouped = settings.stage1_networks == "groups", settings.stage2_networks == "groups"
    return TwoStages.of(table, cases, epochs=settings.num_epochs, share=settings.stage1_share, grouped=grouped)


class MutualPartialTrainer(MutualTrainer):
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
    no_cascade = "whose second stage would need the first one's pseudo labels"

    # Stages

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

    def plan_stages(self) -> None:
        """Finds the groups, from which the lengths of the stages follow."""
        training, _ = self.do_split()
        self.stages = two_stages(self.settings, self.table, training)
        self.num_epochs = self.stages.epochs
        self.stage_number = 1 if self.stages.first_epochs else 2
        self.store = PseudoStore(Path(self.output_folder) / "pseudo_labels")
        self.print_to_log_file(self.stages.describe(self.table, training, self.num_iterations_per_epoch))

    @property
    def stage_groups(self) -> Sequence[LabelGroup]:
        """The groups of which each has a network in this stage; none for one network."""
        return self.stages.groups_of(self.stage_number)

    def build_stream(self) -> Stream:
        """A batch holds cases of different groups, where several networks learn; stage 2 has pseudo labels."""
        if self.stage_number == 1 or not self.stages.first_epochs:
            return PooledStream(self.table, self.stage_groups)
        codes = PseudoCodes.from_table(self.table, self.label_manager.ignore_label)
        return PseudoStream(self.table, self.stage_groups, store=self.store, codes=codes, labels=self.label_manager)

    def start_stage(self) -> None:
        """Builds a stage; its batches must have room for two groups where networks of different groups learn."""
        if self.stream.batch_size(self.batch_size) is not None:
            self.print_to_log_file(f"The batch size is raised from {self.batch_size} to 2: a case each of two groups")
        super().start_stage()

    def find_acted(self) -> Acted:
        """Returns what is at work, by the groups and by what became of pseudo labels."""
        training, _ = self.do_split()
        decisions = self.store.decisions(key for key in training if self.store.has(key))
        asked = "groups" in (self.settings.stage1_networks, self.settings.stage2_networks)
        made = self.stage_number == 2
        return in_stages(
            super().find_acted(),
            type(self).__name__,
            decisions if made else None,
            networks=self.most_networks,
            asked=asked,
        )

    @property
    def stage_span(self) -> tuple[int, int]:
        """First epoch of the stage and the one after its last."""
        return self.stages.span(self.stage_number)

    def before_epoch(self, stopping: Stopping) -> None:
        """Makes the pseudo labels when stage 1 is over, and goes on to stage 2."""
        if self.stage_number == 2 or self.current_epoch < self.stages.first_epochs:
            return
        self.save_checkpoint(join(self.output_folder, STAGE_1_CHECKPOINT))
        self.save_checkpoint(join(self.output_folder, LATEST))
        self.print_to_log_file("Stage 1 is over: making pseudo labels")
        self.stage.collect()
        decisions = make_pseudo_labels(
            self.window,
            self.fold_cases,
            self.store,
            Experts(self.pseudo_labelling, self.network_labels(), self.settings.pseudo_labels),
            ranks=self.ranks,
            say=self.print_to_log_file,
            between_cases=lambda: None if self.ranks.size > 1 else stopping.obey(),
        )
        self.print_to_log_file(f"{summarise(decisions)}\nEvery decision: {self.store.folder / 'decisions.csv'}")
        best = unwrap(self.deployed_network).state_dict()
        best = {name: value.clone() for name, value in best.items()}
        self.restore_stage(2)
        for network in self.peers.networks:
            unwrap(network).load_state_dict(best)
        self.peers.restart_averages()
        self._best_ema = None
        self.log.acted(self.acted)
        self.close_loaders()  # whose processes hold the old dataset
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self.save_checkpoint(join(self.output_folder, LATEST))

    def restore_stage(self, number: int) -> None:
        """Builds the networks and objectives of a stage, with fresh optimisers."""
        if number == self.stage_number:
            return
        self.stage_number = number
        self.stream = self.build_stream()
        self.knowledge = self.build_knowledge().to(self.device)
        self.supervised = self.build_supervision()
        self.start_stage()

    def build_knowledge(self) -> Knowledge:
        """Stage 2 knows the accepted pseudo labels, too."""
        if not isinstance(self.stream, PseudoStream):
            return super().build_knowledge()
        keys, heads = self.data.keys(), self.label_manager.num_segmentation_heads
        return Knowledge(self.table, keys, heads, self.stream.codes, self.store.accepted(keys))

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

    @property
    def most_networks(self) -> int:
        """Of either stage."""
        return self.stages.most_networks

    @property
    def candidates(self) -> tuple[int, ...]:
        """All networks of the stage."""
        return tuple(range(max(1, len(self.stage_groups))))

    def network_labels(self) -> list[frozenset[str]]:
        """Partial-organ networks learn the labels of their group."""
        return list(self.stages.first) if self.stage_number == 1 and self.stages.first else super().network_labels()

    # Data

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Stage 2 goes on with all pseudo labels or not at all (nnU-Net's hook)."""
        training, validation = super().get_tr_and_val_datasets()
        if isinstance(self.stream, PseudoStream) and self.current_epoch < self.num_epochs:
            learnt = self.stages.first or [frozenset(self.table.labels)]  # in stage 1
            self.store.require(self.table, training.identifiers, frozenset().union(*learnt), STAGE_1_CHECKPOINT)
        return training, validation
