"""One network per process against one network alone: bytes and time of a step, and what they mean for GPUs.

    python benchmarks/peer_parallel.py --out peer_parallel.json

Two processes of one thread train the two networks of a trainer on the CPU (gloo), on a generated dataset and with a
network small enough that communication shows. In turn, each process makes a step of its network alone (supervised, no
partner) and one with its partner. Processor seconds of a process do not count what other programs take or its waiting;
the slower process decides. Seconds by the clock are given, too; they mean little on a machine with other work on it.

The model needs no measurement but the bytes, which it computes from plans and compares with those that were counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty
from typing import Any

from settings import CONFIGURATION, point_nnunet_to, read_json, write_json

ROUNDS, BATCHES = 12, 4
TRAINERS = {
    "MutualPartialTrainer": {"stage1_networks": "groups"},
    "MutualCorrelationTrainer": {},
    "MutualCrossModalTrainer": {"form": "contrast"},
}
# Published bandwidths of one direction, bytes per second, and the share of it that a broadcast is assumed to reach.
LINKS = {
    "NVLink 4 (900 GB/s in both directions)": 450e9,
    "PCIe 5.0 x16": 64e9,
    "PCIe 4.0 x16": 32e9,
    "two nodes, InfiniBand 400 Gb/s": 50e9,
    "two nodes, Ethernet 25 Gb/s": 25e9 / 8,
}
REACHED, MESSAGE, HOST = 0.7, 30e-6, 1.5e-3  # share; seconds per broadcast; seconds per step for headers through gloo
# Hours of 1000 epochs of 250 steps on one A100 PCIe, documentation/resenc_presets.md of nnU-Net: default, ResEnc L.
STEP_SECONDS = {"default plans, 128³": 9 * 3600 / 250_000, "ResEnc L, 160³": 35 * 3600 / 250_000}
PATCH = {"default plans, 128³": 128, "ResEnc L, 160³": 160}
GOAL = 1.15


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured steps of each kind (%(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_peers_") as folder:
        work = Path(folder)
        prepare(work)
        measured = {name: measure(work, name, arguments.rounds) for name in TRAINERS}
    from training import hardware, versions

    result = {
        "measured": measured,
        "model": model(),
        "hardware": {**hardware(), "note": "gloo, two processes of one thread, other trainings beside them"},
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(Path(arguments.out), result)
    return 0


def prepare(work: Path) -> None:
    """Makes the datasets of step.py."""
    from cost.dataset import BY_GROUP, in_parts, make_dataset

    point_nnunet_to(work)
    for dataset in (in_parts(2), BY_GROUP):
        make_dataset(work, dataset, plans="small", size=(48, 64, 48), labels=4, parts=2)
    os.environ["nnUNet_n_proc_DA"] = "0"


def measure(work: Path, name: str, rounds: int) -> dict[str, Any]:
    """Returns seconds of both kinds of steps, by the slower process, and bytes."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    store = work / f"store_{name}"
    processes = [context.Process(target=one_process, args=(rank, store, work, name, rounds, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found: list[dict[str, Any]] = []
    while len(found) < len(processes):
        try:
            found.append(queue.get(timeout=5))
        except Empty:
            if any(process.exitcode for process in processes):
                raise SystemExit(f"error: a process of {name} ended; what it said is above") from None
    for process in processes:
        process.join()
    slower = {
        kind: {clock: max(one[kind][clock] for one in found) for clock in ("processor", "wall")}
        for kind in ("alone", "together")
    }
    received = found[0]["received"]
    return {
        "seconds": slower,
        "ratio_processor": round(slower["together"]["processor"] / slower["alone"]["processor"], 3),
        "ratio_wall": round(slower["together"]["wall"] / slower["alone"]["wall"], 3),
        "bytes_received_per_step": received,
        "bytes_computed": exchanged(
            name, found[0]["patch"], found[0]["batch"], found[0]["outputs"], found[0]["channels"], 4
        ),
        "transfer_seconds": max(one["transfer"] for one in found),
        "share_of_transfer": round(max(one["transfer"] for one in found) / slower["alone"]["processor"], 3),
        "rounds": rounds,
    }


def one_process(rank: int, store: Path, work: Path, name: str, rounds: int, queue: Any) -> None:
    """Trains one of the two networks, alone and together."""
    import torch

    from nnunet_mutual.engine.networks import feature_channels, make_peers

    torch.set_num_threads(1)
    together = start(work, name, (torch.distributed.FileStore(str(store), 2), rank))
    alone = start(work, name, None)
    alone.build_objectives = lambda: [alone.supervised]
    alone.build_peers = lambda: make_peers(alone, 1)
    ranks = together.ranks
    for trainer in (together, alone):
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    batches = [ranks.batch(lambda: next(together.dataloader_train), torch.device("cpu")) for _ in range(BATCHES)]
    seconds: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    transfer: list[float] = []
    exchange = ranks.exchange

    def timed(*values: Any) -> Any:
        ranks.barrier()  # so that waiting for the slower process does not count as transfer
        begun = time.perf_counter()
        found = exchange(*values)
        transfer.append(time.perf_counter() - begun)
        return found

    for i in range(rounds + 2):
        for kind, trainer in (("alone", alone), ("together", together)):
            ranks.exchange = timed if i % 2 else exchange
            ranks.barrier()
            begun = time.process_time(), time.perf_counter()
            trainer.train_step(batches[i % BATCHES])
            if i >= 2:
                seconds[kind].append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    received = ranks._bytes / ranks._steps
    configuration = together.configuration_manager
    strides = sorted({s for objective in together.objectives for s in objective.feature_strides})
    queue.put(
        {
            **{
                kind: {
                    "processor": statistics.median(own for own, _ in values),
                    "wall": statistics.median(wall for _, wall in values),
                }
                for kind, values in seconds.items()
            },
            "transfer": statistics.median(transfer),
            "received": received,
            "patch": list(configuration.patch_size),
            "batch": len(batches[0]["keys"]),
            "outputs": together.label_manager.num_segmentation_heads,
            "channels": [feature_channels(together, stride) for stride in strides],
        }
    )
    ranks.barrier()


def start(work: Path, name: str, place: Any) -> Any:
    """Returns a trainer that is not initialised yet, one of two processes or alone."""
    import torch
    from cost.dataset import BY_GROUP, in_parts

    from nnunet_mutual import trainers
    from nnunet_mutual.engine.parallel.worker import share_networks
    from nnunet_mutual.trainers.base import MutualTrainer

    kind = getattr(trainers, name)
    if place is None:  # which network may be deployed follows from the data, in a training of several
        one = {"candidates": (0,), "__init__": kind.__init__, "on_train_start": MutualTrainer.on_train_start}
        kind = type(name, (kind,), one)
    folder = work / "nnUNet_preprocessed" / (BY_GROUP if kind.by_group else in_parts(2))
    plans = read_json(folder / "nnUNetPlans.json")
    plans["configurations"][CONFIGURATION]["mutual"] = {"amp": "off", "seed": 0, **TRAINERS[name]}
    plans["continue_training"] = False
    made = kind(plans, CONFIGURATION, "all", read_json(folder / "dataset.json"), torch.device("cpu"))
    made.logger.plot_progress_png = lambda folder: None
    if place is not None:
        share_networks(made, place[0], place[1], 2)
    return made


def exchanged(name: str, patch: list[int], batch: int, outputs: int, channels: list[int], size: int) -> int:
    """Returns the bytes that one network sends to each of the others in a step.

    Args:
        name: of the trainer.
        patch: voxels.
        batch: samples.
        outputs: channels of the logits.
        channels: of the features that the trainer compares.
        size: bytes of a number.
    """
    voxels = batch * patch[0] * patch[1] * patch[2]
    if name == "MutualPartialTrainer":  # logits at half the resolution, features of stride 4
        return size * (voxels // 8 * outputs + voxels // 64 * sum(channels))
    return size * voxels * (outputs + sum(channels))  # logits, and features at full resolution if there are any


def model() -> list[dict[str, Any]]:
    """Returns the wall clock of a step of P networks on P GPUs, in steps of one network alone."""
    rows = []
    for network, alone in STEP_SECONDS.items():
        patch, found = [PATCH[network]] * 3, {}
        found["MutualPartialTrainer, 16 labels"] = (
            exchanged("MutualPartialTrainer", patch, 2, 17, [128], 2),
            (2, 4, 8, 16),
        )
        found["MutualCorrelationTrainer, 3 labels"] = exchanged("MutualCorrelationTrainer", patch, 2, 4, [32], 2), (2,)
        found["MutualCrossModalTrainer, 3 labels"] = exchanged("MutualCrossModalTrainer", patch, 2, 4, [], 2), (2, 4)
        for trainer, (sent, numbers) in found.items():
            for link, bandwidth in LINKS.items():
                ratios = {}
                for number in numbers:
                    transfer = number * (sent / (REACHED * bandwidth) + 4 * MESSAGE) + HOST
                    ratios[str(number)] = round(1 + transfer / alone, 3)
                rows.append(
                    {
                        "network": network,
                        "trainer": trainer,
                        "link": link,
                        "megabytes_sent_by_each": round(sent / 1e6, 1),
                        "step_of_one_network_seconds": round(alone, 3),
                        "wall_clock_by_networks": ratios,
                        "within_goal": all(ratio <= GOAL for ratio in ratios.values()),
                    }
                )
    return rows


if __name__ == "__main__":
    sys.exit(main())
