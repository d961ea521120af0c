"""Losses with pseudo labels, against loops over voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from partial_oracle import annotated_names, dataset, left_open, names_in_part, possible_names
from torch import Tensor

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.streams import PseudoStream
from nnunet_mutual.losses.partial import partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.objectives import Batch
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import organ_masks
from nnunet_mutual.objectives.supervised import SupervisedObjective, deep_supervision_weights

# The liver of "livers" is drawn with its tumours; kidney and spleen may overlap.
CONTENT = dataset(
    {"liver": 1, "tumour": 2, "spleen": 3, "kidney": 4},
    {
        "livers": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
        "spleens": {"annotated": ["spleen", "tumour"]},
        "nothing": {"annotated": []},
        "all": {"annotated": ["liver", "tumour", "spleen", "kidney"]},
        "some": {"annotated": ["spleen"], "incomplete": ["liver", "kidney"], "contains": {"liver": ["tumour"]}},
    },
    may_overlap=[["kidney", "spleen"]],
)
NAMES = ["background", "liver", "tumour", "spleen", "kidney"]
KEYS = ["livers", "spleens", "nothing", "all", "some"]
ACCEPTED = {
    "livers": frozenset({"spleen", "tumour"}),
    "nothing": frozenset({"liver", "tumour", "spleen", "kidney"}),
    "some": frozenset({"liver"}),
}


def made(accepted: dict[str, frozenset[str]] | None = None) -> Knowledge:
    table = AnnotationTable.from_dataset_json(CONTENT)
    return Knowledge(table, KEYS, 5, PseudoCodes.from_table(table), ACCEPTED if accepted is None else accepted)


def cross_entropy_and_dice(logits: np.ndarray, values: np.ndarray, key: str, known: Knowledge) -> float:
    """Of one sample, from the definitions, voxel by voxel."""
    assert known.codes is not None
    p = np.exp(logits - logits.max(0))
    p = p / p.sum(0)
    annotated, accepted = annotated_names(CONTENT, key), ACCEPTED.get(key, frozenset())
    entropy = []
    sums = {name: [0.0, 0.0, 0.0] for name in annotated | accepted}
    for place in np.ndindex(values.shape):
        value = int(values[place])
        y, z = (value, None) if value < known.codes.offset else known.codes.pairs[value - known.codes.offset]
        open_names = left_open(CONTENT, key, accepted, NAMES[y], None if z is None else NAMES[z])
        chosen = NAMES[y if z is None else z]
        mass = sum(p[(NAMES.index(name), *place)] for name in open_names)
        entropy.append(-np.log(mass))
        for name, total in sums.items():
            if name == chosen:
                total[0] += mass
                total[1] += mass
                total[2] += 1
            elif name not in open_names:  # known to be absent; where it is open, it counts neither way
                total[1] += p[(NAMES.index(name), *place)]
    dice = [(2 * i + 1e-5) / (q + r + 1e-5) for i, q, r in sums.values()]
    return float(np.mean(entropy) - np.mean(dice))


@pytest.mark.parametrize("key", ["livers", "nothing", "some"])
def test_the_loss_with_pseudo_labels(key: str) -> None:
    known = made()
    assert known.codes is not None and known.pseudo_tables.possible is not None
    rng = np.random.default_rng(3)
    annotated = [0, *(NAMES.index(name) for name in annotated_names(CONTENT, key) | names_in_part(CONTENT, key))]
    accepted = {NAMES.index(name) for name in ACCEPTED[key]}
    possible = [NAMES.index(n) for n in NAMES]
    allowed = list(annotated)
    for code, (y, z) in enumerate(known.codes.pairs, known.codes.offset):
        names = {possible[NAMES.index(n)] for n in possible_names(CONTENT, key, NAMES[y])} if y in annotated else set()
        if y in annotated and z in names and (z == y or z in accepted):
            allowed.append(code)
    values = rng.choice(allowed, (3, 4, 5))
    logits = rng.normal(0, 2, (5, 3, 4, 5))
    index = torch.tensor(known.patterns([key]))
    loss = partial_softmax_loss(
        torch.tensor(logits)[None],
        torch.tensor(values)[None, None],
        known.pseudo_tables.possible[index],
        known.pseudo_tables.annotated[index],
        drawn=known.pseudo_tables.drawn,
    )
    assert float(loss) == pytest.approx(cross_entropy_and_dice(logits, values, key, known), abs=1e-5)


def test_all_decided_and_accepted_is_full_supervision() -> None:
    """Of an unlabelled case whose pseudo labels are complete: nnU-Net's own loss on them."""
    known = made()
    assert known.codes is not None and known.pseudo_tables.possible is not None
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (2, 1, 6, 6, 6), generator=generator)
    logits = torch.randn(2, 5, 6, 6, 6, generator=generator)
    code = {z: c for c, (y, z) in enumerate(known.codes.pairs, known.codes.offset) if y == 0}
    values = torch.tensor([code[z] for z in truth.flatten().tolist()]).view(truth.shape)
    index = torch.tensor(known.patterns(["nothing", "nothing"]))
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DC_and_CE_loss(options, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    loss = partial_softmax_loss(
        logits,
        values,
        known.pseudo_tables.possible[index],
        known.pseudo_tables.annotated[index],
        drawn=known.pseudo_tables.drawn,
    )
    torch.testing.assert_close(loss, stock(logits, truth))


def test_undecided_voxels_of_regions_teach_nothing() -> None:
    content = dataset({"whole": [1, 2], "core": [2]}, {"a": {"annotated": ["whole"]}})
    table = AnnotationTable.from_dataset_json(content)
    known = Knowledge(table, ["a"], 2, PseudoCodes.from_table(table), {"a": frozenset({"core"})})
    tables = known.pseudo_tables
    assert tables.relations is not None and tables.decided is not None
    assert tables.annotated.tolist() == [[True, True]] and tables.decided.tolist() == [[False, True]]
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(1, 1, 5, 5, 5, generator=generator) > 0.4
    core = whole & (torch.rand(1, 1, 5, 5, 5, generator=generator) > 0.5)
    decided = torch.rand(1, 1, 5, 5, 5, generator=generator) > 0.3
    logits = torch.randn(1, 2, 5, 5, 5, generator=generator, requires_grad=True)
    target = torch.cat([whole, core], 1)
    supervised = SupervisedObjective(known, refuse, [1.0], ignore_label=None, batch_dice=False)
    batch = Batch(logits, [target], ["a"], [0], torch.tensor([0]), [decided])
    loss = supervised.loss([logits], batch, tables)
    p = logits.sigmoid().double()
    known_core = decided | ~whole  # outside of the whole tumour there is no core, whatever was decided
    bce = torch.nn.functional.binary_cross_entropy(p, target.double(), reduction="none")
    entropy = (bce[:, :1].sum() + bce[:, 1:][known_core].sum()) / (whole.numel() + known_core.sum())

    def dice(q: Tensor, y: Tensor) -> Tensor:
        return (2 * (q * y).sum() + 1e-5) / (q.sum() + y.sum() + 1e-5)

    expected = entropy - (dice(p[:, :1], whole) + dice(p[:, 1:][known_core], core[known_core])) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[:, 1:][~known_core] == 0).all() and (gradient[:, :1] != 0).all()


def test_what_was_decided_of_a_region_drawn_in_part_is_not_what_was_drawn() -> None:
    content = dataset({"whole": [1, 2], "core": [2]}, {"a": {"annotated": ["whole"], "incomplete": ["core"]}})
    table = AnnotationTable.from_dataset_json(content)
    codes = PseudoCodes.from_table(table)
    known = Knowledge(table, ["a"], 2, codes, {"a": frozenset({"core"})})
    labels = SimpleNamespace(has_regions=True)
    stream = PseudoStream(table, [], store=SimpleNamespace(), codes=codes, labels=labels)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3, (1, 1, 6, 6, 6), generator=generator).numpy()
    sure = torch.rand(true.shape, generator=generator).numpy() > 0.4
    decided = np.where(sure, np.where(true == 0, 0, 2), -1)  # all of the tumour that was decided is core
    coded = codes.encode(true, decided)
    maps = torch.from_numpy(np.concatenate([np.isin(coded, of) for of in stream.regions([(1, 2), 2])], 1))
    raw = {"data": torch.zeros(1, 1, 6, 6, 6), "target": [maps], "keys": ["a"]}
    batch = stream.batch(raw, known.patterns, torch.device("cpu"))
    assert torch.equal(organ_masks(batch, known, true.shape[2:])[:, 1:], torch.from_numpy(true == 2))
    drawn = replace(batch, target=[torch.from_numpy(np.concatenate([true > 0, true == 2], 1))], decided=None)
    supervised = SupervisedObjective(known, refuse, [1.0], ignore_label=None, batch_dice=False)
    logits = torch.randn(1, 2, 6, 6, 6, generator=generator)
    torch.testing.assert_close(supervised.loss([logits], batch), supervised.loss([logits], drawn))
    taught = torch.from_numpy((true == 2) | sure)  # by the pseudo labels, too
    guess = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(supervised.loss([guess], batch, known.pseudo_tables), guess)
    assert torch.equal(gradient[:, 1:] != 0, taught | torch.from_numpy(true == 0))


def refuse(*_: Any) -> Tensor:
    raise AssertionError("no batch here is fully annotated")


def batch_of(known: Knowledge, keys: Sequence[str], seed: int = 0) -> tuple[list[Tensor], Batch]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(len(keys), 5, n, n, n, generator=generator, requires_grad=True) for n in (8, 4)]
    values = torch.zeros(len(keys), 1, 8, 8, 8, dtype=torch.long)
    for i, key in enumerate(keys):
        allowed = torch.tensor([0, *(NAMES.index(n) for n in sorted(annotated_names(CONTENT, key)))])
        values[i] = allowed[torch.randint(0, len(allowed), (1, 8, 8, 8), generator=generator)]
    patterns = known.patterns(keys)
    target = [values, values[:, :, ::2, ::2, ::2]]
    return levels, Batch(torch.zeros(len(keys), 1, 8, 8, 8), target, list(keys), patterns, torch.tensor(patterns))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("samples", [[0], [1, 2], [0, 2], [0, 1, 2]])
def test_some_samples_of_a_batch(samples: list[int], batch_dice: bool) -> None:
    known = made()
    weights = deep_supervision_weights(2, keep_last=True)
    keys = ["livers", "spleens", "livers"]
    levels, batch = batch_of(known, keys)

    def objective(**options: Any) -> SupervisedObjective:
        return SupervisedObjective(known, refuse, weights, ignore_label=None, batch_dice=batch_dice, **options)

    found = objective().loss(levels, batch, samples=samples)
    patterns = [batch.patterns[i] for i in samples]
    alone = Batch(
        batch.data[samples],
        [t[samples] for t in batch.target],
        [keys[i] for i in samples],
        patterns,
        torch.tensor(patterns),
    )
    expected = objective().loss([level[samples] for level in levels], alone)
    torch.testing.assert_close(found, expected)
    everybody = objective(gather=lambda sums: sums).loss(levels, batch, samples=samples)
    torch.testing.assert_close(everybody, expected)
    for gradient in torch.autograd.grad(everybody, levels):
        left_out = [i for i in range(3) if i not in samples]
        assert (gradient[left_out] == 0).all() and (gradient[samples] != 0).any()


@pytest.mark.parametrize("gather", [None, lambda sums: sums], ids=["sliced", "masked"])
def test_no_samples_teach_nothing(gather: Any) -> None:
    known = made()
    weights = deep_supervision_weights(2, keep_last=True)
    supervised = SupervisedObjective(known, refuse, weights, ignore_label=None, batch_dice=True, gather=gather)
    levels, batch = batch_of(known, ["livers", "spleens"])
    loss = supervised.loss(levels, batch, samples=[])
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, levels))


def test_undecided_regions_without_pseudo_labels_are_as_before() -> None:
    logits = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    target = torch.rand(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    table = AnnotationTable.from_dataset_json(dataset({"a": [1, 1], "b": [2, 2]}, {"s": {"annotated": ["a", "b"]}}))
    tables = Knowledge(table, ["s"], 2).tables
    assert tables.relations is not None
    everything = torch.ones_like(target)
    first = partial_sigmoid_loss(logits, target, tables.relations, tables.annotated)
    second = partial_sigmoid_loss(logits, target, tables.relations, tables.annotated, decided=everything)
    torch.testing.assert_close(first, second)
