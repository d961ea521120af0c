"""Buffers of networks, such as the running statistics of batch normalisation, which a forward pass moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Undoes, in the end, what forward passes did to the buffers of a network."""
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
