"""What a row is, and the ways to break something."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

Spoil = Callable[[Path], None]

TOY, OTHER, TWO = (f"nnUNet_raw/{name}/" for name in ("Dataset777_Toy", "Dataset778_Other", "Dataset780_Two"))
RAW, PRE, RESULTS = (f"{root}/Dataset901_Tiny/" for root in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"))
TRAINED = RESULTS + "PartialTrainer__nnUNetPlans__3d_fullres/"
FOLD = TRAINED + "fold_0/"
PLANS, SPLITS = PRE + "nnUNetPlans.json", PRE + "splits_final.json"
STORE = RESULTS + "MutualPartialTrainer__nnUNetPlans__3d_fullres/fold_0/pseudo_labels/"

_TRAINING = "901 3d_fullres -tr PartialTrainer"
TRAIN = "train 901 3d_fullres 0 -tr PartialTrainer -device cpu"
PLAN = "plan -d 901 --name new --set"
EXPORT = f"export {_TRAINING} -f 0 --name new"
REPORT = f"report {_TRAINING} -f 0 --no-images"
PSEUDO = "pseudo_label 901 3d_fullres 0 -tr PartialTrainer -device cpu"
SOFT = f"{PSEUDO} --soft -o new"
PREPROCESS = "plan_and_preprocess -d 777 -c 3d_fullres -np 1"
SIMULATE = "simulate 777 Dataset779_New --keep a:liver,spleen --keep b:kidney"
MERGE = "merge 777 778 Dataset779_New"
EVALUATE = "evaluate predictions -d 901 -f 0 --no-surface -np 1"
SUGGEST = f"suggest {_TRAINING} -device cpu -o new"
REVIEW = "review 901 3d_fullres 0 -tr MutualPartialTrainer -o new"
ACCEPT = "accept 901 review/review.csv"


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        name: what is wrong, for a reader.
        spoil: breaks a copy of the world, whose folder it is given.
        command: what is run after ``nnunet_mutual``, in that folder.
        words: the file and the fix, which the sentence must name.
        limits: "full": no file can grow beyond a few bytes; "read-only": nothing of the world can be written.
        environment: variables, in which ``{root}`` is the folder; None: not set.
        leaves: beginnings of names that may be left: what earlier steps have finished for good.
    """

    name: str
    spoil: Spoil
    command: str
    words: tuple[str, ...]
    limits: str = ""
    environment: tuple[tuple[str, str | None], ...] = ()
    leaves: tuple[str, ...] = ()


def row(name: str, spoil: Spoil, command: str, *words: str, **more: Any) -> Row:
    """Makes a row."""
    return Row(name, spoil, command, words, **more)


def nothing(root: Path) -> None:
    """The input is in the command itself."""


def text(file: str, content: str | bytes) -> Spoil:
    """Writes a file."""

    def spoil(root: Path) -> None:
        target = root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def edit(file: str, place: str, value: Any) -> Spoil:
    """Changes a value of a JSON file; the place is names and numbers with '/' between them."""

    def spoil(root: Path) -> None:
        content = json.loads((root / file).read_text())
        inner, keys = content, [int(key) if key.isdecimal() and key != "0000" else key for key in place.split("/")]
        for key in keys[:-1]:
            inner = inner[key if not isinstance(inner, dict) else str(key)]
        last = keys[-1] if not isinstance(inner, dict) else str(keys[-1])
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        (root / file).write_text(json.dumps(content))

    return spoil


def cut(file: str, share: float) -> Spoil:
    """Keeps the first part of a file."""

    def spoil(root: Path) -> None:
        content = (root / file).read_bytes()
        (root / file).write_bytes(content[: int(len(content) * share)])

    return spoil


def gone(*files: str) -> Spoil:
    """Removes files."""

    def spoil(root: Path) -> None:
        for file in files:
            (root / file).unlink()

    return spoil


def removed(place: str) -> Spoil:
    """Removes a folder or a file."""

    def spoil(root: Path) -> None:
        target = root / place
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def renamed(old: str, new: str | bytes) -> Spoil:
    """Renames a file; bytes for names that are no text."""

    def spoil(root: Path) -> None:
        source = root / old
        os.rename(source, os.path.join(os.fsencode(source.parent), new) if isinstance(new, bytes) else root / new)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(root: Path) -> None:
        for one in spoils:
            one(root)

    return spoil


def voxels(file: str, array: Any, **geometry: Any) -> Spoil:
    """Writes an image; ``geometry`` as SimpleITK's setters name it."""

    def spoil(root: Path) -> None:
        image = sitk.GetImageFromArray(np.asarray(array))
        for name, value in geometry.items():
            getattr(image, f"Set{name}")(value)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).unlink(missing_ok=True)
        sitk.WriteImage(image, str(root / file))

    return spoil
