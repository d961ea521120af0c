"""What a training step keeps and what it waits for, counted, not sampled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# On a GPU each of these makes the host wait for the device; on a CPU the profile shows where they would.
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal")


def networks_of(trainer: Any) -> list[Any]:
    """Returns the networks that a trainer trains."""
    return trainer.peers.networks if hasattr(trainer, "peers") else [trainer.network]


def states(trainer: Any) -> dict[str, list[torch.Tensor]]:
    """Returns what a trainer holds between steps: what it trains, its optimisers' state, moving averages."""
    peers = getattr(trainer, "peers", None)  # stock nnU-Net has none
    trained = [*networks_of(trainer), *([peers.heads] if peers is not None and peers.heads is not None else [])]
    averages = [] if peers is None else [average.network for average in peers.averages]
    averages += [trainer.rectifier.average.network] if hasattr(trainer, "rectifier") else []
    kept = [t for o in optimizers_of(trainer) for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    return {
        "parameters": [p for module in trained for p in module.parameters()],
        "averages": [p for module in averages for p in module.parameters()],
        "optimiser": kept,
    }


def optimizers_of(trainer: Any) -> list[torch.optim.Optimizer]:
    return list(trainer.peers.optimizers) if hasattr(trainer, "peers") else [trainer.optimizer]


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def counted_bytes(trainer: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Returns bytes of states and gradients, and the most that a step keeps for its backward pass."""
    held = states(trainer)
    kept = Kept({p.untyped_storage().data_ptr() for p in (*held["parameters"], *held["averages"])})
    with one_by_one(trainer), torch.autograd.graph.saved_tensors_hooks(kept.add, lambda entry: entry.tensor):
        trainer.train_step(batch)
    counted = {name: total_bytes(tensors) for name, tensors in held.items()}
    return {**counted, "gradients": gradient_bytes(trainer), "saved": kept.most}


@contextmanager
def one_by_one(trainer: Any) -> Iterator[None]:
    """Launches kernels one by one for a while: what CUDA graphs keep is hidden from autograd."""
    if not hasattr(trainer, "peers"):
        yield
        return
    recorded = trainer.peers.recorded
    kept = dict(recorded)
    recorded.clear()
    yield
    recorded.update(kept)


def graph_bytes() -> int:
    """Returns the memory of all CUDA graphs, which stays theirs between steps."""
    segments = torch.cuda.memory_snapshot() if torch.cuda.is_available() else []
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0))


def gradient_bytes(trainer: Any) -> int:
    """Returns bytes of the gradients that the last step left."""
    return total_bytes(p.grad for p in states(trainer)["parameters"] if p.grad is not None)


def peak_bytes(trainer: Any, batch: dict[str, Any]) -> int:
    """Returns the allocator's peak during a step on a GPU, states included, without what other trainers hold."""
    for optimizer in optimizers_of(trainer):
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step(batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + sum(map(total_bytes, states(trainer).values()))


def waits(trainer: Any, batch: dict[str, Any]) -> int:
    """Returns how often a step makes the host wait for the device.

    On a GPU as torch's synchronisation debug mode says; on a CPU the operations that would wait there, by the profiler
    (which cannot tell tensors that stay on the host, so the number is an upper bound).
    """
    if trainer.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer.train_step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.train_step(batch)
    return sum(event.count for event in profile.key_averages() if event.key in WAITING)


def compiled_frames() -> int:
    """Returns how many graphs torch.compile has made so far."""
    import torch._dynamo

    return int(torch._dynamo.utils.counters["frames"]["ok"])


class Kept:
    """Counts the storages that autograd holds, each once, and remembers the most.

    Args:
        own: addresses of the parameters, which are counted elsewhere.
    """

    def __init__(self, own: set[int]) -> None:
        self.own = own
        self.holders: dict[int, int] = {}
        self.now = self.most = 0

    def add(self, tensor: Any) -> Entry:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self.own:
            if self.holders.get(address, 0) == 0:
                self.now += size
                self.most = max(self.most, self.now)
            self.holders[address] = self.holders.get(address, 0) + 1
        return Entry(tensor, self, address, size)

    def drop(self, address: int, size: int) -> None:
        if address not in self.own:
            self.holders[address] -= 1
            if self.holders[address] == 0:
                self.now -= size


class Entry:
    """A tensor that the graph holds; it goes when the graph frees it."""

    def __init__(self, tensor: Any, kept: Kept, address: int, size: int) -> None:
        self.tensor, self.kept, self.address, self.size = tensor, kept, address, size

    def __del__(self) -> None:
        self.kept.drop(self.address, self.size)
