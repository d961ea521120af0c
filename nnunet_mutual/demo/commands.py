"""Runs nnU-Net's commands as a user would type them: printed first, output in a log file, progress on the screen."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from nnunet_mutual.engine.children import end, interrupted_by_signals
from nnunet_mutual.errors import MutualError

EPOCH = re.compile(rb": Epoch (\d+)\s*$", re.MULTILINE)  # the lines with which nnU-Net begins ...
EPOCH_DONE = b"Epoch time"  # ... and ends an epoch
PATIENCE = 30.0  # seconds that an interrupted command gets to save
POLL = 0.5
TAIL = 15
SHOW_EVERY = 20.0  # seconds between lines where no progress bar can be drawn


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        arguments: the program and its arguments.
        log: name of the log file.
        epochs: epochs of a training, whose progress is shown; 0 for other commands.
        shown: whether the output appears on the screen when the command has ended.
        environment: variables that only this command gets.
    """

    arguments: Sequence[str]
    log: str
    epochs: int = 0
    shown: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def run_commands(commands: Sequence[Command], logs: Path, environment: Mapping[str, str]) -> None:
    """Runs commands at the same time and waits for all.

    Args:
        commands: what to run.
        logs: folder of the log files.
        environment: variables of all commands, complete.

    Raises:
        MutualError: a command is not installed or fails; the others are stopped.
        KeyboardInterrupt: this process was interrupted; the commands have been stopped, after they could save.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for command in commands:
        print(f"$ {command}", flush=True)
    running: list[tuple[Command, subprocess.Popen[bytes], Path]] = []
    try:
        with interrupted_by_signals():
            for command in commands:
                log = logs / f"{command.log}.log"
                running.append((command, _start(command, log, environment), log))
            _wait(running)
    except BaseException:
        end([process for _, process, _ in running], PATIENCE)
        raise
    for command, _, log in running:
        if command.shown:
            print(_as_on_screen(log))


def _start(command: Command, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    search = os.pathsep.join([sysconfig.get_path("scripts"), environment.get("PATH", "")])
    program = shutil.which(command.arguments[0], path=search)
    if program is None:
        raise MutualError(
            f"the command {command.arguments[0]} was not found in {sysconfig.get_path('scripts')} or PATH; "
            f"install nnU-Net: {sys.executable} -m pip install 'nnunetv2>=2.8'"
        )
    with log.open("wb") as stream:
        return subprocess.Popen(
            [program, *command.arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**environment, "PATH": search, **command.environment},
            start_new_session=True,  # Ctrl-C reaches us alone, and we let the commands save
        )


def _wait(running: Sequence[tuple[Command, subprocess.Popen[bytes], Path]]) -> None:
    with _Progress([(command, log) for command, _, log in running]) as progress:
        pending = list(running)
        while pending:
            time.sleep(POLL)
            progress.update()
            for entry in list(pending):
                command, process, log = entry
                if process.poll() is None:
                    continue
                pending.remove(entry)
                if process.returncode:
                    _fail(command, process.returncode, log)


def _as_on_screen(log: Path) -> str:
    """Returns what a log looks like in a terminal at the end: progress bars are gone."""
    lines = log.read_bytes().decode(errors="replace").split("\n")
    return "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in lines).strip("\n")


def _fail(command: Command, status: int, log: Path) -> NoReturn:
    last = _as_on_screen(log).splitlines()[-TAIL:]
    tqdm.write("\n".join(["", f"last lines of {log}:", *(f"  {line}" for line in last)]), file=sys.stderr)
    raise MutualError(
        f"{command.arguments[0]} ended with exit status {status}; its output is in {log}, and 'nnunet_mutual doctor' "
        "checks the installation; run the demo again to go on from here"
    )


def epochs_done(log: bytes) -> int:
    """Returns how many epochs of a training are finished, by nnU-Net's output; a resumed one does not begin at 0."""
    begun = list(EPOCH.finditer(log))
    return int(begun[-1][1]) + (EPOCH_DONE in log[begun[-1].end() :]) if begun else 0


class _Progress:
    """A bar per training, else the seconds since the start; plain lines where the output is not a terminal."""

    def __init__(self, commands: Sequence[tuple[Command, Path]]):
        self.trainings = [(command, log) for command, log in commands if command.epochs]
        self.terminal = sys.stdout.isatty()
        self.started = self.shown = time.monotonic()
        self.bars: list[Any] = []

    def __enter__(self) -> _Progress:
        if self.terminal:
            for position, (command, _) in enumerate(self.trainings):
                name = command.log.removeprefix("train_")
                bar = tqdm(total=command.epochs, desc=f"  {name:<14}", unit="epoch", position=position, file=sys.stdout)
                self.bars.append(bar)
            if not self.trainings:
                self.bars.append(tqdm(desc="  working", bar_format="{desc} {elapsed}", leave=False, file=sys.stdout))
        return self

    def update(self) -> None:
        done = [epochs_done(log.read_bytes()) if log.exists() else 0 for _, log in self.trainings]
        if self.terminal:
            for bar, epochs in zip(self.bars, done or [0], strict=True):
                bar.n = min(epochs, bar.total or 0)
                bar.refresh()
        elif time.monotonic() - self.shown > SHOW_EVERY:
            self.shown = time.monotonic()
            parts = [
                f"{c.log.removeprefix('train_')}: epoch {n} of {c.epochs}"
                for (c, _), n in zip(self.trainings, done, strict=True)
            ]
            print(f"  {self.shown - self.started:.0f} s  {', '.join(parts)}".rstrip(), flush=True)

    def __exit__(self, *_: object) -> None:
        self.update()
        for bar in self.bars:
            bar.close()
