"""What trainers can be told: typed, frozen, each with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nnunet_mutual.errors import MutualError

Partners = Literal["every", "any", "unlabelled", "labelled", "off"]  # whose boxes are pasted into unlabelled samples
SoftLoss = Literal["batch", "sample"]  # over what the Dice of unlabelled samples is taken
LARGEST = 2**32 - 1  # whole number: the largest seed of NumPy's generators
LEAST_TEMPERATURE = 0.1  # the paper's; much smaller ones take powers of probabilities below the smallest float


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

    earlier: ClassVar[dict[str, Any]] = {}  # what trainings did before a setting was there, if not today's default
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


def planned_memory(settings: PeersSettings) -> Literal["joint", "sequential"]:
    """Returns the memory mode that a planner reckons with: "auto" needs no more than "sequential"."""
    return "joint" if settings.memory == "joint" else "sequential"
