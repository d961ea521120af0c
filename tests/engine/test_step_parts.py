"""The parts of a training step: named where a profiler is at work, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training import SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.engine.parts import Part
from nnunet_mutual.trainers import MeanTeacherTrainer


def test_a_step_names_its_parts_to_a_profiler_alone(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(two_stream_dataset(nnunet_folders, block=partial_block(), settings=SHORT), MeanTeacherTrainer)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.train_step(batch)
    found = {event.key for event in profile.key_averages()}
    assert {*get_args(Part)} - found == {"loader"}  # the batch was there

    def fails(name: str) -> Any:
        raise AssertionError(f"{name} was named, which takes time")

    monkeypatch.setattr(torch.profiler, "record_function", fails)
    trainer.train_step(batch)
