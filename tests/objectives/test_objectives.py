"""What the loop does with the terms of objectives: sum, log, and a stop at the first one that is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from training import SHORT, largest_difference, lines_of, partial_block, trainer_for, weights

from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective, Term
from nnunet_mutual.trainers.base import MutualTrainer


@pytest.fixture()
def preprocessed(nnunet_folders: Path) -> Path:
    return tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)


class Failing(Objective):
    """Turns NaN at its third step."""

    term_names = ("broken",)

    def __init__(self) -> None:
        self.step = 0

    def terms(self, peer: int, outputs: Sequence, step: object) -> dict[str, Term]:
        self.step += 1
        return {"broken": Term(outputs[peer].levels[0].mean() * (math.nan if self.step == 3 else 0.0))}


class FailingTrainer(MutualTrainer):
    """Meets a non-finite term."""

    def build_objectives(self) -> list[Objective]:
        return [*super().build_objectives(), Failing()]


def test_a_non_finite_term_stops_before_the_optimiser_step(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed, FailingTrainer)
    seen = []
    original = trainer.train_step

    def train_step(batch: dict) -> dict:
        seen.append(weights(trainer))
        return original(batch)

    trainer.train_step = train_step
    with pytest.raises(MutualError, match='"broken" became nan in epoch 0, iteration 2 .*case_'):
        trainer.run_training()
    assert largest_difference(seen[-1], weights(trainer)) == 0
    assert largest_difference(seen[0], seen[-1]) > 0


def test_terms_reach_every_logger(preprocessed: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple] = []

        def log(self, key: str, value: float, step: int) -> None:
            self.seen.append((key, value, step))

        def log_summary(self, key: str, value: float) -> None: ...

        def update_config(self, config: dict) -> None: ...

    trainer = trainer_for(preprocessed)
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.run_training()
    logged = [(value, step) for key, value, step in recorder.seen if key == "term/supervised"]
    assert logged == [(line["terms"]["supervised"], line["epoch"]) for line in lines_of(trainer)]
    assert [step for _, step in logged] == [0, 1, 2]


class Given(Objective):
    """Terms that the test gives."""

    term_names: tuple[str, ...] = ()

    def __init__(self, **terms: Any) -> None:
        self.given = terms
        self.term_names = tuple(terms)

    def terms(self, peer: int, outputs: Sequence, step: object) -> dict[str, Term]:
        return {name: function(outputs[peer].levels[0]) for name, function in self.given.items()}


def trainer_with(preprocessed: Path, *objectives: Objective) -> Any:
    trainer = trainer_for(preprocessed, MutualTrainer)
    trainer.build_objectives = lambda: [trainer.supervised, *objectives]
    return trainer


def test_a_gradient_without_a_number_is_named_too(preprocessed: Path) -> None:
    kink = Given(kink=lambda logits: Term((logits.mean() * 0).abs().sqrt()))  # value 0, gradient 0 / 0
    with pytest.raises(MutualError, match='"gradient of network 0" became nan in epoch 0, iteration 0'):
        trainer_with(preprocessed, kink).run_training()


def test_terms_that_overflow_only_in_their_sum(preprocessed: Path) -> None:
    huge = {name: lambda logits: Term(logits.mean() * 0 + 3e38) for name in ("one", "two")}
    with pytest.raises(MutualError, match='"sum of all terms" became inf'):
        trainer_with(preprocessed, Given(**huge)).run_training()


@pytest.mark.parametrize("wrong", [0, 10, 11])
def test_steps_that_the_gradient_scaler_skips(preprocessed: Path, wrong: int) -> None:
    """The scaler of CUDA lowers its scale at a non-finite step; ten in a row are no scale any more."""

    def term(logits: torch.Tensor) -> Term:
        term.step += 1
        return Term(logits.mean() * (math.inf if 2 <= term.step < 2 + wrong else 1e-3))

    term.step = 0
    trainer = trainer_with(preprocessed, Given(sometimes=term))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 14
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen, original = [], trainer.train_step
    trainer.train_step = lambda batch: (seen.append(weights(trainer)), original(batch))[1]
    if wrong == 11:
        with pytest.raises(MutualError, match='"sometimes" became -?(inf|nan) in epoch 0, iteration 11'):
            trainer.run_training()
    else:
        trainer.run_training()
        assert math.isfinite(lines_of(trainer)[0]["loss"]), "skipped steps are left out of the mean"
        assert trainer.grad_scaler.get_scale() == 1024.0 / 2**wrong
    changed = [largest_difference(a, b) > 0 for a, b in zip(seen, seen[1:], strict=False)]
    assert changed == [not 1 <= step < 1 + wrong for step in range(len(changed))]


def test_the_loss_is_the_weighted_sum(preprocessed: Path) -> None:
    parts = Given(
        five=lambda logits: Term(logits.mean() * 0 + 5, 2.0),
        off=lambda logits: Term(logits.mean() * 1e6, 0.0),
    )
    trainer, plain = trainer_with(preprocessed, parts), trainer_for(preprocessed)
    trainer.run_training()
    plain.run_training()
    for line, reference in zip(lines_of(trainer), lines_of(plain), strict=True):
        assert list(line["terms"]) == ["supervised", "five", "off"]
        assert line["loss"] == pytest.approx(reference["loss"] + 10, abs=1e-4)
        assert line["terms"]["five"] == 5
        assert line["terms"]["supervised"] == pytest.approx(reference["terms"]["supervised"], abs=1e-5)
    assert largest_difference(weights(trainer), weights(plain)) == 0, "constants and weights of 0 teach nothing"


def test_the_progress_that_objectives_see(preprocessed: Path) -> None:
    class Watching(Given):
        def terms(self, peer: int, outputs: Sequence, step: Any) -> dict[str, Term]:
            seen.append(
                (step.progress.step, step.progress.total_steps, len(step.batch.keys), [len(p.levels) for p in outputs])
            )
            return super().terms(peer, outputs, step)

    seen: list[tuple] = []
    trainer_with(preprocessed, Watching(nothing=lambda logits: Term(logits.mean() * 0))).run_training()
    assert seen == [(step, 9, 2, [2]) for step in range(9)]


@pytest.mark.parametrize(
    ("objectives", "sentence"),
    [
        ([Given(supervised=lambda logits: Term(logits.mean()))], "two objectives give a term the same name"),
        ([Given(a=lambda logits: Term(logits.mean())), Given(a=lambda logits: Term(logits.mean()))], "the same name"),
    ],
)
def test_names_must_differ(preprocessed: Path, objectives: list[Objective], sentence: str) -> None:
    with pytest.raises(MutualError, match=sentence):
        trainer_with(preprocessed, *objectives).run_training()


@pytest.mark.parametrize("declared", [("a",), ("a", "b", "c")], ids=["one too many", "one too few"])
def test_an_undeclared_term_is_not_left_out_silently(preprocessed: Path, declared: tuple[str, ...]) -> None:
    objective = Given(a=lambda logits: Term(logits.mean()), b=lambda logits: Term(logits.mean()))
    objective.term_names = declared
    with pytest.raises(MutualError, match=r"Given returned the terms \['a', 'b'\], its term_names are .*make them the"):
        trainer_with(preprocessed, objective).run_training()
