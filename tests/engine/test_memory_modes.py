"""Joint and sequential memory leave the same state behind, not only the same gradients."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from dynamic_network_architectures.building_blocks.regularization import DropPath
from small_unet import unet
from test_peers import gradients, learn
from torch import Tensor, nn
from training import GROUPS, SHORT, assert_same_optimizer, largest_difference, partial_block, trainer_for
from two_streams import two_stream_dataset

import nnunet_mutual.trainers as trainers
from nnunet_mutual.engine.peers import Memory, Peers, unwrap
from nnunet_mutual.objectives import Output
from nnunet_mutual.trainers import MutualPartialTrainer

MODES: tuple[Memory, Memory] = ("joint", "sequential")


class Dropping(nn.Module):
    """A network whose randomness is no dropout layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1)
        self.drop = DropPath(0.5)

    def forward(self, data: Tensor) -> Tensor:
        return self.drop(self.convolution(data))


def one_step(networks: list[nn.Module], memory: Memory, data: Tensor) -> Peers:
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in networks]
    peers = Peers(networks, optimizers, [None] * len(networks), None, memory=memory)
    for n, outputs, _ in peers.passes(data, nullcontext):
        peers.backward(outputs[n].levels[0].square().mean())
    return peers


@pytest.mark.parametrize("norm", [{}, {"momentum": None}], ids=["moving average", "mean of all batches"])
def test_statistics_of_batch_normalisation_move_once_per_step(norm: dict[str, Any]) -> None:
    buffers = {}
    for memory in MODES:
        torch.manual_seed(1)
        networks = [unet(norm_op=nn.BatchNorm3d, norm_op_kwargs=norm) for _ in range(3)]
        data = torch.randn(2, 1, 16, 16, 16)
        one_step(networks, memory, data)
        buffers[memory] = [dict(network.named_buffers()) for network in networks]
    for mine, theirs in zip(*buffers.values(), strict=True):
        assert mine.keys() == theirs.keys() != set()
        assert largest_difference(mine, theirs) == 0
    counted = [value for name, value in buffers["joint"][1].items() if name.endswith("num_batches_tracked")]
    assert counted and all(value == 1 for value in counted)


def test_outputs_of_a_replay_are_those_that_the_others_learnt_from() -> None:
    """Whatever a network draws at random, dropout layers or not."""
    torch.manual_seed(1)
    networks: list[nn.Module] = [Dropping() for _ in range(2)]
    peers = Peers(networks, [], [], None, memory="sequential")
    data = torch.randn(8, 1, 4, 4, 4)
    dropped = set()
    for n, outputs, recorded in peers.passes(data, nullcontext):
        assert torch.equal(outputs[n].levels[0], recorded[n].levels[0])
        dropped.add(tuple((recorded[n].levels[0].flatten(1) == 0).all(1).tolist()))
    assert len(dropped) == 2, "each network draws its own"
    assert any(any(mask) and not all(mask) for mask in dropped), "something is dropped, and something is not"


def test_passes_without_a_graph_come_first() -> None:
    networks: list[nn.Module] = [nn.Conv3d(1, 2, 3) for _ in range(3)]
    ran: list[tuple[int, bool]] = []
    for n, network in enumerate(networks):
        network.register_forward_hook(lambda *_, n=n: ran.append((n, torch.is_grad_enabled())))
    one_step(networks, "sequential", torch.randn(1, 1, 4, 4, 4))
    assert ran == [(2, False), (1, False), (0, True), (1, True), (2, True)]


def test_joint_networks_run_backward_in_the_opposite_order() -> None:
    """As CUDA graphs they share memory, which is right in this order only."""
    networks: list[nn.Module] = [nn.Conv3d(1, 2, 3) for _ in range(3)]
    ran: list[tuple[str, int]] = []
    for n, network in enumerate(networks):
        network.register_forward_hook(lambda *_, n=n: ran.append(("forward", n)))
        network.register_full_backward_hook(lambda *_, n=n: ran.append(("backward", n)))
    one_step(networks, "joint", torch.randn(1, 1, 4, 4, 4))
    assert ran == [("forward", n) for n in (2, 1, 0)] + [("backward", n) for n in (0, 1, 2)]


class Recorded:
    """Stands for a recorded pass, which needs a GPU."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]):
        self.network, self.shape, self.calls = network, shape, 0

    def fits(self, data: Tensor) -> bool:
        return data.shape == self.shape

    def __call__(self, data: Tensor) -> Output:
        self.calls += 1
        return Output([self.network(data)])


@pytest.mark.parametrize("size, calls", [(4, 1), (5, 0)], ids=["of the recording", "of another shape"])
def test_recorded_passes_are_replayed_for_data_like_theirs(size: int, calls: int) -> None:
    networks: list[nn.Module] = [nn.Conv3d(1, 2, 3) for _ in range(2)]
    recorded: dict[int, Any] = {n: Recorded(network, (1, 1, 4, 4, 4)) for n, network in enumerate(networks)}
    peers = Peers(networks, [torch.optim.SGD(network.parameters(), 0.1) for network in networks], [None] * 2, None)
    peers.recorded.update(recorded)
    for n, outputs, _ in peers.passes(torch.randn(1, 1, size, size, size), nullcontext):
        peers.backward(outputs[n].levels[0].square().mean())
    assert [own.calls for own in recorded.values()] == [calls, calls]
    assert all(p.grad is not None for network in networks for p in network.parameters())


@pytest.mark.parametrize("name", ["MeanTeacherTrainer", "MutualPrototypeTrainer"])
def test_teachers_are_asked_before_a_network_has_a_graph(name: str, nnunet_folders: Path) -> None:
    trainer = trainer_for(two_stream_dataset(nnunet_folders, settings=SHORT), getattr(trainers, name))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    ran: list[bool] = []
    for network in (trainer.peers.networks[0], trainer.peers.averages[0].network):
        first = unwrap(network).encoder.stages[0]
        first.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    trainer.train_step(next(trainer.dataloader_train))
    assert ran == [False, True]


@pytest.mark.parametrize("name", ["difference projected", "similarity"])
def test_random_numbers_go_on_alike(name: str) -> None:
    after = []
    for memory in MODES:
        learn(memory, name, dropout=0.5)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def test_dropout_of_networks_with_heads_is_replayed() -> None:
    (joint, values), (alone, again) = (learn(m, "difference projected", dropout=0.5) for m in MODES)
    assert values == again
    mine, theirs = gradients(joint), gradients(alone)
    assert mine.keys() == theirs.keys() and any(name.startswith("heads") for name in mine)
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-7


def test_states_hold_every_optimiser() -> None:
    """Momentum of the heads' own optimiser included."""
    made = []
    for _ in range(2):
        peers, _ = learn("joint", "similarity")
        for optimizer in peers.optimizers:
            optimizer.param_groups[0]["momentum"] = 0.9
        made.append(peers)
    first, second = made
    first.clip()
    first.step()
    second.load_state_dict(first.state_dict())
    assert len(first.optimizers) == 3
    for mine, theirs in zip(second.optimizers, first.optimizers, strict=True):
        assert_same_optimizer(mine, theirs)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training in both modes."""
    made = {}
    for memory in MODES:
        root = tmp_path_factory.mktemp(memory)
        settings = {**SHORT, **GROUPS, "num_epochs": 5, "memory": memory, "ramp": {"start": 0.0, "end": 0.1}}
        settings["pseudo_labels"] = {"label": False, "voxel": False}
        with pytest.MonkeyPatch.context() as patch:
            for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                patch.setenv(name, str(root / name))
            preprocessed = tiny.make_dataset(root, block=partial_block(), settings=settings)
            trainer = trainer_for(preprocessed, MutualPartialTrainer)
            trainer.run_training()
        assert trainer.peers.memory == memory
        made[memory] = trainer
    return made


def test_whole_trainings_are_the_same(trainings: dict[str, Any]) -> None:
    joint, alone = (trainings[memory] for memory in MODES)
    stored = [(Path(t.output_folder) / "pseudo_labels" / "decisions.csv").read_text() for t in (joint, alone)]
    assert stored[0] == stored[1]
    assert joint.deployed == alone.deployed
    for mine, theirs in zip(alone.peers.networks, joint.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), theirs.state_dict()) < 1e-5
    assert largest_difference(*(n.state_dict() for n in joint.peers.networks)) > 1e-3, "they differ from each other"
