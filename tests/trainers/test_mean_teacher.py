"""MeanTeacherTrainer: the teacher is the moving average, and what it says is what the student learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prepared import prepare
from training import largest_difference, lines_of, partial_block, trainer_for, weights
from two_streams import KINDS, terms_on_one_batch, two_stream_dataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.objectives import Batch, Output, Paste, Progress, Views
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer
from nnunet_mutual.trainers.unlabelled import ask_average

LATE = Progress(90, 100)


def test_the_teacher_is_the_average_that_is_deployed(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    trainer.peers.restart_averages()
    expected = weights(trainer)
    trainer.peers.set_epoch(0)
    for step in range(4):
        trainer.train_step(next(loader))
        d = min(0.99, (1 + step) / (10 + step))
        now = weights(trainer)
        expected = {name: d * value + (1 - d) * now[name] for name, value in expected.items()}
    teacher = trainer.peers.averages[0].network
    assert largest_difference(teacher.state_dict(), expected) < 1e-6 < largest_difference(expected, weights(trainer))
    assert trainer.deployed_network is teacher and not teacher.training
    images = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(ask_average(trainer, 0, images), teacher(images)[0])


def objective(known: Knowledge, teacher: Any, supervised: Any = None, **options: Any) -> MeanTeacherObjective:
    teaching = Teaching(known, None, lambda _, batch: teacher(batch.weak), [[0]], temperature=0.5, form="batch")
    return MeanTeacherObjective(supervised or Nothing(), teaching, **{"weight": 1.0, "ramp_end": 0.2, **options})


class Nothing:
    ignore_label = None

    def labelled(self, levels: Any, batch: Batch, peer: int) -> torch.Tensor:
        return levels[0].sum() * 0


def knowledge(preprocessed: Path, keys: list[str]) -> Knowledge:
    table = AnnotationTable.from_dataset_json(read_object(preprocessed / "dataset.json"))
    return Knowledge(table, keys, 4, unlabelled=["un_0", "un_1"])


def test_pasted_voxels_have_the_labels_of_their_origin(nnunet_folders: Path) -> None:
    """Known ones of a labelled image, the teacher's of an unlabelled one."""
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), configurations=())
    keys = ["un_0", "un_1", "case_01"]  # which annotates tumour and spleen, not the liver
    known = knowledge(preprocessed, ["case_01"])
    said = torch.randn(2, 4, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(3, 1, 6, 6, 6, dtype=torch.int16)
    target[2, 0, :, :2], target[2, 0, :, 2:4] = 3, 2
    inside = torch.rand(3, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.2
    box = (slice(0, 6), slice(0, 6), slice(0, 3))
    pasted = [Paste(0, 2, box), Paste(1, 0, box)]
    patterns = known.patterns(keys)
    views = Views(2, inside, torch.zeros(2, 1, 6, 6, 6), pasted=pasted)
    batch = Batch(torch.zeros(3, 1, 6, 6, 6), [target], keys, patterns, torch.tensor(patterns), views=views)
    mean_teacher = objective(known, lambda images: said)
    taught = mean_teacher.ask(batch, LATE)
    q = probabilities(said, regions=False, temperature=0.5)
    assert taught is not None
    found, counted = taught[0].target, taught[0].counted
    left, right = (..., slice(0, 3)), (..., slice(3, 6))
    torch.testing.assert_close(found[right], q[right])
    torch.testing.assert_close(found[1][left], q[0][left])
    assert torch.equal(counted[right], inside[:2][right]) and torch.equal(counted[1][left], inside[0][left])
    # Drawn as spleen or tumour: certain. Background of case_01 may be liver: not.
    drawn = target[2, 0] > 0
    assert torch.equal(counted[0, 0][left], (inside[2, 0] & drawn)[left])
    assert (found[0, 3, :, :2, :3] == 1).all() and (found[0, 2, :, 2:4, :3] == 1).all()


def test_the_student_is_drawn_to_the_teacher_and_nobody_else(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), configurations=())
    known = knowledge(preprocessed, ["case_01"])
    said = torch.randn(1, 4, 6, 6, 6)
    inside = torch.ones(2, 1, 6, 6, 6, dtype=torch.bool)
    keys = ["un_0", "case_01"]
    patterns = known.patterns(keys)
    target = torch.zeros(2, 1, 6, 6, 6)
    batch = Batch(torch.zeros(2, 1, 6, 6, 6), [target], keys, patterns, torch.tensor(patterns), views=Views(1, inside))
    asked: list[torch.Tensor] = []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        asked.append(images)
        return said

    mean_teacher = objective(known, teacher)
    z = torch.randn(2, 4, 6, 6, 6, requires_grad=True)
    optimizer = torch.optim.Adam([z], 0.1)
    for _ in range(200):
        step = prepare(mean_teacher, [], batch, LATE)
        term = mean_teacher.terms(0, [Output([z])], step)["consistency"]
        assert term.weight == 1
        optimizer.zero_grad()
        term.value.backward()
        assert z.grad is not None and (z.grad[1] == 0).all()
        optimizer.step()
    wanted = probabilities(said, regions=False, temperature=0.5)
    assert (z[:1].softmax(1) - wanted).abs().mean() < 0.05
    assert asked[0].shape == (1, 1, 6, 6, 6)


def test_the_weight_rises_and_zero_asks_nobody(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), configurations=())
    known = knowledge(preprocessed, ["case_01"])

    def nobody(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the teacher was asked in vain")

    keys = ["un_0", "case_01"]
    patterns = known.patterns(keys)
    views = Views(1, torch.ones(2, 1, 4, 4, 4, dtype=torch.bool))
    images = torch.zeros(2, 1, 4, 4, 4)
    batch = Batch(images, [images], keys, patterns, torch.tensor(patterns), views=views)
    off = objective(known, nobody, weight=0.0)
    step = prepare(off, [], batch, LATE)
    assert off.terms(0, [Output([torch.zeros(2, 4, 4, 4, 4)])], step)["consistency"].value == 0
    on = objective(known, lambda images: torch.zeros(1, 4, 4, 4, 4), weight=0.7)
    values = []
    for done in (0, 10, 19, 20, 60):
        step = prepare(on, [], batch, Progress(done, 100))
        values.append(on.terms(0, [Output([torch.zeros(2, 4, 4, 4, 4)])], step)["consistency"].weight)
    assert values == sorted(values) and values[0] < 0.01 and values[-2:] == [0.7, 0.7]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_of_dataset_trains(nnunet_folders: Path, options: dict[str, Any]) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings={"num_iterations_per_epoch": 4}, **options)
    trainer = trainer_for(preprocessed, MeanTeacherTrainer, options.get("configuration", "3d_fullres"))
    trainer.run_training()
    *_, last = lines_of(trainer)
    assert last["terms"]["consistency"] != 0
    assert 0 <= last["diagnostics"]["share of unlabelled voxels of which the teacher is sure"] <= 1
    first, after = terms_on_one_batch(trainer)
    assert first["supervised"] > after["supervised"]
