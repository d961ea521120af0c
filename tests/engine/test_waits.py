"""Operations of a training step that would make the host wait for a GPU, found on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modalities import make_preprocessed
from torch.utils._python_dispatch import TorchDispatchMode
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

import nnunet_mutual.trainers as trainers

WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "aten.equal")
NAMES = sorted({*trainers.__all__} - {"RectifiedPredictor", "SoftLabelTrainer"})


class Waits(TorchDispatchMode):
    """Remembers what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.last = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_list = self.last.startswith("aten.lift_fresh") and str(function).startswith("aten.index")
        if by_list or any(name in str(function) for name in WAITING):
            self.found.append(str(function))
        self.last = str(function)
        return function(*args, **(kwargs or {}))


def test_what_waits_is_seen() -> None:
    with Waits() as waits:
        table, index = torch.arange(4), torch.tensor(2)
        table[index[None]]
        assert waits.found == []
        table[index]
    assert waits.found == ["aten._local_scalar_dense.default"]


def test_indices_that_would_be_copied_to_the_device_are_seen() -> None:
    with Waits() as waits:
        table = torch.zeros(2, 3)
        table[:, torch.tensor([0, 2]).to(torch.int64).clone()]
        table[:, 1:] = 1
        assert waits.found == []
        table[:, [0, 2]] = 1
    assert waits.found == ["aten.index_put_.default"]


BETTER = {"paste_from": "every", "soft_loss": "sample", "strong_pose": True}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("MeanTeacherTrainer", BETTER),
    ("MutualPrototypeTrainer", {**BETTER, "role": "filter"}),
    *(("MutualCorrelationTrainer", {**BETTER, "form": form}) for form in ("consensus", "alternating")),
    ("TaughtPartialTrainer", {"networks": 2}),
    ("MutualCrossModalTrainer", {"form": "contrast"}),
]


@pytest.mark.parametrize(("name", "form"), [*((name, {}) for name in NAMES), *FORMS])
def test_a_step_waits_for_nothing(name: str, form: dict[str, Any], nnunet_folders: Path) -> None:
    pastes = name in ("MeanTeacherTrainer", "MutualPrototypeTrainer")
    settings = {**SHORT, **({"paste_from": "labelled"} if pastes else {}), **form}
    if name == "MutualCrossModalTrainer":
        preprocessed = make_preprocessed(nnunet_folders, settings=settings)
    else:
        settings = {**settings, **GROUPS} if name == "MutualPartialTrainer" else settings
        preprocessed = two_stream_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, getattr(trainers, name))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(3):  # boxes are pasted in half of the steps
        batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
        with Waits() as waits:
            trainer.train_step(batch)
        assert waits.found == []
