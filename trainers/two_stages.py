"""Two stages around a round of pseudo labels, in one training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import join

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.label_groups import LabelGroup
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.batches.streams import PooledStream, PseudoStream, Stream
from nnunet_mutual.disk.trainings import LATEST
from nnunet_mutual.engine.acted import Acted, in_stages
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.engine.signals import Stopping
from nnunet_mutual.engine.two_stages import TwoStages
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.pseudo_labels.audit import summarise
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import Experts, make_pseudo_labels
from nnunet_mutual.pseudo_labels.masks.given import Given
from nnunet_mutual.trainers.base import MutualTrainer

STAGE_1_CHECKPOINT = "checkpoint_stage1.pth"


class TwoStageTrainer(MutualTrainer):
    """Stage 1 makes pseudo labels of what cases do not annotate; stage 2 learns from true and pseudo labels.

    Either stage has a network per group of cases that annotate the same labels, or one for all labels. Stage 2 starts
    from the best network of stage 1, with fresh optimisers. Pseudo labels of other tools may take the place of stage 1.

    Attributes:
        stages: groups and lengths of both stages.
        store: the pseudo labels.
    """

    no_cascade = "whose second stage would need the first one's pseudo labels"

    def find_stages(self, training: Sequence[str]) -> TwoStages:
        """Returns the groups of these training cases, and how long each stage is."""
        raise NotImplementedError

    @property
    def filter_settings(self) -> FilterSettings:
        """Which pseudo labels are taken."""
        raise NotImplementedError

    @property
    def pseudo_weight(self) -> float:
        """How much accepted pseudo labels count next to drawn labels."""
        return 1.0

    def plan_stages(self) -> None:
        """Finds the groups, from which the lengths of the stages follow, and takes pseudo labels that are given."""
        training, _ = self.do_split()
        self.stages = self.find_stages(training)
        self.num_epochs = self.stages.epochs
        self.stage_number = 1 if self.stages.first_epochs else 2
        self.store = PseudoStore(Path(self.output_folder) / "pseudo_labels")
        if self.stages.given:
            self.print_to_log_file(summarise(self.given.take()))
        self.print_to_log_file(self.stages.describe(self.table, training, self.num_iterations_per_epoch))

    @property
    def given(self) -> Given:
        """The pseudo labels of other tools with which the training begins, if the settings ask for them."""
        return Given(self.plans_manager.dataset_name, self.window, self.fold_cases, self.store, self.ranks)

    @property
    def stage_groups(self) -> Sequence[LabelGroup]:
        """The groups of which each has a network in this stage; none for one network."""
        return self.stages.groups_of(self.stage_number)

    @property
    def stage_span(self) -> tuple[int, int]:
        """First epoch of the stage and the one after its last."""
        return self.stages.span(self.stage_number)

    @property
    def most_networks(self) -> int:
        """Of either stage."""
        return self.stages.most_networks

    @property
    def candidates(self) -> tuple[int, ...]:
        """All networks of the stage."""
        return tuple(range(max(1, len(self.stage_groups))))

    def network_labels(self) -> list[frozenset[str]]:
        """Networks of groups learn the labels of their group in stage 1."""
        return list(self.stages.first) if self.stage_number == 1 and self.stages.first else super().network_labels()

    def find_acted(self) -> Acted:
        """Returns what is at work, by the groups and by what became of pseudo labels."""
        training, _ = self.do_split()
        decisions = self.store.decisions(key for key in training if self.store.has(key))
        return in_stages(
            super().find_acted(),
            type(self).__name__,
            decisions if self.stage_number == 2 else None,
            networks=self.most_networks,
            asked=self.stages.asked,
        )

    # From one stage to the next

    def start_stage(self) -> None:
        """Builds a stage; its batches must have room for two groups where networks of different groups learn."""
        if self.stream.batch_size(self.batch_size) is not None:
            self.print_to_log_file(f"The batch size is raised from {self.batch_size} to 2: a case each of two groups")
        super().start_stage()

    def before_epoch(self, stopping: Stopping) -> None:
        """Makes the pseudo labels when stage 1 is over, and goes on to stage 2."""
        if self.stages.given and self.current_epoch == 0:
            self.given.require_same()
        if self.stage_number == 2 or self.current_epoch < self.stages.first_epochs:
            return
        self.save_checkpoint(join(self.output_folder, STAGE_1_CHECKPOINT))
        self.save_checkpoint(join(self.output_folder, LATEST))
        self._make_pseudo_labels(stopping)
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

    def _make_pseudo_labels(self, stopping: Stopping) -> None:
        self.print_to_log_file("Stage 1 is over: making pseudo labels")
        self.stage.collect()
        decisions = make_pseudo_labels(
            self.window,
            self.fold_cases,
            self.store,
            Experts(self.pseudo_labelling, self.network_labels(), self.filter_settings),
            ranks=self.ranks,
            say=self.print_to_log_file,
            between_cases=lambda: None if self.ranks.size > 1 else stopping.obey(),
        )
        self.print_to_log_file(f"{summarise(decisions)}\nEvery decision: {self.store.folder / 'decisions.csv'}")

    def restore_stage(self, number: int) -> None:
        """Builds the networks and objectives of a stage, with fresh optimisers."""
        if number == self.stage_number:
            return
        self.stage_number = number
        self.stream = self.build_stream()
        self.knowledge = self.build_knowledge().to(self.device)
        self.supervised = self.build_supervision()
        self.start_stage()

    # Data

    def build_stream(self) -> Stream:
        """A batch holds cases of different groups, where several networks learn; stage 2 has pseudo labels."""
        if self.stage_number == 1 or not (self.stages.first_epochs or self.stages.given):
            return PooledStream(self.table, self.stage_groups)
        codes = PseudoCodes.from_table(self.table)
        return PseudoStream(self.table, self.stage_groups, store=self.store, codes=codes, labels=self.label_manager)

    def build_knowledge(self) -> Knowledge:
        """Stage 2 knows the accepted pseudo labels, too."""
        if not isinstance(self.stream, PseudoStream):
            return super().build_knowledge()
        keys, heads = self.data.keys(), self.label_manager.num_segmentation_heads
        accepted = self.store.accepted(keys)
        return Knowledge(self.table, keys, heads, self.stream.codes, accepted, weight=self.pseudo_weight)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Stage 2 goes on with all pseudo labels or not at all (nnU-Net's hook)."""
        training, validation = super().get_tr_and_val_datasets()
        unfinished = self.current_epoch < self.num_epochs
        if isinstance(self.stream, PseudoStream) and unfinished and not self.stages.given:
            learnt = self.stages.first or [frozenset(self.table.labels)]  # in stage 1
            self.store.require(self.table, training.identifiers, frozenset().union(*learnt), STAGE_1_CHECKPOINT)
        return training, validation
