"""The forms of MutualCorrelationTrainer in which moving averages teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_unlabelled_trainers import assert_same
from training import change_settings, largest_difference, lines_of, started, stopped_and_resumed, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.command import deployed_weights
from nnunet_mutual.settings import read_settings
from nnunet_mutual.trainers import MutualCorrelationTrainer
from nnunet_mutual.trainers.mutual_correlation import MutualCorrelationSettings

BETTER: dict[str, Any] = {"paste_from": "every", "soft_loss": "sample", "strong_pose": True, "ramp": 0.01}
FORMS: dict[str, dict[str, Any]] = {
    "consensus": {"form": "consensus", "second": "equal", "loss": {"correlation": 0}},
    "crossed with attention": {"form": "crossed", "dropout": 0.3},
    "alternating": {"form": "alternating"},
}
DEPLOYED: dict[str, tuple[dict[str, Any], list[int]]] = {
    "consensus of equals": (FORMS["consensus"], [0, 1]),
    "consensus with attention": ({"form": "consensus"}, [0]),
    "crossed with attention": ({"form": "crossed"}, [0]),
    "crossed of equals": ({"form": "crossed", "second": "equal"}, [0, 1]),
    "alternating": (FORMS["alternating"], [0]),
    "as they are": ({"second": "equal"}, [0, 1]),
    "as they are with attention": ({}, [0]),
    "deployed as an average": ({"ema": 0.9, "second": "equal"}, [0, 1]),
}  # the peers that stock nnU-Net can predict with
EACH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@EACH
def test_it_goes_on_to_the_bit_and_stock_loads_the_average(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    settings = {**BETTER, **form, "num_iterations_per_epoch": 4, "unlabelled_per_batch": 2}
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings)
    whole = trainer_for(preprocessed, MutualCorrelationTrainer)
    whole.run_training()
    assert lines_of(whole)[-1]["diagnostics"]["share of unlabelled voxels of which the teacher is sure"] >= 0
    stock = trainer_for(preprocessed, nnUNetTrainer)
    stock.initialize()
    stock.load_checkpoint(str(Path(whole.output_folder) / "checkpoint_final.pth"))
    deployed = whole.peers.averages[0].network
    assert whole.deployed_network is deployed
    assert largest_difference(stock.network.state_dict(), deployed.state_dict()) == 0
    monkeypatch.setenv("nnUNet_results", str(nnunet_folders / "other"))
    assert_same(stopped_and_resumed(preprocessed, MutualCorrelationTrainer, 7), whole)  # within the second epoch


@EACH
def test_teachers_see_the_weak_view_and_each_student_its_own(nnunet_folders: Path, form: dict[str, Any]) -> None:
    settings = {**BETTER, **form, "labelled_per_batch": 2, "unlabelled_per_batch": 2}
    trainer, loader = started(two_stream_dataset(nnunet_folders, settings=settings), MutualCorrelationTrainer, steps=1)
    students: dict[int, torch.Tensor] = {}
    teachers: list[torch.Tensor] = []
    for n, network in enumerate(trainer.peers.networks):
        network.register_forward_pre_hook(lambda _, images, n=n: students.update({n: images[0]}))
    for average in trainer.peers.averages:
        assert not average.network.training
        average.network.register_forward_pre_hook(lambda _, images: teachers.append(images[0]))
    raw = next(loader)
    weak, labelled = raw["data"][:2].clone(), raw["data"][2:].clone()
    trainer.train_step(raw)
    assert len(teachers) == 2 and all(torch.equal(seen[:2], weak) for seen in teachers)
    attends = trainer.settings.attends
    assert [len(seen) for seen in teachers] == ([2, 4] if attends else [2, 2]), "attention needs the whole batch"
    assert all(torch.equal(seen[2:], labelled) for seen in students.values())
    assert all(not torch.equal(seen[:2], weak) for seen in students.values())
    if len(students) == 2:
        assert not torch.equal(students[0][:2], students[1][:2])


@pytest.mark.parametrize("form", [FORMS["consensus"], FORMS["crossed with attention"]])
def test_memory_modes_agree(nnunet_folders: Path, form: dict[str, Any]) -> None:
    found = []
    for mode in ("joint", "sequential"):
        root = nnunet_folders / mode
        with pytest.MonkeyPatch.context() as patch:
            for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                patch.setenv(name, str(root / name))
            preprocessed = two_stream_dataset(root, settings={**BETTER, **form, "memory": mode})
            trainer, _ = started(preprocessed, MutualCorrelationTrainer, steps=4)
            parts = [*trainer.peers.networks, *(average.network for average in trainer.peers.averages)]
            found.append([{k: v.clone() for k, v in part.state_dict().items()} for part in parts])
    for one, other in zip(*found, strict=True):
        assert largest_difference(one, other) <= 1e-5


@pytest.mark.parametrize(("form", "numbers"), DEPLOYED.values(), ids=DEPLOYED)
def test_peers_that_are_exported(nnunet_folders: Path, form: dict[str, Any], numbers: list[int]) -> None:
    peers = started(two_stream_dataset(nnunet_folders, settings=form), MutualCorrelationTrainer)[0].peers
    for number, average in enumerate(peers.averages):
        next(average.network.parameters()).data.fill_(number + 5)  # so that they differ from the networks
    state = peers.state_dict()
    expected = [average["weights"] for average in state["averages"]] or state["networks"]
    exported = deployed_weights(state)
    assert len(exported) == len(numbers)
    assert all(largest_difference(one, expected[n]) == 0 for one, n in zip(exported, numbers, strict=True))


def test_averages_that_alternate_are_as_old_as_others(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)

    def age(**settings: Any) -> float:
        """Mean age of the averaged weights, in updates of the average."""
        change_settings(preprocessed, num_epochs=40, num_iterations_per_epoch=30, **settings)
        decay = trainer_for(preprocessed, MutualCorrelationTrainer).decay
        return float(decay / (1 - decay))

    assert age(form="consensus", ema_age=0.1) == pytest.approx(120), "a tenth of 1200 steps"
    assert age(form="alternating", ema_age=0.1) == pytest.approx(60), "of its own updates, one in two steps"
    assert age(form="alternating", ema_age=None, ema=0.9) == pytest.approx(9), "a decay is taken as it is"


def test_two_averages_of_one_network_differ(nnunet_folders: Path) -> None:
    settings = {**BETTER, **FORMS["alternating"], "num_iterations_per_epoch": 10}
    trainer, _ = started(two_stream_dataset(nnunet_folders, settings=settings), MutualCorrelationTrainer)
    first, second = trainer.peers.averages
    loader, _ = trainer.get_dataloaders()
    steps = []
    for _ in range(24):
        trainer.train_step(next(loader))
        steps.append((first.steps, second.steps))
    assert all(sum(pair) == n for n, pair in enumerate(steps, 1)) and min(steps[-1]) > 0
    assert largest_difference(first.network.state_dict(), second.network.state_dict()) > 0
    assert len(trainer.peers.networks) == 1 and trainer.needs(trainer.settings, trainer.table, []).averages == 2


def test_forms_that_cannot_be() -> None:
    with pytest.raises(MutualError, match='published=true has form="partner"'):
        read_settings(MutualCorrelationSettings, {"published": True, "form": "crossed"})
    with pytest.raises(MutualError, match='"ema" must be above 0: without a moving average there is no teacher'):
        read_settings(MutualCorrelationSettings, {"form": "crossed", "ema_age": None})
    assert not read_settings(MutualCorrelationSettings, {"ema_age": None}).taught
    with pytest.raises(MutualError, match='"ema_age" must be a share of the training'):
        read_settings(MutualCorrelationSettings, {"ema_age": 1.5})
