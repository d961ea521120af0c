"""The networks that learn together: one forward, one backward, one clipped optimiser step each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_mutual.engine.cuda_graphs import RecordedCall, RecordedPass, record_passes
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.parts import part
from nnunet_mutual.modules.buffers import buffers_kept
from nnunet_mutual.modules.ema import MovingAverage, whose_turn
from nnunet_mutual.modules.tap import FeatureTap
from nnunet_mutual.objectives.base import Output

CLIP_NORM = 12.0  # nnU-Net's
Memory = Literal["joint", "sequential"]
Autocast: TypeAlias = Callable[[], AbstractContextManager]


def unwrap(network: nn.Module) -> nn.Module:
    """Returns the plain network behind DDP, torch.compile and FeatureTap: stock nnU-Net knows its state-dict keys."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    network = network._orig_mod if isinstance(network, OptimizedModule) else network
    return network.network if isinstance(network, FeatureTap) else network


class Peers:
    """Networks of the plans' architecture with an optimiser each.

    Each network's loss depends on its own graph only; what it learns from the others is detached. So the gradients are
    the same in both memory modes:

    * ``joint``: all networks run forward first, all graphs are alive (3P units of compute, a backward being two).
    * ``sequential``: all but the first run forward without a graph, then each runs forward and backward alone (4P - 1
      units, the memory of one graph).

    Where processes share the networks (:class:`~nnunet_mutual.engine.parallel.peer_ranks.PeerRanks`), the outputs of
    those that run elsewhere are received instead of computed; weights and averages of these are out of date until
    :meth:`collect`.

    Args:
        networks: as built, compiled and wrapped by the trainer.
        optimizers: one per network, and one for ``heads`` if there are any.
        schedulers: one per optimiser, nnU-Net's interface ``step(epoch)``.
        scaler: shared gradient scaler (float16 on CUDA) or None.
        memory: "joint" or "sequential".
        heads: modules that objectives train beside the networks.
        decay: of a moving average of each network's weights, which then is evaluated in its place; 0 for none.
        followed: the network of each average, the deployable ones first; None for one of each deployable network.
        alternate: whether two averages of one network follow it in turn, so that they differ.
        compiled: compiles the moving averages; the networks come compiled.
        auxiliary: how many of the last networks are of another architecture and learn along, never to be deployed.
        ranks: which networks run in this process.
        partner_levels: of the logits that networks learn from each other; None for all.

    Attributes:
        own: the networks that run in this process.
        stepped: whether they made a step.
        settled: whether it has shown how they run best; see :func:`~nnunet_mutual.engine.networks.settle`.
        recorded: their passes as CUDA graphs, once :meth:`record` made them.
        asked: what :meth:`ask` asks for validation and objectives: the moving averages, else the networks.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: torch.amp.GradScaler | None,
        *,
        memory: Memory = "joint",
        heads: nn.Module | None = None,
        decay: float = 0.0,
        followed: Sequence[int] | None = None,
        alternate: bool = False,
        compiled: Callable[[nn.Module], nn.Module] = lambda network: network,
        auxiliary: int = 0,
        ranks: Ranks | None = None,
        partner_levels: frozenset[int] | None = None,
    ):
        self.networks = list(networks)
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)
        self.scaler = scaler
        self.memory: Memory = memory
        self.heads = heads
        self.auxiliary = auxiliary
        self.ranks = ranks or Ranks()
        self.partner_levels = partner_levels
        self.own = [n for n in range(len(self.networks)) if self.ranks.runs(n)]
        self.stepped = self.settled = False
        self.recorded: dict[int, RecordedPass] = {}
        self._drawing = [_draws(network) for network in self.networks]
        self._overflow = (
            _Overflow(self.networks[0]) if scaler is not None and len(self.own) < len(self.networks) else None
        )
        self.followed = list(range(len(self.deployable)) if followed is None else followed) if decay else []
        self.alternate = alternate
        self.averages = [MovingAverage(unwrap(self.networks[n]), decay) for n in self.followed]
        compiled_averages = [compiled(average.network) for average in self.averages]
        self.asked = [RecordedCall(n, self.recorded.__len__) for n in compiled_averages or self.deployable]

    def __repr__(self) -> str:
        return f"Peers({len(self.networks)} x {type(unwrap(self.networks[0])).__name__}, {self.memory})"

    @property
    def _trained(self) -> list[nn.Module]:
        return [*self.networks, self.heads] if self.heads is not None else self.networks

    @property
    def deployable(self) -> list[nn.Module]:
        """The networks of the plans' architecture."""
        return self.networks[: len(self.networks) - self.auxiliary]

    @property
    def evaluated(self) -> list[nn.Module]:
        """What validation scores and checkpoints deploy: the moving averages if there are any, else the networks."""
        return [average.network for average in self.averages[: len(self.deployable)]] or self.deployable

    def ask(self, network: int, images: Tensor) -> list[Tensor]:
        """Returns logits without gradients, highest resolution first, of a moving average, else of a network.

        Args:
            network: its number; those that are evaluated come first.
            images: (B, M, *spatial), as it sees them.
        """
        with part("teacher"):
            output = self.asked[network](images)
        return list(output) if isinstance(output, (list, tuple)) else [output]

    def restart_averages(self) -> None:
        """Begins the moving averages anew, after the networks got other weights."""
        for n, average in zip(self.followed, self.averages, strict=True):
            average.restart(unwrap(self.networks[n]))

    def set_epoch(self, epoch: int) -> None:
        """Puts the networks into training mode and the learning rates to those of an epoch of the schedule."""
        for module, scheduler in zip(self._trained, self.schedulers, strict=True):
            module.train()
            scheduler.step(epoch)

    def eval(self) -> None:
        """Puts the networks into evaluation mode."""
        for module in self._trained:
            module.eval()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    @property
    def all_live(self) -> bool:
        """Whether the graphs of all networks of this process are alive at a time."""
        return self.memory == "joint" or len(self.own) == 1

    def record(self, data: Sequence[Tensor], autocast: Autocast, *, always: bool) -> None:
        """Records the passes of the networks of this process as CUDA graphs, which :meth:`passes` replays.

        Args:
            data: (B, M, *spatial) of each network, as in every step.
            autocast: see :meth:`passes`.
            always: even if it does not make them faster.

        Raises:
            RuntimeError: see :func:`~nnunet_mutual.engine.cuda_graphs.record_passes`.
        """
        order = self.own[::-1]
        networks = [self.networks[n] for n in order]
        runs = [partial(_forward, network, autocast=autocast) for network in networks]
        recorded = record_passes(networks, runs, [data[n] for n in order], always=always)
        self.recorded.update(zip(order, recorded, strict=False))  # all or none

    def passes(
        self, data: Tensor | Sequence[Tensor], autocast: Autocast
    ) -> Iterator[tuple[int, list[Output], list[Output]]]:
        """Runs the networks of this process; the caller backpropagates each one's loss before it asks for the next.

        Args:
            data: (B, M, *spatial); a list where each network sees something else.
            autocast: makes the context of a forward pass.

        Yields:
            The index of a network, the outputs of all networks of which only its own has a graph, and all detached.
        """
        seen = [data] * len(self.networks) if isinstance(data, Tensor) else data
        replayed = bool(self.recorded) and all(self.recorded[n].fits(seen[n]) for n in self.own)
        runs: dict[int, _Live | _Repeated] = {}
        for n in reversed(self.own):  # those without a graph run before there is one
            with part("forward"), self.ranks.randomness(n, self._drawing):
                if replayed:
                    runs[n] = _Live(self.recorded[n](seen[n]))
                elif self.all_live or n == self.own[0]:
                    runs[n] = _Live(_forward(self.networks[n], seen[n], autocast))
                else:
                    runs[n] = _Repeated(self.networks[n], seen[n], autocast)
        recorded = self.ranks.exchange({n: runs[n].recorded for n in self.own}, self.partner_levels)
        for n in self.own:
            yield n, [*recorded[:n], runs[n].take(), *recorded[n + 1 :]], recorded

    def backward(self, total: Tensor) -> None:
        """Adds the gradients of one network's loss."""
        with part("backward"):
            (total if self.scaler is None else self.scaler.scale(total)).backward()

    def clip(self) -> Tensor:
        """Clips each network's gradients at nnU-Net's norm of 12, after all backward passes.

        Returns:
            (P,) or, with heads, (P + 1,) gradient norms before clipping.
        """
        if self.heads is not None:
            for parameter in self.heads.parameters():  # not wrapped in DDP: they are small and not always used
                if parameter.grad is None and self.ranks.size > 1:
                    parameter.grad = torch.zeros_like(parameter)
            self.ranks.combine([p.grad for p in self.heads.parameters() if p.grad is not None])
        if self.scaler is not None:
            for optimizer in self.optimizers:
                if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                    self.scaler.unscale_(optimizer)
        # Of a network that runs elsewhere there are no gradients, and torch's norm of none lies on the host.
        found = [nn.utils.clip_grad_norm_(m.parameters(), CLIP_NORM) for m in self._trained]
        places = (next(m.parameters()).device for m in self._trained)
        norms = torch.stack([norm.to(place) for norm, place in zip(found, places, strict=True)])
        number = len(self.networks)
        norms[:number] = self.ranks.total(norms[:number].clone())  # 0 for those that run elsewhere
        if self.scaler is not None and self._overflow is not None:
            self._overflow.tell(self.scaler, norms)
        return norms

    def step(self) -> None:
        """Lets all optimisers step, after all backward passes."""
        self.stepped = True
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        turn = whose_turn(sum(average.steps for average in self.averages)) if self.alternate else None
        for number, (n, average) in enumerate(zip(self.followed, self.averages, strict=True)):
            if self.ranks.runs(n) and turn in (None, number):
                average.update(unwrap(self.networks[n]))

    def collect(self) -> None:
        """Brings all networks and averages up to date, before anything but the training itself looks at them."""
        kept = [list(unwrap(network).state_dict().values()) for network in self.networks]
        for n, average in zip(self.followed, self.averages, strict=True):
            kept[n] += average.network.state_dict().values()
        self.ranks.collect(kept)
        steps = self.ranks.from_owners([average.steps for average in self.averages])
        for average, number in zip(self.averages, steps, strict=True):
            average.steps = number

    def state_dict(self) -> dict[str, Any]:
        """Returns all networks, heads, optimisers and the scaler."""
        self.collect()
        return {
            "networks": [unwrap(network).state_dict() for network in self.networks],
            "averages": [average.state_dict() for average in self.averages],
            "deployable": len(self.deployable),
            "heads": None if self.heads is None else self.heads.state_dict(),
            "optimizers": self.ranks.from_owners([optimizer.state_dict() for optimizer in self.optimizers]),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        for network, weights in zip(self.networks, state["networks"], strict=True):
            unwrap(network).load_state_dict(weights)
        for average, values in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(values)
        if self.heads is not None:
            self.heads.load_state_dict(state["heads"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


class _Live:
    """A forward pass whose graph waits for its loss."""

    def __init__(self, output: Output):
        self._output: Output | None = output
        self.recorded = output.detach()

    def take(self) -> Output:
        """Returns the output once, so that the graph is freed with it."""
        output, self._output = self._output, None
        assert output is not None
        return output


class _Repeated:
    """A forward pass without a graph that is repeated with one later, drawing the same random numbers.

    Running statistics, such as those of batch normalisation, move with the repetition only: once per step.
    """

    def __init__(self, network: nn.Module, data: Tensor, autocast: Autocast):
        self._again = partial(_forward, network, data, autocast)
        self._device = data.device
        # Always, not only with dropout layers of torch: architectures have random layers of their own.
        self._random = {"cpu": torch.get_rng_state()}
        if data.is_cuda:
            self._random["cuda"] = torch.cuda.get_rng_state(data.device)
        with torch.no_grad(), buffers_kept(network):
            self.recorded = _forward(
                network.module if isinstance(network, DistributedDataParallel) else network, data, autocast
            )

    def take(self) -> Output:
        """Runs again, with a graph."""
        with part("forward"), torch.random.fork_rng([self._device] if "cuda" in self._random else []):
            torch.set_rng_state(self._random["cpu"])
            if "cuda" in self._random:
                torch.cuda.set_rng_state(self._random["cuda"], self._device)
            return self._again()


class _Overflow:
    """Keeps the gradient scalers of processes alike: each counts an overflow in any network as its own."""

    def __init__(self, network: nn.Module):
        self._parameter = nn.Parameter(torch.zeros(1, device=next(network.parameters()).device))
        self._optimizer = torch.optim.SGD([self._parameter], 0.0)

    def tell(self, scaler: torch.amp.GradScaler, norms: Tensor) -> None:
        """Shows the scaler a gradient that is finite where all are."""
        self._parameter.grad = norms.float().sum()[None] * 0
        scaler.scale(self._parameter.detach())  # begins its scale in a process that trains no network of this stage
        scaler.unscale_(self._optimizer)


def _draws(network: nn.Module) -> bool:
    """Whether a network has layers that drop something at random."""
    rates = [
        getattr(m, "p", getattr(m, "drop_prob", 0)) for m in network.modules() if "drop" in type(m).__name__.lower()
    ]
    return any(rate for rate in rates)


def _forward(network: nn.Module, data: Tensor, autocast: Autocast) -> Output:
    with autocast():
        result = network(data)
    features: dict[int, Tensor] = {}
    if isinstance(result, tuple):  # of a FeatureTap
        result, features = result
    return Output(result if isinstance(result, list) else [result], features)
