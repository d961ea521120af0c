"""What only a CUDA device shows: mixed precision, compilation, waiting for the device, memory modes."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modalities import make_preprocessed
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import GROUPS, SHORT, largest_difference, partial_block
from two_streams import two_stream_dataset

from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.settings import PeersSettings
from nnunet_mutual.trainers import (
    MeanTeacherTrainer,
    MutualCorrelationTrainer,
    MutualCrossModalTrainer,
    MutualPartialTrainer,
    MutualPrototypeTrainer,
    PartialTrainer,
    TaughtPartialTrainer,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TRAINERS: list[Any] = [
    PartialTrainer,
    TaughtPartialTrainer,
    MutualPartialTrainer,
    MeanTeacherTrainer,
    MutualCorrelationTrainer,
    MutualPrototypeTrainer,
    MutualCrossModalTrainer,
]
MUTUAL = [MutualPartialTrainer, MutualCorrelationTrainer, MutualCrossModalTrainer]
SETTINGS = {**SHORT, "num_epochs": 5, "num_iterations_per_epoch": 4, "amp": "auto"}


def on_cuda(preprocessed: Path, trainer_class: type, **settings: Any) -> Any:
    plans, dataset = (json.loads((preprocessed / n).read_text()) for n in ("nnUNetPlans.json", "dataset.json"))
    networks = GROUPS if trainer_class is MutualPartialTrainer else {}
    plans["configurations"]["3d_fullres"]["mutual"].update(networks, **settings)
    plans["continue_training"] = False
    trainer = trainer_class(plans, "3d_fullres", 0, dataset, torch.device("cuda"))
    trainer.logger.plot_progress_png = lambda folder: None
    return trainer


@pytest.fixture()
def preprocessed(nnunet_folders: Path, trainer_class: Any) -> Path:
    if trainer_class.by_group:
        return make_preprocessed(nnunet_folders, settings=SETTINGS)
    return two_stream_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)


@pytest.mark.parametrize("compiled", ["0", "1"], ids=["eager", "compiled"])
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_mixed_precision_trains(
    preprocessed: Path, trainer_class: Any, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = on_cuda(preprocessed, trainer_class)
    trainer.run_training()
    assert trainer.grad_scaler is not None and trainer.autocast_dtype == torch.float16
    assert trainer.peers.recorded  # so small a network is bound by its launches
    logged = trainer.logger.get_value("train_losses", step=None)
    assert np.isfinite(logged).all() and logged[-1] < logged[0] + 1
    if trainer_class.by_group:  # exported before it predicts
        return
    fold = Path(trainer.output_folder)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,), "checkpoint_final.pth")
    image = np.zeros((1, 16, 20, 18), np.float32)
    assert predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}).shape == image.shape[1:]


@pytest.mark.parametrize("memory", ["joint", "sequential"])
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_step_waits_for_the_device_once(
    preprocessed: Path, trainer_class: Any, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "0")
    options = {"memory": memory} if issubclass(trainer_class.settings_class, PeersSettings) else {}
    trainer = on_cuda(preprocessed, trainer_class, **options)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(4)]
    for batch in batches:  # cuDNN and the scaler settle
        trainer.train_step(batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batches[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    # One for what is logged; the gradient scaler asks once per optimiser whether to step, as in stock nnU-Net.
    assert len(waits) <= 1 + len(trainer.peers.optimizers), waits


def trained_alike(one: Any, other: Any) -> bool:
    """Trains two trainers; whether networks and validation come out as the same ones."""
    results = []
    for trainer in (one, other):
        trainer.run_training()
        losses = torch.tensor(trainer.logger.get_value("val_losses", step=None))
        results.append([{"losses": losses}, *(unwrap(network).state_dict() for network in trainer.peers.networks)])
    return all(largest_difference(mine, theirs) < 1e-3 for mine, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("trainer_class", MUTUAL)
def test_memory_modes_agree(preprocessed: Path, trainer_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "0")
    options = {"amp": "off", "num_iterations_per_epoch": 2}
    assert trained_alike(*(on_cuda(preprocessed, trainer_class, memory=m, **options) for m in ("joint", "sequential")))


@pytest.mark.parametrize("trainer_class", MUTUAL)
def test_compiled_networks_do_not_recompile(
    preprocessed: Path, trainer_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "1")
    trainer = on_cuda(preprocessed, trainer_class)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(6)]
    for batch in batches[:3]:
        trainer.train_step(batch)
    before = torch._dynamo.utils.counters["frames"]["ok"]
    for batch in batches[3:]:
        trainer.train_step(batch)
    assert torch._dynamo.utils.counters["frames"]["ok"] == before


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_cuda_graphs_train_the_same(preprocessed: Path, trainer_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "0")
    options = {"amp": "off", **({"memory": "joint"} if issubclass(trainer_class.settings_class, PeersSettings) else {})}
    replayed, launched = (on_cuda(preprocessed, trainer_class, cuda_graphs=how, **options) for how in ("on", "off"))
    assert trained_alike(replayed, launched)
    assert replayed.peers.recorded and not launched.peers.recorded


@pytest.mark.parametrize("trainer_class", [MutualPartialTrainer])
def test_graphs_are_recorded_while_a_loader_pins_memory(
    preprocessed: Path, trainer_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread of its own, which a recording must not forbid to talk to the device."""
    monkeypatch.setenv("nnUNet_compile", "0")
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = on_cuda(preprocessed, trainer_class, cuda_graphs="on", memory="joint", num_iterations_per_epoch=20)
    trainer.run_training()
    assert trainer.peers.recorded
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_validation_asks_the_weights_of_now(
    preprocessed: Path, trainer_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in half precision that a recording kept would be those of its day."""
    monkeypatch.setenv("nnUNet_compile", "0")
    trainer = on_cuda(preprocessed, trainer_class, cuda_graphs="on")
    trainer.on_train_start()
    batch = next(trainer.dataloader_val)
    for _ in range(3):
        trainer.on_train_epoch_start()
        for _ in range(4):
            trainer.train_step(next(trainer.dataloader_train))
        trainer.on_validation_epoch_start()
        with torch.no_grad(), trainer.autocast():
            images = trainer.validation_batch(batch).data
            found = [level.clone() for level in trainer.evaluate(0, images)]
            expected = trainer.peers.evaluated[0](trainer.stream.seen_by(0, images))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


class Levels(torch.nn.Module):
    """Logits of two levels, of which the second may be left out of the loss, and a mean that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.BatchNorm3d(8), torch.nn.ReLU())
        self.heads = torch.nn.ModuleList(torch.nn.Conv3d(8, 2, 1) for _ in range(2))

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        found = self.first(data)
        return [head(found) for head in self.heads]


class Waiting(Levels):
    """An architecture that asks the device for a number."""

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [level * float(data.mean() * 0 + 1) for level in super().forward(data)]


def three(kind: type[torch.nn.Module]) -> Peers:
    torch.manual_seed(0)
    networks = [kind().cuda() for _ in range(3)]
    return Peers(networks, [torch.optim.SGD(n.parameters(), 0.1) for n in networks], [None] * 3, None)


def learn(peers: Peers, data: torch.Tensor) -> list[torch.Tensor]:
    """A step in which each network learns from the others; returns all weights and buffers."""
    peers.zero_grad()
    for n, outputs, recorded in peers.passes(data, nullcontext):
        others = torch.stack([output.levels[0] for m, output in enumerate(recorded) if m != n]).mean(0)
        peers.backward((outputs[n].levels[0] - others).square().mean() + outputs[n].levels[0].square().mean())
    peers.step()
    return [value.clone() for network in peers.networks for value in network.state_dict().values()]


def test_replayed_networks_learn_as_launched_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    launched, replayed = three(Levels), three(Levels)
    data = torch.randn(6, 2, 1, 12, 16, 14, device="cuda")
    for step, patch in enumerate(data):
        expected, found = learn(launched, patch), learn(replayed, patch)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        if step == 1:
            replayed.record([patch] * 3, nullcontext, always=True)
            assert len(replayed.recorded) == 3


def test_data_of_another_shape_are_launched() -> None:
    launched, replayed = three(Levels), three(Levels)
    replayed.record([torch.randn(2, 1, 12, 16, 14, device="cuda")] * 3, nullcontext, always=True)
    patch = torch.randn(1, 1, 8, 8, 8, device="cuda")
    for mine, theirs in zip(learn(replayed, patch), learn(launched, patch), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_network_that_waits_is_not_recorded_and_trains_on() -> None:
    peers, patch = three(Waiting), torch.randn(2, 1, 12, 16, 14, device="cuda")
    with pytest.raises(RuntimeError):
        peers.record([patch] * 3, nullcontext, always=True)
    assert not peers.recorded
    before = learn(peers, torch.randn(2, 1, 12, 16, 14, device="cuda"))
    after = learn(peers, torch.randn(2, 1, 12, 16, 14, device="cuda"))
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(value).all() for value in after)
