"""Builds the networks of a training, with nnU-Net's own architecture, optimiser, compilation and distribution."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_mutual.engine.peers import Memory, Peers, unwrap
from nnunet_mutual.modules.tap import FeatureTap, feature_stage
from nnunet_mutual.objectives.supervised import SupervisedObjective, deep_supervision_weights
from nnunet_mutual.settings import PeersSettings

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer


def seed(number: int | None, process: int = 0) -> None:
    """Seeds all random numbers of this process, if there is a seed.

    Args:
        number: the seed.
        process: different ones draw different numbers.
    """
    if number is not None:
        torch.manual_seed(number + 1000 * process)
        np.random.seed((number + 1000 * process) % 2**32)
        random.seed(number + 1000 * process)


def make_peers(trainer: MutualTrainer, number: int, auxiliary: Sequence[nn.Module] = ()) -> Peers:
    """Returns differently seeded networks of the plans' architecture, the first of which is stock's, and heads.

    Args:
        trainer: its objectives say whether features are wanted and which heads are to be trained.
        number: of networks of the plans' architecture, which may be deployed.
        auxiliary: further networks, which are never deployed.
    """
    trainer.network = unwrap(trainer.network)
    plain = [trainer.network, *(new_network(trainer) for _ in range(number - 1)), *auxiliary]
    features = sorted({stride for objective in trainer.objectives for stride in objective.feature_strides})
    heads = nn.ModuleList([o.heads for o in trainer.objectives if o.heads is not None]).to(trainer.device)
    trained = [*plain, heads] if len(heads) else plain
    trainer.ranks.equalise([tensor for module in trained for tensor in module.state_dict().values()])
    optimizers, schedulers = zip(*(_optimizer_for(trainer, module) for module in trained), strict=True)
    networks = [trainer.wrap(network, features=features) for network in plain]
    memory: Memory = "joint"
    if trainer.device.type == "cuda":  # until the first step shows what fits
        memory = "sequential"
        torch.cuda.reset_peak_memory_stats(trainer.device)
    if isinstance(trainer.settings, PeersSettings) and trainer.settings.memory != "auto":
        memory = trainer.settings.memory
    decay = trainer.settings.ema if isinstance(trainer.settings, PeersSettings) else 0.0
    used = heads if len(heads) else None
    return Peers(
        networks,
        optimizers,
        schedulers,
        trainer.grad_scaler,
        memory=memory,
        heads=used,
        decay=decay,
        compiled=partial(compiled, trainer),
        auxiliary=len(auxiliary),
        ranks=trainer.ranks,
        partner_levels=_partner_levels(trainer),
    )


def collect(trainer: MutualTrainer) -> None:
    """Brings up to date what other processes train, before networks predict whole cases."""
    trainer.peers.collect()
    trainer.ranks.remind(trainer.objectives)


def settle(trainer: MutualTrainer, seen: Sequence[Tensor]) -> None:
    """After the first step of a stage on a GPU: runs networks jointly and as CUDA graphs, where settings and GPU allow.

    Args:
        trainer: which has no graph of autograd at the moment.
        seen: what each network is going to see, (B, M, *spatial).
    """
    peers = trainer.peers
    if peers.settled or not peers.stepped or trainer.device.type != "cuda":
        return
    peers.settled = True
    _settle_memory(trainer)
    if trainer.settings.cuda_graphs == "off" or not peers.all_live or trainer.ranks.size > 1:
        return
    if not hasattr(torch.Generator, "clone_state"):  # PyTorch before 2.4
        return
    try:
        peers.record(seen, trainer.autocast, always=trainer.settings.cuda_graphs == "on")
    except RuntimeError as error:  # memory that does not suffice, or an architecture that waits for the device
        trainer.print_to_log_file(f"CUDA graphs are not used: {str(error).splitlines()[0]}")
    if peers.recorded:
        trainer.print_to_log_file("CUDA graphs: the networks' passes are recorded, and launched as one from now on")


def _settle_memory(trainer: MutualTrainer) -> None:
    """Lets the networks run jointly if that fits and the settings leave it open."""
    peers = trainer.peers
    most = max(trainer.ranks.gather(len(peers.own)))
    if most > 1 and isinstance(trainer.settings, PeersSettings) and trainer.settings.memory == "auto":
        peak, kept = torch.cuda.max_memory_allocated(trainer.device), torch.cuda.memory_allocated(trainer.device)
        fits = joint_fits(peak, kept, len(peers.own), torch.cuda.get_device_properties(trainer.device).total_memory)
        peers.memory = "joint" if all(trainer.ranks.gather(fits)) else "sequential"
        trainer.print_to_log_file(f"Memory: {peers.memory} ({peak / 2**30:.1f} GiB with one graph at a time)")


def build_supervision(trainer: MutualTrainer) -> SupervisedObjective:
    """Returns the supervised loss with nnU-Net's deep supervision and batch Dice."""
    levels = trainer._get_deep_supervision_scales()
    batch_dice = trainer.configuration_manager.batch_dice
    if levels is not None and len(levels) == 1:
        trainer.loss.weight_factors = (1.0,)  # nnU-Net's is 0 / 0: of several levels the lowest does not count

    def full_loss(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        loss: Tensor = trainer.loss(outputs, target) if levels is not None else trainer.loss(outputs[0], target[0])
        return loss

    return SupervisedObjective(
        trainer.knowledge,
        full_loss,
        deep_supervision_weights(len(levels or [1]), keep_last=trainer.is_ddp and not trainer._do_i_compile()),
        ignore_label=trainer.label_manager.ignore_label,
        batch_dice=batch_dice,
        gather=(lambda sums: AllGatherGrad.apply(sums).sum(0)) if trainer.is_ddp and batch_dice else None,
    )


def share_encoder(networks: Sequence[nn.Module]) -> None:
    """Gives all networks the encoder of the first, after pretrained weights reached only that one."""
    encoder = unwrap(networks[0]).encoder.state_dict()  # type: ignore[union-attr]
    for network in networks[1:]:
        unwrap(network).encoder.load_state_dict(encoder, strict=False)  # type: ignore[union-attr] # or attention, too


def joint_fits(peak: int, kept: int, networks: int, total: int) -> bool:
    """Whether the graphs of all networks fit together, judged by a step that kept one at a time.

    Args:
        peak: highest memory during the step, bytes.
        kept: memory between steps (weights, momentum), bytes.
        networks: P.
        total: memory of the device, bytes; a tenth of it is left free.
    """
    return kept + networks * (peak - kept) <= 0.9 * total


def new_network(trainer: MutualTrainer) -> nn.Module:
    """Returns one more network as nnU-Net builds it from the plans, on the device."""
    network: nn.Module = trainer.build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads,
        trainer.enable_deep_supervision,
    )
    return network.to(trainer.device)


def wrap(trainer: MutualTrainer, network: nn.Module, features: Sequence[int]) -> nn.Module:
    """Compiles and distributes a network as nnU-Net does.

    Args:
        trainer: whose plans, device and process group count.
        network: a plain network.
        features: strides of the decoder features that it shall return in training.
    """
    if features:
        network = FeatureTap(network, {stride: feature_stage(strides(trainer), stride) for stride in features})
    network = compiled(trainer, network)
    if trainer.is_ddp:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = DistributedDataParallel(network, [trainer.local_rank] if trainer.device.type == "cuda" else None)
    return network


def compiled(trainer: MutualTrainer, network: nn.Module) -> nn.Module:
    """Returns a network as nnU-Net runs it: compiled, unless it does not compile here."""
    if trainer._do_i_compile():
        network = torch.compile(network)  # type: ignore[assignment] # a module, as nnU-Net relies on
    return network


def strides(trainer: MutualTrainer) -> list[Any]:
    """Returns the strides of the encoder stages, highest resolution first."""
    return list(trainer.configuration_manager.network_arch_init_kwargs["strides"])


def feature_channels(trainer: MutualTrainer, coarsest: int = 4) -> int:
    """Returns the number of channels of the features that networks give to objectives, of stride ``coarsest``."""
    sizes = trainer.configuration_manager.network_arch_init_kwargs["features_per_stage"]
    return int(sizes[len(sizes) - 2 - feature_stage(strides(trainer), coarsest)])


def _partner_levels(trainer: MutualTrainer) -> frozenset[int] | None:
    """Levels of other networks' logits that some objective reads; None if one may read any."""
    asked = [objective.partner_levels for objective in trainer.objectives]
    return None if None in asked else frozenset(level for levels in asked for level in levels or ())


def _optimizer_for(trainer: MutualTrainer, module: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """nnU-Net makes optimiser and schedule for ``self.network``, over all epochs instead of those of a stage."""
    network, trainer.network = trainer.network, module
    try:
        optimizer, scheduler = trainer.configure_optimizers()
    finally:
        trainer.network = network
    first, end = trainer.stage_span
    scheduler.max_steps = end - first
    return optimizer, scheduler
