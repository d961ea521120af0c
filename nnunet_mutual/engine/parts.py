"""The parts of a training step, by the names under which torch's profiler shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias

import torch

Part: TypeAlias = Literal["loader", "views", "teacher", "forward", "losses", "backward", "optimiser", "host waits"]


def part(name: Part) -> AbstractContextManager:
    """Names what runs within, where a profiler is at work; elsewhere a range would cost 20 microseconds."""
    return torch.profiler.record_function(name) if torch.autograd._profiler_enabled() else nullcontext()
