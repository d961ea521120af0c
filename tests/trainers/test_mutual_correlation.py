"""MutualCorrelationTrainer: what each network learns from the other, and that stock nnU-Net gets V."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from prepared import prepare
from training import (
    KEYS,
    change_settings,
    largest_difference,
    partial_block,
    started,
    trainer_for,
    weights,
)
from two_streams import KINDS, terms_on_one_batch, two_stream_dataset

from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives import Output, Progress, Step
from nnunet_mutual.objectives.correlation import SLOTS, spread
from nnunet_mutual.trainers import MutualCorrelationTrainer

LATE = Progress(90, 100)


def outputs_of(trainer: Any, batch: Any) -> list[Output]:
    found = []
    for network in trainer.peers.networks:
        levels, features = network(batch.data)
        found.append(Output(levels, features))
    return found


def test_the_sum_holds_all_three_terms_of_both_networks(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"ramp": 0.001})
    trainer, loader = started(preprocessed, MutualCorrelationTrainer, steps=2)
    trainer.current_epoch = 2
    seen: list[float] = []
    backward = trainer.peers.backward
    trainer.peers.backward = lambda total: (seen.append(total.item()), backward(total))
    found = trainer.train_step(next(loader))
    terms = dict(zip(trainer.stage.term_names, found["terms"].tolist(), strict=True))
    assert list(terms) == [f"{name}[{n}]" for n in (0, 1) for name in ("supervised", "consistency", "correlation")]
    assert found["weights"].tolist() == pytest.approx(2 * [1, 0.5, 0.05]), "the ramp is over"
    assert all(terms[f"correlation[{n}]"] > 0 and terms[f"consistency[{n}]"] not in (0, -1) for n in (0, 1))
    for n in (0, 1):
        expected = terms[f"supervised[{n}]"] + 0.5 * terms[f"consistency[{n}]"] + 0.05 * terms[f"correlation[{n}]"]
        assert seen[n] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_which_switch_lets_gradients_through(nnunet_folders: Path, published: bool) -> None:
    """Each network's terms against a joint loss, in which targets are (published) or are not differentiated."""
    preprocessed = two_stream_dataset(nnunet_folders, settings={"published": published, "ramp": 0.001})
    trainer, loader = started(preprocessed, MutualCorrelationTrainer, steps=3)
    (objective,) = trainer.objectives
    batch = trainer.training_batch(next(loader))
    trainer.peers.eval()  # no dropout; the taps return features in training mode only
    for network in trainer.peers.networks:
        network.training = True
    torch.manual_seed(0)
    step = prepare(objective, [o.detach() for o in outputs_of(trainer, batch)], batch, LATE)
    both = outputs_of(trainer, batch)
    leaves = [o.levels[0] for o in both]
    heads = list(objective.heads.parameters())
    mine: list[torch.Tensor] = []
    for n in (0, 1):
        shown = [both[k] if k == n else both[k].detach() for k in (0, 1)]
        terms = objective.terms(n, shown, step)
        value = terms["consistency"].value + terms["correlation"].value
        mine.append(torch.autograd.grad(value, leaves[n], retain_graph=True)[0])

    inside, number = batch.views.inside, batch.views.unlabelled
    v, a = leaves
    if published:
        sharp = [probabilities(z, regions=False, temperature=0.1) for z in leaves]
        half = [0.5 * (z.softmax(1) - s).square().sum(1, keepdim=True) for z, s in ((v, sharp[1]), (a, sharp[0]))]
        consistency = sum((h * inside).sum() / inside.sum() for h in half)
    else:
        soft = [probabilities(z.detach()[:number], regions=False, temperature=0.5) for z in leaves]
        options = {"inside": inside[:number], "regions": False}
        consistency = sum(soft_label_loss(z[:number], s, **options) for z, s in ((v, soft[1]), (a, soft[0])))
    joint = torch.autograd.grad(consistency, leaves, retain_graph=True)
    for found, expected in zip(mine, joint, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-8)

    said = [objective._correlation(n, both[n], step.compared) for n in (0, 1)]
    counted = step.compared.counted

    def entropy(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        finite = torch.isfinite(target)
        return (-(target.exp() * prediction.masked_fill(~finite, 0)).sum(1) * counted).sum() / counted.sum()

    if published:
        total = entropy(said[1], said[0])
    else:
        total = entropy(said[1].detach(), said[0]) + entropy(said[0].detach(), said[1])
    expected_heads = torch.autograd.grad(total, heads, retain_graph=True, allow_unused=True)
    trainer.peers.zero_grad()
    for n in (0, 1):
        shown = [both[k] if k == n else both[k].detach() for k in (0, 1)]
        objective.terms(n, shown, step)["correlation"].value.backward(retain_graph=True)
    assert any(parameter.grad is not None for parameter in heads)
    for parameter, expected in zip(heads, expected_heads, strict=True):
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-7)


def test_the_bank_keeps_its_size_and_only_right_voxels(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer, loader = started(preprocessed, MutualCorrelationTrainer)
    (objective,) = trainer.objectives
    size = objective.bank.vectors.shape
    assert size == (4, 4, SLOTS, 32)  # background and three labels, four training cases
    for _ in range(5):
        trainer.train_step(next(loader))
    assert objective.bank.vectors.shape == size and objective.bank.filled.any()
    batch = trainer.training_batch(next(loader))
    wrong = torch.zeros(2, 4, 16, 16, 16)
    wrong.scatter_(1, (batch.target[0].long() + 1) % 4, 50.0)
    before = objective.bank.filled.clone()
    outputs = [Output([wrong], {1: torch.randn(2, 4, 16, 16, 16)})] * 2
    objective.bank.filled.zero_()
    objective.update(outputs, Step(batch, LATE))
    assert not objective.bank.filled.any(), "a voxel that nobody predicts correctly was remembered"
    right = torch.zeros(2, 4, 16, 16, 16).scatter_(1, batch.target[0].long(), 50.0)
    objective.update([Output([right], {1: torch.randn(2, 4, 16, 16, 16)})] * 2, Step(batch, LATE))
    present = set(batch.target[0][1][batch.views.inside[1]].long().tolist())
    row = objective.row[batch.keys[1]]
    assert {k for k in range(4) if objective.bank.filled[k, row].any()} == present
    assert before.shape == objective.bank.filled.shape


def test_undrawn_labels_are_not_remembered_as_background(nnunet_folders: Path) -> None:
    """Where a case does not annotate the liver, its background is unknown."""
    preprocessed = two_stream_dataset(nnunet_folders, block=partial_block())
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[1:], "val": KEYS[:1]}]))
    trainer, loader = started(preprocessed, MutualCorrelationTrainer)
    (objective,) = trainer.objectives
    remembered = set()
    for _ in range(12):
        batch = trainer.training_batch(next(loader))
        right = torch.zeros(2, 4, 16, 16, 16).scatter_(1, batch.target[0].long(), 50.0)
        objective.bank.filled.zero_()
        objective.update([Output([right], {1: torch.randn(2, 4, 16, 16, 16)})] * 2, Step(batch, LATE))
        source = trainer.table.case(batch.keys[1]).source
        remembered |= {(source, k) for k in range(4) if objective.bank.filled[k].any()}
    assert remembered == {("a", 1), ("b", 2), ("b", 3)}


def test_queries_are_agreed_unlabelled_voxels_inside_of_images(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"unlabelled_per_batch": 2})
    trainer, loader = started(preprocessed, MutualCorrelationTrainer, steps=2)
    (objective,) = trainer.objectives
    batch = trainer.training_batch(next(loader))
    number = batch.views.unlabelled
    logits = [torch.randn(3, 4, 16, 16, 16), torch.randn(3, 4, 16, 16, 16)]
    (sample, voxel), counted = objective._queries(logits, batch)
    wanted = number * 16**3 // 256 // 4 // 2 * 2
    assert len(sample) == len(counted) == 4 * wanted and counted.any()
    for k in range(4):
        rows = slice(k * wanted, (k + 1) * wanted)
        s, v, use = sample[rows], voxel[rows], counted[rows]
        assert (s < number).all()
        decided = [z.flatten(2).argmax(1)[s, v] for z in logits]
        ok = (decided[0] == k) & (decided[1] == k) & batch.views.inside.flatten(1)[s, v]
        assert torch.equal(ok, use)


def test_spread_places_are_different_and_reach_everywhere() -> None:
    torch.manual_seed(0)
    found = torch.stack([spread(40000, torch.device("cpu")) for _ in range(60)])
    assert found.shape == (60, 5000) and all(len(set(row)) == 5000 for row in found.tolist())
    assert found.min() == 0 and found.max() == 39999
    for voxels in (5000, 20**3):  # no multiple of the stride
        places = torch.stack([spread(voxels, torch.device("cpu")) for _ in range(60)])
        assert all(len(set(row)) == len(row) for row in places.tolist()) and len(places.unique()) == voxels
    assert spread(10, torch.device("cpu")).tolist() == list(range(10))
    assert len(spread(128**3, torch.device("cpu"))) == 2**16


def test_the_checkpoint_is_v_alone_for_stock(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer = trainer_for(preprocessed, MutualCorrelationTrainer)
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    assert largest_difference(checkpoint["network_weights"], weights(trainer)) == 0
    stock = trainer_for(preprocessed, nnUNetTrainer)
    stock.initialize()
    stock.load_checkpoint(str(file))
    assert largest_difference(weights(stock), weights(trainer)) == 0
    assert trainer.deployed == 0 and trainer.candidates == (0,)
    auxiliary = checkpoint["mutual_state"]["peers"]["networks"][1]
    assert auxiliary.keys() != checkpoint["network_weights"].keys()


def test_the_average_of_v_is_deployed_where_asked_for(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"ema": 0.9})
    trainer = trainer_for(preprocessed, MutualCorrelationTrainer)
    trainer.run_training()
    assert len(trainer.peers.averages) == 1
    assert trainer.deployed_network is trainer.peers.averages[0].network
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert largest_difference(checkpoint["network_weights"], weights(trainer)) > 0


def test_the_entropy_of_the_correlation_is_reported_and_alarms(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer, loader = started(preprocessed, MutualCorrelationTrainer, steps=4)
    (objective,) = trainer.objectives
    numbers, warnings = objective.diagnose()
    assert 0.05 < numbers["row entropy of the correlation, of its highest"] < 0.98 and not warnings
    assert 0 < numbers["share of the bank that is filled"] <= 1
    assert 0 < numbers["share of unlabelled voxels on which the networks agree"] <= 1
    for share, word in ((0.01, "saturated"), (0.99, "dead")):
        objective._numbers.copy_(torch.tensor([share * 3, 5.0, 10.0, 3.0]))
        numbers, (warning,) = objective.diagnose()
        assert word in warning and f"{share:.2f}" in warning
    assert objective.diagnose() == ({}, [])


def test_the_published_form(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"published": True})
    trainer, loader = started(preprocessed, MutualCorrelationTrainer)
    rates = []
    for epoch in range(3):
        trainer.peers.set_epoch(epoch)
        rates.append(trainer.peers.optimizers[0].param_groups[0]["lr"])
    assert rates == [0.01] * 3
    attention = [m for m in trainer.peers.networks[1].modules() if isinstance(m, torch.nn.Dropout)]
    assert attention and all(layer.p == 0.5 for layer in attention)
    batch = trainer.training_batch(next(loader))
    both = outputs_of(trainer, batch)
    step = prepare(trainer.objectives[0], [o.detach() for o in both], batch, LATE)
    term = trainer.objectives[0].terms(0, [both[0], both[1].detach()], step)["supervised"]
    assert term.weight == 0.5 and -1 <= term.value.item() < 0, "not a Dice loss"
    change_settings(preprocessed, published=True)
    for file in (preprocessed, nnunet_folders / "nnUNet_raw" / tiny.NAME):
        content = json.loads((file / "dataset.json").read_text())
        (file / "dataset.json").write_text(json.dumps({**content, "mutual": partial_block()}))
    with pytest.raises(MutualError, match="published=true needs cases that annotate every label, but case_0"):
        trainer_for(preprocessed, MutualCorrelationTrainer).initialize()


@pytest.mark.parametrize("memory", ["joint", "sequential"])
def test_memory_modes_agree(nnunet_folders: Path, memory: str) -> None:
    """Dropout, queries and the bank included: the same training in both modes."""
    found = []
    for mode in ("joint", memory):
        root = nnunet_folders / mode / str(len(found))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                patch.setenv(name, str(root / name))
            preprocessed = two_stream_dataset(root, settings={"memory": mode, "ramp": 0.01, "dropout": 0.3})
            trainer, _ = started(preprocessed, MutualCorrelationTrainer, steps=4)
            found.append([{k: v.clone() for k, v in n.state_dict().items()} for n in trainer.peers.networks])
            found[-1].append({"bank": trainer.objectives[0].bank.vectors.float()})
    for one, other in zip(*found, strict=True):
        assert largest_difference(one, other) <= 1e-5


@pytest.mark.parametrize("options", [*KINDS.values(), {"settings": {"inter": "position"}}], ids=[*KINDS, "position"])
def test_every_kind_of_dataset_trains(nnunet_folders: Path, options: dict[str, Any]) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, **options)
    trainer = trainer_for(preprocessed, MutualCorrelationTrainer, options.get("configuration", "3d_fullres"))
    trainer.run_training()
    assert not np.isnan(trainer.logger.get_value("mean_fg_dice", -1))
    first, last = terms_on_one_batch(trainer)
    for n in (0, 1):
        assert first[f"supervised[{n}]"] > last[f"supervised[{n}]"]
        assert -1 < last[f"consistency[{n}]"] != 0 and math.isfinite(last[f"correlation[{n}]"])
