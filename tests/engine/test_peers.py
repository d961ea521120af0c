"""Networks that learn together: the same gradients jointly and one graph at a time, features, heads, states."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from partial_oracle import dataset
from prepared import prepare
from small_unet import unet
from torch import Tensor, nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.log import Forecast
from nnunet_mutual.engine.networks import joint_fits
from nnunet_mutual.engine.peers import Memory, Peers, unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.tap import FeatureTap, feature_stage
from nnunet_mutual.objectives import Batch, Objective, Progress, collect_terms
from nnunet_mutual.objectives.full_organs import SimilarityObjective
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.partial_organs import DifferenceObjective, PartialLoss, Ramp
from nnunet_mutual.objectives.supervised import SupervisedObjective, deep_supervision_weights

PLAIN = dataset({"liver": 1, "spleen": 2}, {"a": {"annotated": ["liver"]}, "b": {"annotated": ["spleen"]}})
REGIONS = dataset({"left": [1, 1], "right": [2, 2]}, {"a": {"annotated": ["left"]}, "b": {"annotated": ["right"]}})
GROUPS = [frozenset({"liver"}), frozenset({"spleen"})]
SIDES = [frozenset({"left"}), frozenset({"right"})]
HALFWAY = Progress(50, 100)


def supervision(known: Knowledge) -> SupervisedObjective:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("no batch here is fully annotated")

    weights = deep_supervision_weights(2, keep_last=False)
    return SupervisedObjective(known, refuse, weights, ignore_label=None, batch_dice=False)


def objective(name: str, known: Knowledge, groups: Sequence[frozenset[str]]) -> Objective:
    supervised = supervision(known)
    torch.manual_seed(3)
    common: dict[str, Any] = {"feature_size": 4, "rise": Ramp(0.05, 0.25)}
    if name == "supervised":
        return supervised
    if name == "similarity":
        made = SimilarityObjective(known, supervised, groups, loss=PartialLoss(ps=1.0, dfs=0.5), **common)
        classes = made.scores.shape[2]
        made.scores[:] = torch.tensor([0.9, 0.4])[None, :, None].expand(2, 2, classes)  # network 0 teaches network 1
        return made
    form: Any = name.removeprefix("difference ")
    made = DifferenceObjective(
        known, supervised, groups, loss=PartialLoss(pd=1.0, fd=0.5), form=form, foreground_from=1, **common
    )
    made.bank[:] = torch.randn(made.bank.shape)
    made.filled[:] = True
    return made


def batch_for(known: Knowledge, regions: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(2, 1, 16, 16, 16, dtype=torch.long)
    labels[0, :, 2:10, 2:12, 2:12] = 1  # of case a: liver, or left
    labels[1, :, 5:14, 4:15, 3:13] = 2  # of case b: spleen, or right
    target = torch.cat([labels == 1, labels == 2], 1) if regions else labels
    levels = [target, target[:, :, ::2, ::2, ::2]]
    patterns = known.patterns(["a", "b"])
    data = torch.randn(2, 1, 16, 16, 16, generator=generator)
    return Batch(data, levels, ["a", "b"], patterns, torch.tensor(patterns))


def learn(memory: Memory, name: str, *, regions: bool = False, dropout: float = 0.0) -> tuple[Peers, list[Any]]:
    """One step without the optimiser; returns the networks with their gradients, and the values of all terms."""
    table = AnnotationTable.from_dataset_json(REGIONS if regions else PLAIN)
    outputs = 2 if regions else 3
    known = Knowledge(table, ["a", "b"], outputs)
    made = objective(name, known, SIDES if regions else GROUPS)
    torch.manual_seed(1)
    networks = [FeatureTap(unet(outputs=outputs, dropout=dropout), {4: 1}) for _ in range(2)]
    trained = [*networks, made.heads] if made.heads is not None else networks
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in trained]
    peers = Peers(networks, optimizers, [None] * len(trained), None, memory=memory, heads=made.heads)
    batch, values = batch_for(known, regions), []
    torch.manual_seed(2)
    for n, seen, recorded in peers.passes(batch.data, nullcontext):
        if n == 0:
            step = prepare(made, recorded, batch, HALFWAY)
        terms = collect_terms([made], n, seen, [step])
        peers.backward(sum(term.value * term.weight for term in terms.values()))
        values.append({term: float(t.value.detach()) for term, t in terms.items()})
    return peers, values


def gradients(peers: Peers) -> dict[str, Tensor]:
    modules = {f"network {i}": network for i, network in enumerate(peers.networks)}
    if peers.heads is not None:
        modules["heads"] = peers.heads
    return {
        f"{m}.{n}": p.grad for m, module in modules.items() for n, p in module.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("regions", [False, True], ids=["plain", "regions"])
@pytest.mark.parametrize("name", ["supervised", "difference projected", "difference own", "similarity"])
def test_sequential_gradients_are_the_joint_ones(name: str, regions: bool) -> None:
    joint, values = learn("joint", name, regions=regions)
    alone, again = learn("sequential", name, regions=regions)
    assert values == again
    mine, theirs = gradients(joint), gradients(alone)
    assert mine.keys() == theirs.keys() != set()
    for parameter, gradient in mine.items():
        torch.testing.assert_close(theirs[parameter], gradient, rtol=0, atol=1e-7, msg=parameter)
    terms = set(values[0]) - {"seg", "ps", "supervised"}
    nonzero = {t for t in terms if any(value[t] != 0 for value in values)}
    assert nonzero == terms, "every mutual term is at work, or the comparison says nothing about it"


def test_dropout_is_replayed() -> None:
    (joint, values), (alone, again) = (learn(m, "difference own", dropout=0.5) for m in ("joint", "sequential"))
    assert values == again
    mine, theirs = gradients(joint), gradients(alone)
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-7
    _, without = learn("joint", "difference own")
    assert without != values, "the dropout does something"


def test_heads_get_the_gradient_of_the_sum() -> None:
    """In both modes that of all terms of all networks, each once."""
    peers, values = learn("joint", "difference projected")
    assert peers.heads is not None
    assert [value["fd"] > 0 for value in values] == [True, True]
    table = AnnotationTable.from_dataset_json(PLAIN)
    known = Knowledge(table, ["a", "b"], 3)
    made = objective("difference projected", known, GROUPS)
    torch.manual_seed(1)
    networks = [FeatureTap(unet(), {4: 1}) for _ in range(2)]
    batch = batch_for(known, False)
    seen = [peer for *_, peer in Peers(networks, [], [], None).passes(batch.data, nullcontext)][0]
    step = prepare(made, seen, batch, HALFWAY)
    total = sum(made.terms(n, seen, step)["fd"].value * 0.5 for n in range(2))
    assert made.heads is not None
    (expected,) = torch.autograd.grad(total, list(made.heads.parameters()))
    torch.testing.assert_close(next(peers.heads.parameters()).grad, expected)


@pytest.mark.parametrize(("memory", "expected"), [("joint", 2), ("sequential", 1)])
def test_how_many_graphs_live_at_a_time(memory: Memory, expected: int) -> None:
    networks = [unet() for _ in range(2)]
    peers = Peers(networks, [torch.optim.SGD(n.parameters(), 0.1) for n in networks], [None] * 2, None, memory=memory)
    graphs: list[weakref.ref] = []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if x.requires_grad:
                kept = torch.ones(1)
                ctx.save_for_backward(kept)
                graphs.append(weakref.ref(kept))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    for network in networks:
        network.register_forward_hook(lambda _, __, levels: [Mark.apply(levels[0]), *levels[1:]])
    alive = []
    for n, outputs, _ in peers.passes(torch.randn(1, 1, 8, 8, 8), nullcontext):
        gc.collect()
        alive.append(sum(graph() is not None for graph in graphs))
        peers.backward(outputs[n].levels[0].mean())
        del outputs
    assert max(alive) == expected


def test_clipping_and_states_are_per_network() -> None:
    peers, _ = learn("joint", "similarity")
    for parameter in peers.networks[0].parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad * 1e4
    before = [torch.cat([p.grad.flatten() for p in n.parameters() if p.grad is not None]) for n in peers.networks]
    norms = peers.clip()
    after = [torch.cat([p.grad.flatten() for p in n.parameters() if p.grad is not None]) for n in peers.networks]
    torch.testing.assert_close(norms[:2], torch.stack([b.norm() for b in before]))
    assert norms.shape == (3,) and after[0].norm() == pytest.approx(12, rel=1e-4)
    torch.testing.assert_close(after[1], before[1])
    peers.step()
    state = peers.state_dict()
    other, _ = learn("joint", "similarity")
    assert not torch.equal(next(other.networks[0].parameters()), next(peers.networks[0].parameters()))
    other.load_state_dict(state)
    for mine, theirs in zip([*other.networks, other.heads], [*peers.networks, peers.heads], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert "encoder.stages.0.0.convs.0.conv.weight" in state["networks"][0], "as stock nnU-Net names them"


@pytest.mark.parametrize("deep", [True, False], ids=["deep supervision", "one output"])
@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_a_tap_changes_nothing(kind: type[nn.Module], deep: bool) -> None:
    network = unet(kind, deep_supervision=deep)
    tap = FeatureTap(network, {4: 0, 2: 1})
    data = torch.randn(1, 1, 16, 16, 16)
    expected = network(data)
    levels, features = tap(data)
    for mine, theirs in zip(levels, expected if deep else [expected], strict=True):
        assert torch.equal(mine, theirs)
    assert {stride: values.shape for stride, values in features.items()} == {4: (1, 6, 8, 8, 8), 2: (1, 4, 16, 16, 16)}
    assert all(values.requires_grad for values in features.values())
    tap.eval()
    plain = tap(data)
    assert torch.equal(plain[0] if deep else plain, expected[0] if deep else expected)
    assert unwrap(tap) is network


def test_the_tapped_stage_has_stride_four_at_most() -> None:
    assert feature_stage([[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]) == 1  # strides 8, 4, 2, 1
    assert feature_stage([[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]) == 0  # 2 4 4, then 1 2 2
    assert feature_stage([[1, 1], [4, 2], [2, 2], [2, 2]]) == 1  # 8 4, then 4 2
    assert feature_stage([1, 8, 2]) == 1


def test_a_network_without_decoder_stages_is_refused() -> None:
    with pytest.raises(MutualError, match="Linear has no decoder stages to take features from"):
        FeatureTap(nn.Linear(2, 2), {4: 0})


def test_joint_memory_is_chosen_where_it_fits() -> None:
    assert joint_fits(peak=5, kept=1, networks=2, total=10)  # 1 + 2 * 4 = 9 of 9
    assert not joint_fits(peak=6, kept=1, networks=2, total=10)
    assert not joint_fits(peak=5, kept=1, networks=3, total=10)


def test_the_forecast_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0])  # at the fifth and the twentieth step
    monkeypatch.setattr("nnunet_mutual.engine.log.time", lambda: next(clock))
    forecast = Forecast(620)
    said = [forecast.step(torch.device("cpu")) for _ in range(40)]
    assert [i for i, text in enumerate(said, 1) if text] == [20]
    assert said[19] is not None and said[19].startswith("2.00 s per training step: about 20 min")
