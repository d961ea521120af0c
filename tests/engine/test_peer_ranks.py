"""What processes with a network each tell each other: values, random numbers, overflows, and that one is lost."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_processes
from test_memory_modes import Dropping
from torch import Tensor, nn
from training import trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.engine.parallel.peer_ranks import PeerRanks
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.parallel.wire import Layout, put_back, take_out
from nnunet_mutual.engine.parallel.worker import _require_networks, share_networks
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Output
from nnunet_mutual.trainers import MutualCorrelationTrainer, PartialTrainer

CPU = torch.device("cpu")


def values(rank: int, store: Any) -> dict[str, Any]:
    ranks = PeerRanks(store, rank, 2, CPU)
    transposed = torch.full((2, 3), float(rank)).T
    ranks.equalise([transposed])
    state = {"network": torch.full((2,), rank), "steps": rank}
    gradients = [torch.ones(2) * (rank + 1), torch.ones(1, 2)]
    ranks.combine(gradients)
    batch = {"data": torch.arange(4.0), "target": [torch.ones(1, dtype=torch.int16)], "keys": np.array(["a", "b"])}
    torch.manual_seed(rank)
    got = ranks.batch(lambda: batch if rank == 0 else {}, CPU)
    return {
        "gathered": ranks.gather("x" * 10**rank),
        "first": ranks.first([rank, None]),
        "equal": transposed,
        "gradients": gradients,
        "owners": ranks.from_owners([state, state, state]),
        "answer": ranks.answer(1, lambda: torch.full((1, 2), 5.0) if rank == 1 else torch.zeros(7)),
        "batch": got,
        "random": torch.rand(3),
    }


def test_what_arrives(tmp_path: Path) -> None:
    found = in_processes(tmp_path, values)
    for one in found:
        assert one["gathered"] == ["x", "x" * 10] and one["first"] == [0, None]
        assert torch.equal(one["equal"], torch.zeros(3, 2))
        assert [g.tolist() for g in one["gradients"]] == [[3, 3], [[2, 2]]], "the sum, once"
        assert [state["steps"] for state in one["owners"]] == [0, 1, 0]
        assert one["owners"][1]["network"].tolist() == [1, 1]
        assert one["answer"].tolist() == [[5, 5]]
        assert one["batch"]["data"].tolist() == [0, 1, 2, 3] and one["batch"]["target"][0].dtype == torch.int16
        assert list(one["batch"]["keys"]) == ["a", "b"]
    assert torch.equal(found[0]["random"], found[1]["random"])


def silent(rank: int, store: Any) -> str:
    ranks = PeerRanks(store, rank, 2, CPU, timeout=timedelta(seconds=1))
    if rank == 1:
        time.sleep(3)
        return ""
    with pytest.raises(MutualError, match=r"process 0 of this training lost another one .*--c"):
        ranks.gather(1)
    return "noticed"


def test_a_silent_process_counts_as_lost(tmp_path: Path) -> None:
    assert in_processes(tmp_path, silent)[0] == "noticed"


def ended(rank: int, store: Any) -> str:
    ranks = PeerRanks(store, rank, 2, CPU)

    def draw() -> dict:
        raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError) as caught:
        ranks.batch(draw, CPU)
    return str(caught.value)


def test_all_hear_that_the_loader_has_ended(tmp_path: Path) -> None:
    assert in_processes(tmp_path, ended) == ["a worker died", "the loader of the first process has ended"]


def dropped(rank: int, store: Any) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(1)
    networks: list[nn.Module] = [Dropping() for _ in range(2)]
    data = torch.randn(8, 1, 4, 4, 4)
    peers = Peers(networks, [], [], None, ranks=PeerRanks(store, rank, 2, CPU))
    ((n, outputs, recorded),) = peers.passes(data, nullcontext)
    assert n == rank and torch.equal(outputs[n].levels[0], recorded[n].levels[0])
    return [output.levels[0] for output in recorded], torch.rand(3)


def test_networks_drop_different_parts_and_go_on_alike(tmp_path: Path) -> None:
    (mine, after), (theirs, also) = in_processes(tmp_path, dropped)
    assert torch.equal(after, also)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    masks = [tuple((x.flatten(1) == 0).all(1).tolist()) for x in mine]
    assert masks[0] != masks[1] and any(masks[0]) and not all(masks[0])


def overflowing(rank: int, store: Any) -> dict[str, Any]:
    return two_steps(PeerRanks(store, rank, 2, CPU))


def two_steps(ranks: Ranks) -> dict[str, Any]:
    """Two networks and a head; in the first step the gradient of network 1 overflows."""
    torch.manual_seed(1)
    networks: list[nn.Module] = [nn.Conv3d(1, 2, 1) for _ in range(2)]
    head = nn.Linear(2, 2)
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (*networks, head)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    peers = Peers(networks, optimizers, [None] * 3, scaler, heads=head, ranks=ranks)
    data = torch.randn(2, 1, 3, 3, 3)
    scales, norms = [], []
    for step in range(2):
        peers.zero_grad()
        for n, outputs, _ in peers.passes(data, nullcontext):
            loss = outputs[n].levels[0].square().mean() * (torch.inf if (step, n) == (0, 1) else 1.0)
            peers.backward(loss + head(outputs[n].levels[0].mean((2, 3, 4)).detach()).square().mean())
        norms.append(peers.clip())
        peers.step()
        scales.append(scaler.get_scale())
    peers.collect()
    weights = [module.state_dict() for module in (*networks, head)]
    return {"scales": scales, "norms": norms, "weights": [w for state in weights for w in state.values()]}


def test_an_overflow_anywhere_lowers_the_scale_everywhere(tmp_path: Path) -> None:
    alone = two_steps(Ranks())
    assert alone["scales"] == [512, 512]
    for found in in_processes(tmp_path, overflowing):
        assert found["scales"] == alone["scales"]
        for mine, theirs in zip(found["norms"], alone["norms"], strict=True):
            torch.testing.assert_close(mine, theirs, equal_nan=True)
        for mine, theirs in zip(found["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_levels_that_nobody_reads_are_not_sent_and_not_a_number() -> None:
    output = Output([torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2)], {4: torch.full((1, 3, 2, 2), 0.1)})
    layout = Layout.of(output, frozenset({1}), half=True)
    parts = layout.parts(output)
    assert [tuple(part.shape) for part in parts] == [(1, 2, 2, 2), (1, 3, 2, 2)]
    assert {part.dtype for part in parts} == {torch.float16}
    received = layout.output(parts)
    assert received.levels[0].shape == (1, 2, 4, 4) and received.levels[0].isnan().all()
    assert torch.equal(received.levels[1], output.levels[1])
    assert received.features[4].dtype == torch.float32 and 0 < (received.features[4] - 0.1).abs().max() < 1e-4
    one = Layout.of(Output(output.levels[:1]), frozenset({1}), half=False)
    assert one.sent == {0}, "a network without deep supervision has one level, which is then the lowest one, too"


def test_a_batch_is_taken_apart_and_put_together() -> None:
    batch = {"data": torch.ones(2), "target": [torch.zeros(1), torch.zeros(2)], "keys": ["a"], "none": []}
    skeleton, tensors = take_out(batch)
    assert len(tensors) == 3
    again = put_back(skeleton, tensors)
    assert again["data"] is batch["data"] and again["keys"] == ["a"] and again["none"] == []
    assert all(a is b for a, b in zip(again["target"], batch["target"], strict=True))


def refused(rank: int, store: Any, preprocessed: Path, kind: Any, size: int) -> str:
    trainer = trainer_for(preprocessed, kind)
    share_networks(trainer, store, rank, size)
    trainer.initialize()
    try:
        _require_networks(trainer)
    except (MutualError, SystemExit) as error:
        return str(error)
    return "accepted"


def test_who_has_nothing_to_distribute_is_told(nnunet_folders: Path) -> None:
    preprocessed = two_stream_dataset(nnunet_folders)
    found = in_processes(nnunet_folders, refused, preprocessed, PartialTrainer, 2)
    assert found[0].startswith("PartialTrainer trains one network") and found[1] == "2"
    found = in_processes(nnunet_folders, refused, preprocessed, MutualCorrelationTrainer, 3, size=3)
    assert "trains 2 networks here, for 3 processes; give --processes 2" in found[0] and found[1:] == ["2", "2"]
