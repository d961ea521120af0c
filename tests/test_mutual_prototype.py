"""MutualPrototypeTrainer: prototypes learn labelled images and rectify what the teacher says of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import lines_of, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.trainers import MutualPrototypeTrainer


def started(preprocessed: Path, **options: Any) -> Any:
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer, **options)
    trainer.on_train_start()
    return trainer


def test_every_parameter_learns(nnunet_folders: Path) -> None:
    trainer = started(two_stream_dataset(nnunet_folders))
    trainer.peers.set_epoch(0)
    named = {**dict(trainer.network.named_parameters()), **dict(trainer.peers.heads.named_parameters())}
    for step in range(3):
        trainer.train_step(next(trainer.dataloader_train))
        lost = [name for name, p in named.items() if p.grad is None]
        # nnU-Net gives the coarsest deep-supervision output no weight.
        assert [name for name in lost if "seg_layers.0" not in name] == [], step
    zero = [name for name, p in named.items() if p.grad is not None and not p.grad.any()]
    assert [n for n in zero if "seg_layers" not in n] == []


def test_a_whole_training(nnunet_folders: Path) -> None:
    trainer = trainer_for(two_stream_dataset(nnunet_folders), MutualPrototypeTrainer)
    trainer.run_training()
    print(lines_of(trainer))
