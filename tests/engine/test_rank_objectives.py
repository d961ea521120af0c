"""Every objective on two processes of DDP: loss and gradients are those of one process.

Two references. ``halves`` is one process that computes the objective on each half of the batch and averages: what DDP
promises for any loss, and what a gathered tensor, or heads outside of DDP, can break by a factor of the number of
processes. ``whole`` is one process with the whole batch: equal where a term is a mean over things of which every
process has as many (the batches here are made so), or where its sums are gathered (batch Dice). By nature it is not for
contrasts and pairs across samples, queries, soft Dice with a teacher's labels and CutMix partners, which stay within
the samples of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from partial_oracle import dataset
from prepared import prepare_all
from processes import in_processes, joined, leaves
from small_unet import unet
from test_peers import GROUPS, HALFWAY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.parallel.ranks import DataParallelRanks, Ranks
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.losses.area_similarity import ROBUST
from nnunet_mutual.modules.ema import MovingAverage
from nnunet_mutual.modules.interaction import DynamicInteraction, FeatureMap, RectifiedNetwork
from nnunet_mutual.modules.tap import FeatureTap
from nnunet_mutual.objectives import Batch, Objective, Views, collect_terms
from nnunet_mutual.objectives.correlation import CorrelationLoss, CorrelationObjective
from nnunet_mutual.objectives.crossmodal import CrossModalCourse, CrossModalLoss, CrossModalObjective
from nnunet_mutual.objectives.full_organs import SimilarityObjective
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective
from nnunet_mutual.objectives.partial_organs import DifferenceObjective, PartialLoss, Ramp
from nnunet_mutual.objectives.prototypes import PrototypeLoss, PrototypeObjective
from nnunet_mutual.objectives.rectification import RectificationObjective
from nnunet_mutual.objectives.relearning import SoftLabelObjective
from nnunet_mutual.objectives.supervised import SupervisedObjective, deep_supervision_weights
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.settings import SoftLoss

Make = Callable[[Knowledge, SupervisedObjective], Sequence[Objective]]
SIZE, UNLABELLED, BANK = 16, "un", 6
TAPPED = {4: 0, 2: 1, 1: 1}  # decoder stage by stride; 6 and 4 channels
MAPS = (FeatureMap(4, 0, 6, [3, 3, 3]), FeatureMap(2, 1, 4, [3, 3, 3]))
PARTIAL, STREAMS = ["a", "b", "c", "d"], [UNLABELLED, UNLABELLED, "a", "c"]


def knowledge() -> Knowledge:
    annotated = {"a": ["liver"], "b": ["spleen"], "c": ["liver"], "d": ["spleen"]}
    content = dataset({"liver": 1, "spleen": 2}, {key: {"annotated": names} for key, names in annotated.items()})
    return Knowledge(AnnotationTable.from_dataset_json(content), list(annotated), 3, unlabelled=[UNLABELLED])


def supervision(known: Knowledge, ranks: Ranks, batch_dice: bool) -> SupervisedObjective:
    from nnunetv2.utilities.ddp_allgather import AllGatherGrad

    gather = (lambda sums: AllGatherGrad.apply(sums).sum(0)) if batch_dice and ranks.size > 1 else None
    weights = deep_supervision_weights(2, keep_last=True)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("no batch here is fully annotated")

    return SupervisedObjective(known, refuse, weights, ignore_label=None, batch_dice=batch_dice, gather=gather)


def frozen() -> nn.Module:
    """A teacher."""
    torch.manual_seed(7)
    return unet().requires_grad_(False)


def difference(form: Any) -> Make:
    def make(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
        objective = DifferenceObjective(
            known,
            supervised,
            GROUPS,
            loss=PartialLoss(pd=1.0, fd=0.5),
            form=form,
            feature_size=6,
            rise=Ramp(0.05, 0.25),
            foreground_from=2,
        )
        objective.bank[:] = torch.randn(objective.bank.shape, generator=torch.Generator().manual_seed(BANK))
        objective.filled[:] = True
        return [objective]

    return make


def similarity(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
    objective = SimilarityObjective(
        known, supervised, GROUPS, loss=PartialLoss(ps=1.0, dfs=0.5), feature_size=6, rise=Ramp(0.05, 0.25)
    )
    objective.scores[:] = torch.tensor([0.9, 0.4])[None, :, None].expand(2, 2, 3)
    return [objective]


def mean_teacher(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
    return [MeanTeacherObjective(supervised, teaching(known, [[0]], "batch"), weight=0.5, ramp_end=0.2)]


def consensus(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
    return [MeanTeacherObjective(supervised, teaching(known, [[0, 1], [0, 1]], "sample"), weight=0.5, ramp_end=0.2)]


def teaching(known: Knowledge, teachers: Sequence[Sequence[int]], form: SoftLoss) -> Teaching:
    said = [frozen(), frozen()]
    return Teaching(known, None, lambda n, b: said[n](b.weak)[0], teachers, temperature=0.5, form=form)


OURS: dict[str, Any] = {"loss": CorrelationLoss(1.0, 0.5), "temperature": 0.5}
SQUARED: dict[str, Any] = {"loss": CorrelationLoss(1.0, 0.0), "temperature": 0.1, "published": True}


def correlation(known: Knowledge, supervised: SupervisedObjective, options: dict[str, Any]) -> Sequence[Objective]:
    objective = CorrelationObjective(known, supervised, PARTIAL, feature_size=4, ramp_end=0.2, **options)
    objective.bank.vectors[:] = torch.randn(objective.bank.vectors.shape)
    objective.bank.filled[:] = True
    return [objective]


def crossmodal(fraction: float, **changed: float) -> Make:
    """Before or while networks re-learn, by when that begins."""

    def make(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
        teacher = frozen()
        options = {"contrast": 1.0, "consistency": 1.0, "relearning": 1.0, "area": 0.1, **changed}
        area = options.pop("area")
        return [
            CrossModalObjective(
                known,
                supervised,
                networks=2,
                loss=CrossModalLoss(**options),
                course=CrossModalCourse(area, 0.4, relearn_from=fraction, all_from=0.9, form=ROBUST, queue=4),
                teacher=lambda n, x: teacher(x)[0].softmax(1),
                standing=lambda: [[0.9, 0.9], [0.1, 0.1]],
            )
        ]

    return make


def prototypes(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
    torch.manual_seed(3)
    interaction = DynamicInteraction(MAPS, 3)
    nn.init.normal_(interaction.mix.weight)  # zero at the start of a training
    average = MovingAverage(interaction, 0.9)
    teacher = RectifiedNetwork(frozen(), average.network, MAPS, in_parts=True).eval()
    learnt = PrototypeObjective(known, supervised, interaction, average, (4, 2), teacher, weight=1.0)
    options: dict[str, Any] = {"loss": PrototypeLoss(contrast=0.5), "supervised_weight": 1.0, "confidence": 0.4}
    return [learnt, RectificationObjective(known, supervised, learnt, feature_size=4, ramp_end=0.2, **options)]


def soft_labels(known: Knowledge, supervised: SupervisedObjective) -> Sequence[Objective]:
    return [SoftLabelObjective(known, supervised, weight=1.0, area=0.1)]


# Cases of the batch, what makes the objectives, whether the terms are those of the whole batch, and batch Dice.
CASES: dict[str, tuple[list[str], Make, bool, bool]] = {
    "supervised": (PARTIAL, lambda known, supervised: [supervised], True, False),
    "batch Dice": (PARTIAL, lambda known, supervised: [supervised], True, True),
    "difference own": (PARTIAL, difference("own"), True, False),
    "difference own, batch Dice": (PARTIAL, difference("own"), True, True),
    "difference projected": (PARTIAL, difference("projected"), False, False),
    "similarity": (PARTIAL, similarity, True, False),
    "similarity, batch Dice": (PARTIAL, similarity, True, True),
    "mean teacher": (STREAMS, mean_teacher, False, False),
    "consensus": (STREAMS, consensus, False, False),
    "correlation": (STREAMS, lambda known, s: correlation(known, s, OURS), False, False),
    "squared differences": (STREAMS, lambda known, s: correlation(known, s, SQUARED), True, True),
    "cross-modal": (STREAMS, crossmodal(0.6), False, False),
    "cross-modal consistency": (STREAMS, crossmodal(0.6, contrast=0.0), True, True),
    "cross-modal re-learning": (STREAMS, crossmodal(0.4), False, False),
    "prototypes": (STREAMS, prototypes, False, False),
    "soft labels": (STREAMS, soft_labels, False, False),
}
IDLE = {  # by design: who is best learns from nobody, and there are two phases
    "similarity": {"dfs[0]"},
    "cross-modal": {"relearning[0]", "relearning[1]"},
    "cross-modal re-learning": {"contrast[0]", "contrast[1]", "consistency[0]", "consistency[1]", "relearning[0]"},
}
ONE_NETWORK = ("supervised", "batch Dice", "mean teacher", "prototypes", "soft labels")


def batch_of(known: Knowledge, keys: list[str], samples: Sequence[int]) -> Batch:
    """Some samples of the whole batch; every drawn organ has as many voxels."""
    images, targets = [], []
    for sample in samples:
        generator = torch.Generator().manual_seed(sample)
        labels = torch.zeros(1, SIZE, SIZE, SIZE, dtype=torch.long)
        if keys[sample] != UNLABELLED:
            first = 2 + 2 * sample % 4
            labels[:, first : first + 8, 3:11, 2:12] = 1 if keys[sample] in "ac" else 2
        images.append(torch.randn(1, SIZE, SIZE, SIZE, generator=generator) + 2 * labels)
        targets.append(labels)
    chosen, target = [keys[sample] for sample in samples], torch.stack(targets)
    patterns = known.patterns(chosen)
    views = None
    if UNLABELLED in keys:
        inside = torch.ones(len(chosen), 1, SIZE, SIZE, SIZE, dtype=torch.bool)
        number = chosen.count(UNLABELLED)
        soft = frozen()(torch.stack(images[:number]))[0].softmax(1)
        views = Views(number, inside, soft=soft)
    levels = [target, target[:, :, ::2, ::2, ::2]]
    return Batch(torch.stack(images), levels, chosen, patterns, torch.tensor(patterns), views=views)


def samples_of(rank: int) -> list[int]:
    """One unlabelled and one labelled sample, or a liver and a spleen."""
    return [rank, 2 + rank]


def learn(name: str, samples: Sequence[Sequence[int]], ranks: Ranks) -> dict[str, Any]:
    """Gradients of one step, averaged over parts of the batch, the terms, and what objectives remember then."""
    keys, make, _, batch_dice = CASES[name]
    keys = [keys[0], keys[2], keys[1], keys[3]] if keys == PARTIAL else keys  # a liver and a spleen for each process
    known = knowledge()
    torch.manual_seed(3)
    objectives = make(known, supervision(known, ranks, batch_dice))
    torch.manual_seed(1)
    number = 1 if name in ONE_NETWORK else 2
    networks: list[nn.Module] = [FeatureTap(unet(), TAPPED) for _ in range(number)]
    if ranks.size > 1:
        networks = [DistributedDataParallel(network) for network in networks]
    heads = nn.ModuleList([o.heads for o in objectives if o.heads is not None])
    trained = [*networks, heads] if len(heads) else networks
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in trained]
    peers = Peers(networks, optimizers, [None] * len(trained), None, heads=heads if len(heads) else None, ranks=ranks)
    terms: dict[str, Tensor] = {}
    for part in samples:
        batch = batch_of(known, keys, part)
        torch.manual_seed(5)  # processes may draw the same voxels of their samples
        np.random.seed(5)
        for n, outputs, recorded in peers.passes(batch.data, nullcontext):
            if n == 0:
                steps = prepare_all(objectives, recorded, batch, HALFWAY)
            found = collect_terms(objectives, n, outputs, steps)
            peers.backward(torch.stack([t.value * t.weight for t in found.values()]).sum() / len(samples))
            for term, value in found.items():
                terms[f"{term}[{n}]"] = terms.get(f"{term}[{n}]", torch.zeros(())) + value.value.detach() / len(samples)
    peers.clip()
    with torch.no_grad():
        for objective, step in zip(objectives, steps, strict=True):
            objective.update(recorded, step)
    modules = {str(n): unwrap(network) for n, network in enumerate(networks)} | {"heads": heads}
    gradients = {
        f"{m}.{n}": p.grad for m, module in modules.items() for n, p in module.named_parameters() if p.grad is not None
    }
    return {"terms": terms, "gradients": gradients, "states": [objective.state_dict() for objective in objectives]}


def work(rank: int, store: Any) -> dict[str, Any]:
    with joined(rank, store):
        return {name: learn(name, [samples_of(rank)], DataParallelRanks()) for name in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(tmp_path_factory.mktemp("ranks"), work)


def assert_alike(found: Sequence[dict[str, Any]], reference: dict[str, Any]) -> None:
    for term, value in reference["terms"].items():
        mean = torch.stack([rank["terms"][term] for rank in found]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6, msg=term)
    for rank in found:
        for parameter, gradient in reference["gradients"].items():
            torch.testing.assert_close(
                rank["gradients"][parameter],
                gradient,
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, p=parameter: f"{p}: {text}",
            )


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name][3]])
def test_it_is_the_mean_over_the_samples_of_each_process(name: str, ranks: list[dict[str, Any]]) -> None:
    reference = learn(name, [samples_of(0), samples_of(1)], Ranks())
    assert_alike([rank[name] for rank in ranks], reference)
    idle = {term for term, value in reference["terms"].items() if value == 0}
    assert idle == IDLE.get(name, set()), "every other term is at work"


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_it_is_one_process_with_the_whole_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    assert_alike([rank[name] for rank in ranks], learn(name, [[0, 1, 2, 3]], Ranks()))


@pytest.mark.parametrize("name", list(CASES))
def test_processes_remember_the_same(name: str, ranks: list[dict[str, Any]]) -> None:
    """Banks, queues, centroids, moving averages and running scores, not counts for the log."""
    mine, other = (leaves(rank[name]["states"], ("numbers", "confident", "alarm")) for rank in ranks)
    assert mine.keys() == other.keys()
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []


@pytest.mark.parametrize(("name", "key"), [("difference own", ".bank"), ("similarity", ".scores")])
def test_running_means_and_scores_are_those_of_the_whole_batch(
    name: str, key: str, ranks: list[dict[str, Any]]
) -> None:
    whole, mine = (leaves(found["states"][0])[key] for found in (learn(name, [[0, 1, 2, 3]], Ranks()), ranks[0][name]))
    torch.testing.assert_close(mine, whole)
    alone = leaves(learn(name, [samples_of(0)], Ranks())["states"][0])[key]
    assert not torch.allclose(alone, whole), "the other process taught nothing"
