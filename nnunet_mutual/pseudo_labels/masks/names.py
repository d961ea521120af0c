"""What the names of another tool mean: whose masks they are, and to which of our labels each of its names belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.names import safe_text
from nnunet_mutual.errors import MutualError, meant, shorten, shown

TOOL = "tool.json"  # beside the masks: {"tool": "TotalSegmentator", "version": "2.4.0"}

Meaning = Mapping[str, tuple[str, ...]]  # label -> names of the tool that together make it


def tool_of(folder: Path, given: str | None) -> str:
    """Returns the name of the tool that wrote a folder, with its version where that is known.

    Args:
        folder: of the masks; ``tool.json`` in it, or the plans that ``nnUNetv2_predict`` leaves, say it.
        given: by ``--tool``.
    """
    if given is not None:
        return safe_text(given.strip(), "--tool") or folder.name
    if (folder / TOOL).is_file():
        said = read_object(folder / TOOL)
        words = [str(said[key]) for key in ("tool", "version") if said.get(key)]
        if not said.get("tool"):
            raise MutualError(
                f'{folder / TOOL} has no "tool"; write {{"tool": NAME, "version": VERSION}}, or give --tool'
            )
        return safe_text(" ".join(words), f"tool of {folder / TOOL}")
    if (folder / "plans.json").is_file():
        plans = read_object(folder / "plans.json")
        named = " ".join(str(plans[key]) for key in ("dataset_name", "plans_name") if plans.get(key))
        return safe_text(f"nnU-Net {named}".strip(), f"name of {folder / 'plans.json'}")
    return f"{folder.name} (version unknown)"


def read_map(pairs: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Reads ``--map name=label ...``; a name without a label is left out.

    Raises:
        MutualError: no pair, an unknown label, or a name given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, label = pair.rpartition("=")
        if not equals or not name:
            raise MutualError(
                f"--map {pair}: expected NAME=LABEL, the tool's name (or number) and a label of the dataset"
            )
        if label and label not in labels:
            raise MutualError(
                f"--map {pair}: unknown label {shown(label)}{meant(label, labels)}; dataset.json has: "
                f"{', '.join(labels)}"
            )
        if name in found:
            raise MutualError(f"--map names {shown(name)} twice; give each name of the tool one label")
        found[name] = label
    return found


def values_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the integers of each name in the label maps of a folder, from its dataset.json; none without one."""
    if not (folder / "dataset.json").is_file():
        return {}
    content: Any = read_object(folder / "dataset.json").get("labels")
    fix = (
        f'"labels" of {folder / "dataset.json"} must be {{name: number, ...}}; correct it, or remove it and give --map'
    )
    if not isinstance(content, dict):
        raise MutualError(fix)
    found = {}
    for name, value in content.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int or (isinstance(number, str) and number.isdecimal()) for number in numbers):
            raise MutualError(fix)
        found[name] = tuple(int(number) for number in numbers)
    return {name: values for name, values in found.items() if name != "ignore" and set(values) != {0}}


def meaning_of(folder: Path, names: Iterable[str], said: Mapping[str, str], labels: Sequence[str]) -> Meaning:
    """Returns which names make each label: those of ``--map``, and those that are called like it.

    Raises:
        MutualError: none of the names means anything here.
    """
    names = list(names)
    meaning: dict[str, tuple[str, ...]] = {}
    for name in names:
        label = said.get(name, name)
        if label in labels:
            meaning[label] = (*meaning.get(label, ()), name)
    if not meaning:
        there = shorten(names, 8) if names else "none, since its label maps come without a dataset.json"
        raise MutualError(
            f"{folder}: none of its names is a label of this dataset ({', '.join(labels)}); its names: {there}; say "
            f"what they mean, such as --map {names[0] if names else 1}={labels[0]}"
        )
    return {label: meaning[label] for label in labels if label in meaning}


def require_known(said: Mapping[str, str], names: Iterable[str]) -> None:
    """Verifies that some folder has every name of ``--map``.

    Raises:
        MutualError: names the first one that none has.
    """
    names = sorted(set(names))
    strange = next((name for name in said if name not in names), None)
    if strange is not None:
        raise MutualError(
            f"--map {strange}={said[strange]}: the masks have no {shown(strange)}{meant(strange, names)}; their names: "
            f"{shorten(names, 8) or 'none'}"
        )
