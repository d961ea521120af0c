"""What a trainer costs against stock nnU-Net: one step, its memory, a batch of the loader, a validation batch.

    python benchmarks/step.py --out benchmarks/evidence/step/NAME.json

All trainers get the same generated dataset, the same plans, the same batches and the same precision; their calls
alternate, so that whatever else the machine does hits all. Time is the median over the rounds, of one thread on a CPU
its own processor seconds. Memory is counted, not sampled: parameters, gradients, optimiser state and the most that
autograd keeps at one time for the backward pass; on a GPU the allocator's peak stands beside it. Counted, too: how
often a step waits for the device, and what torch.compile compiles again after it has seen every batch.
MutualPartialTrainer is measured in its first stage, with a network for each part of the labels. Trainers with
unlabelled images get batches of their own; where these hold more patches than stock's, time and kept memory count per
patch. MutualCrossModalTrainer has two groups, of one channel each. "separate" compares with one stock training per
network, one after the other, loader included, unless it was left out.

With --explain, the share of each part of a step in its time, by torch's profiler, in place of all that: of networks
that are neither compiled nor recorded as CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import point_nnunet_to, write_json

PRECISIONS = ("float32", "mixed")


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.table:
        import table
        from cost.table import render, render_explained

        table.put("step", render())
        table.put("explained", render_explained())
        return 0
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_step_") as folder:
        work = Path(arguments.work or folder)
        point_nnunet_to(work)
        result = run(work, arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(Path(arguments.out), result)
        kept = "explained" if arguments.explain else "step"
        print(f"Next: copy it to benchmarks/evidence/{kept}, then python {Path(__file__).name} --table")
    return report(result)


def run(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the datasets and measures every combination of precision and compilation that was asked for."""
    import torch
    from cost.explaining import BARS as SHARES
    from cost.explaining import explain
    from cost.measuring import measure
    from cost.trainers import BARS
    from training import hardware, versions

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = make_datasets(work, arguments)
    os.environ.update(nnUNet_n_proc_DA="0")  # only now: nnU-Net's planner needs at least one process
    on_gpu = device.type == "cuda"
    mixed = [name == "mixed" for name in arguments.precision or [PRECISIONS[on_gpu]]]
    if arguments.explain:
        bars: dict[str, Any] = {"not in networks": SHARES[arguments.plans]}
        found = {"explained": [explain(chosen, work, device, mixed=m, steps=arguments.pairs) for m in mixed]}
    else:
        bars = BARS
        compiled = [mode == "on" for mode in arguments.compile or [("off", "on")[on_gpu]]]
        graphs = arguments.cuda_graphs or [("off", "auto")[on_gpu]]
        draws = 3 * arguments.pairs if arguments.draws is None else arguments.draws
        kinds = [{"mixed": m, "compiled": c, "graphs": g} for m in mixed for c in compiled for g in graphs]
        found = {"measured": [measure(chosen, work, device, **k, pairs=arguments.pairs, draws=draws) for k in kinds]}
    return {
        "plans": arguments.plans,
        "labels": arguments.labels,
        "annotated": f"one of {arguments.parts} parts",
        "pairs": arguments.pairs,
        "bars": bars,
        **found,
        "hardware": hardware(device.type),
        "versions": versions(),
    }


def make_datasets(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the datasets of the trainers that were asked for; returns these, by name."""
    from cost.dataset import BY_GROUP, in_parts, make_dataset
    from cost.trainers import WITHOUT_OCC, recipes

    chosen = recipes(arguments.parts, arguments.networks)
    if arguments.only:
        kept = {"stock", *arguments.only, *([WITHOUT_OCC] if "mutual_correlation_joint" in arguments.only else ())}
        unknown = kept - chosen.keys()
        if unknown:
            raise SystemExit(f"error: nothing is called {', '.join(sorted(unknown))}; known: {', '.join(chosen)}")
        chosen = {name: recipe for name, recipe in chosen.items() if name in kept}
    parts = {in_parts(n): n for n in (arguments.parts, *arguments.networks)} | {BY_GROUP: arguments.parts}
    for name in sorted({recipe.dataset for recipe in chosen.values()}):
        options = {"plans": arguments.plans, "size": arguments.size, "labels": arguments.labels}
        make_dataset(work, name, parts=parts[name], **options)
    return chosen


def report(result: dict[str, Any]) -> int:
    """Prints the ratios, or the shares, beside their bars and returns the exit status, 1 if one is too high."""
    above = 0
    for measured in result.get("measured", []):
        how = "compiled" if measured["compiled"] else "eager"
        print(f"\n{measured['precision']}, {how}, CUDA graphs {measured['cuda_graphs']}")
        for trainer, ratios in measured["ratio"].items():
            for quantity, ratio in ratios.items():
                above += said(trainer, quantity, ratio, "x stock", result["bars"].get(trainer, {}).get(quantity))
    for explained in result.get("explained", []):
        print(f"\n{explained['precision']}")
        for trainer, shares in explained["shares"].items():
            for part, share in shares.items():
                above += said(trainer, part, share, "of a step", result["bars"].get(part))
    print(f"{above} numbers are above their bars")
    return int(above > 0)


def said(trainer: str, quantity: str, number: float, unit: str, bar: float | None) -> bool:
    """Prints a number and returns whether it is above its bar."""
    verdict = "" if bar is None else f" (bar {bar:.2f}): {'ok' if number <= bar else 'TOO MUCH'}"
    print(f"{trainer:32s} {quantity:15s} {number:.3f} {unit}{verdict}")
    return bar is not None and number > bar


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", choices=("small", "full"), default="small", help="small network, or what nnU-Net plans"
    )
    parser.add_argument(
        "--size", nargs=3, type=int, default=(48, 64, 48), metavar=("Z", "Y", "X"), help="of the images, voxels"
    )
    parser.add_argument("--labels", type=int, default=4, help="number of foreground labels")
    parser.add_argument("--parts", type=int, default=2, help="into which the labels are divided; a case annotates one")
    parser.add_argument("--networks", nargs="+", type=int, default=[2], help="numbers of networks, such as 1 2 3 4")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: what nnU-Net takes on the device")
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), help="likewise")
    parser.add_argument("--cuda-graphs", nargs="+", choices=("auto", "on", "off"), help="default: auto on a GPU")
    parser.add_argument("--pairs", type=int, default=30, help="measured pairs of steps")
    parser.add_argument(
        "--draws", type=int, help="measured batches of the loader (three times the pairs); 0 leaves it out"
    )
    parser.add_argument("--only", nargs="+", help="names of what to measure beside stock, as in the table")
    parser.add_argument("--explain", action="store_true", help="which part of a step takes how much of it")
    parser.add_argument("--rehearse", action="store_true", help="two pairs, to see that it works, not what it costs")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    parser.add_argument("--work", help="keep the generated dataset in this folder")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table into README.md")
    arguments = parser.parse_args(argv)
    if arguments.rehearse:
        arguments.pairs, arguments.draws = 2, 2
    elif arguments.pairs < 30 and not arguments.explain:
        parser.error("--pairs must be at least 30: fewer say little about a median")
    if not all(1 <= n <= arguments.labels for n in (arguments.parts, *arguments.networks)):
        parser.error(f"--parts and --networks must be from 1 to the number of labels, {arguments.labels}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
