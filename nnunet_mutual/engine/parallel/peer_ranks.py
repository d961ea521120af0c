"""One network per process: what processes send each other so that the training is that of a single one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

from nnunet_mutual.engine.checkpoints import random_state, restore_random_state
from nnunet_mutual.engine.parallel.ranks import Ranks, scatter
from nnunet_mutual.engine.parallel.wire import Layout, forms, put_back, take_out
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives.base import Objective, Output

T = TypeVar("T")
Exchange = Literal["float32", "float16"]
TIMEOUT = timedelta(minutes=30)  # others may predict a long case meanwhile; a process that died is noticed at once


class PeerRanks(Ranks):
    """Processes that share the networks of a training; network n is trained by process n modulo their number.

    All get the same batches, which the first one loads, and the same random numbers. A network's loss has a graph
    through its own outputs only, so processes send each other detached outputs and sum the gradients of shared heads.
    The process groups are objects of their own: to nnU-Net, a default one would mean data-parallel training (DDP), in
    which batches are divided and losses gathered.

    Args:
        store: where processes find each other.
        rank: of this process.
        size: number of processes.
        device: of this process's networks; NCCL carries tensors between GPUs, gloo all else.
        exchange: "float32" sends outputs as they are, "float16" rounds those in float32 to half of the bytes.
        timeout: after which a silent process counts as lost.
    """

    def __init__(
        self,
        store: distributed.Store,
        rank: int,
        size: int,
        device: torch.device,
        *,
        exchange: Exchange = "float32",
        timeout: timedelta = TIMEOUT,
    ):
        self.rank, self.size = rank, size
        self.device = device
        self.half = exchange == "float16"
        self._end_state: list[Tensor] | None = None
        self._bytes = self._steps = 0
        self._deviation = torch.zeros((), device=device)
        with self._noticing():
            on_host = distributed.PrefixStore("host", store)
            self._group: Any = distributed.ProcessGroupGloo(on_host, rank, size, timeout)
            self._tensors: Any = self._group if device.type == "cpu" else _nccl(store, rank, size, timeout)

    # Objects on the host

    def gather(self, value: T) -> list[T]:
        """See :meth:`Ranks.gather`."""
        mine = _pickled(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._noticing():
            self._group.allgather([lengths], [torch.tensor([len(mine)])]).wait()
            longest = max(int(length) for length in lengths)
            padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
            found = [torch.empty_like(padded) for _ in range(self.size)]
            self._group.allgather([found], [padded]).wait()
        return [pickle.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(found, lengths, strict=True)]

    def first(self, value: T) -> T:
        """See :meth:`Ranks.first`."""
        return self._from(0, value)

    def _from(self, owner: int, value: T) -> T:
        mine = _pickled(value)
        length = torch.tensor([len(mine)])
        with self._noticing():
            self._group.broadcast(length, owner).wait()
            sent = mine if owner == self.rank else torch.empty(int(length), dtype=torch.uint8)
            self._group.broadcast(sent, owner).wait()
        return value if owner == self.rank else pickle.loads(sent.numpy().tobytes())

    def barrier(self) -> None:
        """See :meth:`Ranks.barrier`."""
        with self._noticing():
            self._group.barrier().wait()

    # Tensors on the device

    def equalise(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.equalise`."""
        self._broadcast([(tensor.detach(), 0) for tensor in tensors])

    def combine(self, gradients: Sequence[Tensor]) -> None:
        """The sum: each process has the gradient of its own networks' losses on the whole batch."""
        scatter(self.total(torch.cat([gradient.flatten() for gradient in gradients])), gradients)

    def total(self, values: Tensor) -> Tensor:
        """See :meth:`Ranks.total`."""
        with self._noticing():
            self._tensors.allreduce([values]).wait()
        return values

    def collect(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """See :meth:`Ranks.collect`."""
        self._broadcast([(tensor.detach(), self._owner(n)) for n, owned in enumerate(tensors) for tensor in owned])

    def from_owners(self, values: Sequence[T]) -> list[T]:
        """See :meth:`Ranks.from_owners`."""
        mine = {n: _on_host(value) for n, value in enumerate(values) if self.runs(n)}
        found = {n: value for owned in self.gather(mine) for n, value in owned.items()}
        return [found[n] for n in range(len(values))]

    def _broadcast(self, tensors: Sequence[tuple[Tensor, int]]) -> None:
        """Sends tensors from their owners, as bytes: every type arrives as it is."""
        sent = [(tensor, tensor.contiguous(), owner) for tensor, owner in tensors]
        with self._noticing():
            for work in [self._tensors.broadcast(t.view(-1).view(torch.uint8), owner) for _, t, owner in sent]:
                work.wait()
        for tensor, received, owner in sent:
            if received is not tensor and owner != self.rank:
                tensor.copy_(received)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise MutualError(
                f"process {self.rank} of this training lost another one ({_reason(error)}); look at the other "
                "processes' last lines, and continue with --c from the last checkpoint"
            ) from error

    # Networks

    def runs(self, network: int) -> bool:
        """See :meth:`Ranks.runs`."""
        return self._owner(network) == self.rank

    def _owner(self, network: int) -> int:
        return network % self.size

    @contextmanager
    def randomness(self, network: int, drawing: Sequence[bool]) -> Iterator[None]:
        """Random numbers inside of a network, after which the state is what it was.

        A network draws from the common state or, where one before it draws, from a state derived from it: as in one
        process if at most the last network draws, and independently of the others in any case.
        """
        before = _random_numbers(self.device)
        if any(drawing[:network]):
            digest = sha256(b"".join(part.numpy().tobytes() for part in before) + bytes([network])).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield
        if drawing[network] and not any(drawing[network + 1 :]):
            self._end_state = _random_numbers(self.device)  # with which all go on
        _set_random_numbers(before, self.device)

    def exchange(self, own: Mapping[int, Output], levels: frozenset[int] | None) -> list[Output]:
        """See :meth:`Ranks.exchange`. In half precision a network's own record is rounded, too: all keep the same."""
        mine = {n: Layout.of(output, levels, half=self.half) for n, output in own.items()}
        sent = {n: mine[n].parts(output) for n, output in own.items()}
        said = self.gather((mine, self._end_state))
        layouts = {n: layout for described, _ in said for n, layout in described.items()}
        parts = {n: sent[n] if n in sent else layouts[n].empty(self.device) for n in sorted(layouts)}
        self._broadcast([(part, self._owner(n)) for n in parts for part in parts[n]])
        for _, state in said:
            if state is not None:
                _set_random_numbers(state, self.device)
        self._end_state = None
        self._steps += 1
        self._bytes += sum(part.nbytes for n in parts if n not in own for part in parts[n])
        found = [layouts[n].output(parts[n]) for n in parts]
        for n, output in own.items():
            self._note_deviation(output, found[n], mine[n].sent)
        return found

    def answer(self, network: int, ask: Callable[[], Tensor]) -> Tensor:
        """See :meth:`Ranks.answer`."""
        owner = self._owner(network)
        said = Output([ask()] if owner == self.rank else [])
        layout = self._from(owner, Layout.of(said, None, half=self.half))
        parts = layout.parts(said) if owner == self.rank else layout.empty(self.device)
        self._broadcast([(part, owner) for part in parts])
        self._bytes += sum(part.nbytes for part in parts) * (owner != self.rank)
        return layout.output(parts).levels[0]

    def remind(self, objectives: Sequence[Objective]) -> None:
        """See :meth:`Ranks.remind`; a process in which no network of a stage runs has not updated them."""
        for objective in objectives:
            objective.load_state_dict(self.first(_on_host(objective.state_dict())))

    def _note_deviation(self, output: Output, rounded: Output, levels: frozenset[int]) -> None:
        if self.half:
            pairs = [(output.levels[i], rounded.levels[i]) for i in levels]
            pairs += [(values, rounded.features[stride]) for stride, values in output.features.items()]
            self._deviation = torch.stack([self._deviation, *((a - b).abs().max().float() for a, b in pairs)]).max()

    # Batches and the log

    @property
    def loads(self) -> bool:
        """The first process loads for all: worker processes are not needed once for each network."""
        return self.rank == 0

    def batch(self, draw: Callable[[], dict], device: torch.device) -> dict:
        """Returns the same batch everywhere, and the same random numbers from here on."""
        if self.loads:
            try:
                skeleton, tensors = take_out(draw())
            except RuntimeError:  # the others wait for this batch
                self.first(None)
                raise
            tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
            self.first((skeleton, random_state(device)))
        else:
            found: Any = self.first(None)
            if found is None:
                raise RuntimeError("the loader of the first process has ended")
            skeleton, state = found
            restore_random_state(state, device)
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in forms(skeleton)]
        self._broadcast([(tensor, 0) for tensor in tensors])
        return put_back(skeleton, tensors)

    def report(self) -> str | None:
        """See :meth:`Ranks.report`."""
        if not self._steps:
            return None
        said = f"received {self._bytes / self._steps / 1e6:.1f} MB of other networks' outputs per step"
        if self.half:
            said += f", rounded by at most {float(max(self.gather(float(self._deviation)))):.2g}"
            self._deviation.zero_()
        self._bytes = self._steps = 0
        return said


def _nccl(store: distributed.Store, rank: int, size: int, timeout: timedelta) -> Any:
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return distributed.ProcessGroupNCCL(distributed.PrefixStore("device", store), rank, size, options)


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error of torch, without the place in its source."""
    return str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0][:200]


def _pickled(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _on_host(value: Any) -> Any:
    """Tensors on the CPU, in dicts and lists of any depth."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(entry) for key, entry in value.items()}
    return [_on_host(entry) for entry in value] if isinstance(value, list) else value


def _random_numbers(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_numbers(state: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
