"""The one training loop of this package, on nnU-Net's own hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.loading import start_loaders
from nnunet_mutual.datasets.splits import provide_splits
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ
from nnunet_mutual.engine import networks as building
from nnunet_mutual.engine.checkpoints import (
    STOCK_TRAINER,
    load_own,
    pack,
    restore_random_state,
    save_atomically,
    unpack,
)
from nnunet_mutual.engine.log import FiniteGuard, Forecast, ProgressPlot, TermLog, log_terms, say_epoch, say_start
from nnunet_mutual.engine.online import Ranking, log_scores, score_batch
from nnunet_mutual.engine.parallel.ranks import ranks_of_process
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.engine.signals import SaveRhythm, StopSignals, obey
from nnunet_mutual.engine.validation import validate_fold
from nnunet_mutual.engine.window import set_deep_supervision
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Batch, Objective, Output, Progress, collect_terms
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.planning.needs import Needs, one_network
from nnunet_mutual.plugin import compat
from nnunet_mutual.preprocessing import label_maps
from nnunet_mutual.settings import Settings, block_for, merged_block, read_settings


class MutualTrainer(nnUNetTrainer):
    """Trains networks on objectives; a method is a subclass that says which.

    The base class itself has one network and the supervised objective.
    """

    settings_class: type[Settings] = Settings
    checkpoint_trainer = STOCK_TRAINER  # which trainer nnU-Net looks for when it predicts from a checkpoint
    by_group = False  # whether the data are preprocessed by modality group

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        # Before nnU-Net makes folders: a wrong table or setting must leave nothing behind.
        self.table = AnnotationTable.from_dataset_json(dataset_json)
        if PLANS_KEY in plans and not self.by_group:
            raise MutualError(
                f"the data of the plans {plans['plans_name']} were preprocessed by modality group, which only "
                "MutualCrossModalTrainer reads; use the plans of nnUNetv2_plan_and_preprocess"
            )
        self.settings = read_settings(self.settings_class, block_for(type(self), merged_block(plans, configuration)))
        self.autocast_dtype = compat.autocast_dtype(self.settings.amp, device)
        self.continues = bool(plans.setdefault("continue_training", False))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.dataset_class: Any = None  # nnU-Net sets it in initialize
        self.ranks = ranks_of_process(self.is_ddp)
        self._best_ema: float | None = None
        self.epochs_done = 0
        self.iteration = 0
        self.stage = 1
        self.deployed = 0
        self.rhythm = SaveRhythm(self.settings.checkpoint_epochs, self.settings.checkpoint_minutes)
        self.plot = ProgressPlot()
        self._split: tuple[list[str], list[str]] | None = None
        self.labels: label_maps.Labels | None = None
        self.other_labels: str | None = None  # how they differ from those of the checkpoint that was loaded
        self.epoch_outputs: list[dict] = []
        self.resumed_random_state: dict[str, Any] | None = None
        self.term_log = TermLog(Path(self.output_folder) / "mutual_log.jsonl")
        if self.autocast_dtype != torch.float16:
            self.grad_scaler = None

    # Building

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """Returns what a training with these settings and cases holds in memory, for planners."""
        return one_network(settings, table, cases)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision as the settings ask for it."""
        return nullcontext() if self.autocast_dtype is None else torch.autocast(self.device.type, self.autocast_dtype)

    def initialize(self) -> None:
        """Builds networks, optimisers and objectives, unless it would be on a guess (nnU-Net's hook)."""
        difference = raw_and_preprocessed_differ(self.plans_manager.dataset_name)
        if difference:  # before a split is made of a wrong table
            raise MutualError(difference)
        building.seed(self.settings.seed)
        self.plan_stages()
        super().initialize()
        self.validation_batch_size = self.batch_size  # stock's, whatever a method makes of training batches
        training, _ = self.do_split()
        label_maps.start(self)
        self.knowledge = self.build_knowledge().to(self.device)
        self.table.require_annotated(training, self.fold)
        self.supervised = self.build_supervision()
        self.start_stage()
        if self.is_ddp and self.ranks.rank:  # other samples than the first process, which has the same weights
            building.seed(self.settings.seed, self.ranks.rank)
        self._first_weight = next(self.network.parameters()).detach().clone()

    def build_knowledge(self) -> Knowledge:
        """Returns what each case says about each label."""
        return Knowledge(self.table, self._table_keys(), self.label_manager.num_segmentation_heads)

    def plan_stages(self) -> None:
        """Decides from the data how the training proceeds, before any network is built; nothing by default."""

    def start_stage(self) -> None:
        """Builds what is to be learnt and the networks that learn it, at the start and wherever a method changes."""
        self.objectives = self.build_objectives()
        self.peers = self.build_peers()
        names = [name for objective in self.objectives for name in objective.term_names]
        if len(set(names)) != len(names):
            raise MutualError(f"two objectives give a term the same name: {names}; rename one")
        taught = self.network_labels()
        self.ranking = Ranking(np.array([[x in taught[n] for x in self.table.labels] for n in self.candidates]))
        first, end = self.stage_span
        self.forecast = Forecast((end - max(first, self.current_epoch)) * self.num_iterations_per_epoch)
        number = len(self.peers.networks)
        self.term_names = names if number == 1 else [f"{name}[{n}]" for n in range(number) for name in names]
        self.guard = FiniteGuard.of(self)

    def restore_stage(self, stage: int) -> None:
        """Builds the stage of the training in which a checkpoint was written; there is only one by default."""
        self.stage = stage

    def build_peers(self) -> Peers:
        """Returns the networks that learn together; stock's one network by default."""
        return Peers([self.network], [self.optimizer], [self.lr_scheduler], self.grad_scaler)

    def wrap(self, network: nn.Module, *, features: Sequence[int]) -> nn.Module:
        """Compiles and distributes a network."""
        return building.wrap(self, network, features)

    @property
    def stage_span(self) -> tuple[int, int]:
        """First epoch of the stage of the training and the epoch after its last one."""
        return 0, self.num_epochs

    def _progress(self) -> Progress:
        first, end = self.stage_span
        done = (self.current_epoch - first) * self.num_iterations_per_epoch + self.iteration
        return Progress(done, (end - first) * self.num_iterations_per_epoch)

    def build_supervision(self) -> SupervisedObjective:
        """Returns the supervised loss, also used in validation."""
        return building.build_supervision(self)

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks learn; subclasses add theirs."""
        return [self.supervised]

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Returns optimiser and schedule of ``self.network`` (nnU-Net's hook)."""
        if self.settings.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    # Data

    def _table_keys(self) -> list[str]:
        return list(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))

    def do_split(self) -> tuple[list[str], list[str]]:
        """Splits by annotated set with patients together, or as an existing splits_final.json says (nnU-Net's hook)."""
        if self._split is None:
            if self.dataset_class is None:
                self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
            self.table.require(self._table_keys())
            if self.fold != "all":
                file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
                said = provide_splits(self.table, self._table_keys(), self.fold, file)
                if said:
                    self.print_to_log_file(said)
            self._split = super().do_split()
        return list(self._split[0]), list(self._split[1])

    def training_transforms(self, transforms: Any) -> Any:
        """Changes nnU-Net's transforms of training patches; not by default."""
        return transforms

    def training_loader(self, keys: Sequence[str]) -> Callable[..., nnUNetDataLoader]:
        """Returns what makes the loader of the training cases from nnU-Net's arguments; stock's by default."""
        return nnUNetDataLoader

    def training_regions(self, regions: Any) -> Any:
        """Regions into which the loader turns training labels; nnU-Net's by default."""
        return regions

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Starts nnU-Net's loaders with source-balanced case probabilities (nnU-Net's hook)."""
        return start_loaders(self)

    def to_batch(self, batch: dict) -> Batch:
        """Moves a loader's batch to the device and looks up what its cases annotate."""
        target = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        patterns = self.knowledge.patterns(batch["keys"])
        return Batch(
            data=batch["data"].to(self.device, non_blocking=True),
            target=[level.to(self.device, non_blocking=True) for level in target],
            keys=[str(key) for key in batch["keys"]],
            patterns=patterns,
            pattern_index=torch.tensor(patterns).to(self.device, non_blocking=True),
        )

    def seen_by(self, network: int, images: Tensor) -> Tensor:
        """Returns what a network sees of images (B, M, *spatial); everything, by default."""
        return images

    def can_see(self, network: int, key: str) -> bool:
        """Whether a case has what a network needs to see; yes, by default."""
        return True

    def training_batch(self, batch: dict) -> Batch:
        """Moves a batch of the training loader to the device; a method may draw other views of its images here."""
        return self.to_batch(batch)

    # The loop

    def on_train_start(self) -> None:
        """Prints the settings and what to know of the split, goes on where a resumed run stopped (nnU-Net's hook)."""
        super().on_train_start()
        say_start(self)
        if self.local_rank == 0:
            self.term_log.drop_from(self.current_epoch)
        fresh = self.current_epoch == self.iteration == 0
        if fresh and len(self.peers.networks) > 1 and not self._first_weight.equal(next(self.network.parameters())):
            building.share_encoder(self.peers.networks)
            self.print_to_log_file("All networks start from the pretrained encoder; only the first from its decoder")
        if fresh:
            self.peers.restart_averages()
        if self.resumed_random_state is not None:
            restore_random_state(self.resumed_random_state, self.device)
            self.resumed_random_state = None

    def run_training(self) -> None:
        """Trains to the end, from wherever a checkpoint left off (nnU-Net's hook)."""
        label_maps.require_same_labels(self)
        with StopSignals() as signals:
            self.on_train_start()
            while self.current_epoch < self.num_epochs:
                if self.iteration == 0:
                    label_maps.watch(self)
                    self.before_epoch(signals)
                self._run_epoch(signals)
        self.on_train_end()

    def before_epoch(self, signals: StopSignals) -> None:
        """Changes what is learnt, where a method has stages; nothing by default."""

    def _run_epoch(self, signals: StopSignals) -> None:
        if self.iteration == 0:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.epoch_outputs = []
        self.peers.set_epoch(self.current_epoch - self.stage_span[0])
        while self.iteration < self.num_iterations_per_epoch:
            self.epoch_outputs.append(self.train_step(self._next_batch(signals)))
            self.iteration += 1
            said = self.forecast.step(self.device)
            if said:
                self.print_to_log_file(said)
            if not self.is_ddp:
                self.obey(signals)
        self.on_train_epoch_end(self.epoch_outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            steps, draw = range(self.num_val_iterations_per_epoch), lambda: next(self.dataloader_val)
            self.on_validation_epoch_end([self.validation_step(self.ranks.batch(draw, self.device)) for _ in steps])
        self.iteration = 0
        self.on_epoch_end()
        self.obey(signals)

    def on_train_epoch_start(self) -> None:
        """Puts networks and learning rates to the epoch of their stage (nnU-Net's hook)."""
        self.peers.set_epoch(self.current_epoch - self.stage_span[0])
        rate = float(self.peers.optimizers[0].param_groups[0]["lr"])
        for line in ("", f"Epoch {self.current_epoch}", f"Current learning rate: {rate:.5g}"):
            self.print_to_log_file(line)
        self.logger.log("lrs", rate, self.current_epoch)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Sets it for all networks (nnU-Net's hook)."""
        for network in {*self.peers.networks, *self.peers.evaluated}:
            set_deep_supervision(network, enabled)

    def _next_batch(self, signals: StopSignals) -> dict:
        try:
            return self.ranks.batch(lambda: next(self.dataloader_train), self.device)
        except RuntimeError:  # SIGTERM to the whole job also ends the loader's processes, often while we wait for them
            if not self.is_ddp:
                self.obey(signals)
            raise

    def obey(self, signals: StopSignals) -> None:
        """Saves when the cluster announces the end of the job; SIGTERM also stops."""
        obey(self, signals)

    def train_step(self, batch: dict) -> dict:
        """One forward, one backward, one optimiser step of all networks on all objectives (nnU-Net's hook)."""
        moved, progress = self.training_batch(batch), self._progress()
        place = f"epoch {self.current_epoch}, iteration {self.iteration} (cases {', '.join(moved.keys)})"
        number = len(self.peers.networks)
        rows = torch.zeros(number, len(self.term_names) // number + 1, device=self.device)  # terms and their sum
        weights = np.full((number, rows.shape[1] - 1), np.nan, np.float32)  # of networks that are trained elsewhere
        recorded: list[Output] = []
        self.peers.zero_grad()
        with self.autocast():
            for objective in self.objectives if self.peers.own else []:
                objective.ask(moved, progress)
        seen = [self.seen_by(n, moved.data) for n in range(number)]
        building.settle(self, seen)
        for peer, outputs, recorded in self.peers.passes(seen, self.autocast):
            with self.autocast():
                if peer == self.peers.own[0]:
                    for objective in self.objectives:
                        objective.prepare(recorded, moved, progress)
                terms = collect_terms(self.objectives, peer, outputs, moved, progress).values()
                weights[peer] = [term.weight for term in terms]
                weighted = [term.value.float() * term.weight for term in terms]
                total = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
            self.peers.backward(total)
            rows[peer] = torch.stack([*(term.value.detach().float() for term in terms), total.detach()])
        rows = self.ranks.total(rows)
        record = torch.cat([rows[:, :-1].flatten(), self.peers.clip().float(), rows[:, -1].mean(0, keepdim=True)])
        if self.grad_scaler is None:
            record = record.cpu()
            self.guard.check(record.tolist(), place)
        self.peers.step()
        with torch.no_grad():
            for objective in self.objectives if recorded else []:  # none, where no network of this stage runs here
                objective.update(recorded, moved)
        record = record.cpu()  # the step's one transfer to the host
        if self.grad_scaler is not None:
            self.guard.check(record.tolist(), place)
        return {
            "loss": record[-1].numpy(),
            "terms": record[: len(self.term_names)].numpy(),
            "weights": weights.ravel(),
        }

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Logs the loss and every term by name (nnU-Net's hook)."""
        log_terms(self, train_outputs)

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Puts all networks into evaluation mode (nnU-Net's hook)."""
        self.peers.eval()

    def validation_step(self, batch: dict) -> dict:
        """Loss and voxel counts of the networks that may be deployed, of annotated labels only (nnU-Net's hook)."""
        return score_batch(self, self.to_batch(batch))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Logs loss and Dice per label, over labels that were sampled; ranks the networks (nnU-Net's hook)."""
        log_scores(self, val_outputs)

    def evaluate(self, candidate: int, images: Tensor) -> list[Tensor]:
        """Returns the logits of a network that may be deployed, highest resolution first."""
        return self.peers.ask(candidate, self.seen_by(candidate, images))

    def network_labels(self) -> list[frozenset[str]]:
        """The labels that each network is taught, and judged by: all, by default."""
        return [frozenset(self.table.labels)] * len(self.peers.deployable)

    @property
    def candidates(self) -> tuple[int, ...]:
        """The networks that validation compares; the best is deployed."""
        return (self.deployed,)

    @property
    def most_networks(self) -> int:
        """How many networks learn together at most, now or in another stage of the training."""
        return len(self.peers.networks)

    @property
    def deployed_network(self) -> nn.Module:
        """The network that validation scores, checkpoints deploy and prediction uses."""
        return self.peers.evaluated[self.deployed]

    @property
    def validated(self) -> dict[str, int]:
        """The networks that predict whole validation cases, by what their folders' names end in: the deployed one."""
        return {"": self.deployed}

    @property
    def pseudo_labelling(self) -> list[nn.Module]:
        """The networks that make pseudo labels of whole cases."""
        return self.peers.evaluated

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predicts the validation cases whole, restricted to what each annotates (nnU-Net's hook)."""
        label_maps.before_validation(self)
        validate_fold(self, save_probabilities)

    # Checkpoints

    def on_epoch_end(self) -> None:
        """Logs, keeps the best and the latest checkpoint, counts the epoch (nnU-Net's hook)."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        self.epochs_done = self.current_epoch + 1
        say_epoch(self)
        value = self.logger.get_value
        if self._best_ema is None or value("ema_fg_dice", -1) > self._best_ema:
            self._best_ema = float(value("ema_fg_dice", -1))
            self.print_to_log_file(f"New best moving average of the pseudo Dice: {self._best_ema:.4f}")
            self.save_checkpoint(join(self.output_folder, "checkpoint_best.pth"))
        if self.rhythm.due(self) and self.epochs_done < self.num_epochs:
            self.save_checkpoint(join(self.output_folder, "checkpoint_latest.pth"))
            self.rhythm.saved(self.epochs_done)
        self.plot.draw(self)
        self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """Writes what stock nnU-Net predicts from, plus everything that ``--c`` needs (nnU-Net's hook)."""
        if self.disable_checkpointing:
            return
        checkpoint = pack(self)
        if checkpoint is not None:
            save_atomically(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restores all networks and the whole state of the training (nnU-Net's hook)."""
        unpack(self, load_own(filename_or_checkpoint, self.device), filename_or_checkpoint)
