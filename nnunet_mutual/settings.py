"""Settings of a training, read from the ``"mutual"`` block of a configuration in the plans file.

nnU-Net is configured through plans, so is this package. A configuration that ``inherits_from`` another one inherits its
block key by key (nnU-Net itself merges configurations shallowly, which would drop the base configuration's settings).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.names import safe_name
from nnunet_mutual.errors import MutualError, meant

BLOCK = "mutual"

S = TypeVar("S")
PLANNED = "planned"  # in a block: what a planner chose for one trainer, which others leave aside


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms of a method, next to the supervised loss of weight 1; the ``loss`` setting."""

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise MutualError(f'setting "loss.{name}" must be 0 or more, found {weight}')


@dataclass(frozen=True)
class Settings:
    """What every trainer of this package can be told; the defaults are stock nnU-Net's.

    Attributes:
        num_epochs: epochs of the whole training.
        num_iterations_per_epoch: optimiser steps in an epoch.
        num_val_iterations_per_epoch: validation batches in an epoch.
        optimizer: "sgd" (nnU-Net's: Nesterov momentum 0.99) or "adamw"; both follow nnU-Net's poly schedule.
        initial_lr: learning rate of the first epoch.
        weight_decay: as in torch.optim.
        amp: "auto" is nnU-Net's float16 autocast on CUDA and bfloat16 on CPUs that compute in it; "off" is float32
            everywhere; "bfloat16" asks for it and is an error where the processor cannot.
        cuda_graphs: launch the kernels of a network's pass on a GPU as one; "auto" does so where launching them one by
            one takes longer than their arithmetic, as in small networks.
        seed: of weights and batches; null leaves them random. A run is repeatable to the bit with nnUNet_n_proc_DA=0 on
            a CPU.
        balance_sources: draw cases with probability proportional to 1/sqrt(cases of their source).
        checkpoint_epochs: checkpoint_latest is written at least every so many epochs ...
        checkpoint_minutes: ... or minutes.
    """

    num_epochs: int = 1000
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    amp: Literal["auto", "bfloat16", "off"] = "auto"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    seed: int | None = None
    balance_sources: bool = True
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 20.0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "checkpoint_epochs"):
            if getattr(self, name) < 1:
                raise MutualError(f'setting "{name}" must be at least 1, found {getattr(self, name)}')
        if not 0 < self.initial_lr < math.inf:
            raise MutualError(f'setting "initial_lr" must be positive, found {self.initial_lr}')
        if not 0 <= self.weight_decay < math.inf:
            raise MutualError(f'setting "weight_decay" must be 0 or more, found {self.weight_decay}')


@dataclass(frozen=True)
class PeersSettings(Settings):
    """Settings of trainers in which several networks learn together.

    Attributes:
        memory: "joint" keeps the graphs of all networks alive, which is fastest; "sequential" keeps one, for about 17 %
            (two networks) to 25 % (four) more time; "auto" is joint where the first step shows that it fits the GPU,
            and on a CPU. The gradients are the same.
        ema: decay of a moving average of each network's weights, such as 0.999, which is then validated, deployed and
            asked for pseudo labels in its place; 0 for none.
    """

    memory: Literal["auto", "joint", "sequential"] = "auto"
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise MutualError(f'setting "ema" must be from 0 to below 1, found {self.ema}')


def read_plans(path: Path) -> dict[str, Any]:
    """Reads a plans file whose names are safe to build paths from.

    Raises:
        MutualError: it is missing or malformed, or a name in it would leave its folder.
    """
    plans = read_object(path)
    require_safe_names(plans, str(path))
    return plans


def require_safe_names(plans: Mapping[str, Any], place: str = "the plans file") -> None:
    """Verifies every name of plans that nnU-Net or this package makes a path of.

    Args:
        plans: the content of a plans file.
        place: it, for the sentence.

    Raises:
        MutualError: a name would leave its folder.
    """
    named: dict[str, Any] = {key: plans[key] for key in ("dataset_name", "plans_name") if key in plans}
    configurations = plans.get("configurations")
    for name, entry in configurations.items() if isinstance(configurations, Mapping) else ():
        safe_name(name, f"configuration of {place}")
        for key in ("data_identifier", "previous_stage", "next_stage"):
            value = entry.get(key) if isinstance(entry, Mapping) else None
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                if one is not None:
                    named[f"{key} of {name}" + (f" ({number + 1})" if number else "")] = one
    for what, value in named.items():
        safe_name(value, f'"{what}" in {place}')


def merged_block(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns the block of a configuration, merged deeply along ``inherits_from``.

    Args:
        plans: the content of a plans file.
        configuration: name of the configuration.

    Raises:
        MutualError: unknown configuration, or a circle of ``inherits_from``.
    """
    chain: list[Mapping[str, Any]] = []
    name: str | None = configuration
    seen: list[str] = []
    while name is not None:
        if name in seen:
            raise MutualError(
                f'"inherits_from" of the plans file goes in a circle: {" -> ".join([*seen, name])}; remove one of them'
            )
        if name not in plans["configurations"]:
            known = tuple(plans["configurations"])
            raise MutualError(
                f"the plans file has no configuration {name!r}{meant(name, known)}; it has: {', '.join(known)}"
            )
        seen.append(name)
        entry = plans["configurations"][name]
        block = entry.get(BLOCK, {})
        if not isinstance(block, Mapping):
            raise MutualError(
                f'"{BLOCK}" of configuration {name!r} of the plans file must be an object {{setting: value}}, '
                f"found {block!r}; correct or remove it"
            )
        chain.append(block)
        name = entry.get("inherits_from")
    merged: dict[str, Any] = {}
    for block in reversed(chain):
        merged = deep_merge(merged, block)
    return merged


def block_for(trainer: type, block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block as one trainer reads it: with what a planner chose for it, which other entries override.

    Args:
        trainer: a class; what was planned for one of its base classes is meant for it, too.
        block: as of :func:`merged_block`.
    """
    own = {key: value for key, value in block.items() if key != PLANNED}
    planned = block.get(PLANNED, {})
    meant_for = planned.get("trainer") in [cls.__name__ for cls in trainer.__mro__]
    return deep_merge(planned["settings"], own) if meant_for else own


def planned_memory(settings: PeersSettings) -> Literal["joint", "sequential"]:
    """Returns the memory mode that a planner reckons with: "auto" needs no more than "sequential"."""
    return "joint" if settings.memory == "joint" else "sequential"


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with the entries of ``override`` put in, object by object."""
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = deep_merge(result[key], value) if both else value
    return result


def read_settings(cls: type[S], block: Mapping[str, Any], place: str = BLOCK) -> S:
    """Makes typed settings from a block.

    Raises:
        MutualError: an unknown key (the known ones are listed) or a value of the wrong type.
    """
    return _read(cls, block, place)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the settings that differ, as ``name: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _read(cls: type[Any], block: Mapping[str, Any], place: str) -> Any:
    if not isinstance(block, Mapping):
        raise MutualError(f'"{place}" of the plans file must be an object, found {block!r}')
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in block:
        if key not in known:
            raise MutualError(
                f'unknown setting "{key}" in "{place}" of the plans file{meant(key, known)}; known: {", ".join(known)}'
            )
    return cls(**{key: _value(hints[key], value, f"{place}.{key}") for key, value in block.items()})


def _value(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast(type, hint), value, place)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise MutualError(
                f'setting "{place}" must be one of {", ".join(map(str, typing.get_args(hint)))}, found {value!r}'
            )
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
    expected = " or ".join("null" if o is type(None) else o.__name__ for o in options)
    raise MutualError(f'setting "{place}" must be {expected}, found {value!r}')


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` pairs into a nested object.

    Raises:
        MutualError: an entry without ``=``.
    """
    block: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise MutualError(f"--set {setting!r} is not of the form key=value, such as num_epochs=250")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        for part in reversed(key.split(".")):
            value = {part: value}
        block = deep_merge(block, value)
    return block
