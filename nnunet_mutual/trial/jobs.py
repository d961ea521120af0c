"""The runs of a trial: one command for each, independent of the others, which this machine or any scheduler starts."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mutual.engine.children import end, interrupted_by_signals
from nnunet_mutual.trial.protocol import Options, TrialFolder

PARENT = "NNUNET_MUTUAL_TRIAL_PARENT"  # number of the process that started a run and must not outlive it
TIMING = "timing_"
BEGUN = "=== begun "  # in the log of a run, before what each attempt says
PATIENCE = 60.0  # seconds that an interrupted training gets to save
_POLL = 0.5


@dataclass(frozen=True)
class Run:
    """One training and its scores.

    Attributes:
        arm: name of the trainer.
        seed: of weights, batches and, where something is hidden, of the draw.
        labelled: number of cases that keep their label map; None: all.
    """

    arm: str
    seed: int
    labelled: int | None = None

    @property
    def name(self) -> str:
        """Names its command and its files."""
        many = "" if self.labelled is None else f"_{self.labelled}labelled"
        return f"{self.arm}{many}_seed{self.seed}"

    @property
    def ending(self) -> str:
        """Of the configuration that it trains."""
        return f"seed{self.seed}"


def runs_of(options: Options) -> list[Run]:
    """Returns all runs, whole comparisons first, so that a trial that is stopped early still compares something."""
    return [
        Run(arm, seed, labelled)
        for labelled in reversed(options.numbers)
        for seed in range(options.seeds)
        for arm in options.arms
    ]


def command(folder: TrialFolder, options: Options, name: str = "") -> list[str]:
    """Returns the words of one run's command, which needs nothing but the trial's folder; without name, the trial's."""
    words = ["trial", str(int(options.dataset[7:10])), options.configuration, "-o", str(folder.path)]
    return [*words, "--job", name] if name else words


def command_line(folder: TrialFolder, options: Options, name: str = "") -> str:
    """Returns it as a shell takes it."""
    return shlex.join(["nnunet_mutual", *command(folder, options, name)])


def slots(options: Options, side_by_side: int | None) -> list[dict[str, str]]:
    """Returns the variables of each place that a run can have: a GPU of its own, on a CPU a share of the cores."""
    import torch

    if options.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} for n in range(side_by_side or len(gpus))]
    number = side_by_side or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // number))
    return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}] * number


def run_all(
    names: Sequence[str],
    start: Callable[[str], list[str]],
    logs: Path,
    places: Sequence[dict[str, str]],
    say: Callable[[str], None] = print,
    budget: float = math.inf,
) -> dict[str, int]:
    """Runs commands in processes of their own, as many at a time as there are places.

    A run that fails does not end the others. Interrupted, they may save, and end.

    Args:
        names: of the runs.
        start: name -> words of the command, without the interpreter.
        logs: folder for what they print.
        places: variables of each.
        say: is told what begins and ends.
        budget: seconds; no run begins that would end later, if it took as long as the longest one before.

    Returns:
        Name -> exit status, of those that began.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, ended = list(names), dict[str, int]()
    until, longest = time.time() + budget, 0.0
    running: dict[int, tuple[str, subprocess.Popen[bytes], float]] = {}
    try:
        with interrupted_by_signals():
            while waiting or running:
                if waiting and time.time() + longest > until:
                    say(f"the budget is spent, so {len(waiting)} run(s) are left: {waiting[0]} ...")
                    waiting.clear()
                for place in range(len(places)):
                    if place not in running and waiting:
                        name = waiting.pop(0)
                        say(f"start {name}; log: {logs / name}.log")
                        running[place] = (name, _start(start(name), logs / f"{name}.log", places[place]), time.time())
                time.sleep(_POLL)
                for place, (name, process, started) in list(running.items()):
                    if process.poll() is not None:
                        del running[place]
                        ended[name], longest = int(process.returncode), max(longest, time.time() - started)
                        done = "done" if process.returncode == 0 else f"FAILED (exit status {process.returncode})"
                        say(f"{done} {name} ({len(ended)} of {len(names)}), {(time.time() - started) / 60:.1f} min")
    finally:
        end([process for _, process, _ in running.values()], PATIENCE)
    return ended


def _start(words: Sequence[str], log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **variables, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    with log.open("ab", buffering=0) as stream:
        stream.write(f"{BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the trial alone, which lets its runs save
        )


def end_with_parent() -> None:
    """Ends this run where the trial that started it was killed, so that no second one meets it."""
    parent = os.environ.pop(PARENT, None)  # not for processes of this run
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
