"""Checkpoints and preprocessed cases: empty, cut off, tampered with."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bad_inputs.rows import (
    EXPORT,
    FOLD,
    PRE,
    PSEUDO,
    REVIEW,
    SOFT,
    STORE,
    TRAIN,
    Row,
    Spoil,
    cut,
    gone,
    row,
    text,
)

KIND = "Checkpoints and preprocessed cases"
FINAL = FOLD + "checkpoint_final.pth"
DATA = PRE + "nnUNetPlans_3d_fullres/"
MARK = "opened_by_a_checkpoint"
PREPROCESS_SOFT = "preprocess_unlabelled -d 901 --soft soft"


class Hostile:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (MARK, "w"))


def changed(key: str, value: Any) -> Spoil:
    """Changes an entry of the checkpoint; ... removes it."""

    def spoil(root: Path) -> None:
        content = torch.load(root / FINAL, weights_only=False)
        if value is ...:
            del content[key]
        else:
            content[key] = value
        torch.save(content, root / FINAL)

    return spoil


def saved(value: Any, file: str = FINAL) -> Spoil:
    """Writes something else with torch.save."""

    def spoil(root: Path) -> None:
        torch.save(value, root / file)

    return spoil


def damaged(file: str) -> Spoil:
    """Overwrites compressed voxels, so that the file can be opened and not read."""

    def spoil(root: Path) -> None:
        content = bytearray((root / file).read_bytes())
        middle = len(content) // 2
        content[middle - 200 : middle + 200] = b"\xa5" * 400
        (root / file).write_bytes(content)

    return spoil


def soft(probabilities: Any) -> Spoil:
    """Writes another soft label."""

    def spoil(root: Path) -> None:
        np.savez_compressed(root / "soft/un_0.npz", probabilities=probabilities)

    return spoil


def _each(name: str, spoil: Spoil, *words: str, commands: Sequence[str] = (EXPORT, PSEUDO, SOFT)) -> list[Row]:
    """The same checkpoint for the commands that read one."""
    return [
        row(
            f"{name}, {command.split()[0]}{' --soft' * ('--soft' in command)}",
            spoil,
            command,
            "checkpoint_final.pth",
            *words,
        )
        for command in commands
    ]


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


ROWS = [
    *_each("an empty checkpoint", text(FINAL, "")),
    *_each("half a checkpoint", cut(FINAL, 0.5)),
    *_each("a hostile checkpoint", changed("logging", Hostile())),
    *_each("a checkpoint that is a list", saved([1, 2])),
    *_each("a checkpoint without weights", changed("network_weights", ...)),
    *_each("weights of another network", changed("network_weights", {"a": torch.zeros(1)}), commands=(EXPORT, SOFT)),
    row("a checkpoint without log", changed("logging", ...), EXPORT, "checkpoint_final.pth"),
    row("a checkpoint without state", changed("mutual_state", ...), PSEUDO, "checkpoint_final.pth"),
    row("a checkpoint whose state is text", changed("mutual_state", "x"), EXPORT, "checkpoint_final.pth"),
    row("a checkpoint that is text", text(FINAL, "weights"), TRAIN + " --val", "checkpoint_final.pth"),
    row("an empty soft label", text("soft/un_0.npz", ""), PREPROCESS_SOFT, "un_0.npz"),
    row("half a soft label", cut("soft/un_0.npz", 0.5), PREPROCESS_SOFT, "un_0.npz"),
    row("a soft label without probabilities", text("soft/un_0.npz", _npz(a=np.zeros(3))), PREPROCESS_SOFT, "un_0.npz"),
    row("a soft label that is a pickle", text("soft/un_0.npz", pickle.dumps([1])), PREPROCESS_SOFT, "un_0.npz"),
    row("a soft label of NaN", soft(np.full((4, 16, 20, 18), np.nan, np.float32)), PREPROCESS_SOFT, "un_0"),
    row("a soft label below 0", soft(np.full((4, 16, 20, 18), -0.5, np.float32)), PREPROCESS_SOFT, "un_0"),
    row("a soft label of 3 channels", soft(np.full((3, 16, 20, 18), 64, np.uint8)), PREPROCESS_SOFT, "un_0"),
    row("a soft label of another grid", soft(np.full((4, 16, 20, 17), 64, np.uint8)), PREPROCESS_SOFT, "un_0"),
    row("an empty preprocessed case", text(DATA + "case_00.b2nd", ""), TRAIN, "case_00"),
    row("half a preprocessed label map", cut(DATA + "case_00_seg.b2nd", 0.5), TRAIN, "case_00"),
    row("empty properties of a preprocessed case", text(DATA + "case_00.pkl", ""), TRAIN, "case_00"),
    row(
        "hostile properties of a preprocessed case",
        text(DATA + "case_00.pkl", pickle.dumps(Hostile())),
        TRAIN,
        "case_00",
    ),
    row("a case that is listed without its labels", gone(DATA + "case_00_seg.b2nd"), TRAIN, "case_00_seg", "delete it"),
    row(
        "an empty case of pseudo labels",
        text(STORE + "candidates/case_00.b2nd", ""),
        REVIEW,
        "candidates/case_00",
        "delete",
    ),
    row("half a case of pseudo labels", cut(STORE + "candidates/case_00.b2nd", 0.5), REVIEW, "case_00", "delete"),
    row("a damaged voxel of pseudo labels", damaged(STORE + "candidates/case_00.b2nd"), REVIEW, "case_00", "delete"),
    row("an empty case, reviewed", text(DATA + "case_00.pkl", ""), REVIEW, "case_00.pkl", "delete it"),
]
