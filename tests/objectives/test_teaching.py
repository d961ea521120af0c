"""Who teaches whom, what a pasted sample shows, and of which labels a sample has a Dice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from partial_oracle import dataset
from torch import Tensor, nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.batch import Sight
from nnunet_mutual.losses.consistency import probabilities, sharpened
from nnunet_mutual.losses.soft import soft_dice
from nnunet_mutual.objectives import Batch, Paste, Views
from nnunet_mutual.objectives.base import Output
from nnunet_mutual.objectives.crossmodal_teaching import LEAST_MASS, MOMENTUM, ModalTeaching
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.teaching import LEAST_VOXELS, Teaching
from nnunet_mutual.settings import SoftLoss

CONTENT = dataset({"liver": 1, "spleen": 2}, {"a": {"annotated": ["liver", "spleen"]}})
SIZE = (4, 4, 4)


@pytest.fixture()
def known() -> Knowledge:
    return Knowledge(AnnotationTable.from_dataset_json(CONTENT), ["a"], 3, unlabelled=["un"])


def batch_of(known: Knowledge, pasted: Sequence[Paste] = ()) -> Batch:
    """One unlabelled sample and a labelled one, all liver."""
    keys = ["un", "a"]
    patterns = known.patterns(keys)
    target = torch.stack([torch.zeros(1, *SIZE), torch.ones(1, *SIZE)]).long()
    views = Views(1, torch.ones(2, 1, *SIZE, dtype=torch.bool), torch.full((1, 1, *SIZE), 7.0), pasted=pasted)
    return Batch(torch.zeros(2, 1, *SIZE), [target], keys, patterns, torch.tensor(patterns), views=views)


def teaching(
    known: Knowledge, ask: Callable[[int, Batch], Tensor], teachers: Sequence[Sequence[int]], form: SoftLoss = "sample"
) -> Teaching:
    return Teaching(known, None, ask, teachers, temperature=0.5, form=form)


def test_consensus_and_crossed(known: Knowledge) -> None:
    said = torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def ask(number: int, batch: Batch) -> Tensor:
        assert not torch.is_grad_enabled() and (batch.weak == 7).all(), "a teacher saw another view"
        asked.append(number)
        return said[number]

    batch = batch_of(known)
    both = teaching(known, ask, [[0, 1], [0, 1]]).lessons(batch)
    assert asked == [0, 1] and both[0] is both[1], "the same lesson was made twice"
    mean = said.softmax(2).mean(0)
    torch.testing.assert_close(both[0].target, sharpened(mean, regions=False, temperature=0.5))
    crossed = teaching(known, ask, [[1], [0]]).lessons(batch)
    for lesson, teacher in zip(crossed, (1, 0), strict=True):
        torch.testing.assert_close(lesson.target, probabilities(said[teacher], regions=False, temperature=0.5))


@pytest.mark.parametrize("around", [False, True])
def test_boxes_and_what_is_around_them_carry_their_labels(known: Knowledge, around: bool) -> None:
    box = (slice(0, 2), slice(0, 4), slice(0, 4))
    said = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    batch = batch_of(known, [Paste(0, 1, box, around)])
    (lesson,) = teaching(known, lambda *_: said, [[0]]).lessons(batch)
    labelled, own = (slice(2, 4), slice(0, 2)) if around else (slice(0, 2), slice(2, 4))
    assert (lesson.target[0, 1, labelled] == 1).all() and (lesson.target[0, [0, 2], labelled] == 0).all()
    taught = probabilities(said, regions=False, temperature=0.5)
    torch.testing.assert_close(lesson.target[:, :, own], taught[:, :, own])
    assert lesson.counted.all()


@pytest.mark.parametrize("form", ["batch", "sample"])
def test_a_lesson_lies_where_the_student_sees_it(known: Knowledge, form: SoftLoss) -> None:
    quarter = torch.tensor([[[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]])  # a quarter turn of the last two axes
    half = torch.tensor([[[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]])  # half as wide: the rest comes from outside
    said = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    batch = batch_of(known, [Paste(0, 1, (slice(0, 2), slice(0, 4), slice(0, 4)))])
    ((upright,), (turned,), (narrow,)) = (
        teaching(known, lambda *_: said, [[0]], form).lessons(replace(batch, views=replace(batch.views, pose=pose)))
        for pose in (None, *(nn.functional.affine_grid(t, [1, 1, *SIZE], align_corners=False) for t in (quarter, half)))
    )
    torch.testing.assert_close(turned.target, torch.rot90(upright.target, 1, (3, 4)))
    assert (turned.counted == 1).all()
    assert (narrow.counted[..., [0, 3]] == 0).all() and (narrow.counted[..., 1:3] > 0).all()
    torch.testing.assert_close(narrow.target.sum(1), torch.ones(1, *SIZE))


def test_voxels_count_as_much_as_they_are_said_to(known: Knowledge) -> None:
    """What is pasted from labels counts as 1."""
    said, logits = torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(4)).unbind()
    labelled, own = (slice(0, 4), slice(0, 4), slice(0, 2)), (slice(0, 4), slice(0, 4), slice(2, 4))
    batch, where = batch_of(known, [Paste(0, 1, labelled)]), torch.full((1, 1, *SIZE), 0.25)
    taught = teaching(known, lambda *_: said, [[0]], "batch")
    lesson = taught.lesson(said.softmax(1), batch, where)
    assert (lesson.counted[0, 0][labelled] == 1).all() and (lesson.counted[0, 0][own] == 0.25).all()
    entropy = -(lesson.target * logits.log_softmax(1)).sum(1)[0]
    mean = (entropy[labelled].sum() + entropy[own].sum() / 4) / (32 + 32 / 4)
    options = {"squared": False}
    dice = soft_dice(logits.softmax(1)[:, 1:], lesson.target[:, 1:], lesson.counted, **options).mean()
    torch.testing.assert_close(taught.loss(torch.cat([logits, logits]), lesson), mean - dice)
    assert (taught.lesson(said.softmax(1), batch, where > 1).counted[0, 0][own] == 0).all()


def test_the_gate_by_hand(known: Knowledge) -> None:
    """A label counts from 8 voxels above 0.5 on, before sharpening makes 0.4 of it the likeliest by far."""
    p = torch.full((1, 3, 64), 0.3)
    p[:, 1] = 0.4  # the likeliest everywhere, and never above 0.5
    p[:, :, : LEAST_VOXELS - 1] = torch.tensor([0.2, 0.2, 0.6])[:, None]
    logits = p.log().view(1, 3, *SIZE)
    (lesson,) = teaching(known, lambda *_: logits, [[0]]).lessons(batch_of(known))
    assert lesson.present is not None and lesson.present.tolist() == [[False, False, False]]
    p[:, :, LEAST_VOXELS - 1] = torch.tensor([0.2, 0.2, 0.6])
    enough = p.log().view(1, 3, *SIZE)
    made = teaching(known, lambda *_: enough, [[0]])
    (lesson,) = made.lessons(batch_of(known))
    assert lesson.present is not None and lesson.present.tolist() == [[False, False, True]]
    z = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    entropy = -(lesson.target * z[:1].log_softmax(1)).sum(1).mean()
    dice = soft_dice(z[:1].softmax(1), lesson.target, lesson.counted, squared=True, per_sample=True)
    torch.testing.assert_close(made.loss(z, lesson), entropy - dice[0, 2])
    (whole,) = teaching(known, lambda *_: enough, [[0]], "batch").lessons(batch_of(known))
    assert whole.present is None


def modal(known: Knowledge, said: Tensor) -> ModalTeaching:
    return ModalTeaching(2, known, None, lambda n, batch: said[n], temperature=1.0)


def test_each_class_comes_from_the_one_that_knows_it(known: Knowledge) -> None:
    """Against a loop: one network decides about liver, the other one about spleen, both about background."""
    said = 4 * torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    teaching = modal(known, said)
    teaching.scores = torch.tensor([[float("nan"), 0.9, 0.2], [float("nan"), 0.3, 0.8]])
    p = said.softmax(2)[:, 0]
    lessons = teaching.lessons(batch_of(known))
    certain = 0
    for voxel in itertools.product(*map(range, SIZE)):
        one, other = (p[n][(slice(None), *voxel)].tolist() for n in range(2))
        mean = [(one[0] + other[0]) / 2, one[1], other[2]]
        certain += sum(mean) >= LEAST_MASS
        for lesson in lessons:
            assert bool(lesson.counted[(0, 0, *voxel)]) == (sum(mean) >= LEAST_MASS)
            if sum(mean) >= LEAST_MASS:
                expected = torch.tensor([value / sum(mean) for value in mean])
                torch.testing.assert_close(lesson.target[(0, slice(None), *voxel)], expected)
    assert 0 < certain < p[0, 0].numel(), "one case was not tested"


def test_what_one_is_sure_of_and_the_other_denies_is_learnt_by_nobody(known: Knowledge) -> None:
    """The first one knows liver and says spleen, the second one knows spleen and says liver."""
    said = torch.full((2, 1, 3, *SIZE), -500.0)
    said[0, :, 2], said[1, :, 1] = 500.0, 500.0
    teaching = modal(known, said)
    teaching.scores = torch.tensor([[float("nan"), 0.9, 0.2], [float("nan"), 0.3, 0.8]])
    for lesson in teaching.lessons(batch_of(known)):
        assert torch.isfinite(lesson.target).all() and not lesson.counted.any()


def test_of_images_that_were_drawn_half_of_the_word_is_the_drawings(known: Knowledge) -> None:
    said = torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    patterns, twice = known.patterns(["a", "a"]), {"target": [torch.ones(2, 1, *SIZE).long()]}
    batch = replace(batch_of(known), keys=["a", "a"], patterns=patterns, pattern_index=torch.tensor(patterns), **twice)
    teaching = ModalTeaching(2, known, None, lambda n, batch: said[n], temperature=1.0, again=True)
    alone = modal(known, said).lessons(batch)[0]
    (lesson, _) = teaching.lessons(batch)
    liver = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(lesson.target, (alone.target + liver) / 2)
    assert lesson.counted.all()


def test_who_sees_nothing_says_and_learns_nothing(known: Knowledge) -> None:
    said = torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    host = [[True, False], [True, True]]  # the unlabelled sample is seen by network 0 alone
    batch = replace(batch_of(known), sight=Sight(host, torch.tensor(host)))
    lessons = modal(known, said).lessons(batch)
    torch.testing.assert_close(lessons[0].target, said[0].softmax(1), atol=1e-4, rtol=0)
    assert lessons[0].counted.all() and not lessons[1].counted.any()
    assert lessons[0].present is not None and lessons[0].present.any()
    assert lessons[1].present is not None and not lessons[1].present.any(), "each would count as a perfect Dice"


def test_the_running_dice_is_of_labelled_samples_that_a_network_sees(known: Knowledge) -> None:
    """All liver: a network that says so has 1, one that takes spleen for as likely 2/3; no voxel is spleen."""
    teaching = modal(known, torch.zeros(2, 1, 3, *SIZE))
    sure, torn = torch.full((2, 3, *SIZE), -50.0), torch.full((2, 3, *SIZE), -50.0)
    sure[:, 1], torn[:, 1:] = 50.0, 0.0
    teaching.notice([Output([sure]), Output([torn])], batch_of(known))
    torch.testing.assert_close(teaching.scores[:, 1], torch.tensor([1.0, 2 / 3]))
    assert torch.isnan(teaching.scores[:, [0, 2]]).all()
    host = [[True, True], [False, True]]
    hidden = replace(batch_of(known), sight=Sight(host, torch.tensor(host)))
    teaching.notice([Output([torn]), Output([sure])], hidden)
    torch.testing.assert_close(teaching.scores[:, 1], torch.tensor([1.0, MOMENTUM * 2 / 3 + 1 - MOMENTUM]))


def test_the_running_dice_leaves_out_images_that_are_seen_again_without_their_labels(known: Knowledge) -> None:
    """Boxes of others were pasted into them: what was drawn is not what they show."""
    patterns = known.patterns(["a", "a"])
    drawn = [torch.ones(2, 1, *SIZE).long()]
    known_twice = {"keys": ["a", "a"], "patterns": patterns, "pattern_index": torch.tensor(patterns)}
    batch = replace(batch_of(known), target=drawn, **known_twice)
    logits = torch.full((2, 3, *SIZE), -50.0)
    logits[0, 2] = logits[1, 1] = 50.0  # the one that is seen again is all spleen, after boxes were pasted
    teaching = modal(known, torch.zeros(2, 1, 3, *SIZE))
    teaching.notice([Output([logits])] * 2, batch)
    torch.testing.assert_close(teaching.scores[:, 1], torch.ones(2))
