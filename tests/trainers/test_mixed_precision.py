"""Every trainer in bfloat16 on the CPU: whatever leaves autocast in half precision is met there, not on a GPU first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from modalities import make_preprocessed
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

import nnunet_mutual.trainers as trainers
from nnunet_mutual.plugin import compat

NAMES = sorted({*trainers.__all__} - {"RectifiedPredictor", "SoftLabelTrainer"})


@pytest.mark.parametrize("name", NAMES)
def test_trains(name: str, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "cpu_computes_bfloat16", lambda: True)  # others only take longer
    settings = {**SHORT, "amp": "bfloat16"}
    if name == "MutualCrossModalTrainer":
        preprocessed = make_preprocessed(nnunet_folders, settings=settings)
    else:
        settings |= GROUPS if name == "MutualPartialTrainer" else {}
        preprocessed = two_stream_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, getattr(trainers, name))
    assert trainer.autocast_dtype == torch.bfloat16
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert not np.isnan(trainer.logger.get_value("mean_fg_dice", -1))
