"""What the commands on datasets cost with many cases: time, memory, silence, and what an interruption leaves.

    python benchmarks/scale.py --cases 1000 10000 --out benchmarks/evidence/scale.json

Makes datasets of so many small cases with a hundred labels, runs each command on each of them in a process of its own,
and divides what the largest needs by what the smallest needs. The processor's seconds count, since other programs may
be at work; start-up is in them. With the smallest dataset, commands that show progress are first interrupted at work
(Ctrl-C), and what lies in nnUNet_raw afterwards must be what was there before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import table
from many.datasets import TRAINING, Dataset
from many.watching import watch
from settings import HERE, point_nnunet_to, read_json, write_json

EVIDENCE = HERE / "evidence" / "scale.json"
RATIO, MEMORY = 11, 2 << 30  # of ten times the cases; bytes
INTERRUPTED = ("check", "merge", "simulate", "accept")
SPLITS = """
import json, sys
from pathlib import Path
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.splits import provide_splits
content = json.loads(Path(sys.argv[1]).read_text())
table = AnnotationTable.from_dataset_json(content)
print(provide_splits(table, list(table.cases), 0, Path(sys.argv[2])))
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.table:
        table.put("scale", render())
        return 0
    found: dict[str, Any] = {"labels": arguments.labels, "size": arguments.size, "cases": {}}
    smallest = min(arguments.cases)
    for cases in sorted(arguments.cases):
        with tempfile.TemporaryDirectory(prefix="nnunet_mutual_scale_", dir=arguments.work) as folder:
            found["cases"][str(cases)] = run(Path(folder), cases, arguments, interrupted=cases == smallest)
        if arguments.out:
            write_json(Path(arguments.out), found)
    return report(found)


def run(root: Path, cases: int, arguments: argparse.Namespace, *, interrupted: bool) -> dict[str, dict[str, Any]]:
    """Runs all commands on a dataset of so many cases, and on a second one of a tenth as many for ``merge``."""
    point_nnunet_to(root)
    first = Dataset(root, 701, cases, arguments.labels, arguments.size)
    second = Dataset(root, 702, max(2, cases // 10), arguments.labels, arguments.size)
    for dataset in (first, second):
        dataset.write()
    found = {}
    for name, command in commands(first, second).items():
        if arguments.only and name not in {*arguments.only, "annotate", "annotate_second"}:
            continue
        if name == "report":
            first.write_training(epochs=100)
        if name == "accept":
            first.write_review()
        kept = _interrupted(root, command) if interrupted and name in INTERRUPTED else {}
        found[name] = watch(command) | kept
        print(f"{cases} cases, {name}: {json.dumps({k: v for k, v in found[name].items() if k != 'end'})}", flush=True)
        if found[name]["status"] != 0:
            raise SystemExit(f"{name} failed: {found[name]['end']}")
    return {name: {k: v for k, v in own.items() if k not in ("end", "status")} for name, own in found.items()}


def commands(first: Dataset, second: Dataset) -> dict[str, list[str]]:
    """What is run, in this order."""
    ours = [sys.executable, "-m", "nnunet_mutual.cli.parser"]
    keep = [f"--keep=site{i}:{','.join(first.labels[i::2])}" for i in range(2)]
    share = len(first.keys) // 20  # patients have two cases
    draw = ["--test", str(2 * share), "--labelled", str(8 * share)]
    training = ["-tr", TRAINING["trainer"], "--no-images"]
    return {
        "annotate": [*ours, "annotate", first.name, str(first.table)],
        "annotate_second": [*ours, "annotate", second.name, str(second.table)],
        "check_headers": [*ours, "check", first.name, "--headers"],
        "check": [*ours, "check", first.name],
        "merge": [*ours, "merge", first.name, second.name, "Dataset703_Merged"],
        "simulate": [*ours, "simulate", first.name, "Dataset704_Simulated", *keep, *draw],
        "splits": [
            sys.executable, "-c", SPLITS, str(first.raw / "dataset.json"), str(first.root / "splits_final.json"),
        ],
        "report": [*ours, "report", first.name, TRAINING["configuration"], "-f", TRAINING["fold"], *training],
        "accept": [*ours, "accept", first.name, str(first.root / f"review_{first.name}" / "review.csv")],
    }  # fmt: skip


def _interrupted(root: Path, command: list[str]) -> dict[str, Any]:
    """Interrupts a command at work; returns its exit status and how many files it left or lost."""

    def listing() -> set[str]:
        return {str(path) for path in (root / "nnUNet_raw").rglob("*")}

    before = listing()
    ended = watch(command, interrupt=True)
    found = {"status_if_interrupted": ended["status"], "files_left_behind": len(before ^ listing())}
    for number in (703, 704):  # made by a command that was faster than the interruption
        for folder in (root / "nnUNet_raw").glob(f"Dataset{number}_*"):
            shutil.rmtree(folder)
    return found


def report(found: dict[str, Any]) -> int:
    """Prints what is above its bar and returns the exit status."""
    wrong = []
    for name, row in ratios(found).items():
        wrong += [f"{name}: ratio {row['ratio']:.1f}"] if row["ratio"] > row["bar"] else []
    for cases, commands_ in found["cases"].items():
        for name, own in commands_.items():
            if own["peak_bytes"] > MEMORY:
                wrong.append(f"{name}, {cases} cases: {own['peak_bytes'] / 2**30:.1f} GiB")
            if own.get("files_left_behind") or own.get("status_if_interrupted", 130) != 130:
                wrong.append(f"{name}: interrupted, {own['files_left_behind']} files differ")
    print("\n".join([render_of(found), *(f"TOO MUCH {text}" for text in wrong)]))
    return int(bool(wrong))


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns, by command, the ratio of the processor's seconds of the largest to the smallest dataset, and its bar."""
    small, large = min(found["cases"], key=int), max(found["cases"], key=int)
    bar = RATIO * int(large) / int(small) / 10
    seconds = {n: [found["cases"][c][n]["processor_seconds"] for c in (small, large)] for n in found["cases"][large]}
    return {name: {"ratio": b / max(a, 0.1), "bar": bar} for name, (a, b) in seconds.items()}


def render() -> str:
    """Returns the table of the evidence."""
    return render_of(read_json(EVIDENCE)) if EVIDENCE.is_file() else "not run"


def render_of(found: dict[str, Any]) -> str:
    """Returns a row for each command."""
    sizes = sorted(found["cases"], key=int)
    head = ["command", *(f"{c} cases, processor s (s, GiB, longest silence s)" for c in sizes), "ratio"]
    head += ["left behind by Ctrl-C"]
    lines = table.heading(head)
    for name, row in ratios(found).items():
        cells = [f"`{name}`"]
        for cases in sizes:
            own = found["cases"][cases][name]
            memory, numbers = own["peak_bytes"] / 2**30, (own["processor_seconds"], own["seconds"])
            cells.append("{:.0f} ({:.0f}, {:.1f}, {:.0f})".format(*numbers, memory, own["silent_seconds"]))
        left = found["cases"][sizes[0]][name].get("files_left_behind")
        cells += [f"{row['ratio']:.1f} (bar {row['bar']:.0f})", "" if left is None else f"{left} files"]
        lines.append(table.row(cells))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=[1000, 10000], help="of the datasets (%(default)s)")
    parser.add_argument("--labels", type=int, default=100, help="of each dataset (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="edge of the images, voxels (%(default)s)")
    parser.add_argument("--only", nargs="+", help="these commands alone, after annotate")
    parser.add_argument("--work", help="folder for the datasets, which are removed (default: the temporary folder)")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table into README.md")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
