"""How many samples a second the loaders of the trainers deliver against stock nnU-Net's, by number of worker processes.

    python benchmarks/loaders.py --out benchmarks/evidence/loaders.json      # then: loaders.py --table

All loaders draw from the same generated dataset, in turns; those that wait for their turn have filled their queue and
stand still. Counted are the processor's seconds of a loader's workers and of the process that collects its batches,
since other programs may be at work; clocks stand beside them. Augmentation is random, so a ratio is off by a few
hundredths.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import table
from settings import HERE, point_nnunet_to, read_json, write_json

EVIDENCE = HERE / "evidence" / "loaders.json"
LEAST = 0.95  # samples per second of stock's
KINDS = {"mutual_partial_joint": "pools", "mean_teacher": "two streams", "taught": "two streams of pools, boxes"}
QUEUE = 6  # batches that nnU-Net keeps ready
TICK = os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.table:
        table.put("loaders", render(read_json(EVIDENCE)) if EVIDENCE.is_file() else "not run")
        return 0
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_loaders_") as folder:
        work = Path(arguments.work or folder)
        point_nnunet_to(work)
        found = run(work, arguments)
    if arguments.out:
        write_json(Path(arguments.out), found)
    print(render(found))
    return int(any(ratio < LEAST for own in found["ratio"].values() for ratio in own.values()))


def run(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all loaders with each number of workers."""
    from cost.dataset import in_parts, make_dataset
    from training import hardware, versions

    make_dataset(work, in_parts(2), plans="small", size=(48, 64, 48), labels=4, parts=2)
    seconds = {str(number): measure(work, number, arguments.batches) for number in arguments.workers}
    ratio = {
        number: {name: round(own["stock"]["processor"] / own[name]["processor"], 3) for name in own if name != "stock"}
        for number, own in seconds.items()
    }
    return {
        "batches": arguments.batches,
        "seconds_per_sample": seconds,
        "ratio": ratio,
        "hardware": hardware("cpu"),
        "versions": versions(),
    }


def measure(work: Path, workers: int, batches: int) -> dict[str, dict[str, float]]:
    """Returns seconds per sample of each loader, of the processor and by the clock, with so many workers."""
    import torch
    from cost.trainers import recipes, start

    from nnunet_mutual.batches.loading import stop_loaders

    os.environ["nnUNet_n_proc_DA"] = str(workers)
    known = recipes(2, [2])
    trainers = {
        name: start(known[name], work, torch.device("cpu"), mixed=False, compiled=False) for name in ("stock", *KINDS)
    }
    own = {name: [process.pid for process in t.dataloader_train._processes] for name, t in trainers.items()}
    samples = {name: len(next(trainer.dataloader_train)["keys"]) for name, trainer in trainers.items()}
    spent = {name: {"processor": 0.0, "clock": 0.0} for name in trainers}
    turn = 2 * QUEUE
    for _ in range(max(1, batches // turn)):
        for name, trainer in trainers.items():
            _rested(own[name])
            before, started, began = processor(own[name]), time.process_time(), time.monotonic()
            for _ in range(turn):
                next(trainer.dataloader_train)
            spent[name]["clock"] += time.monotonic() - began
            collected = time.process_time() - started
            _rested(own[name])  # the queue is as full as before
            spent[name]["processor"] += processor(own[name]) - before + collected
    for trainer in trainers.values():
        stop_loaders((trainer.dataloader_train, trainer.dataloader_val))
    drawn = turn * max(1, batches // turn)
    print(f"{workers} worker(s): done", flush=True)
    return {name: {k: round(s / drawn / samples[name], 5) for k, s in times.items()} for name, times in spent.items()}


def processor(processes: Iterable[int]) -> float:
    """Returns the processor's seconds of some processes so far."""
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def _rested(processes: list[int], pause: float = 2.0) -> None:
    """Waits until the workers have nothing to do but to look whether there is room in the queue."""
    before = processor(processes)
    while True:
        time.sleep(pause)
        now = processor(processes)
        if now - before < 0.05 * pause * len(processes):
            return
        before = now


def render(found: dict[str, Any]) -> str:
    """Returns the table: samples per second in those of stock's."""
    numbers = list(found["ratio"])
    lines = table.heading(["loader", *(f"{n} worker(s)" for n in numbers)])
    for name, kind in KINDS.items():
        cells = []
        for n in numbers:
            own = found["seconds_per_sample"][n]
            clock = own["stock"]["clock"] / own[name]["clock"]
            cells.append(f"{found['ratio'][n][name]:.2f} ({clock:.2f})")
        lines.append(table.row([f"`{name}`: {kind}", *cells]))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4], help="numbers of processes (%(default)s)")
    parser.add_argument("--batches", type=int, default=120, help="of each loader (%(default)s)")
    parser.add_argument("--work", help="keep the generated dataset in this folder")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table into README.md")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
