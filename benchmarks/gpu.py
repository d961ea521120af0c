"""What is asked of a GPU, most telling first; each step has a budget, and a repeated call goes on with what is missing.

    benchmarks/gpu.sh --wheels WHEELS --out OUT --data DATA

A step ends with one line: done, failed (with the last line of its log) or cut (by its budget); OUT/steps.json keeps
them, OUT/NAME.log what each said. What is done is not done again; what failed or was cut is tried in the next call. No
step begins after --minutes. With --rehearse all of it runs on a CPU, with small images, two trainers and few steps.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import HERE, read_json, write_json

CARRIED = 64 << 20  # bytes of wheels, data and results that travel with a loan
LEAST = 15  # seconds in which no step does anything
# Arguments of `run.py run`, the tables whose outcome is in doubt first.
RUNS = (
    "acdc_sources_5 --arms partial own_boxes consensus_boxes --seeds 0 1 2 --on calibration --updates 1920 --rate .01",
    "acdc_slices_shown_3 --arms mean_teacher_first best_first --seeds 0 1 --on calibration --updates 3840 --rate .01",
    "acdc_sources_5 --planned --arms partial own_boxes --seeds 0 1 --on calibration --updates 480 --rate .01",
)
REHEARSED = tuple(
    f"{words} --seeds 0 --on calibration --updates 40 --rate .01"
    for words in (
        "acdc_sources_5 --arms partial",
        "acdc_slices_shown_3 --arms best_first",
        "acdc_sources_5 --planned --arms partial",
    )
)


@dataclass(frozen=True)
class Step:
    """One question.

    Attributes:
        name: of its log.
        command: program and arguments.
        seconds: that it may take.
    """

    name: str
    command: Sequence[str]
    seconds: float


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.wheels:
        require_small([Path(folder) for folder in (arguments.wheels, arguments.data, arguments.out) if folder])
    end = time.monotonic() + 60 * arguments.minutes
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = out / "steps.json"
    ended = read_json(record) if record.is_file() else {}
    for step in steps(arguments, out):
        if ended.get(step.name, "").startswith("done"):
            print(f"{step.name}: {ended[step.name]} before", flush=True)
            continue
        left = min(step.seconds, end - time.monotonic())
        if left < LEAST:
            print(f"{step.name}: not begun, the time is over; repeat the call", flush=True)
            continue
        ended[step.name] = run(step, left, out / f"{step.name}.log")
        write_json(record, ended)
        print(f"{step.name}: {ended[step.name]}", flush=True)
    return int(not all(ended.get(step.name, "").startswith("done") for step in steps(arguments, out)))


def require_small(folders: Sequence[Path]) -> None:
    """Ends with a sentence if folders that travel to a lent machine and back hold more than it takes."""
    files = {file: file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()}
    total = sum(files.values())
    if total > CARRIED:
        largest = sorted(files, key=lambda file: -files[file])[:3]
        named = ", ".join(f"{file} ({files[file] / 2**20:.0f} MiB)" for file in largest)
        raise SystemExit(
            f"gpu.py: {', '.join(map(str, folders))} hold {total / 2**20:.1f} MiB, more than the {CARRIED >> 20} MiB "
            f"that travel with a loan; leave out or compress the largest: {named}"
        )


def steps(arguments: argparse.Namespace, out: Path) -> list[Step]:
    """Returns all steps, most telling first."""
    python, device = sys.executable, "cpu" if arguments.rehearse else "cuda"
    few = ["--rehearse", "--only", "partial", "mutual_partial_joint"] if arguments.rehearse else []
    step = [python, str(HERE / "step.py"), "--device", device, *few]
    planned = ["--size", "24", "32", "24"] if arguments.rehearse else ["--plans", "full", "--size", "160", "160", "160"]
    eager = ["--compile", "off", "--draws", "0"]

    def measured(name: str, *options: str) -> list[str]:
        return [*step, *options, "--work", str(out / "work" / name), "--out", str(out / f"{name}.json")]

    graphs = ["--cuda-graphs", "off"] if arguments.rehearse else ["--cuda-graphs", "off", "auto"]
    found = [
        Step("tests", [python, "-m", "pytest", "-q", "-m", "gpu", *gpu_tests()], 90),
        Step("planned", measured("planned", *planned, *eager, "--cuda-graphs", "off"), 170),
        Step("explained", measured("explained", *planned, "--explain", "--pairs", "4"), 60),
        Step("small", measured("small", *eager, *graphs), 120),
    ]
    runs = arguments.run or (REHEARSED if arguments.rehearse else RUNS)
    for i, words in enumerate(runs if arguments.data else ()):
        command = [
            python,
            str(HERE / "run.py"),
            "run",
            *shlex.split(words),
            "--data",
            str(Path(arguments.data).resolve()),
        ]
        places = ["--work", str(out / "work"), "--results", str(out / "evidence")]
        jobs = ["--jobs", str(arguments.jobs), "--device", device]
        found.append(Step(f"table{i + 1}", [*command, *places, *jobs, "--budget", "125s"], 145))
    budget = 1800 if arguments.rehearse else None
    return [Step(one.name, one.command, budget or one.seconds) for one in found]


def gpu_tests() -> list[str]:
    """Files with tests that need a GPU: to collect all of them takes longer than to run these."""
    files = sorted((HERE.parent / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "pytest.mark.gpu" in file.read_text()]


def run(step: Step, seconds: float, log: Path) -> str:
    """Runs a step and all that it starts; returns how it ended."""
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            step.command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, cwd=HERE.parent
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    took = f"{time.monotonic() - started:.0f} s"
    if status is None:
        return f"cut after {took}"
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    answered = status == 0 or lines[-1].endswith("above their bars")
    return (
        f"done in {took}: {lines[-1][:120]}" if answered else f"failed after {took} (exit {status}): {lines[-1][:120]}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the processes of a step that has not ended by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for logs, JSON files and evidence")
    parser.add_argument("--wheels", help="folder that gpu.sh installed from; with it, what travels must fit a loan")
    parser.add_argument("--data", help="folder of the public datasets; without it no table is made")
    parser.add_argument("--minutes", type=float, default=9, help="of this call (%(default)s)")
    parser.add_argument("--jobs", type=int, default=14, help="trainings side by side (%(default)s)")
    parser.add_argument("--run", action="append", help="arguments of run.py run, in place of the built-in tables")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a tiny budget")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
