"""What a training wrote down while it ran: curves, alarms, versions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_mutual.disk.files import natural, read_object
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.disk.trainings import CHECKPOINTS
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.engine.checkpoints import STATE_KEY
from nnunet_mutual.errors import MutualError

COLUMNS = ("epoch", "kind", "name", "value")
_ALARM, _EPOCH, _VERSIONS = (
    re.compile(r"WARNING[:!]?\s+(.*)"),
    re.compile(r": Epoch (\d+)\s*$"),
    re.compile(r"Versions: (.*)"),
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_FIX = "delete the line, or the file to do without its curves"
_LINE: Shape = {
    "epoch": int,
    "loss?": float,
    **dict.fromkeys(("terms?", "weights?", "diagnostics?", "validation?"), {...: float}),
}


@dataclass(frozen=True)
class Alarm:
    """A warning of the log file; the same one at several epochs is one alarm.

    Attributes:
        text: its last wording.
        times: how often it was said.
        epochs: when; empty for what was said before the first epoch.
    """

    text: str
    times: int
    epochs: tuple[int, ...]

    @property
    def when(self) -> str:
        """Returns when it was said."""
        if not self.epochs:
            return "at the start"
        first, last = self.epochs[0], self.epochs[-1]
        return f"epoch {first}" if first == last else f"{self.times} times, epochs {first} to {last}"


def read_curves(folder: Path, labels: Sequence[str]) -> pd.DataFrame:
    """Returns everything that was measured once per epoch.

    Args:
        folder: of the fold.
        labels: foreground labels in the network's order.

    Returns:
        Rows of epoch, kind, name and value. Kinds: ``loss`` (training, validation), ``term``, ``weight``, ``dice`` (of
        a label), ``mean dice``, ``diagnostic``, ``validation``, ``learning rate``, ``seconds``.
    """
    rows = [*_of_log(folder / "mutual_log.jsonl"), *_of_checkpoint(folder, labels)]
    curves = pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(list(COLUMNS[:3]), keep="last")
    return curves.sort_values("epoch", kind="stable", ignore_index=True)  # a log may be ahead of its checkpoint


def _of_log(file: Path) -> Iterator[tuple[int, str, str, float]]:
    kinds = {"terms": "term", "weights": "weight", "diagnostics": "diagnostic", "validation": "validation"}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:  # cut off by a crash
            continue
        except RecursionError:
            raise MutualError(f"{file}, line {number} is nested too deeply to be read; {_FIX}") from None
        require_shape(line, _LINE, f"{file}, line {number}", _FIX)
        if "loss" in line:
            yield line["epoch"], "loss", "training", line["loss"]
        for key, kind in kinds.items():
            for name, value in line.get(key, {}).items():
                yield line["epoch"], kind, name, value


def _of_checkpoint(folder: Path, labels: Sequence[str]) -> Iterator[tuple[int, str, str, float]]:
    newest = read_newest(folder)
    logged, pauses = newest.get("logging", {}), newest.get(STATE_KEY, {}).get("pauses", {})
    names = {"train_losses": ("loss", "training"), "val_losses": ("loss", "validation")}
    names |= {"ema_fg_dice": ("mean dice", "moving average of the mean"), "lrs": ("learning rate", "learning rate")}
    for key, (kind, name) in names.items():
        for epoch, value in enumerate(logged.get(key, [])):
            yield epoch, kind, name, float(value)
    for epoch, values in enumerate(logged.get("dice_per_class_or_region", [])):
        for label, value in zip(labels, values, strict=False):
            yield epoch, "dice", label, float(value)
    times = zip(logged.get("epoch_start_timestamps", []), logged.get("epoch_end_timestamps", []), strict=False)
    for epoch, (start, end) in enumerate(times):
        yield epoch, "seconds", "epoch", float(end) - float(start) - float(pauses.get(epoch, 0))


def read_acted(folder: Path) -> Acted | None:
    """Returns what the training says of its method; None of a stock training, or of one before it said so."""
    return Acted.of_state(read_newest(folder).get(STATE_KEY, {}))


def read_newest(folder: Path) -> Mapping[str, Any]:
    """Returns the newest checkpoint of a fold that can be read and has nnU-Net's log, nothing if there is none.

    The weights stay on the disk (memory map).
    """
    for name in CHECKPOINTS:
        if not (folder / name).is_file():
            continue
        try:
            found = read_checkpoint(folder / name, mapped=True)
            return {**found, "logging": dict(found["logging"]), STATE_KEY: dict(found.get(STATE_KEY, {}))}
        except (MutualError, KeyError, TypeError, ValueError):  # the page says what is missing
            continue
    return {}


def read_alarms(folder: Path) -> list[Alarm]:
    """Returns the warnings of the log files, those that were said last first."""
    found: dict[str, list[tuple[int | None, str]]] = {}
    epoch: int | None = None
    for line in _lines(folder):
        if said := _EPOCH.search(line):
            epoch = int(said[1])
        elif warning := _ALARM.search(line):
            text = warning[1].strip()
            found.setdefault(_NUMBER.sub("#", text), []).append((epoch, text))
    alarms = [
        Alarm(said[-1][1], len(said), tuple(sorted({e for e, _ in said if e is not None}))) for said in found.values()
    ]
    return sorted(alarms, key=lambda alarm: alarm.epochs[-1] if alarm.epochs else -1, reverse=True)


def read_versions(folder: Path) -> dict[str, str]:
    """Returns versions that the log names, or what nnU-Net's debug.json knows."""
    said = [match[1] for line in _lines(folder) if (match := _VERSIONS.search(line))]
    versions = _versions(said[-1], folder) if said else {}
    file = folder / "debug.json"
    debug = read_object(file) if file.is_file() else {}
    if "torch_version" in debug:
        versions.setdefault("torch", debug["torch_version"])
    device = debug.get("gpu_name", debug.get("device"))
    return {**versions, "device": device} if device else versions


def _versions(text: str, folder: Path) -> dict[str, str]:
    place = ", ".join(file.name for file in sorted(folder.glob("training_log_*.txt")))
    try:
        versions: dict[str, str] = json.loads(text)
    except (ValueError, RecursionError):
        raise MutualError(f'"Versions" in {place} of {folder} is no JSON ({text[:60]}); delete that line') from None
    require_shape(versions, {...: str}, f'"Versions" in {place} of {folder}', "delete that line")
    return versions


def networks_per_epoch(curves: pd.DataFrame) -> dict[int, int]:
    """Returns how many networks learnt in each epoch, by the numbers of their terms."""
    terms = curves[curves.kind == "term"]
    number = terms.name.str.extract(r"\[(\d+)\]$")[0].astype(float).fillna(0).astype(int) + 1
    return {int(epoch): int(n) for epoch, n in number.groupby(terms.epoch).max().items()}


def stage_borders(curves: pd.DataFrame) -> list[int]:
    """Returns the epochs in which other terms are learnt than in the one before."""
    terms = curves[curves.kind == "term"].groupby("epoch").name.agg(frozenset)
    return [
        int(now) for before, now in zip(terms.index[:-1], terms.index[1:], strict=True) if terms[before] != terms[now]
    ]


def _lines(folder: Path) -> Iterator[str]:
    """The lines of all logs of the training, which may have been continued; not of one that was begun anew since."""
    logs: list[list[str]] = []
    for file in sorted(folder.glob("training_log_*.txt"), key=lambda file: natural(file.name)):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        first = next((said[1] for line in lines if (said := _EPOCH.search(line))), None)
        logs = [lines] if first == "0" else [*logs, lines]
    for lines in logs:
        yield from lines
