"""The checkpoint contract: readable by any nnU-Net, complete for --c, never half-written."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import (
    KEYS,
    SHORT,
    assert_same_optimizer,
    change_settings,
    curves,
    largest_difference,
    lines_of,
    partial_block,
    stop_at,
    trainer_for,
    weights,
)

from nnunet_mutual.engine.checkpoints import STATE_KEY
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective, Term
from nnunet_mutual.trainers import PartialTrainer
from nnunet_mutual.trainers.base import MutualTrainer

BUILTINS = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)


class TwoPeersTrainer(MutualTrainer):
    """Two networks; the second one is deployed."""

    candidates = (1,)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        return self.make_peers(objectives, 2)


@pytest.fixture()
def preprocessed(nnunet_folders: Path) -> Path:
    return tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)


def types_in(value: Any) -> set[type]:
    if isinstance(value, dict):
        return {type(value)}.union(*map(types_in, value), *map(types_in, value.values()))
    if isinstance(value, (list, tuple)):
        return {type(value)}.union(*map(types_in, value))
    return {type(value)}


def test_stock_nnunet_can_read_every_checkpoint(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    files = sorted(Path(trainer.output_folder).glob("checkpoint_*.pth"))
    assert [file.name for file in files] == ["checkpoint_best.pth", "checkpoint_final.pth"]
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert {t for t in types_in(checkpoint) if not issubclass(t, BUILTINS)} == set()
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        assert checkpoint["mutual_state"]["trainer"] == "PartialTrainer"
        assert checkpoint["init_args"]["configuration"] == "3d_fullres"
        network = nnUNetTrainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 4, enable_deep_supervision=False
        )
        network.load_state_dict(checkpoint["network_weights"], strict=True)


def test_a_checkpoint_within_an_epoch_is_as_readable(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    stop_at(trainer, 5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=True)
    assert {t for t in types_in(checkpoint) if not issubclass(t, BUILTINS)} == set()
    assert len(checkpoint["mutual_state"]["epoch_outputs"]) == checkpoint["mutual_state"]["iteration"] == 2
    assert checkpoint["current_epoch"] == 1
    assert largest_difference(checkpoint["network_weights"], weights(trainer)) == 0


def test_the_deployed_network_need_not_be_the_first(preprocessed: Path) -> None:
    whole = trainer_for(preprocessed, TwoPeersTrainer)
    whole.initialize()
    modes: list[list[bool]] = [[], []]
    for network, seen in zip(whole.peers.networks, modes, strict=True):
        network.register_forward_hook(lambda network, inputs, output, seen=seen: seen.append(network.training))
    whole.run_training()
    assert modes == [[True] * 9, [True, True, True, False] * 3], "both are trained, the second is validated"
    final = torch.load(Path(whole.output_folder) / "checkpoint_final.pth", weights_only=True)
    second = whole.peers.networks[1].state_dict()
    assert largest_difference(final["network_weights"], second) == 0
    assert largest_difference(final["network_weights"], weights(whole)) > 1e-3

    stopped = trainer_for(preprocessed, TwoPeersTrainer)
    stop_at(stopped, 5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, TwoPeersTrainer, resume="latest")
    resumed.run_training()
    for mine, reference in zip(resumed.peers.networks, whole.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), reference.state_dict()) == 0
    for mine, reference in zip(resumed.peers.optimizers, whole.peers.optimizers, strict=True):
        assert_same_optimizer(mine, reference)
    assert curves(resumed) == curves(whole)


def test_the_deployed_network_is_the_one_that_is_validated(nnunet_folders: Path) -> None:
    block = partial_block()
    block["cases"]["case_00"]["annotated"] = ["liver", "tumour", "spleen"]  # whose file is not restricted
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings={**SHORT, "num_epochs": 1})
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[1:], "val": KEYS[:1]}]))
    trainer = trainer_for(preprocessed, TwoPeersTrainer)
    trainer.run_training()
    validated = trainer_for(preprocessed, TwoPeersTrainer)  # as --val does it
    final = Path(validated.output_folder) / "checkpoint_final.pth"
    validated.load_checkpoint(str(final))
    validated.perform_actual_validation()

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    model = Path(validated.output_folder_base)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    image, properties = SimpleITKIO().read_images(
        [str(nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTr" / "case_00_0000.nii.gz")]
    )
    stock = predictor.predict_single_npy_array(image, properties)
    ours, _ = SimpleITKIO().read_seg(str(model / "fold_0" / "validation" / "case_00.nii.gz"))
    assert np.array_equal(ours[0], stock)
    assert stock.any()
    first = validated.peers.networks[0].state_dict()
    assert largest_difference(predictor.list_of_parameters[0], first) > 1e-3, "or both networks would predict this"


@pytest.mark.parametrize(
    ("rhythm", "expected"),
    [
        ({}, []),
        ({"checkpoint_epochs": 1}, [1, 2, 3, 4]),
        ({"checkpoint_epochs": 2}, [2, 4]),
        ({"checkpoint_minutes": 0.0}, [1, 2, 3, 4]),
    ],
    ids=["default", "every epoch", "every other epoch", "minutes"],
)
def test_the_rhythm_of_latest(nnunet_folders: Path, rhythm: dict[str, float], expected: list[int]) -> None:
    settings = {**SHORT, "num_epochs": 5, "num_iterations_per_epoch": 1, **rhythm}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed)
    saved = []
    original = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (saved.append((Path(name).name, trainer.epochs_done)), original(name))
    trainer.run_training()
    assert [epochs for name, epochs in saved if name == "checkpoint_latest.pth"] == expected
    assert saved[-1] == ("checkpoint_final.pth", 5)
    assert not (Path(trainer.output_folder) / "checkpoint_latest.pth").exists(), "final takes its place"


def torchs(error: OSError) -> RuntimeError:
    """What torch raises when its stream does."""
    found = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    found.__context__ = error
    return found


@pytest.mark.parametrize(
    ("interruption", "raised"),
    [
        (OSError(28, "No space left on device"), MutualError),
        (RuntimeError("PytorchStreamWriter failed: No space left on device"), MutualError),
        (torchs(OSError(28, "No space left on device")), MutualError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk full", "disk full, as torch says it", "while torch closes the file", "Ctrl-C"],
)
def test_an_interrupted_save_leaves_the_previous_checkpoint(
    preprocessed: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, raised: type[BaseException]
) -> None:
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()

    def full(checkpoint: object, stream: Any) -> None:
        stream.write(b"half")
        raise interruption

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(raised, match="No space left on device.*continue with --c" if raised is MutualError else None):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert [f.name for f in file.parent.glob("checkpoint*")] == ["checkpoint_latest.pth"]


class OtherTrainer(PartialTrainer):
    """Writes to the same folder when the test says so."""


@pytest.mark.parametrize("what", ["settings", "trainer", "stock", "damaged"])
def test_checkpoints_that_must_not_be_continued(preprocessed: Path, what: str) -> None:
    trainer = trainer_for(preprocessed, OtherTrainer if what == "trainer" else PartialTrainer)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    if what == "settings":
        change_settings(preprocessed, **SHORT, initial_lr=0.5)
    elif what == "stock":
        torch.save({"network_weights": {}}, file)
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:1000])
    sentences = {
        "settings": "initial_lr: 0.01 -> 0.5.*nnunet_mutual plan --name",
        "trainer": "was written by OtherTrainer, not PartialTrainer; continue with -tr OtherTrainer",
        "stock": "was not written by a trainer of this package",
        "damaged": "is damaged, cut short or changed after it was written; remove it and train anew",
    }
    other = trainer_for(preprocessed)
    with pytest.raises(MutualError, match=sentences[what]):
        other.load_checkpoint(str(file))


def test_a_checkpoint_from_before_a_setting_existed_is_continued(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint[STATE_KEY]["settings"]["cuda_graphs"]
    torch.save(checkpoint, file)
    other = trainer_for(preprocessed)
    other.load_checkpoint(str(file))
    assert largest_difference(weights(other), weights(trainer)) == 0


class Remembering(Objective):
    """Counts its steps."""

    term_names = ("steps",)

    def __init__(self) -> None:
        self.steps = 0

    def terms(self, peer: int, outputs: Sequence, step: object) -> dict[str, Term]:
        self.steps += 1
        return {"steps": Term(outputs[peer].levels[0].mean() * 0 + self.steps, 0.0)}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class RememberingTrainer(MutualTrainer):
    """Has an objective with a state."""

    def build_objectives(self) -> list[Objective]:
        return [*super().build_objectives(), Remembering()]


def test_the_state_of_objectives_is_resumed(preprocessed: Path) -> None:
    stopped = trainer_for(preprocessed, RememberingTrainer)
    stop_at(stopped, 4, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, RememberingTrainer, resume="latest")
    resumed.run_training()
    assert resumed.objectives[1].steps == 9
    assert [line["terms"]["steps"] for line in lines_of(resumed)] == [2.0, 5.0, 8.0]
