"""Look-up tables of annotations and the objective on top of them: patterns, deep supervision, nnU-Net's own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from partial_oracle import dataset, knowledge_of, possible_names
from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.partial import partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.objectives import Batch, Output, Progress, Step
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective, deep_supervision_weights

# Not in the order of their integers, as dataset.json allows.
CONTENT = dataset(
    {"tumour": 2, "spleen": 3, "liver": 1, "vessel": 4},
    {
        "all": {"annotated": ["liver", "tumour", "spleen", "vessel"]},
        "liver": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
        "deep": {"annotated": ["liver"], "contains": {"liver": ["tumour"], "tumour": ["vessel"]}},
        "two": {"annotated": ["liver", "spleen"]},
        "none": {"annotated": []},
    },
    may_overlap=[["vessel", "spleen"]],
)
CONTENT["mutual"]["cases"] |= {"again": {"source": "two"}, "own": {"source": "all", "annotated": ["liver", "spleen"]}}
KEYS = list(CONTENT["mutual"]["cases"])
REGIONS = dataset(
    {"whole": [1, 2], "core": 2}, {"all": {"annotated": ["whole", "core"]}, "w": {"annotated": ["whole"]}}
)


def test_possible_classes_of_every_drawn_value() -> None:
    known = knowledge_of(CONTENT, KEYS)
    assert known.tables.possible is not None
    values = CONTENT["labels"]
    for key in KEYS:
        table = known.tables.possible[known.patterns([key])[0]]
        for name in ["background", *(n for n in values if known.tables.annotated[known.patterns([key])[0], values[n]])]:
            expected = {values[other] for other in possible_names(CONTENT, key, name)}
            assert set(table[values[name]].nonzero().flatten().tolist()) == expected, (key, name)


def test_possible_classes_by_hand() -> None:
    known = knowledge_of(CONTENT, KEYS)
    assert known.tables.possible is not None
    deep = known.tables.possible[known.patterns(["deep"])[0]].int().tolist()
    # tumour and, inside it, vessel belong to the drawn liver; the spleen is unknown outside.
    assert deep[0] == [1, 0, 0, 1, 0] and deep[1] == [0, 1, 1, 0, 1]
    two = known.tables.possible[known.patterns(["two"])[0]].int().tolist()
    assert two[0] == [1, 0, 1, 0, 1] and two[1] == [0, 1, 0, 0, 0] and two[3] == [0, 0, 0, 1, 1]
    everything = known.tables.possible[known.patterns(["all"])[0]]
    assert torch.equal(everything, torch.eye(5, dtype=torch.bool))


def test_cases_that_say_the_same_share_a_pattern() -> None:
    known = knowledge_of(CONTENT, KEYS)
    two, again, own, liver, deep = known.patterns(["two", "again", "own", "liver", "deep"])
    assert two == again == own and len({two, liver, deep}) == 3
    assert [known.is_full[pattern] for pattern in known.patterns(["all", "own"])] == [True, False]
    assert known.tables.annotated[two].int().tolist() == [0, 1, 0, 1, 0]
    assert known.tables.annotated[known.patterns(["none"])[0]].sum() == 0


def test_without_a_block_every_case_is_fully_annotated() -> None:
    plain = AnnotationTable.from_dataset_json({key: value for key, value in CONTENT.items() if key != "mutual"})
    known = Knowledge(plain, ["anything", "else"], 5)
    assert known.is_full == [True] and known.patterns(["else"]) == [0]


def test_an_unlisted_case_is_an_error() -> None:
    with pytest.raises(MutualError, match="stranger"):
        knowledge_of(CONTENT, ["all", "stranger"])


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("keep_last", [False, True])
def test_deep_supervision_weights_are_nnunets(levels: int, keep_last: bool) -> None:
    weights = deep_supervision_weights(levels, keep_last=keep_last)
    expected = [2.0**-i for i in range(levels)]
    if levels > 1:
        expected[-1] = 1e-6 if keep_last else 0
    assert weights == pytest.approx([value / sum(expected) for value in expected])
    assert sum(weights) == pytest.approx(1)


def refuse(*_: Any) -> Tensor:
    raise AssertionError("nnU-Net's loss was asked about a partially annotated batch")


def objective(known: Knowledge, full: Callable[..., Tensor] = refuse, **options: Any) -> SupervisedObjective:
    options = {"ignore_label": None, "batch_dice": False, **options}
    return SupervisedObjective(known, full, deep_supervision_weights(3, keep_last=False), **options)


def batch_of(known: Knowledge, keys: list[str], channels: int = 1) -> tuple[list[Tensor], Batch]:
    generator = torch.Generator().manual_seed(3)
    sizes = [8, 4, 2]
    levels = [torch.randn((len(keys), known.tables.annotated.shape[1], n, n), generator=generator) for n in sizes]
    targets = [torch.randint(0, 2, (len(keys), channels, n, n), generator=generator) for n in sizes]
    patterns = known.patterns(keys)
    return levels, Batch(torch.zeros(len(keys), 1, 8, 8), targets, keys, patterns, torch.tensor(patterns))


def test_levels_are_weighted_and_networks_have_terms_of_their_own() -> None:
    known = knowledge_of(CONTENT, KEYS)
    levels, batch = batch_of(known, ["liver", "two"])
    assert known.tables.possible is not None
    index = batch.pattern_index
    parts = [
        partial_softmax_loss(logits, target, known.tables.possible[index], known.tables.annotated[index])
        for logits, target in zip(levels, batch.target, strict=True)
    ]
    expected = (parts[0] * 1 + parts[1] * 0.5) / 1.5
    supervised = objective(known)
    outputs = [Output([torch.zeros_like(level) for level in levels]), Output(levels)]
    second = supervised.terms(1, outputs, Step(batch, Progress(0, 10)))
    assert tuple(second) == supervised.term_names and second["supervised"].weight == 1
    torch.testing.assert_close(second["supervised"].value, expected)


def test_a_fully_annotated_batch_goes_through_nnunets_own_loss() -> None:
    known = knowledge_of(CONTENT, KEYS)
    seen = []

    def stock(levels: Any, targets: Any) -> Tensor:
        seen.append((levels, targets))
        return torch.tensor(7.0)

    levels, batch = batch_of(known, ["all", "all"])
    assert objective(known, stock).loss(levels, batch).item() == 7
    assert seen[0][0] is levels and seen[0][1] is batch.target
    _, mixed = batch_of(known, ["all", "liver"])
    assert objective(known, stock).loss(levels, mixed).item() != 7 and len(seen) == 1


def test_processes_that_gather_take_the_same_path() -> None:
    known = knowledge_of(CONTENT, KEYS)
    levels, batch = batch_of(known, ["all", "all"])
    gathered = []

    def gather(sums: Tensor) -> Tensor:
        gathered.append(sums)
        return sums

    # Another process may hold a partially annotated case, so nnU-Net's loss would leave it waiting.
    assert objective(known, batch_dice=True, gather=gather).loss(levels, batch).isfinite()
    assert len(gathered) == 2
    everybody_full = knowledge_of(CONTENT, ["all"])
    _, batch = batch_of(everybody_full, ["all", "all"])
    stock = objective(everybody_full, lambda *_: torch.tensor(7.0), batch_dice=True, gather=gather)
    assert stock.loss(levels, batch).item() == 7 and len(gathered) == 2


@pytest.mark.parametrize("ignore_label", [None, 3])
def test_regions(ignore_label: int | None) -> None:
    known = knowledge_of(REGIONS, ["all", "w"])
    has_ignore = ignore_label is not None
    levels, batch = batch_of(known, ["w", "all"], channels=2 + has_ignore)
    index = batch.pattern_index
    assert known.tables.relations is not None
    parts = [
        partial_sigmoid_loss(
            logits,
            target,
            known.tables.relations[index],
            known.tables.annotated[index],
            has_ignore=has_ignore,
            batch_dice=True,
        )
        for logits, target in zip(levels, batch.target, strict=True)
    ]
    found = objective(known, ignore_label=ignore_label, batch_dice=True).loss(levels, batch)
    torch.testing.assert_close(found, (parts[0] + parts[1] / 2) / 1.5)


def test_tables_move_to_the_device_of_the_loss() -> None:
    for content, keys in ((CONTENT, KEYS), (REGIONS, ["all", "w"])):
        known = knowledge_of(content, keys).to(torch.device("meta"))
        tables = [known.tables.annotated, known.tables.possible]
        if known.tables.relations is not None:
            tables += [*vars(known.tables.relations).values()]
        assert all(table.device.type == "meta" for table in tables if table is not None)
