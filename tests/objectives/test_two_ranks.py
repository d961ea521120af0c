"""The tri-state loss on two processes: loss and averaged gradients are those of nnU-Net, and of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from partial_oracle import dataset, knowledge_of, softmax_loss
from processes import in_processes, joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_mutual.losses.partial import partial_softmax_loss

CONTENT = dataset(
    {"liver": 1, "tumour": 2, "spleen": 3},
    {
        "all": {"annotated": ["liver", "tumour", "spleen"]},
        "liver": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
        "spleen": {"annotated": ["spleen"]},
        "none": {"annotated": []},
    },
)
# What each of the four samples annotates; each process sees two of them.
SETTINGS = {
    "full": ["all"] * 4,
    "partial": ["liver", "all", "spleen", "liver"],
    "label_on_one_rank": ["liver", "liver", "spleen", "spleen"],
    "unlabelled_rank": ["liver", "all", "none", "none"],
}
DRAWN = {"all": [0, 1, 2, 3], "liver": [0, 1], "spleen": [0, 3], "none": [0]}


def batch(keys: list[str]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, 2, 5, 6), generator=generator)
    picks = torch.randint(0, 12, (4, 1, 5, 6), generator=generator)
    target = torch.stack(
        [torch.tensor(DRAWN[key])[pick % len(DRAWN[key])] for key, pick in zip(keys, picks, strict=True)]
    )
    return images, target


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(2, 4, 3, padding=1)


def partial(logits: Tensor, target: Tensor, keys: list[str], gather: Any = None) -> Tensor:
    known = knowledge_of(CONTENT, keys)
    assert known.tables.possible is not None
    index = known.patterns(keys)
    tables = known.tables.possible[index], known.tables.annotated[index]
    return partial_softmax_loss(logits, target, *tables, batch_dice=True, gather=gather)


def gather_sums(sums: Tensor) -> Tensor:
    """As the trainer does."""
    return AllGatherGrad.apply(sums).sum(0)


def of_one_rank(name: str, keys: list[str], rank: int) -> dict[str, Tensor]:
    """Losses and gradients (averaged by DDP) of one setting, with this package's loss and with nnU-Net's."""
    images, target = batch(keys)
    mine = slice(2 * rank, 2 * rank + 2)
    stock = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": True}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    losses = {"ours": lambda logits: partial(logits, target[mine], keys[mine], gather_sums)}
    if name == "full":
        losses["stock"] = lambda logits: stock(logits, target[mine].float())
    found = {}
    for which, loss in losses.items():
        model = DistributedDataParallel(network())
        value = loss(model(images[mine]))
        value.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters()]
        found |= {which: value.detach(), f"{which}_gradient": torch.cat(gradients)}
    return found


def work(rank: int, store: Any) -> dict[str, dict[str, Tensor]]:
    with joined(rank, store):
        return {name: of_one_rank(name, keys, rank) for name, keys in SETTINGS.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return in_processes(tmp_path_factory.mktemp("ranks"), work)


def test_with_everything_annotated_it_is_nnunets_batch_dice(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["full"]["ours"], rank["full"]["stock"])
        torch.testing.assert_close(rank["full"]["ours_gradient"], rank["full"]["stock_gradient"])


@pytest.mark.parametrize("name", ["full", "partial", "label_on_one_rank"])
def test_two_processes_are_one_process_on_the_whole_batch(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    # Each process has as many supervised voxels, so the mean of their cross-entropies is that of the whole batch.
    images, target = batch(SETTINGS[name])
    model = network()
    whole = partial(model(images), target, SETTINGS[name])
    whole.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close((ranks[0][name]["ours"] + ranks[1][name]["ours"]) / 2, whole.detach())
    for rank in ranks:
        torch.testing.assert_close(rank[name]["ours_gradient"], gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_dice_part_is_that_of_the_whole_batch(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    images, target = batch(SETTINGS[name])
    logits = network()(images).detach().double()
    _, dice = softmax_loss(logits, target, CONTENT, SETTINGS[name], batch_dice=True)
    for index, rank in enumerate(ranks):
        mine = slice(2 * index, 2 * index + 2)
        cross_entropy, _ = softmax_loss(logits[mine], target[mine], CONTENT, SETTINGS[name][mine])
        assert float(rank[name]["ours"]) == pytest.approx(float(cross_entropy) - float(dice), abs=1e-5)


def test_a_process_without_labels_still_learns_from_the_shared_dice(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (rank["unlabelled_rank"]["ours_gradient"] for rank in ranks)
    torch.testing.assert_close(first, second)
    assert first.isfinite().all() and first.abs().max() > 0
