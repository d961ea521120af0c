"""Samples that exchanged boxes: every voxel is supervised by the case from which it comes, at every resolution."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from partial_oracle import SMOOTH, annotated_names, dataset, knowledge_of, names_in_part, possible_names
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, Exchange, mixed
from nnunet_mutual.batches.views import exchanged
from nnunet_mutual.losses.partial import partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.base import Output, Progress
from nnunet_mutual.objectives.not_drawn import NotDrawnObjective
from nnunet_mutual.objectives.supervised import SupervisedObjective

LABELS = dataset(
    {"liver": 1, "tumour": 2, "spleen": 3},
    {
        "liver": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
        "spleen": {"annotated": ["spleen"]},
        "all": {"annotated": ["liver", "tumour", "spleen"]},
        "none": {"annotated": []},
        "some": {"annotated": ["liver"], "incomplete": ["spleen"]},
        "only": {"annotated": [], "incomplete": ["tumour"]},
    },
)
REGIONS = dataset(
    {"whole": [1, 2], "core": 2}, {"all": {"annotated": ["whole", "core"]}, "w": {"annotated": ["whole"]}}
)
NAMES = ["background", "liver", "tumour", "spleen"]


def case(seed: int, shape: tuple[int, ...] = (4, 6)) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Logits, labels that each case may have drawn, and from where each voxel comes."""
    rng = np.random.default_rng(seed)
    keys = ["liver", "spleen", "all", "none", "some", "only"]
    drawn = {"liver": [0, 1], "spleen": [0, 3], "all": [0, 1, 2, 3], "none": [0], "some": [0, 1, 3], "only": [0, 2]}
    target = np.stack([rng.choice(drawn[key], (1, *shape)) for key in keys])
    logits = rng.normal(0, 2, (len(keys), 4, *shape))
    origin = rng.integers(0, len(keys), (len(keys), 1, *shape))
    return keys, torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(origin)


def slow_loss(keys: list[str], logits: Tensor, target: Tensor, origin: Tensor, batch_dice: bool) -> float:
    p = logits.softmax(1).flatten(2).numpy()
    y, o = target.flatten(1).numpy(), origin.flatten(1).numpy()
    entropy, sums = [], dict[Any, list[float]]()
    for b, v in itertools.product(range(len(keys)), range(p.shape[2])):
        key, drawn = keys[o[b, v]], NAMES[y[o[b, v], v]]
        names = possible_names(LABELS, key, drawn)
        of_set = sum(p[b, NAMES.index(name), v] for name in names)
        if annotated_names(LABELS, key) | names_in_part(LABELS, key):
            entropy.append(-np.log(of_set))
        for label in annotated_names(LABELS, key):
            is_drawn = label == drawn
            q = of_set if is_drawn else 0.0 if label in names else p[b, NAMES.index(label), v]
            total = sums.setdefault(label if batch_dice else (b, label), [0.0, 0.0, 0.0])
            for i, value in enumerate((q * is_drawn, q, float(is_drawn))):
                total[i] += value
    dice = [(2 * both + SMOOTH) / (said + drawn + SMOOTH) for both, said, drawn in sums.values()]
    return float(np.mean(entropy) - np.mean(dice))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_voxel_is_supervised_by_the_case_from_which_it_comes(seed: int, batch_dice: bool) -> None:
    keys, logits, target, origin = case(seed)
    known = knowledge_of(LABELS, keys)
    index, tables = torch.tensor(known.patterns(keys)), known.tables
    assert tables.possible is not None and tables.incomplete is not None
    options: dict[str, Any] = {"leaves_open": tables.open is not None, "batch_dice": batch_dice}
    options["incomplete"] = tables.incomplete[index]
    parts = logits, target, tables.possible[index], tables.annotated[index]
    found = partial_softmax_loss(*parts, mix=partial(mixed, origin=origin), **options)
    assert found.item() == pytest.approx(slow_loss(keys, logits, target, origin, batch_dice), abs=1e-5)
    own = torch.arange(len(keys)).view(-1, 1, 1, 1).expand_as(target)
    unmixed = partial_softmax_loss(*parts, mix=partial(mixed, origin=own), **options)
    torch.testing.assert_close(unmixed, partial_softmax_loss(*parts, **options))


def test_regions_are_known_where_their_own_case_says_so() -> None:
    """Mixing what is known is the same as asking each case about its own voxels."""
    keys = ["w", "all"]
    known = knowledge_of(REGIONS, keys)
    index, relations = torch.tensor(known.patterns(keys)), known.tables.relations
    assert relations is not None
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(2, 1, 4, 6, generator=generator) > 0.5
    target = torch.cat([whole, whole & (torch.rand(2, 1, 4, 6, generator=generator) > 0.5)], 1)
    target[0, 1] = False  # nobody drew it
    logits = torch.randn(2, 2, 4, 6, generator=generator, requires_grad=True)
    origin = torch.randint(0, 2, (2, 1, 4, 6), generator=generator)
    parts = target, relations[index], known.tables.annotated[index]
    partial_sigmoid_loss(logits, *parts, mix=partial(mixed, origin=origin), smooth=1e12).backward()
    assert logits.grad is not None
    truth, ours = mixed(target, origin), mixed(torch.ones(2, 2, 4, 6), origin)
    unknown = (origin == 0) & truth[:, :1]  # a core may be anywhere in a whole one, and nowhere else
    expected = torch.where(truth, -1.0, 1.0) * ours
    expected[:, 1:][unknown] = 0
    assert torch.equal(logits.grad.sign(), expected)


def test_boxes_are_exchanged_at_full_resolution_and_labels_downsampled_after() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    full = torch.randint(0, 4, (3, 1, 8, 12, 10))
    sizes = [(8, 12, 10), (4, 6, 5), (2, 3, 5)]
    levels = [F.interpolate(full.float(), size=size, mode="nearest-exact").long() for size in sizes]
    data = torch.randn(3, 1, 8, 12, 10)
    batch = Batch(data.clone(), levels, ["a", "b", "c"], [0, 1, 2], torch.arange(3))
    found = exchanged(batch, intensity=False, boxes=True, views=2)
    assert found.exchange is not None and found.exchange.origins is not None
    assert found.exchange.weak.equal(data) and found.exchange.further[0].equal(found.data)
    for level, origin, size in zip(levels, found.exchange.origins, sizes, strict=True):
        whole = mixed(full, found.exchange.origins[0])
        assert mixed(level, origin).equal(F.interpolate(whole.float(), size=size, mode="nearest-exact").long())
    for sample, (seen, origin) in enumerate(zip(found.data, found.exchange.origins[0], strict=True)):
        numbers = origin.unique().tolist()
        assert len(numbers) == 2 and sample in numbers
        for number in numbers:
            assert seen[origin == number].equal(data[number][origin == number])
    alone = exchanged(Batch(data[:1], [levels[0][:1]], ["a"], [0], torch.zeros(1)), intensity=False, boxes=True)
    assert alone.exchange is not None and alone.exchange.origins is None and alone.data.equal(data[:1])


def objective(ask: Callable[[int, Tensor], Tensor], keys: list[str], content: dict[str, Any] = LABELS) -> Any:
    known = knowledge_of(content, keys)
    supervised = SupervisedObjective(known, lambda *_: torch.zeros(()), [1.0], ignore_label=None, batch_dice=False)
    options: dict[str, Any] = {"weight": 0.5, "ramp_end": 0.2, "sure": 0.8, "foreground_from": 1}
    return known, NotDrawnObjective(known, supervised, ask, [[0, 1], [1]], **options)


def test_what_is_taught_by_hand() -> None:
    """Seven voxels of a case that draws the spleen alone: of which the averages may say something, and what."""
    keys = ["spleen", "all"]
    first = [  # background, liver, tumour, spleen
        [0.02, 0.96, 0.02, 0.00],  # sure of the liver
        [0.04, 0.36, 0.00, 0.60],  # most of its mass is on a label that was not drawn: 0.9 of the rest is nothing
        [0.40, 0.45, 0.15, 0.00],  # not sure
        [0.05, 0.75, 0.00, 0.20],  # sure of the liver in S(v): 0.75 / 0.8
        [0.00, 0.99, 0.01, 0.00],  # drawn as spleen: nothing is left to teach
        [0.90, 0.10, 0.00, 0.00],  # sure of the background, if the other one is
        [0.88, 0.12, 0.00, 0.00],  # the other one decides for the liver
    ]
    second = [*first[:6], [0.02, 0.98, 0.00, 0.00]]
    said = [torch.tensor(p).T[None].repeat(2, 1, 1).view(2, 4, 1, 7).clamp_min(1e-6).log() for p in (first, second)]
    target = torch.zeros(2, 1, 1, 7).long()
    target[0, 0, 0, 4] = 3
    known, taught = objective(lambda number, images: said[number], keys)
    patterns = known.patterns(keys)
    weak = torch.zeros(2, 1, 1, 7)
    batch = Batch(weak, [target], keys, patterns, torch.tensor(patterns), exchange=Exchange(weak))
    both, other = taught.ask(batch, Progress(0, 10))
    assert both.counted[0].flatten().tolist() == [True, False, False, True, False, True, False]
    assert other.counted[0].flatten().tolist() == [True, False, False, True, False, True, True]
    assert not both.counted[1].any(), "a case that draws everything leaves nothing to teach"
    torch.testing.assert_close(both.target[0, :, 0, 3], torch.tensor([0.0625, 0.9375, 0.0, 0.0]), atol=1e-4, rtol=0)
    numbers, _ = taught.diagnose()
    assert numbers == {"share of undecided voxels that are taught": pytest.approx((3 + 4) / (6 + 6))}, "too few samples"


def test_beside_a_drawn_part_the_averages_teach_nothing_of_its_label() -> None:
    """Sure of the tumour everywhere, where a case draws some of it: one voxel of seven, with two voxels beside."""
    said = torch.full((1, 4, 1, 7), -9.0)
    said[:, 2] = 9
    known, taught = objective(lambda number, images: said, ["only"])
    taught.supervised.options["margin"] = 2
    target, patterns = torch.zeros(1, 1, 1, 7).long(), known.patterns(["only"])
    target[..., 0] = 2
    batch = Batch(said[:, :1], [target], ["only"], patterns, torch.tensor(patterns), exchange=Exchange(said[:, :1]))
    (lesson, _) = taught.ask(batch, Progress(0, 10))
    assert lesson.counted.flatten().tolist() == [False, False, False, True, True, True, True]


def test_a_label_that_is_unlearnt_where_it_is_not_drawn_raises_an_alarm() -> None:
    keys = ["spleen", "liver"]
    said = torch.zeros(2, 4, 1, 10)
    said[:, 1] = 8.0  # liver everywhere, of the image that draws it ...
    said[0, 0, 0, 3:] = 16.0  # ... and in three of ten voxels of the other one
    known, taught = objective(lambda number, images: said, keys)
    weak = torch.zeros(2, 1, 1, 10)

    def see(keys: list[str], logits: torch.Tensor) -> None:
        said.copy_(logits)
        patterns = known.patterns(keys)
        target = [torch.zeros(2, 1, 1, 10).long()]
        batch = Batch(weak, target, keys, patterns, torch.tensor(patterns), exchange=Exchange(weak))
        taught.ask(batch, Progress(0, 10))

    both = said.clone()
    for _ in range(20):  # the second sample of a batch is left out: it holds foreground by force
        see(keys, both)
        see(keys[::-1], both.flip(0))
    numbers, warnings = taught.diagnose()
    assert numbers["volume of liver where it is not drawn, as a multiple of where it is"] == pytest.approx(
        0.3, abs=1e-3
    )
    (warning,) = [text for text in warnings if "liver" in text]
    assert warning.startswith("the averages find 0.30 times as much liver where it is not drawn")
    assert taught.diagnose() == ({}, [])


def test_lessons_are_mixed_as_the_images_are() -> None:
    keys = ["spleen", "none"]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 5, generator=generator) * 4
    origin = torch.randint(0, 2, (2, 1, 3, 5), generator=generator)
    known, taught = objective(lambda number, images: logits, keys)
    patterns, weak = known.patterns(keys), torch.zeros(2, 1, 3, 5)
    parts = weak, [torch.zeros(2, 1, 3, 5).long()], keys, patterns, torch.tensor(patterns)
    plain, _ = taught.ask(Batch(*parts, exchange=Exchange(weak)), Progress(0, 10))
    batch = Batch(*parts, exchange=Exchange(weak, [origin]))
    both, _ = taught.ask(batch, Progress(0, 10))
    assert both.target.equal(mixed(plain.target, origin)) and both.counted.equal(mixed(plain.counted, origin))
    step = taught.prepare([], batch, Progress(9, 10), {taught: [both, both]})
    output = Output([torch.randn(2, 4, 3, 5, generator=generator)])
    term = taught.terms(0, [output, output], step)["not drawn"]
    expected = soft_label_loss(
        output.levels[0], both.target, both.counted, regions=False, squared=True, present=both.present
    )
    assert term.value.equal(expected) and term.weight == 0.5


def test_regions_are_taught_where_no_relation_decides() -> None:
    keys = ["w", "all"]
    logits = torch.tensor([9.0, 9.0]).view(1, 2, 1, 1).repeat(2, 1, 1, 3)
    logits[:, 1, 0, 2] = 0.1
    target = torch.zeros(2, 2, 1, 3, dtype=torch.bool)
    target[:, 0, 0, 1:] = True
    known, taught = objective(lambda number, images: logits, keys, REGIONS)
    patterns, weak = known.patterns(keys), torch.zeros(2, 1, 1, 3)
    batch = Batch(weak, [target], keys, patterns, torch.tensor(patterns), exchange=Exchange(weak))
    both, _ = taught.ask(batch, Progress(0, 10))
    # Outside of a whole one there is no core; inside it is unknown, and taught where the averages are sure.
    assert both.counted[0, 1, 0].tolist() == [False, True, False] and not both.counted[0, 0].any()
    assert not both.counted[1].any()
