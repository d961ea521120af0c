"""Everything that a step computes lies on the device of the training, shown without a GPU: tensors that hold nothing.

PyTorch's fake tensors follow shapes, types and devices through every operation and refuse to mix devices, as CUDA does.
Backward passes and optimisers are PyTorch's own and are left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from modalities import make_preprocessed
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from training import SHORT
from two_streams import KINDS, two_stream_dataset

from nnunet_mutual.engine import stage
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCrossModalTrainer, PartialTrainer, TaughtPartialTrainer
from nnunet_mutual.trainers.base import MutualTrainer

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch knows no CUDA")
CUDA = torch.device("cuda")
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "one network": ("partial", PartialTrainer, {}),
    "its average": ("partial", MeanTeacherTrainer, {"paste_from": "every", "strong_pose": True}),
    "what was not drawn": ("partial", TaughtPartialTrainer, {"strong_intensity": True}),
    "regions that were not drawn": ("regions", TaughtPartialTrainer, {}),
    "two networks": ("partial", TaughtPartialTrainer, {"networks": 2, "memory": "joint"}),
    "modalities": ("", MutualCrossModalTrainer, {"memory": "joint"}),
}


def open_trainer(folder: Path, trainer_class: Any, settings: dict[str, Any]) -> Any:
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["configurations"]["3d_fullres"]["mutual"].update(settings)
    plans["continue_training"] = False
    return trainer_class(plans, "3d_fullres", 0, dataset, torch.device("cpu"))


def outside(function: Callable[[], Any]) -> Callable[[], Any]:
    """Tables of what cases annotate are small, and looked into while they are made."""

    def call() -> Any:
        with unset_fake_temporarily():
            return function()

    return call


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what needs the device itself, and makes networks where they belong."""
    build = MutualTrainer.build_network_architecture

    @functools.wraps(build)  # nnU-Net looks at the signature
    def on_cuda(*words: Any, **options: Any) -> Any:
        with CUDA:
            return build(*words, **options)

    monkeypatch.setattr(MutualTrainer, "build_network_architecture", staticmethod(on_cuda))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(Peers, "backward", lambda peers, total: None)
    monkeypatch.setattr(Peers, "step", lambda peers: None)
    monkeypatch.setattr(Peers, "clip", lambda peers: torch.zeros(len(peers.networks), device=CUDA))
    monkeypatch.setattr(stage, "_on_host", lambda record: outside(partial(torch.zeros, record.shape))())
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)  # autocast as on a GPU


@pytest.mark.parametrize("case", CASES)
def test_a_step_stays_on_its_device(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    dataset, trainer_class, settings = CASES[case]
    monkeypatch.setenv("nnUNet_compile", "0")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    short = {**SHORT, "cuda_graphs": "off"}
    if trainer_class.by_group:
        folder = make_preprocessed(nnunet_folders, settings=short)
    else:
        folder = two_stream_dataset(nnunet_folders, **KINDS[dataset], settings=short)
    real = open_trainer(folder, trainer_class, settings)
    real.on_train_start()
    batches = next(real.dataloader_train), next(real.dataloader_val)
    trainer, mode = open_trainer(folder, trainer_class, settings), FakeTensorMode(allow_non_fake_inputs=True)
    trainer.device, trainer.autocast_dtype = CUDA, torch.float16
    trainer.build_knowledge = outside(trainer.build_knowledge)
    pretend(monkeypatch)
    with mode:
        trainer.initialize()
        assert next(trainer.network.parameters()).device.type == "cuda"
        for step, batch in zip((trainer.train_step, trainer.validation_step), batches, strict=True):
            with pytest.raises(RuntimeError, match="numpy"):  # a step ends with what is logged, on the host
                step(batch)
        with pytest.raises(RuntimeError, match="same device"):
            torch.zeros(2) + torch.zeros(2, device=CUDA)
