"""What a training step keeps and what it waits for, counted, not sampled."""

from __future__ import annotations

import warnings
from typing import Any

import torch

# On a GPU each of these makes the host wait for the device; on a CPU the profile shows where they would.
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal")


def networks_of(trainer: Any) -> list[Any]:
    """Returns the networks that a trainer trains."""
    return trainer.peers.networks if hasattr(trainer, "peers") else [trainer.network]


def counted_bytes(trainer: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Returns bytes of parameters, gradients, optimiser state and the most that a step keeps for its backward pass."""
    trainer.train_step(batch)
    parameters = [p for network in networks_of(trainer) for p in network.parameters()]
    kept = Kept({p.untyped_storage().data_ptr() for p in parameters})
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda entry: entry.tensor):
        trainer.train_step(batch)
    optimizers = trainer.peers.optimizers if hasattr(trainer, "peers") else [trainer.optimizer]
    state = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    return {
        "parameters": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimiser": sum(t.nbytes for t in state),
        "saved": kept.most,
    }


def peak_bytes(trainer: Any, batch: dict[str, Any]) -> int:
    """Returns the allocator's peak during a step on a GPU beyond what other trainers hold."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step(batch)
    torch.cuda.synchronize()
    own = sum(p.nbytes for network in networks_of(trainer) for p in network.parameters())
    return torch.cuda.max_memory_allocated() - before + own


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
