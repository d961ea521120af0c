"""What processes send each other of outputs and batches: tensors, and a description to put them together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunet_mutual.objectives.base import Output


class Form(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Describes a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class Layout:
    """The shapes and types of an output, and what of it is sent.

    Attributes:
        levels: shape and type of the logits of each deep-supervision level.
        features: likewise, by stride.
        sent: levels that are sent; the others are NaN where they are received, so that nothing learns from them.
        half: whether float32 is rounded to float16 on the way.
    """

    levels: Sequence[Form]
    features: Mapping[int, Form]
    sent: frozenset[int]
    half: bool

    @classmethod
    def of(cls, output: Output, levels: frozenset[int] | None, *, half: bool) -> Layout:
        """Describes an output, of which some levels (the lowest resolution for one that is missing) or all are sent."""
        last = len(output.levels) - 1
        sent = frozenset(range(last + 1) if levels is None else (min(level, last) for level in levels))
        return cls(
            [Form.of(level) for level in output.levels],
            {stride: Form.of(values) for stride, values in output.features.items()},
            sent,
            half,
        )

    def parts(self, output: Output) -> list[Tensor]:
        """Returns what is sent of an output, contiguous."""
        chosen = [output.levels[i] for i in sorted(self.sent)] + list(output.features.values())
        return [part.to(self._sent_as(part.dtype)).contiguous() for part in chosen]

    def empty(self, device: torch.device) -> list[Tensor]:
        """Returns tensors in which to receive an output."""
        forms = [self.levels[i] for i in sorted(self.sent)] + list(self.features.values())
        return [torch.empty(shape, dtype=self._sent_as(dtype), device=device) for shape, dtype in forms]

    def output(self, parts: Sequence[Tensor]) -> Output:
        """Puts together what was sent, in the types of the original."""
        left = iter(parts)
        nothing = torch.full((), torch.nan, device=parts[0].device)
        levels = [
            next(left).to(dtype) if i in self.sent else nothing.to(dtype).expand(shape)
            for i, (shape, dtype) in enumerate(self.levels)
        ]
        return Output(levels, {stride: next(left).to(dtype) for stride, (_, dtype) in self.features.items()})

    def _sent_as(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float16 if self.half and dtype == torch.float32 else dtype


def take_out(batch: Mapping[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Separates a loader's batch into its tensors, single or in lists, and all else with their forms in their place."""
    skeleton: dict[str, Any] = {}
    tensors: list[Tensor] = []
    for key, value in batch.items():
        if isinstance(value, Tensor):
            tensors.append(value)
            skeleton[key] = Form.of(value)
        elif isinstance(value, list) and all(isinstance(part, Tensor) for part in value):
            tensors += value
            skeleton[key] = [Form.of(part) for part in value]
        else:
            skeleton[key] = value
    return skeleton, tensors


def forms(skeleton: Mapping[str, Any]) -> list[Form]:
    """Returns the forms of the tensors that were taken out, in their order."""
    listed = (value if isinstance(value, list) else [value] for value in skeleton.values())
    return [form for entries in listed for form in entries if isinstance(form, Form)]


def put_back(skeleton: Mapping[str, Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Undoes :func:`take_out`."""
    left = iter(tensors)
    batch: dict[str, Any] = {}
    for key, value in skeleton.items():
        if isinstance(value, Form):
            batch[key] = next(left)
        elif isinstance(value, list) and all(isinstance(part, Form) for part in value):
            batch[key] = [next(left) for _ in value]
        else:
            batch[key] = value
    return batch
