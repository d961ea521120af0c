"""Builds the networks of a training, with nnU-Net's own architecture, optimiser, compilation and distribution."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.peers import Autocast, Memory, Peers, unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.tap import FeatureTap, feature_stage
from nnunet_mutual.objectives import Objective

Optimised = tuple[torch.optim.Optimizer, Any]


@contextmanager
def buildable(plans: str) -> Iterator[None]:
    """Says of what plans describe that no network can be built of it.

    Args:
        plans: their name.

    Raises:
        MutualError: the class refuses its arguments, or there is no such class.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any class of networks
        reason = (str(error).splitlines() or [""])[0]
        raise MutualError(
            f'the "architecture" in {plans}.json cannot be built ({type(error).__name__}: {reason}); correct it, or '
            "plan again with nnUNetv2_plan_experiment"
        ) from error


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


@dataclass(frozen=True)
class Networks:
    """Builds the networks of a training as nnU-Net does.

    Attributes:
        configuration: nnU-Net's.
        build: one more network of the plans' architecture.
        optimise: optimiser and schedule of a module, for the length of the stage.
        device: of the networks.
        compiles: whether they are compiled.
        distributed: whether DDP wraps them.
        ranks: the processes of the training.
        scaler: gradient scaler that all share, None without.
        memory: how they share the GPU; "auto" until the first step shows what fits.
        decay: of their moving averages, 0 for none.
    """

    configuration: ConfigurationManager
    build: Callable[[], nn.Module]
    optimise: Callable[[nn.Module], Optimised]
    device: torch.device
    compiles: bool
    distributed: bool
    ranks: Ranks
    scaler: torch.amp.GradScaler | None
    memory: Literal["auto", "joint", "sequential"] = "joint"
    decay: float = 0.0

    def new(self) -> nn.Module:
        """Returns one more network as nnU-Net builds it from the plans, on the device."""
        return self.build().to(self.device)

    def peers(
        self,
        first: nn.Module,
        objectives: Sequence[Objective],
        number: int = 1,
        auxiliary: Sequence[nn.Module] = (),
        **averages: Any,
    ) -> Peers:
        """Returns differently seeded networks of the plans' architecture, and heads.

        Args:
            first: stock's network, plain.
            objectives: which say whether features are wanted and which heads are to be trained.
            number: of networks of the plans' architecture, which may be deployed.
            auxiliary: further networks, which are never deployed.
            averages: ``followed`` and ``alternate`` of :class:`Peers`.
        """
        plain = [first, *(self.new() for _ in range(number - 1)), *auxiliary]
        features = sorted({stride for objective in objectives for stride in objective.feature_strides})
        heads = nn.ModuleList([o.heads for o in objectives if o.heads is not None]).to(self.device)
        trained = [*plain, heads] if len(heads) else plain
        self.ranks.equalise([tensor for module in trained for tensor in module.state_dict().values()])
        optimizers, schedulers = zip(*(self.optimise(module) for module in trained), strict=True)
        networks = [self.wrap(network, features) for network in plain]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return Peers(
            networks,
            optimizers,
            schedulers,
            self.scaler,
            memory=self._first_memory(),
            heads=heads if len(heads) else None,
            decay=self.decay,
            compiled=self.compiled,
            auxiliary=len(auxiliary),
            ranks=self.ranks,
            partner_levels=_partner_levels(objectives),
            **averages,
        )

    def _first_memory(self) -> Memory:
        if self.memory != "auto":
            return self.memory
        return "sequential" if self.device.type == "cuda" else "joint"  # until the first step shows what fits

    def wrap(self, network: nn.Module, features: Sequence[int]) -> nn.Module:
        """Compiles and distributes a network as nnU-Net does.

        Args:
            network: a plain network.
            features: strides of the decoder features that it shall return in training.
        """
        if features:
            network = FeatureTap(network, {stride: feature_stage(self.strides, stride) for stride in features})
        network = self.compiled(network)
        if self.distributed:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = DistributedDataParallel(network, [self.ranks.rank] if self.device.type == "cuda" else None)
        return network

    def compiled(self, network: nn.Module) -> nn.Module:
        """Returns a network as nnU-Net runs it: compiled, unless it does not compile here."""
        if self.compiles:
            network = torch.compile(network)  # type: ignore[assignment] # a module, as nnU-Net relies on
        return network

    @property
    def strides(self) -> list[Any]:
        """Strides of the encoder stages, highest resolution first."""
        return list(self.configuration.network_arch_init_kwargs["strides"])

    def feature_channels(self, coarsest: int = 4) -> int:
        """Returns the number of channels of the features that networks give to objectives, of stride ``coarsest``."""
        sizes = self.configuration.network_arch_init_kwargs["features_per_stage"]
        return int(sizes[len(sizes) - 2 - feature_stage(self.strides, coarsest)])


def settle(
    peers: Peers,
    seen: Sequence[Tensor],
    autocast: Autocast,
    *,
    graphs: Literal["auto", "on", "off"],
    memory_open: bool,
    say: Callable[[str], Any],
) -> None:
    """After the first step of a stage on a GPU: runs networks jointly and as CUDA graphs, where settings and GPU allow.

    Args:
        peers: which have no graph of autograd at the moment.
        seen: what each network is going to see, (B, M, *spatial).
        autocast: makes the context of a forward pass.
        graphs: whether CUDA graphs are wanted.
        memory_open: whether the settings leave the memory mode open.
        say: writes to the log.
    """
    if peers.settled or not peers.stepped or seen[0].device.type != "cuda":
        return
    peers.settled = True
    if memory_open:
        _settle_memory(peers, seen[0].device, say)
    if graphs == "off" or not peers.all_live or peers.ranks.size > 1:
        return
    if not hasattr(torch.Generator, "clone_state"):  # PyTorch before 2.4
        return
    try:
        peers.record(seen, autocast, always=graphs == "on")
    except RuntimeError as error:  # memory that does not suffice, or an architecture that waits for the device
        say(f"CUDA graphs are not used: {str(error).splitlines()[0]}")
    if peers.recorded:
        say("CUDA graphs: the networks' passes are recorded, and launched as one from now on")


def _settle_memory(peers: Peers, device: torch.device, say: Callable[[str], Any]) -> None:
    """Lets the networks run jointly if that fits."""
    if max(peers.ranks.gather(len(peers.own))) > 1:
        peak, kept = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        fits = joint_fits(peak, kept, len(peers.own), torch.cuda.get_device_properties(device).total_memory)
        peers.memory = "joint" if all(peers.ranks.gather(fits)) else "sequential"
        say(f"Memory: {peers.memory} ({peak / 2**30:.1f} GiB with one graph at a time)")


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


def _partner_levels(objectives: Sequence[Objective]) -> frozenset[int] | None:
    """Levels of other networks' logits that some objective reads; None if one may read any."""
    asked = [objective.partner_levels for objective in objectives]
    return None if None in asked else frozenset(level for levels in asked for level in levels or ())
