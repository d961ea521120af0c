"""Passes of networks as CUDA graphs: hundreds of kernels that the host launches as one.

The launches of a small network take the host longer than their arithmetic takes a GPU. Recorded once, they are replayed
on the same memory: weights are read where they are, data and gradients are copied in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_mutual.modules.buffers import buffers_kept
from nnunet_mutual.objectives.base import Output

WARM_UP = 3  # passes in which cuDNN chooses its algorithms and kernels are compiled
LAUNCHES_BOUND = 0.7  # share of its time for which a pass must be launched
WHILE_OTHERS_WORK = "thread_local"  # capture mode: loaders pin memory in threads of their own
Run = Callable[[Tensor], Output]


class RecordedCall:
    """A network that is asked, without gradients: recorded at a call, and from then on replayed for data of that shape.

    What it returns is valid until the next call.

    Args:
        network: called with a tensor.
        wanted: asked at every call whether to record and replay (anything but 0).
    """

    def __init__(self, network: Callable[[Tensor], Any], wanted: Callable[[], int]):
        self._network = network
        self._wanted = wanted
        self._graph: torch.cuda.CUDAGraph | None = None
        self._data = torch.empty(0)
        self._output: Any = None

    @torch.no_grad()
    def __call__(self, data: Tensor) -> Any:
        if not self._wanted():
            return self._network(data)
        if self._graph is None:
            try:
                self._record(data)
            except RuntimeError:  # memory that does not suffice: it is only slower without
                self._wanted = lambda: 0
        if self._graph is None or not _alike(data, self._data):
            return self._network(data)
        self._data.copy_(data)
        self._graph.replay()
        return self._output

    def _record(self, data: Tensor) -> None:
        self._data, graph = data.clone(), torch.cuda.CUDAGraph()
        with _recording() as stream:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._network(self._data)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode=WHILE_OTHERS_WORK):
                self._output = self._network(self._data)
        self._graph = graph


class RecordedPass:
    """Forward and backward pass of a network in training mode; call it in place of the network.

    The output lies where the next call writes its own: it is valid until then. Made by :func:`record_passes`.

    Args:
        network: whose parameters get gradients; those without any influence get zeros, as from a compiled network.
        run: its forward pass.
        data: (B, M, *spatial), what all its data will be like.
    """

    def __init__(self, network: nn.Module, run: Run, data: Tensor):
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.data = data.clone()
        self.outputs: list[Tensor] = []
        self.output_gradients: list[Tensor] = []
        self.gradients: Sequence[Tensor] = ()
        self.forward = torch.cuda.CUDAGraph()
        self.backward = torch.cuda.CUDAGraph()
        self._network = network
        self._run = run
        self._strides: list[int] = []

    def __call__(self, data: Tensor) -> Output:
        levels = _Replayed.apply(self, data, *self.parameters)
        number = len(levels) - len(self._strides)
        return Output(levels[:number], dict(zip(self._strides, levels[number:], strict=True)))

    def fits(self, data: Tensor) -> bool:
        """Whether data are like those of the recording."""
        return _alike(data, self.data)

    def warm_up(self) -> float:
        """Runs forward and backward a few times; buffers, such as running means, stay as they are.

        Returns:
            The share of the last run's time in which the host launched it; the rest, it waited for the device.
        """
        with buffers_kept(self._network):
            for _ in range(WARM_UP):
                torch.cuda.synchronize()
                start = perf_counter()
                outputs = self._forward()
                self._gradients(outputs, [torch.zeros_like(output) for output in outputs])
                launched = perf_counter() - start
                torch.cuda.synchronize()
                done = perf_counter() - start
        return launched / done

    def record_forward(self, **place: Any) -> None:
        """Records the forward pass; ``place`` says in which memory and stream."""
        with torch.cuda.graph(self.forward, capture_error_mode=WHILE_OTHERS_WORK, **place):
            self.outputs = self._forward()
        self.output_gradients = [torch.zeros_like(output) for output in self.outputs]

    def record_backward(self, **place: Any) -> None:
        """Records the backward pass, after which the graph of autograd is not needed any more."""
        with torch.cuda.graph(self.backward, capture_error_mode=WHILE_OTHERS_WORK, **place):
            self.gradients = self._gradients(self.outputs, self.output_gradients)
        self.outputs = [output.detach() for output in self.outputs]

    def _forward(self) -> list[Tensor]:
        output = self._run(self.data)
        self._strides = list(output.features)
        return [*output.levels, *output.features.values()]

    def _gradients(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(outputs, self.parameters, gradients, allow_unused=True)


def record_passes(
    networks: Sequence[nn.Module], runs: Sequence[Run], data: Sequence[Tensor], *, always: bool
) -> list[RecordedPass]:
    """Records networks that share memory: they must run forward in this order, and backward in the opposite one.

    No graph of autograd may be alive: it would tie the parameters to the stream on which it was made.

    Args:
        networks: in training mode, on a CUDA device.
        runs: the forward pass of each.
        data: what each sees, (B, M, *spatial).
        always: record them even if it does not make them faster, since the device works longer than the host launches.

    Returns:
        Nothing, if it would not make them faster.

    Raises:
        RuntimeError: a network waits for the device in its pass, or its memory does not suffice.
    """
    passes = [RecordedPass(*parts) for parts in zip(networks, runs, data, strict=True)]
    with _recording() as stream:
        # On the stream of the training, which has the memory for it: another one would take as much again.
        if passes[0].warm_up() < LAUNCHES_BOUND and not always:
            return []
        with torch.cuda.stream(stream):
            for recorded in passes:
                recorded.warm_up()
        place = {"pool": torch.cuda.graph_pool_handle(), "stream": stream}
        for recorded in passes:
            recorded.record_forward(**place)
        for recorded in reversed(passes):
            recorded.record_backward(**place)
    return passes


class _Replayed(torch.autograd.Function):
    """A recorded pass as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, recorded: RecordedPass, data: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        recorded.data.copy_(data)
        recorded.forward.replay()
        return tuple(output.detach() for output in recorded.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        recorded: RecordedPass = ctx.recorded
        given = list(zip(recorded.output_gradients, gradients, strict=True))
        torch._foreach_copy_([p for p, v in given if v is not None], [v for _, v in given if v is not None])
        for place, value in given:
            if value is None:
                place.zero_()
        recorded.backward.replay()
        return None, None, *(None if g is None else g.detach() for g in recorded.gradients)


@contextmanager
def _recording() -> Iterator[torch.cuda.Stream]:
    """Gives a stream, since the default one cannot be recorded, and leaves random numbers as they were.

    After a recording that failed, PyTorch would refuse to draw any. Weights that autocast cast before must not be
    found in its cache: the recording would go on reading these.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before, stream = generator.clone_state(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield stream
        generator.set_state(before.get_state())
    except RuntimeError:
        generator.graphsafe_set_state(before)
        torch.cuda.empty_cache()
        raise
    finally:
        torch.set_autocast_cache_enabled(caching)
        torch.cuda.current_stream().wait_stream(stream)


def _alike(data: Tensor, other: Tensor) -> bool:
    return data.shape == other.shape and data.dtype == other.dtype
