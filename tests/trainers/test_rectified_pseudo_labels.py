"""Prototypes rectify the pseudo labels of MutualPartialTrainer, and of the pseudo_label command."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_mutual_partial import SETTINGS, assert_true_labels_untouched
from training import change_settings, largest_difference, lines_of, partial_block, stop_at, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trainers import MutualPartialTrainer, MutualPrototypeTrainer

ONE = {**SETTINGS, "stage1_networks": "one", "stage2_networks": "one", "ramp": {}, "ema": 0.9}
RECTIFIED = {**ONE, "pseudo_labels": {"label": False, "voxel": False, "rectify": True}}


def trainer_of(root: Path, settings: dict[str, Any]) -> Any:
    preprocessed = tiny.make_dataset(root, block=partial_block(), settings=settings)
    return trainer_for(preprocessed, MutualPartialTrainer)


def spy(trainer: Any, change: Any) -> list[torch.nn.Module]:
    """Notes which networks make the pseudo labels, after a change to them."""
    asked: list[torch.nn.Module] = []
    restore = trainer.restore_stage

    def restore_stage(stage: int) -> None:
        asked.extend(trainer.pseudo_labelling)
        restore(stage)

    trainer.restore_stage = restore_stage
    save = trainer.save_checkpoint
    trainer.save_checkpoint = lambda file: (change(trainer) if "stage1" in file else None, save(file))
    return asked


def test_they_are_made_by_the_rectified_network(nnunet_folders: Path) -> None:
    trainer = trainer_of(nnunet_folders, RECTIFIED)

    def everything_is_liver(trainer: Any) -> None:
        with torch.no_grad():
            trainer.rectifier.average.network.mix.bias[1] = 100

    asked = spy(trainer, everything_is_liver)
    trainer.run_training()
    assert asked == [trainer.rectifier.network]
    first = [line["terms"] for line in lines_of(trainer)]
    assert set(first[0]) == {"supervised", "prototypes", "trust"} and "prototypes" not in first[-1]
    store = trainer.store
    open_cases = [key for key in store.accepted(trainer.do_split()[0]) if "liver" in store.accepted([key])[key]]
    assert open_cases
    for key in open_cases:  # what was not drawn is liver, since the class scores say so
        codes = store.codes(key)[:]
        assert (codes > 3).any() and len(set(codes[codes > 3].tolist())) == 1
    assert_true_labels_untouched(trainer)
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert largest_difference(final["network_weights"], trainer.peers.averages[0].network.state_dict()) == 0


def test_it_goes_on_to_the_bit(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer_of(nnunet_folders, RECTIFIED)
    whole.run_training()
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    monkeypatch.setenv("nnUNet_results", str(nnunet_folders / "other"))
    stopped = trainer_for(preprocessed, MutualPartialTrainer)
    stop_at(stopped, 3, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, MutualPartialTrainer, resume="latest")
    resumed.run_training()
    assert largest_difference(resumed.network.state_dict(), whole.network.state_dict()) == 0


@pytest.mark.parametrize("changed", [{"ema": 0.0}, {"stage1_networks": "groups"}])
def test_it_needs_one_network_and_its_average(nnunet_folders: Path, changed: dict[str, Any]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), cases=1, configurations=())
    change_settings(preprocessed, **{**RECTIFIED, **changed})
    with pytest.raises(MutualError, match='"pseudo_labels.rectify" needs one network in stage 1'):
        trainer_for(preprocessed, MutualPartialTrainer)


def test_the_command_asks_the_rectified_teacher(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, block=partial_block())
    trainer = trainer_for(preprocessed, MutualPrototypeTrainer)
    trainer.run_training()
    assert trainer.pseudo_labelling == [trainer.rectifier.network]
    options = ["--set", "label=false", "voxel=false"]
    command = ["pseudo_label", "901", "3d_fullres", "0", "-tr", "MutualPrototypeTrainer", "-device", "cpu", *options]
    assert main([*command, "-o", str(nnunet_folders / "maps")]) == 0
    assert len(list((nnunet_folders / "maps").glob("*.nii.gz"))) == len(trainer.do_split()[0])
    assert "Every decision" in capsys.readouterr().out
