"""Forms that were only tried: what is special about each, and that stock nnU-Net gets one network."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from prepared import prepare, prepare_all
from training import largest_difference, started, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.batches.poses import posed
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.objectives import Output, Progress
from nnunet_mutual.objectives.correlation import CorrelationObjective
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LATE = Progress(90, 100)
ARMS = {  # of the protocols with forms; an arm of both is that of the last
    arm: entry["networks"][0]
    for name in ("acdc_sources", "hippocampus_few")
    for arm, entry in json.loads((BENCHMARKS / "protocol" / f"{name}.json").read_text())["arms"].items()
}
TAUGHT = "OnePieceTaughtTrainer"  # of partially drawn cases


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("forms")


def settings_of(arm: str) -> dict[str, Any]:
    return {**ARMS[arm]["settings"], "ramp": 0.01}


def tried() -> list[str]:
    """Arms whose trainer is not of the package."""
    source = (BENCHMARKS / "forms" / "__init__.py").read_text()
    return [arm for arm, network in ARMS.items() if f'"{network["trainer"]}"' in source]


@pytest.mark.parametrize("arm", tried())
def test_a_form_goes_on_and_stock_loads_what_it_deploys(forms: ModuleType, nnunet_folders: Path, arm: str) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of(arm))
    kind = getattr(forms, ARMS[arm]["trainer"])
    trainer, _ = started(preprocessed, kind, steps=2)
    file = nnunet_folders / "checkpoint.pth"
    trainer.save_checkpoint(str(file))
    stock, resumed = trainer_for(preprocessed, nnUNetTrainer), trainer_for(preprocessed, kind)
    for other in (stock, resumed):
        other.initialize()
        other.load_checkpoint(str(file))
    deployed = trainer.peers.averages[0].network
    assert trainer.deployed_network is deployed
    assert largest_difference(stock.network.state_dict(), deployed.state_dict()) == 0
    assert largest_difference(stock.network.state_dict(), unwrap(trainer.peers.networks[0]).state_dict()) > 0
    torch.testing.assert_close(resumed.stage.state_dict(), trainer.stage.state_dict(), rtol=0, atol=0)


def test_forms_have_the_means_of_their_control(forms: ModuleType) -> None:
    of_modalities = {name for name in forms.__all__ if "Modal" in name or "Ensemble" in name}  # tested by themselves
    assert {ARMS[arm]["trainer"] for arm in tried()} == {*forms.__all__} - of_modalities
    for arm in (*tried(), "consensus_boxes", "crossed_boxes", "consensus_attention", "prototype_filter_boxes"):
        control = ARMS["own_boxes" if ARMS[arm]["trainer"] == TAUGHT else "mean_teacher_boxes"]["settings"]
        assert control.items() <= ARMS[arm]["settings"].items(), arm


def test_voxels_count_by_how_much_averages_agree(forms: ModuleType) -> None:
    agreeing = importlib.import_module("forms.agreeing")
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    soft, softer = torch.tensor([0.8, 0.2, 0.0]), torch.tensor([0.4, 0.6, 0.0])
    first, second = (torch.stack(values, 1)[None] for values in ((one, one, soft), (one, other, softer)))
    kl = (0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4) + 0.4 * math.log(0.4 / 0.6) + 0.6 * math.log(1.5)) / 2
    expected = torch.tensor([[[1.0, 0.5, math.exp(-kl)]]])
    torch.testing.assert_close(agreeing.accord([first, second]), expected)
    torch.testing.assert_close(agreeing.accord([second, first]), expected)


def test_class_weights_by_hand(forms: ModuleType) -> None:
    debiased = importlib.import_module("forms.debiased")
    found = debiased.by_rarity(torch.tensor([1000.0, 100.0, 10.0, 0.0]))
    torch.testing.assert_close(found, 4 * torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    dice, learnt, unlearnt = torch.tensor([[0.9, 0.5, 0.5], [0.1, 0.1, 0.1], [0.1, 0.1, 3.2]])
    found = debiased.by_difficulty(dice, learnt, unlearnt)
    torch.testing.assert_close(found, 3 * torch.tensor([0.1, 0.5, 1.0]))
    logits, target = torch.randn(3, 50), torch.randn(3, 50).softmax(0)
    counted, weights = torch.rand(50) > 0.5, torch.tensor([0.0, 2.0, 1.0])
    plain = -(target * logits.log_softmax(0)).sum(0)[counted].mean()
    weighted = -(weights[:, None] * target * logits.log_softmax(0)).sum(0)[counted].mean()
    torch.testing.assert_close(debiased.reweighted(logits, target, counted, weights), weighted - plain)


def test_each_network_is_debiased_by_weights_of_its_own(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer, loader = started(
        two_stream_dataset(nnunet_folders, settings=settings_of("debiased")), forms.DebiasedCorrelationTrainer, steps=2
    )
    (objective,) = trainer.objectives
    batch = trainer.training_batch(next(loader))
    outputs = [Output(network(batch.data)) for network in trainer.peers.networks]
    step = prepare(objective, outputs, batch, LATE)
    rarity, difficulty = step.weights
    assert rarity.argmin() == 0, "background is the commonest class"
    assert difficulty.max() == pytest.approx(4) and not torch.equal(rarity, difficulty)
    even = replace(step, weights=[torch.ones(4)] * 2)
    for n in (0, 1):
        plain = CorrelationObjective.terms(objective, n, outputs, step)
        same, other = (objective.terms(n, outputs, which) for which in (even, step))
        for name in ("supervised", "consistency"):
            torch.testing.assert_close(same[name].value, plain[name].value)
            assert other[name].value != plain[name].value and other[name].weight == plain[name].weight
    wrong = torch.zeros_like(outputs[0].levels[0])  # surely wrong about every labelled voxel
    wrong[2:] = -5000 * torch.nn.functional.one_hot(batch.target[0][2:, 0].clamp_min(0).long(), 4).movedim(-1, 1)
    wrong *= batch.views.inside  # of padding nnU-Net's mean knows, too
    levels = [wrong, *(torch.zeros_like(level) for level in outputs[0].levels[1:])]
    none = objective.terms(0, [Output(levels)] * 2, replace(step, weights=[torch.zeros(4)] * 2))["supervised"].value
    assert -1 <= none < 10, "a class of weight 0 has no cross-entropy, and none below 0"


def test_each_network_has_a_pose_of_its_own(forms: ModuleType, nnunet_folders: Path) -> None:
    settings = {**settings_of("consensus_posed"), "strong_intensity": False, "paste_from": "off"}
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings)
    trainer, loader = started(preprocessed, forms.PosedCorrelationTrainer, steps=0)
    batch = trainer.training_batch(next(loader))
    teaching = trainer.stage.objectives[0].teaching
    said = torch.randn(len(batch.weak), trainer.knowledge.num_outputs, *batch.weak.shape[2:])
    teaching.ask = lambda number, seen: said
    upright, lessons = Teaching.lessons(teaching, batch), teaching.lessons(batch)
    for n, pose in enumerate(batch.views.poses):
        assert torch.equal(batch.seen_by(n)[: len(said)], posed(batch.weak, pose))
        assert torch.equal(lessons[n].target, posed(upright[n].target, pose))
    assert not torch.equal(*batch.views.poses)


def test_two_networks_see_one_view(forms: ModuleType, nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("consensus_same_view"))
    trainer, loader = started(preprocessed, forms.SameViewTrainer, steps=0)
    batch = trainer.training_batch(next(loader))
    assert torch.equal(batch.seen_by(0), batch.seen_by(1)) and not torch.equal(batch.seen_by(1)[:2], batch.weak)


def test_the_average_teaches_every_resolution(forms: ModuleType, nnunet_folders: Path) -> None:
    deep = importlib.import_module("forms.deep")
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("deep"))
    trainer, loader = started(preprocessed, forms.DeepTeacherTrainer, steps=1)
    (objective,) = trainer.objectives
    batch = trainer.training_batch(next(loader))
    output = Output([z.detach().requires_grad_() for z in trainer.peers.networks[0](batch.data)])
    step = prepare(objective, [output], batch, LATE)
    value, (lesson,) = objective.terms(0, [output], step)["consistency"].value, step.lessons
    weights = trainer.supervised.level_weights
    expected = sum(
        weight * objective.teaching.loss(z, deep.coarser(lesson, z.shape[2:]))
        for weight, z in zip(weights, output.levels, strict=True)
    )
    torch.testing.assert_close(value, expected)
    value.backward()
    assert [z.grad is not None for z in output.levels] == [weight > 0 for weight in weights]
    low = deep.coarser(lesson, [4, 4, 4])
    block = lesson.target[0, :, :4, 4:8, 8:12].mean((1, 2, 3))
    torch.testing.assert_close(low.target[0, :, 0, 1, 2], block)


def test_a_warm_up_pastes_labels_with_their_boxes_and_asks_nobody(forms: ModuleType, nnunet_folders: Path) -> None:
    warm_up = importlib.import_module("forms.warm_up")
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("warm_up"))
    trainer, loader = started(preprocessed, forms.WarmUpTrainer, steps=0)
    (objective,) = trainer.objectives
    batch = MeanTeacherTrainer.training_batch(trainer, next(loader))
    shown = torch.arange(len(batch.data)).view(-1, 1, 1, 1, 1)  # each voxel's image and label say its sample
    marked = replace(
        batch,
        data=shown.float().expand_as(batch.data).clone(),
        target=[shown.to(level).expand_as(level) for level in batch.target],
    )
    seen = set()
    for _ in range(20):
        pasted = warm_up.copy_paste(marked)
        assert torch.equal(pasted.data[:, :1], pasted.target[0].float()) and torch.equal(
            pasted.data[:2], marked.data[:2]
        )
        low = pasted.target[1]
        assert torch.equal(
            low, torch.nn.functional.interpolate(pasted.data[:, :1], low.shape[2:], mode="nearest-exact")
        )
        seen |= {tuple(sample.unique().tolist()) for sample in pasted.data[2:]}
    assert seen == {(2,), (3,), (2, 3)}
    early, late = Progress(0, 100), Progress(90, 100)
    assert objective.ask(batch, early) is None and objective.ask(batch, late) is not None
    output = Output(trainer.peers.networks[0](batch.data))
    terms = [objective.terms(0, [output], prepare(objective, [output], batch, when)) for when in (early, late)]
    assert [term["consistency"].weight for term in terms] == [0, 0.5]


def test_every_patch_is_turned(forms: ModuleType, nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("turned"))
    trainer = trainer_for(preprocessed, forms.TurnedTrainer)
    spatial = trainer.get_training_transforms([8, 8, 8], (-1, 1), None, None, False, [False]).transforms[0]
    assert (spatial.p_rotation, spatial.p_scaling) == (1, 1)


def test_unimatch_teaches_three_streams_of_one_student(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer, loader = started(
        two_stream_dataset(nnunet_folders, settings=settings_of("unimatch")), forms.UniMatchTrainer, steps=1
    )
    (objective,) = trainer.objectives
    raw = next(loader)
    weak, labelled = raw["data"][:2].clone(), raw["data"][2:].clone()
    batch = trainer.training_batch(raw)
    lessons, second = objective.ask(batch, trainer.progress())
    views = [batch.data[:2], second.data[:2], second.weak]
    assert torch.equal(views[2], weak) and torch.equal(second.data[2:], labelled)
    assert not any(torch.equal(a, b) for a, b in ((views[0], views[1]), (views[0], weak), (views[1], weak)))
    assert batch.views.pasted != second.views.pasted, "both streams have the same boxes"
    said = objective.teaching.ask(0, batch).softmax(1)
    torch.testing.assert_close(lessons[2].target, said.square() / said.square().sum(1, keepdim=True))
    outputs = [Output(trainer.peers.networks[0](batch.data))]
    step = objective.prepare(outputs, batch, LATE, {objective: (lessons, second)})
    torch.manual_seed(0)
    found = objective.terms(0, outputs, step)["consistency"]
    assert found.weight == 0.5
    torch.manual_seed(0)
    losses = [
        objective.teaching.loss(logits, lesson)
        for logits, lesson in zip(
            (outputs[0].levels[0], trainer.student(views[1]), trainer.student(weak, dropped=True)), lessons, strict=True
        )
    ]
    torch.testing.assert_close(found.value, 0.25 * losses[0] + 0.25 * losses[1] + 0.5 * losses[2])
    losses[2].backward()
    assert all(p.grad is not None for p in trainer.peers.networks[0].encoder.parameters())
    assert all(p.grad is None for p in trainer.peers.averages[0].network.parameters())


def test_two_decoders_share_an_encoder_and_teach_each_other(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer, loader = started(
        two_stream_dataset(nnunet_folders, settings=settings_of("two_decoders")), forms.TwoDecodersTrainer, steps=2
    )
    (objective,) = trainer.objectives
    network, second = trainer.peers.networks[0], objective.heads
    batch = trainer.training_batch(next(loader))
    levels, others = network(batch.data)
    assert [z.shape for z in levels] == [z.shape for z in others.values()]
    said = [trainer.ask_teacher(n, batch) for n in (0, 1)]
    step = prepare(objective, [], batch, LATE)
    for lesson, teacher in zip(step.lessons, (1, 0), strict=True):
        own = objective.teaching.lesson(said[teacher].softmax(1), batch)
        torch.testing.assert_close(lesson.target, own.target)
    output = Output(levels, others)
    terms = objective.terms(0, [output], step)
    expected = objective.teaching.loss(levels[0], step.lessons[0]) + objective.teaching.loss(others[0], step.lessons[1])
    torch.testing.assert_close(terms["consistency"].value, expected)
    alone = [torch.autograd.grad(terms["consistency"].value, z, retain_graph=True)[0] for z in (levels[0], others[0])]
    assert all(gradient[:2].abs().sum() > 0 and gradient[2:].abs().sum() == 0 for gradient in alone)
    trainer.peers.zero_grad()
    (terms["supervised"].value + terms["consistency"].value).backward()
    trained = [*network.network.encoder.named_parameters(), *second.named_parameters()]
    assert all(p.grad is not None for name, p in trained if not name.startswith("seg_layers.0")), (
        "the lowest has weight 0"
    )
    averages = [*trainer.peers.averages[0].network.parameters(), *objective.average.network.parameters()]
    assert all(p.grad is None for p in averages)
    assert set(second.parameters()).isdisjoint(network.parameters()), "it would be trained twice"
    assert largest_difference(objective.average.network.state_dict(), second.state_dict()) > 0


def test_neighbours_by_hand(forms: ModuleType) -> None:
    memory_of = importlib.import_module("forms.memory")
    queries = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    two_of_each = [[1.0, 0.0], [0.0, 3.0], [0.0, 1.0], [-1.0, 0.0], [5.0, 5.0], [5.0, 5.0]]
    usable = torch.tensor([True, True, True, True, False, False])
    found = memory_of.neighbours(queries, torch.tensor(two_of_each), usable, 3)
    high, zero, low = math.exp(10), 1.0, math.exp(-10)
    first, second = high + 2 * zero + low, 2 * zero + 2 * high
    expected = [[(high + zero) / first, (zero + low) / first, 0], [(zero + high) / second, (high + zero) / second, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_memory_votes_filters_and_is_taught_by_labels(forms: ModuleType, nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("occ_vote"))
    trainer, loader = started(preprocessed, forms.MemoryVoteTrainer, steps=2)
    (objective,) = trainer.objectives
    assert objective.bank.filled[0].any() and largest_difference(
        objective.average.network.state_dict(), objective.heads.state_dict()
    )
    batch = trainer.training_batch(next(loader))
    output = Output(*trainer.peers.networks[0](batch.data))
    step = prepare(objective, [], batch, LATE)
    term = objective.terms(0, [output], step)["neighbours"]
    assert term.weight == 0.05 and 0 < term.value < 20
    (gradient,) = torch.autograd.grad(term.value, output.features[1], retain_graph=True)
    assert gradient[:2].abs().sum() == 0 and all(shown.abs().sum() > 0 for shown in gradient[2:])
    trainer.peers.zero_grad()
    term.value.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in objective.heads.named_parameters() if "weight" in name)
    averages = [*trainer.peers.averages[0].network.parameters(), *objective.average.network.parameters()]
    assert all(p.grad is None for p in averages) and not objective.bank.vectors.requires_grad

    said, chances = torch.rand(2, 2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(2)
    vote, filtered = (
        kind.judged(objective, said, chances, batch)
        for kind in map(importlib.import_module("forms.memory").__dict__.get, ("MemoryVote", "MemoryFilter"))
    )
    for lesson, target, where in (
        (vote, (said + chances) / 2, None),
        (filtered, said, (said.argmax(1) == chances.argmax(1))[:, None]),
    ):
        expected = objective.teaching.lesson(target, batch, where)
        torch.testing.assert_close(lesson.target, expected.target)
        assert torch.equal(lesson.counted, expected.counted)
    assert filtered.counted.sum() < vote.counted.sum()


def test_a_memory_keeps_each_class_apart(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer, loader = started(
        two_stream_dataset(nnunet_folders, settings=settings_of("occ_vote")), forms.MemoryVoteTrainer
    )
    (objective,) = trainer.objectives
    objective.average.network = lambda features: torch.nn.functional.pad(features, (0, 32 - features.shape[-1]))
    for _ in range(3):
        batch = trainer.training_batch(next(loader))
        shown = batch.target[0].float().clamp_min(0).expand(-1, 8, -1, -1, -1)  # each voxel's feature is its label
        objective.teacher = lambda images, shown=shown: ([torch.zeros(4, 4, 16, 16, 16)], {1: shown})
        objective.bank.put(*prepare(objective, [], batch, LATE).found)
    for k in range(4):
        assert (objective.bank.vectors[k, ..., 0][objective.bank.filled[k]] == k).all()
    assert {k for k in range(4) if objective.bank.filled[k].any()} > {0}


def test_prototypes_have_one_vote(forms: ModuleType, nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("prototype_vote"))
    trainer, loader = started(preprocessed, forms.PrototypeVoteTrainer, steps=2)
    prototypes, objective = trainer.objectives
    batch = trainer.training_batch(next(loader))
    _, step = prepare_all(trainer.objectives, [], batch, LATE)
    (logits, *_), scores = trainer.rectifier.ask(batch.weak)
    votes = (logits.softmax(1) + scores.softmax(1)) / 2
    torch.testing.assert_close(step.lessons[0].target, objective.teaching.lesson(votes, batch).target)
    assert step.lessons[0].counted[batch.views.inside[:2]].any() and not step.lessons[0].target.requires_grad


def test_calibration_finds_temperature_and_weight(forms: ModuleType) -> None:
    """Of logits that are four times too sure and scores that say nothing, it makes the logits they were made from."""
    calibrated = importlib.import_module("forms.calibrated")
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(3, 4000, generator=generator)
    labels = torch.multinomial(honest.softmax(0).T, 1, generator=generator)[:, 0]
    truth, known = torch.nn.functional.one_hot(labels, 3).T.float(), torch.ones(4000, dtype=torch.bool)
    module = calibrated.Calibration()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    said = 4 * honest, torch.randn(3, 4000, generator=generator)
    for _ in range(250):
        shown = module.calibrated(*said)
        together = module.mixed(*(z.detach() for z in shown))
        loss = sum(calibrated.likelihood_loss(z.log_softmax(0), truth, known) for z in (*shown, together))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module.log_temperatures.exp()[0].item() == pytest.approx(4, rel=0.1) and module.weight.sigmoid() < 0.1
    sure = torch.tensor([[3.0], [0.0]])
    module.log_temperatures.data.zero_()
    torch.testing.assert_close(module.mixed(*module.calibrated(sure, sure)), sure, msg="agreement was counted twice")


def test_calibrated_prototypes_rectify_the_teacher(forms: ModuleType, nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of("prototype_calibrated"))
    trainer, loader = started(preprocessed, forms.CalibratedPrototypeTrainer, steps=2)
    objective = trainer.objectives[1]
    objective.calibration.log_temperatures.data = torch.tensor([0.5, -0.2])
    objective.calibration.weight.data.fill_(-1)
    batch = trainer.training_batch(next(loader))
    _, step = prepare_all(trainer.objectives, [], batch, LATE)
    (logits, *_), scores = trainer.rectifier.ask(batch.weak)
    share = torch.tensor(-1.0).sigmoid()
    rectified = (1 - share) * logits / math.exp(0.5) + share * scores / math.exp(-0.2)
    expected = objective.teaching.lesson(rectified.softmax(1), batch)
    torch.testing.assert_close(step.lessons[0].target, expected.target)
    term = objective.terms(0, [Output([torch.zeros(4, 4, 16, 16, 16)] * 3)], step)["calibration"]
    trainer.peers.zero_grad()
    term.value.backward()
    assert all(p.grad is not None for p in objective.calibration.parameters())
    others = [*trainer.peers.averages[0].network.parameters(), *trainer.rectifier.average.network.parameters()]
    assert all(p.grad is None for p in (*others, *trainer.peers.networks[0].parameters()))
    assert len(objective.diagnose()[0]) == 4
