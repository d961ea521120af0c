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
from typing import Any, Literal, TypeVar

from nnunet_mutual.errors import MutualError, meant

BLOCK = "mutual"
_UNSET = "not set"

S = TypeVar("S")
Partners = Literal["every", "any", "unlabelled", "labelled", "off"]  # whose boxes are pasted into unlabelled samples
SoftLoss = Literal["batch", "sample"]  # over what the Dice of unlabelled samples is taken
IN_PLANS = "of the plans file"
LARGEST = 2**32 - 1  # whole number: the largest seed of NumPy's generators
LEAST_TEMPERATURE = 0.1  # the paper's; much smaller ones take powers of probabilities below the smallest float
PLANNED = "planned"  # in a block: what a planner chose for one trainer, which others leave aside


def require_not_negative(name: str, value: float) -> None:
    """Verifies a setting that may be 0 or any larger number, such as the weight of a term."""
    if not 0 <= value < math.inf:
        raise MutualError(f'setting "{name}" must be 0 or more, found {value}')


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms of a method, next to the supervised loss of weight 1; the ``loss`` setting."""

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            require_not_negative(f"loss.{name}", weight)


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
        incomplete_margin: voxels around what is drawn of a label of which a part is drawn (incomplete), in the plane
            of a slice, where the label is taken as absent; 0 for none. At lower resolutions of deep supervision, of
            theirs.
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
    incomplete_margin: int = 2
    balance_sources: bool = True
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 20.0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "checkpoint_epochs"):
            if getattr(self, name) < 1:
                raise MutualError(f'setting "{name}" must be at least 1, found {getattr(self, name)}')
        if not 0 < self.initial_lr < math.inf:
            raise MutualError(f'setting "initial_lr" must be positive, found {self.initial_lr}')
        require_not_negative("weight_decay", self.weight_decay)
        require_not_negative("checkpoint_minutes", self.checkpoint_minutes)
        require_not_negative("incomplete_margin", self.incomplete_margin)
        if self.seed is not None and self.seed < 0:
            raise MutualError(f'setting "seed" must be from 0 to {LARGEST}, or null, found {self.seed}')

    def unused(self) -> dict[str, str]:
        """Returns the settings that have no effect beside the others, and beside which: words to go on with.

        Those of a group by their full name, such as "loss.pd".
        """
        return {}


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


@dataclass(frozen=True)
class TwoStreamSettings(PeersSettings):
    """Settings of trainers with unlabelled images.

    Attributes:
        labelled_per_batch: labelled patches in a batch (of one GPU); null: what the others leave of the plans' batch,
            at least one.
        unlabelled_per_batch: unlabelled ones; null: likewise. Both null: half of it each.
        ramp: share of the training during which the weights of unlabelled terms rise.
        unlabelled_foreground: share of the unlabelled patches that are centred on what the network predicts as
            foreground, which did harm where it was measured (head and neck); 0 for patches from anywhere.
        unlabelled_foreground_epochs: epochs after which predictions of unlabelled images are renewed, a twentieth of
            the training at most; of as many images, in turn, as a twentieth of its passes allows.
    """

    labelled_per_batch: int | None = None
    unlabelled_per_batch: int | None = None
    ramp: float = 0.2
    unlabelled_foreground: float = 0.0
    unlabelled_foreground_epochs: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labelled_per_batch", "unlabelled_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise MutualError(f'setting "{name}" must be at least 1, found {getattr(self, name)}')
        if not 0 <= self.unlabelled_foreground <= 1:
            raise MutualError(
                f'setting "unlabelled_foreground" must be a share, from 0 to 1, found {self.unlabelled_foreground}'
            )
        if self.unlabelled_foreground_epochs < 1:
            raise MutualError(
                f'setting "unlabelled_foreground_epochs" must be at least 1, found {self.unlabelled_foreground_epochs}'
            )
        if not 0 < self.ramp <= 1:
            raise MutualError(f'setting "ramp" must be a share of the training, above 0, found {self.ramp}')

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        return {} if self.unlabelled_foreground else {"unlabelled_foreground_epochs": "with unlabelled_foreground=0"}


# Of trainers with two streams that have no use for predicted places.
FROM_ANYWHERE = dict.fromkeys(
    ("unlabelled_foreground", "unlabelled_foreground_epochs"),
    "with this trainer, whose unlabelled patches are drawn from anywhere",
)


@dataclass(frozen=True)
class TeacherSettings(TwoStreamSettings):
    """Settings of trainers whose student sees stronger views of unlabelled images than its teacher.

    Attributes:
        ema: decay of the teacher's moving average, above 0.
        ema_age: the same as the mean age of the averaged weights, as a share of all updates; null: ``ema`` says it.
        strong_intensity: whether the student sees unlabelled images with other intensities than the teacher.
        strong_pose: whether it sees them turned and scaled, and learns what the teacher says likewise.
        paste_from: samples of which boxes are pasted into the student's unlabelled images, half of them: "any",
            "unlabelled", "labelled" or "off"; "every": into each of them, for one half from unlabelled samples, for the
            other one from labelled samples or, as what is around a box, into these.
    """

    ema: float = 0.99
    ema_age: float | None = None
    strong_intensity: bool = True
    strong_pose: bool = False
    paste_from: Partners = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taught and self.ema == 0 and self.ema_age is None:
            raise MutualError('setting "ema" must be above 0: without a moving average there is no teacher')
        if self.ema_age is not None and not 0 < self.ema_age < 1:
            raise MutualError(
                f'setting "ema_age" must be a share of the training, above 0 and below 1, found {self.ema_age}'
            )

    @property
    def taught(self) -> bool:
        """Whether a moving average teaches."""
        return True

    def unused(self) -> dict[str, str]:
        """See :meth:`Settings.unused`."""
        aged = self.taught and self.ema_age is not None
        return super().unused() | ({"ema": f"with ema_age={self.ema_age}"} if aged else {})


@dataclass(frozen=True)
class SoftTeacherSettings(TeacherSettings):
    """Settings of trainers whose student learns its teacher's probabilities.

    Attributes:
        temperature: sharpens what the teacher says if below 1.
        soft_loss: Dice on unlabelled images: "batch" is nnU-Net's, over the batch; "sample" is of squares, of each
            sample and of the labels alone that its target shows.
    """

    temperature: float = 0.5
    soft_loss: SoftLoss = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise MutualError(
                f'setting "temperature" must be at least {LEAST_TEMPERATURE}, where targets are as good as certain, '
                f"found {self.temperature}"
            )


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
    meant_for = planned_trainer(block) in [cls.__name__ for cls in trainer.__mro__]
    return deep_merge(block[PLANNED]["settings"], own) if meant_for else own


def common_settings(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a block every trainer knows, as :class:`Settings`."""
    return {key: value for key, value in block.items() if key in Settings.__annotations__}


def planned_trainer(block: Mapping[str, Any]) -> str | None:
    """Returns the name of the trainer for which a planner chose settings, None where none did.

    Args:
        block: as of :func:`merged_block`.

    Raises:
        MutualError: what is there was not written by a planner.
    """
    if PLANNED not in block:
        return None
    planned = block[PLANNED]
    name = planned.get("trainer") if isinstance(planned, Mapping) else None
    if isinstance(name, str) and isinstance(planned.get("settings"), Mapping):
        return name
    raise MutualError(
        f'"{BLOCK}.{PLANNED}" {IN_PLANS} must be an object with "trainer" and "settings", as planners write it, '
        f"found {planned!r}; remove it, or plan again"
    )


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


def read_settings(cls: type[S], block: Mapping[str, Any], place: str = BLOCK, origin: str = IN_PLANS) -> S:
    """Makes typed settings from a block.

    Args:
        cls: a class of settings.
        block: names and values.
        place: of the block, such as "mutual"; "" for words of the command line.
        origin: where that is, for the sentences.

    Raises:
        MutualError: an unknown key (the known ones are listed), a value of the wrong type, or one without effect.
    """
    made = _read(cls, block, place, origin)
    for name, why in made.unused().items() if isinstance(made, Settings) else ():
        given, now, plain = (_at(of, name) for of in (block, made, cls()))
        switched_off = name.startswith("loss.") and now == 0  # a term that is not there, anyway
        if given is not _UNSET and now != plain and not switched_off:
            raise MutualError(f'setting "{name}" has no effect {why}; leave it out')
    return typing.cast(S, made)


def _at(settings: Any, name: str) -> Any:
    """A setting by its full name, in a block or as it was made; _UNSET where the block does not have it."""
    for part in name.split("."):
        settings = settings.get(part, _UNSET) if isinstance(settings, Mapping) else getattr(settings, part, _UNSET)
    return settings


def groups_of_settings(cls: type[Any]) -> dict[str, type[Any] | None]:
    """Returns the names of all settings of a class, each with its class where it is a group of settings."""
    hints = typing.get_type_hints(cls)
    found = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return {name: typing.cast(type, hint) if dataclasses.is_dataclass(hint) else None for name, hint in found.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the settings that differ, as ``name: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = (values.get(key, _UNSET) for values in (old, new))
        if isinstance(before, Mapping) and after is _UNSET:
            after = {}
        if isinstance(after, Mapping) and before is _UNSET:
            before = {}
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _read(cls: type[Any], block: Mapping[str, Any], place: str, origin: str) -> Any:
    if not isinstance(block, Mapping):
        raise MutualError(f'"{place}" {origin} must be an object, found {block!r}')
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    inside = f'in "{place}" {origin}' if place else origin
    for key in block:
        if key not in known:
            raise MutualError(f'unknown setting "{key}" {inside}{meant(key, known)}; known: {", ".join(known)}')
    prefix = f"{place}." if place else ""
    return cls(**{key: _value(hints[key], value, f"{prefix}{key}", origin) for key, value in block.items()})


def _value(hint: Any, value: Any, place: str, origin: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast(type, hint), value, place, origin)
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
            if option is int and abs(value) > LARGEST:
                raise MutualError(f'setting "{place}" must be {LARGEST} at most, found {value}')
            return value
    expected = " or ".join("null" if o is type(None) else o.__name__ for o in options)
    raise MutualError(f'setting "{place}" must be {expected}, found {value!r}')


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` pairs into a nested object.

    Raises:
        MutualError: an entry without ``=``, a name twice, or what is no setting.
    """
    block: dict[str, Any] = {}
    names = [setting.partition("=")[0] for setting in settings]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise MutualError(f"--set {setting!r} is not of the form key=value, such as num_epochs=250")
        if names.count(key) > 1:
            raise MutualError(f"--set gives {key} twice; keep one of {', '.join(settings)}")
        if key.split(".")[0] == PLANNED:
            raise MutualError(f"--set {setting}: {PLANNED!r} is what planners write for themselves, leave it out")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        except (ValueError, RecursionError):  # thousands of digits or brackets
            raise MutualError(f"--set {key}: its value cannot be read, {text[:20]}...; give a plain number") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        block = deep_merge(block, value)
    return block
