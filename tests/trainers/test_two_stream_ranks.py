"""Two streams on two processes: the same bank everywhere, and the supervised loss of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from partial_oracle import dataset
from prepared import prepare
from processes import in_processes, joined
from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.losses.area_similarity import ROBUST
from nnunet_mutual.objectives import Batch, Output, Progress, Views
from nnunet_mutual.objectives.correlation import CorrelationLoss, CorrelationObjective, CorrelationStep
from nnunet_mutual.objectives.crossmodal import CrossModalCourse, CrossModalLoss, CrossModalObjective
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.prototypes import PrototypeLoss
from nnunet_mutual.objectives.rectification import RectificationObjective, RectificationStep
from nnunet_mutual.objectives.supervised import SupervisedObjective

CASES = {"full": ["a", "b"], "partial": ["a", "c"]}  # the labelled case of each process
SIZE = 6


def knowledge() -> Knowledge:
    annotated = {"a": ["liver", "spleen"], "b": ["liver", "spleen"], "c": ["liver"]}
    content = dataset({"liver": 1, "spleen": 2}, {key: {"annotated": names} for key, names in annotated.items()})
    return Knowledge(AnnotationTable.from_dataset_json(content), list(annotated), 3, unlabelled=["un"])


def sample(key: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, target and features of a case."""
    generator = torch.Generator().manual_seed(ord(key[0]))
    logits = torch.randn(3, SIZE, SIZE, SIZE, generator=generator)
    target = torch.randint(0, 2 if key == "c" else 3, (1, SIZE, SIZE, SIZE), generator=generator)
    return logits, target * (key != "un"), torch.randn(4, SIZE, SIZE, SIZE, generator=generator)


def batch_of(known: Knowledge, keys: list[str]) -> tuple[Batch, Output]:
    logits, target, features = (torch.stack(parts) for parts in zip(*map(sample, keys), strict=True))
    patterns = known.patterns(keys)
    views = Views(keys.count("un"), torch.ones(len(keys), 1, SIZE, SIZE, SIZE, dtype=torch.bool))
    batch = Batch(logits, [target], keys, patterns, torch.tensor(patterns), views=views)
    return batch, Output([logits.requires_grad_()], {1: features})


def supervised(known: Knowledge, gather: Any) -> SupervisedObjective:
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": gather is not None}
    stock = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)

    def full_loss(levels: Any, target: Any) -> Tensor:
        return stock(levels[0], target[0].float())

    return SupervisedObjective(known, full_loss, [1.0], ignore_label=None, batch_dice=True, gather=gather)


def correlation(known: Knowledge) -> CorrelationObjective:
    torch.manual_seed(0)
    loss = supervised(known, None)
    return CorrelationObjective(
        known, loss, ["a", "b", "c"], feature_size=4, loss=CorrelationLoss(1.0, 0.05), temperature=0.1, ramp_end=0.2
    )


def rectification(known: Knowledge) -> RectificationObjective:
    torch.manual_seed(0)
    options: dict[str, Any] = {"loss": PrototypeLoss(), "supervised_weight": 1.0, "confidence": 0.8}
    loss = supervised(known, None)
    return RectificationObjective(known, loss, None, feature_size=4, ramp_end=0.2, **options)  # type: ignore


def centroids(objective: RectificationObjective, keys: list[str]) -> dict[str, Tensor]:
    for step in range(3):
        batch, output = batch_of(objective.knowledge, keys)
        torch.manual_seed(step + 10 * ("b" in keys))  # processes draw other voxels
        with torch.no_grad():
            objective.update([output.detach()], RectificationStep(batch, Progress(0, 10), None, None))
    return objective.centroids.state_dict()


def queued(known: Knowledge, keys: list[str]) -> dict[str, Tensor]:
    """The queue after one step of two networks that see other modalities."""
    course = CrossModalCourse(area=0.1, ramp_end=0.4, relearn_from=0.6, all_from=0.9, form=ROBUST, queue=4)
    terms = CrossModalLoss(1.0, 1.0, 1.0)
    objective = CrossModalObjective(
        known,
        supervised(known, None),
        networks=2,
        loss=terms,
        course=course,
        teacher=lambda n, x: x,
        standing=lambda: [[0], [0]],
    )
    batch, output = batch_of(known, keys)
    outputs = [output.detach(), Output([output.levels[0].detach() + 1.0 * ("b" in keys)])]
    with torch.no_grad():
        objective.update(outputs, prepare(objective, outputs, batch, Progress(0, 10)))
    assert objective.queue is not None
    return objective.queue.state_dict()


def remembered(objective: CorrelationObjective, keys: list[str]) -> dict[str, Tensor]:
    batch, output = batch_of(objective.knowledge, keys)
    torch.manual_seed(1)  # which voxels are chosen
    with torch.no_grad():
        objective.update([output.detach()] * 2, CorrelationStep(batch, Progress(0, 10), None, []))
    return objective.bank.state_dict()


def work(rank: int, store: Any) -> dict[str, Any]:
    with joined(rank, store):
        return {name: of_one_rank(["un", cases[rank]]) for name, cases in CASES.items()}


def of_one_rank(keys: list[str]) -> dict[str, Any]:
    known = knowledge()
    batch, output = batch_of(known, keys)
    loss = supervised(known, lambda sums: AllGatherGrad.apply(sums).sum(0)).labelled(output.levels, batch)
    return {
        "loss": loss.detach(),
        "bank": remembered(correlation(known), keys),
        "centroids": centroids(rectification(known), keys),
        "queue": queued(known, keys),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", list(CASES))
def test_all_processes_remember_what_any_saw(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name]["bank"] for rank in ranks)
    assert torch.equal(first["vectors"], second["vectors"]) and torch.equal(first["filled"], second["filled"])
    assert first["filled"].flatten(2).any(2).any(0).tolist() == [key in CASES[name] for key in ("a", "b", "c")]
    for key in CASES[name]:  # each as one process alone would have remembered it
        alone = remembered(correlation(knowledge()), ["un", key])
        row = "abc".index(key)
        torch.testing.assert_close(first["vectors"][:, row], alone["vectors"][:, row])
        assert torch.equal(first["filled"][:, row], alone["filled"][:, row])


@pytest.mark.parametrize("name", list(CASES))
def test_all_processes_keep_the_same_centroids(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name]["centroids"] for rank in ranks)
    assert first["filled"].any()
    assert torch.equal(first["vectors"], second["vectors"]) and torch.equal(first["filled"], second["filled"])
    alone = centroids(rectification(knowledge()), ["un", CASES[name][0]])
    assert not torch.equal(alone["vectors"], first["vectors"]), "the other process taught nothing"


def test_all_processes_queue_what_any_agreed_on(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["full"]["queue"] for rank in ranks)
    assert torch.equal(first["maps"], second["maps"]) and torch.equal(first["filled"], second["filled"])
    alone = [queued(knowledge(), ["un", key])["maps"][:, 0] for key in CASES["full"]]
    assert first["next"] == 2 and torch.equal(first["maps"][:, :2], torch.stack(alone, 1))


@pytest.mark.parametrize("name", list(CASES))
def test_the_supervised_loss_is_that_of_the_whole_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    """Whichever way (nnU-Net's loss or the partial one) the processes take together."""
    known = knowledge()
    batch, output = batch_of(known, ["un", *CASES[name]])
    whole = supervised(known, None).labelled(output.levels, batch)
    torch.testing.assert_close((ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2, whole.detach())
