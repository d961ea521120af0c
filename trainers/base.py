"""The one training loop of this package, on nnU-Net's own hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.loading import LoaderSettings, case_probabilities, loader_seed, parts_of, stop_loaders
from nnunet_mutual.batches.streams import Stream
from nnunet_mutual.disk.case_files import damage_named, load_case, require_readable
from nnunet_mutual.disk.host_files import require_plans
from nnunet_mutual.disk.trainings import (
    BEST,
    FINAL,
    LATEST,
    begin_validation,
    progress_of,
    removed_unless_begun,
    set_aside,
)
from nnunet_mutual.disk.writing import require_space, sweep
from nnunet_mutual.engine import acted
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.checkpoints import (
    STATE_KEY,
    STOCK_TRAINER,
    load_own,
    plain,
    random_state,
    restore_random_state,
    save_atomically,
    verify_author,
    whole,
)
from nnunet_mutual.engine.fold_data import FoldData
from nnunet_mutual.engine.folds import difference, refuse_other_folds
from nnunet_mutual.engine.foreground import PASSES, PredictedForeground, in_turn
from nnunet_mutual.engine.log import ProgressPlot, RunLog, TermLog
from nnunet_mutual.engine.networks import Networks, buildable, seed, settle, share_encoder
from nnunet_mutual.engine.online import OnlineValidation, mean_dice
from nnunet_mutual.engine.parallel.ranks import ranks_of_process
from nnunet_mutual.engine.parts import part
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.engine.signals import SaveRhythm, Stopping, StopSignals, disk_in_one_sentence
from nnunet_mutual.engine.stage import Stage
from nnunet_mutual.engine.stock_model import require_known_networks
from nnunet_mutual.engine.validation import FoldValidation
from nnunet_mutual.engine.window import Window, set_deep_supervision
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.evaluation.whole_cases import measure_validation
from nnunet_mutual.modules.ema import decay_of
from nnunet_mutual.objectives import Batch, Objective, Progress
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective, like_nnunet
from nnunet_mutual.planning.needs import Needs, one_network
from nnunet_mutual.plugin import compat
from nnunet_mutual.preprocessing.label_changes import LabelWatch
from nnunet_mutual.settings import PeersSettings, Settings, block_for, merged_block, read_settings


class MutualTrainer(nnUNetTrainer):
    """Trains networks on objectives and a stream of data; a method is a subclass that says which.

    The base class itself has one network, the supervised objective and nnU-Net's data.

    Attributes:
        settings_class: what the ``"mutual"`` block of the plans may hold.
        checkpoint_trainer: which trainer nnU-Net looks for when it predicts from a checkpoint.
        by_group: whether the data are preprocessed by modality group.
        paper: of the method, for those who publish what they did with it.
        no_cascade: why the method trains no second stage of a cascade; None if it does.
    """

    settings_class: type[Settings] = Settings
    checkpoint_trainer = STOCK_TRAINER
    by_group = False
    paper: str | None = None
    no_cascade: str | None = None
    batch_size: int
    oversample_foreground_percent: float

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        # Before nnU-Net makes folders: a wrong table or setting must leave nothing behind.
        require_plans(plans, "the plans file")
        self.table = AnnotationTable.from_dataset_json(dataset_json)
        if PLANS_KEY in plans and not self.by_group:
            raise MutualError(
                f"the data of the plans {plans['plans_name']} were preprocessed by modality group, which only "
                "MutualCrossModalTrainer reads; use the plans of nnUNetv2_plan_and_preprocess"
            )
        require_known_networks(plans, f"{plans['plans_name']}.json")
        self.settings = read_settings(self.settings_class, block_for(type(self), merged_block(plans, configuration)))
        self.autocast_dtype = compat.autocast_dtype(self.settings.amp, device)
        self.continues = bool(plans.setdefault("continue_training", False))
        self.opened: str | None = None  # the checkpoint that holds the networks; None of a new training
        self.pauses: dict[
            int, float
        ] = {}  # epoch -> seconds between the process that began it and the one that ended it
        with disk_in_one_sentence("nnUNet_results", beginning=True):
            super().__init__(plans, configuration, fold, dataset_json, device)
            with removed_unless_begun(Path(self.output_folder)):
                require_space(self.output_folder)  # nnU-Net's log would wait for it, line by line
        sweep(Path(self.output_folder))
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.dataset_class: Any = None  # nnU-Net sets it in initialize
        self.ranks = ranks_of_process(self.is_ddp)
        self.data = FoldData(
            self.table,
            fold,
            self.preprocessed_dataset_folder,
            self.folder_with_segs_from_previous_stage,
            dataset_json,
            ranks=self.ranks,
            say=self.print_to_log_file,
            output=self.output_folder,
            preprocess=f"nnunet_mutual plan_and_preprocess -d {int(self.plans_manager.dataset_name[7:10])} "
            f"-c {configuration} --as-planned {self.plans_manager.plans_name}",
        )
        self.seen_before: frozenset[str] = frozenset()  # cases that the networks of a checkpoint were trained on
        self._best_ema: float | None = None
        self.epochs_done = 0
        self.iteration = 0
        self.stage_number = 1
        self.rhythm = SaveRhythm(self.settings.checkpoint_epochs, self.settings.checkpoint_minutes)
        self.plot = ProgressPlot()
        self._read: list[Any] = []  # datasets of the loaders
        self.epoch_outputs: list[dict] = []
        self.resumed_random_state: dict[str, Any] | None = None
        self.foreground = PredictedForeground(Path(self.output_folder) / "unlabelled_foreground")
        if self.autocast_dtype != torch.float16:
            self.grad_scaler = None

    # What the training consists of

    @classmethod
    def needs(cls, settings: Any, table: AnnotationTable, cases: Sequence[str]) -> Needs:
        """Returns what a training with these settings and cases holds in memory, for planners."""
        return one_network(settings, table, cases)

    def plan_stages(self) -> None:
        """Decides from the data how the training proceeds, before any network is built; nothing by default."""

    def build_stream(self) -> Stream:
        """Returns which data the stage learns from; the labelled cases, by default."""
        return Stream()

    def build_knowledge(self) -> Knowledge:
        """Returns what each case says about each label; unlabelled images annotate nothing."""
        heads = self.label_manager.num_segmentation_heads
        return Knowledge(self.table, self.data.keys(), heads, unlabelled=self.stream.further)

    def build_supervision(self) -> SupervisedObjective:
        """Returns the supervised loss, also used in validation."""
        levels = self._get_deep_supervision_scales()
        return like_nnunet(
            self.knowledge,
            self.loss,
            None if levels is None else len(levels),
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            margin=self.settings.incomplete_margin,
            distributed=self.is_ddp,
            keep_last=self.is_ddp and not self._do_i_compile(),
        )

    def build_objectives(self) -> list[Objective]:
        """Returns what the networks learn; subclasses add theirs."""
        return [self.supervised]

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """Returns the networks that learn together; stock's one network by default."""
        return Peers([self.network], [self.optimizer], [self.lr_scheduler], self.grad_scaler, ranks=self.ranks)

    def make_peers(
        self, objectives: Sequence[Objective], number: int = 1, auxiliary: Sequence[nn.Module] = (), **averages: Any
    ) -> Peers:
        """Returns several networks, the first of which is stock's; see :meth:`Networks.peers`."""
        first: nn.Module = unwrap(self.network)  # type: ignore[has-type] # untyped in nnU-Net
        self.network = first
        return self.networks.peers(first, objectives, number, auxiliary, **averages)

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Builds the network of the plans, or says that it cannot be built (nnU-Net's hook)."""
        with buildable(plans_manager.plans_name):
            network: nn.Module = nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        return network

    @property
    def networks(self) -> Networks:
        """What builds networks as nnU-Net does."""
        chosen = self.settings if isinstance(self.settings, PeersSettings) else PeersSettings(memory="joint")
        shape = (self.plans_manager, self.configuration_manager, self.num_input_channels)
        outputs = self.label_manager.num_segmentation_heads
        return Networks(
            self.configuration_manager,
            partial(self.build_network_architecture, *shape, outputs, self.enable_deep_supervision),
            self._optimise,
            device=self.device,
            compiles=self._do_i_compile(),
            distributed=self.is_ddp,
            ranks=self.ranks,
            scaler=self.grad_scaler,
            memory=chosen.memory,
            decay=self.decay,
        )

    @property
    def decay(self) -> float:
        """Of the networks' moving averages."""
        age: float | None = getattr(self.settings, "ema_age", None)
        if age is None:
            return float(getattr(self.settings, "ema", 0))
        first, end = self.stage_span
        return decay_of(age, (end - first) * self.num_iterations_per_epoch)

    def _optimise(self, module: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net makes optimiser and schedule for ``self.network``, over all epochs instead of those of a stage."""
        network, self.network = self.network, module
        try:
            optimizer, scheduler = self.configure_optimizers()
        finally:
            self.network = network
        first, end = self.stage_span
        scheduler.max_steps = end - first
        return optimizer, scheduler

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Returns optimiser and schedule of ``self.network`` (nnU-Net's hook)."""
        if self.settings.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision as the settings ask for it."""
        return nullcontext() if self.autocast_dtype is None else torch.autocast(self.device.type, self.autocast_dtype)

    # Building

    def initialize(self) -> None:
        """Builds networks, optimisers and objectives, unless it would be on a guess (nnU-Net's hook)."""
        with removed_unless_begun(Path(self.output_folder)):
            self._refuse_cascade()
            self._build()

    def _refuse_cascade(self) -> None:
        if self.is_cascaded and self.no_cascade is not None:
            raise MutualError(
                f"{type(self).__name__} does not train cascades, {self.no_cascade}; train 3d_fullres, or the cascade "
                "with PartialTrainer"
            )

    def _build(self) -> None:
        training, _ = self.do_split()
        seed(self.settings.seed)
        self.forced_share = self.oversample_foreground_percent  # before nnU-Net makes it 0 or 1 in a process of DDP
        self.plan_stages()
        self.stream = self.build_stream()
        super().initialize()
        self.validation_batch_size = self.batch_size  # stock's, whatever a method makes of training batches
        self.labels  # noqa: B018 - read before anything is learnt from them
        self.knowledge = self.build_knowledge().to(self.device)
        self.table.require_annotated(training, self.fold)
        self.supervised = self.build_supervision()
        self.start_stage()
        if self.is_ddp and self.ranks.rank:  # other samples than the first process, which has the same weights
            seed(self.settings.seed, self.ranks.rank)
        self._first_weight = next(self.network.parameters()).detach().clone()

    def start_stage(self) -> None:
        """Builds what is to be learnt and the networks that learn it, at the start and wherever a method changes."""
        size = self.stream.batch_size(self.batch_size)
        if size is not None:
            self.batch_size, self.oversample_foreground_percent = size, self.forced_share
        objectives = self.build_objectives()
        peers = self.build_peers(objectives)
        memory_open = isinstance(self.settings, PeersSettings) and self.settings.memory == "auto"
        graphs = self.settings.cuda_graphs
        self.stage = Stage(
            objectives,
            peers,
            device=self.device,
            autocast=self.autocast,
            settle=partial(settle, autocast=self.autocast, graphs=graphs, memory_open=memory_open, say=self.log.say),
            steps=self.steps_left,
        )
        self.acted = self.find_acted()
        self.online = OnlineValidation(
            self.supervised,
            self.label_manager,
            self.candidates,
            self.network_labels(),
            device=self.device,
            ranks=self.ranks,
        )

    @property
    def steps_left(self) -> int:
        """Of the stage."""
        first, end = self.stage_span
        return (end - max(first, self.current_epoch)) * self.num_iterations_per_epoch - self.iteration

    def restore_stage(self, number: int) -> None:
        """Builds the stage of the training in which a checkpoint was written; there is only one by default."""
        self.stage_number = number

    @property
    def peers(self) -> Peers:
        """The networks of the stage."""
        return self.stage.peers

    @property
    def objectives(self) -> list[Objective]:
        """What they learn."""
        return self.stage.objectives

    @property
    def stage_span(self) -> tuple[int, int]:
        """First epoch of the stage of the training and the epoch after its last one."""
        return 0, self.num_epochs

    @property
    def candidates(self) -> tuple[int, ...]:
        """The networks that validation compares; the best is deployed."""
        return (0,)

    def network_labels(self) -> list[frozenset[str]]:
        """The labels that each network is taught, and judged by: all, by default."""
        return [frozenset(self.table.labels)] * len(self.peers.deployable)

    @property
    def most_networks(self) -> int:
        """How many networks learn together at most, now or in another stage of the training."""
        return len(self.peers.networks)

    @property
    def deployed(self) -> int:
        """The network that validation scores, checkpoints deploy and prediction uses."""
        return self.online.deployed

    @property
    def deployed_network(self) -> nn.Module:
        """The same, as a module."""
        return self.peers.evaluated[self.deployed]

    @property
    def validated(self) -> dict[str, int]:
        """The networks that predict whole validation cases, by what their folders' names end in: the deployed one."""
        return {"": self.deployed}

    @property
    def pseudo_labelling(self) -> list[nn.Module]:
        """The networks that make pseudo labels of whole cases."""
        return self.peers.evaluated

    def find_acted(self) -> Acted:
        """Returns what of the method is at work with these data and settings, for log and checkpoints."""
        parts = self.table, self.do_split()[0], self.stream
        return acted.of_stream(type(self).__name__, *parts, self.most_networks, bool(self.peers.averages))

    @property
    def window(self) -> Window:
        """The configuration as it predicts whole cases."""
        return Window(
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.label_manager,
            self.device,
            self.inference_allowed_mirroring_axes,
            self.enable_deep_supervision,
        )

    @property
    def log(self) -> RunLog:
        """Where the training says what it does."""
        terms = TermLog(Path(self.output_folder) / "mutual_log.jsonl")
        return RunLog(self.print_to_log_file, self.logger, terms, self.local_rank == 0)

    # Data

    def do_split(self) -> tuple[list[str], list[str]]:
        """Splits by annotated set with patients together, or as an existing splits_final.json says (nnU-Net's hook)."""
        return self.data.split(super().do_split)

    def _require_unseen(self) -> None:
        training, validation = self.do_split()
        seen = sorted(self.seen_before & {*validation} - {*training})
        if seen:
            raise MutualError(
                f"{len(seen)} validation case(s) of fold {self.fold} ({shorten(seen, 3)}) were trained on, so "
                "splits_final.json is another one now; put that of the training back, or train anew"
            )

    @property
    def labels(self) -> LabelWatch:
        """Whether the labels of the fold change under the training."""
        self.do_split()
        return self.data.labels

    @property
    def fold_cases(self) -> Fold:
        """The preprocessed cases of the fold."""
        self.do_split()
        return self.data.cases

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Returns what the loaders read (nnU-Net's hook)."""
        return self.stream.datasets(*super().get_tr_and_val_datasets())

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Starts nnU-Net's loaders with source-balanced case probabilities (nnU-Net's hook)."""
        scales, labels = self._get_deep_supervision_scales(), self.label_manager
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        shared: dict[str, Any] = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        transforms = self.get_training_transforms(
            patch_size,
            rotation,
            scales,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.stream.masked(self.configuration_manager.use_mask_for_norm),
            **{**shared, "regions": self.stream.regions(shared["regions"])},
        )
        training, validation = self.get_tr_and_val_datasets()
        if not self.ranks.loads:
            return None, None
        self._read = parts_of(training, validation)
        for dataset in self._read:
            require_readable(dataset)
        loaders = LoaderSettings(
            patch_size,
            initial_size,
            labels,
            (self.batch_size, self.validation_batch_size),
            self.oversample_foreground_percent,
            self.probabilistic_oversampling,
            pin_memory=self.device.type == "cuda",
            seed=loader_seed(self.settings.seed, self.local_rank, self.current_epoch, self.iteration),
        )
        balanced = case_probabilities(self.table, training.identifiers) if self.settings.balance_sources else None
        make = self.stream.loader(training.identifiers)
        return (
            loaders.start(
                training, self.stream.transforms(transforms), make=make, probabilities=balanced, training=True
            ),
            loaders.start(validation, self.get_validation_transforms(scales, **shared), training=False),
        )

    def close_loaders(self) -> None:
        """Ends the processes of the loaders."""
        stop_loaders((self.dataloader_train, self.dataloader_val))

    def training_batch(self, raw: dict) -> Batch:
        """Moves a batch of the training loader to the device; a method may draw other views of its images here."""
        return self.stream.batch(raw, self.knowledge.patterns, self.device)

    def validation_batch(self, raw: dict) -> Batch:
        """Moves a batch of the validation loader to the device."""
        return self.stream.validation_batch(raw, self.knowledge.patterns, self.device)

    # The loop

    def on_train_start(self) -> None:
        """Prints the settings and what to know of the split, goes on where a resumed run stopped (nnU-Net's hook)."""
        if self.opened is None:  # before loaders read it
            self.foreground.forget()
        super().on_train_start()
        name = type(self).__name__
        self.log.start(name, self.settings, self.autocast_dtype or "float32")
        self.data.warn(self.log, name, self.acted)
        self.log.acted(self.acted)
        self.log.begin(name, self.settings, Path(self.output_folder_base), self.current_epoch)
        if self.current_epoch == self.iteration == 0:
            self._begin()
        if self.resumed_random_state is not None:
            restore_random_state(self.resumed_random_state, self.device)
            self.resumed_random_state = None

    def _begin(self) -> None:
        """Gives all networks what pretrained weights gave to the first one, and begins moving averages."""
        if self.opened is None and self.local_rank == 0 and not self.disable_checkpointing:
            for place in set_aside(Path(self.output_folder)):
                self.print_to_log_file(f"Of an earlier training, kept as {place}")
        pretrained = self.opened is None and not self._first_weight.equal(next(self.network.parameters()))
        if len(self.peers.networks) > 1 and pretrained:
            share_encoder(self.peers.networks)
            self.print_to_log_file("All networks start from the pretrained encoder; only the first from its decoder")
        self.peers.restart_averages()

    def run_training(self) -> None:
        """Trains to the end, from wherever a checkpoint left off (nnU-Net's hook)."""
        with removed_unless_begun(Path(self.output_folder)):
            self._refuse_cascade()  # before its first stage is missed
            self.labels.require_same()
            self._require_unseen()
            base, own = Path(self.output_folder_base), Path(self.output_folder)
            refuse_other_folds(base, own, self.plans_manager.plans, self.dataset_json)
        with disk_in_one_sentence(self.output_folder), self._stopping() as stopping:
            with removed_unless_begun(Path(self.output_folder)):
                self.on_train_start()
            while self.current_epoch < self.num_epochs:
                if self.iteration == 0:
                    self.labels.look()
                    self.before_epoch(stopping)
                self._run_epoch(stopping)
            self.on_train_end()
            self.opened = FINAL
            stopping.leave()

    @contextmanager
    def _stopping(self) -> Iterator[Stopping]:
        with StopSignals() as signals:
            yield Stopping(signals, self.ranks, self.print_to_log_file, self._save_latest, self.close_loaders)

    def _save_latest(self) -> str:
        place = f"epoch {self.current_epoch}, iteration {self.iteration}"
        if self.disable_checkpointing:
            return f"not saved at {place}, as --disable_checkpointing says"
        self.save_checkpoint(join(self.output_folder, LATEST))
        return f"saved at {place}; continue with --c"

    def before_epoch(self, stopping: Stopping) -> None:
        """Changes what is learnt, where a method has stages; renews where unlabelled images have foreground."""
        if not self.foreground.is_due(self.current_epoch, self.stream.foreground_epochs):
            return
        every, patches = self.stream.foreground_epochs, self.batch_size + self.stream.unlabelled
        passes = every * self.num_iterations_per_epoch * patches * PASSES * self.ranks.size
        dataset, _ = self.get_tr_and_val_datasets()
        renewed = in_turn(
            self.stream.unlabelled_keys,
            lambda key: self.window.tiles(load_case(dataset.holding(key), key)[0].shape[1:]),
            passes,
            self.current_epoch // every,
        )
        of = len(self.stream.unlabelled_keys)
        self.print_to_log_file(f"predicting {len(renewed)} of {of} unlabelled images to draw patches from")
        self.stage.collect()
        self.foreground.renew(self.window, self.deployed_network, dataset, renewed, self.ranks)

    def _run_epoch(self, stopping: Stopping) -> None:
        if self.iteration == 0:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.epoch_outputs = []
        self.peers.set_epoch(self.current_epoch - self.stage_span[0])
        while self.iteration < self.num_iterations_per_epoch:
            self.epoch_outputs.append(self.train_step(self._next_batch(stopping, training=True)))
            self.iteration += 1
            said = self.stage.forecast.step(self.device)
            if said:
                self.print_to_log_file(said)
            if not self.is_ddp:
                stopping.obey()
        self.on_train_epoch_end(self.epoch_outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            steps = range(self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end([self.validation_step(self._next_batch(stopping)) for _ in steps])
        self.iteration = 0
        self.on_epoch_end()
        stopping.obey()

    def _next_batch(self, stopping: Stopping, *, training: bool = False) -> dict:
        def loader() -> Any:
            return self.dataloader_train if training else self.dataloader_val

        def draw() -> dict:
            with part("loader"), damage_named(self._read):
                return stopping.draw(loader, save=training)

        return self.ranks.batch(draw, self.device)

    def on_train_epoch_start(self) -> None:
        """Puts networks and learning rates to the epoch of their stage (nnU-Net's hook)."""
        self.peers.set_epoch(self.current_epoch - self.stage_span[0])
        rate = float(self.peers.optimizers[0].param_groups[0]["lr"])
        for line in ("", f"Epoch {self.current_epoch}", f"Current learning rate: {rate:.5g}"):
            self.print_to_log_file(line)
        self.logger.log("lrs", rate, self.current_epoch)

    def progress(self) -> Progress:
        """Returns where the stage is."""
        first, end = self.stage_span
        done = (self.current_epoch - first) * self.num_iterations_per_epoch + self.iteration
        return Progress(done, (end - first) * self.num_iterations_per_epoch)

    def train_step(self, batch: dict) -> dict:
        """One step of all networks on all objectives (nnU-Net's hook)."""
        place = f"epoch {self.current_epoch}, iteration {self.iteration}"
        with part("views"):
            moved = self.training_batch(batch)
        return self.stage.step(moved, self.progress(), self.stream.seen_by, place)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Logs the loss and every term by name (nnU-Net's hook)."""
        self.log.training(self.current_epoch, self.stage.epoch(train_outputs, samples_differ=self.is_ddp))
        if (said := self.ranks.report()) is not None:
            self.print_to_log_file(said)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Sets it for all networks (nnU-Net's hook)."""
        for network in {*self.peers.networks, *self.peers.evaluated}:
            set_deep_supervision(network, enabled)

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Puts all networks into evaluation mode (nnU-Net's hook)."""
        self.peers.eval()

    def validation_step(self, batch: dict) -> dict:
        """Loss and voxel counts of the networks that may be deployed, of annotated labels only (nnU-Net's hook)."""
        return self.online.score(self.validation_batch(batch), self.evaluate, self.autocast)

    def evaluate(self, candidate: int, images: Tensor) -> list[Tensor]:
        """Returns the logits of a network that may be deployed, highest resolution first."""
        return self.peers.ask(candidate, self.stream.seen_by(candidate, images))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Logs loss and Dice per label, over labels that were sampled; ranks the networks (nnU-Net's hook)."""
        found = self.online.add(val_outputs, samples_differ=self.is_ddp)
        mean = mean_dice(found.dice, self.logger.get_value("mean_fg_dice", step=None))
        self.logger.log("mean_fg_dice", mean, self.current_epoch)
        self.logger.log("dice_per_class_or_region", found.dice, self.current_epoch)
        self.logger.log("val_losses", found.loss, self.current_epoch)
        self.log.validation(self.current_epoch, found.by_source)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predicts the validation cases whole, restricted to what each annotates (nnU-Net's hook)."""
        self.labels.before_validation()
        self._require_unseen()
        self.fold_cases.require_references(self.dataset_json["file_ending"])
        with disk_in_one_sentence(self.output_folder):
            self.stage.collect()
            progress = progress_of({"current_epoch": self.epochs_done, "logging": plain(self.logger.get_checkpoint())})
            for suffix in self.validated if self.local_rank == 0 else ():
                begin_validation(Path(self.output_folder) / f"validation{suffix}", self.opened or FINAL, progress)
            parts = self.window, self.fold_cases, self.output_folder, self.log, self.ranks
            # Networks that are only asked, for an export, may be others than the next stage was trained on.
            validation = FoldValidation(*parts, save_probabilities, passes_on=not self.data.asked)
            for suffix, network in self.validated.items():
                keys = sorted(key for key in self.do_split()[1] if self.stream.can_see(network, key))
                see = partial(self.stream.seen_by, network)
                validation.run(suffix, self.peers.evaluated[network], keys, see)
            for suffix in self.validated if self.local_rank == 0 else ():
                folder = Path(self.output_folder) / f"validation{suffix}"
                measure_validation(folder, self.fold_cases.references, self.table, self.dataset_json, self.log.say)

    # Checkpoints

    def on_epoch_end(self) -> None:
        """Logs, keeps the best and the latest checkpoint, counts the epoch (nnU-Net's hook)."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        self.epochs_done = self.current_epoch + 1
        self.log.epoch(self.table.labels)
        value = self.logger.get_value
        if self._best_ema is None or value("ema_fg_dice", -1) > self._best_ema:
            self._best_ema = float(value("ema_fg_dice", -1))
            self.print_to_log_file(f"New best moving average of the pseudo Dice: {self._best_ema:.4f}")
            self.save_checkpoint(join(self.output_folder, BEST))
        # Clocks differ, and all processes take part in a checkpoint: the first one decides.
        if self.ranks.first(self.rhythm.due(self.epochs_done)) and self.epochs_done < self.num_epochs:
            self.save_checkpoint(join(self.output_folder, LATEST))
            self.rhythm.saved(self.epochs_done)
        if self.local_rank == 0:
            self.plot.draw(self.logger, self.output_folder, ended=self.epochs_done == self.num_epochs)
        self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """Writes what stock nnU-Net predicts from, plus everything that ``--c`` needs (nnU-Net's hook)."""
        if self.disable_checkpointing:
            return
        states = self.ranks.gather(random_state(self.device))  # each process has random states of its own, or networks
        stage = self.stage.state_dict()
        if self.local_rank:
            return
        stock = self.predicting_part(self.deployed_network, self._best_ema, self.epochs_done)
        stock |= {"optimizer_state": stage["peers"]["optimizers"][0], "grad_scaler_state": stage["peers"]["scaler"]}
        stock[STATE_KEY] |= {
            **stage,
            "stage": self.stage_number,
            "deployed": self.deployed,
            "ranking": self.online.ranking.state_dict(),
            "label_maps": self.labels.began,
            "random": states,
            "iteration": self.iteration,
            "time": time(),
            "pauses": self.pauses,
            "epoch_outputs": plain(self.epoch_outputs) if self.iteration else [],
        }
        save_atomically(stock, filename)

    def predicting_part(self, network: nn.Module, best: float | None, epochs: int) -> dict[str, Any]:
        """Returns a checkpoint that predicts and can be exported, not one to go on from.

        Args:
            network: that predicts.
            best: highest moving average of its Dice.
            epochs: that it was trained for.
        """
        return {
            "network_weights": unwrap(network).state_dict(),
            "logging": plain(self.logger.get_checkpoint()),
            "_best_ema": plain(best),
            "current_epoch": epochs,
            "init_args": plain(self.my_init_kwargs),
            "trainer_name": self.checkpoint_trainer,
            "inference_allowed_mirroring_axes": plain(self.inference_allowed_mirroring_axes),
            STATE_KEY: {
                "trainer": type(self).__name__,
                "settings": asdict(self.settings),
                "num_epochs": self.num_epochs,
                "trained_on": sorted({*self.seen_before, *self.do_split()[0]}),
                acted.KEY: self.acted.as_state(),
            },
        }

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restores all networks and the whole state of the training (nnU-Net's hook)."""
        checkpoint = load_own(filename_or_checkpoint, self.device)
        with whole(filename_or_checkpoint):
            verify_author(checkpoint[STATE_KEY], type(self).__name__, self.settings, filename_or_checkpoint)
            self.labels.compare(checkpoint["init_args"]["dataset_json"], checkpoint[STATE_KEY].get("label_maps"))
        if self.continues:
            self.labels.require_same()
        if place := difference(checkpoint, self.plans_manager.plans, self.dataset_json):
            raise MutualError(
                f"{filename_or_checkpoint} was trained with other labels, channels or plans ({place}); put them back, "
                "or give the new plans another name and train with those"
            )
        if not self.was_initialized:
            self.initialize()
        with whole(filename_or_checkpoint):
            self._restore(checkpoint)
        self.opened = Path(filename_or_checkpoint).name

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[STATE_KEY]
        self.my_init_kwargs = checkpoint["init_args"]
        self.seen_before = frozenset(state.get("trained_on", ()))
        self.current_epoch = self.epochs_done = checkpoint["current_epoch"]
        self.rhythm.saved(self.current_epoch)
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        self.restore_stage(state["stage"])
        self.online.ranking.load_state_dict(state["ranking"])
        self.stage.load_state_dict(state)
        self.iteration = state["iteration"]
        self.stage.forecast.left = self.steps_left
        self.pauses = dict(state.get("pauses", {}))
        if self.iteration and "time" in state:
            self.pauses[self.current_epoch] = self.pauses.get(self.current_epoch, 0.0) + time() - state["time"]
        steps = state["epoch_outputs"]
        self.epoch_outputs = [{key: np.asarray(value, np.float32) for key, value in step.items()} for step in steps]
        if len(state["random"]) > self.local_rank:
            self.resumed_random_state = state["random"][self.local_rank]
