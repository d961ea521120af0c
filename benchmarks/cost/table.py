"""The table of what a step costs, made from ``evidence/step`` and written between markers in README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from settings import HERE, read_json

EVIDENCE = HERE / "evidence" / "step"
QUANTITIES = {
    "step": "step",
    "memory": "memory",
    "loader": "batch of the loader",
    "validation": "validation batch",
    "separate": "against separate trainings",
    "occ": "with / without OCC",
    "case": "pseudo labels of a case",
}


def render() -> str:
    """Returns a table for every file and every combination of precision and compilation in it."""
    parts = [_file(path) for path in sorted(EVIDENCE.glob("*.json"))]
    return "\n\n".join(parts) if parts else "not run"


def _file(path: Path) -> str:
    content = read_json(path)
    return "\n\n".join(_one(path.name, content, measured) for measured in content["measured"])


def _one(name: str, content: dict[str, Any], measured: dict[str, Any]) -> str:
    where = content["hardware"]
    device = where["cpu"] if where["accelerator"] == "none used" else where["accelerator"]
    how = f"{measured['precision']}, {'compiled' if measured['compiled'] else 'not compiled'}"
    patch = " x ".join(map(str, measured["patch_size"]))
    network = f"features {measured['features'][0]} to {measured['features'][-1]}, patch {patch}"
    head = ["trainer", "networks", *QUANTITIES.values(), "waits", *(["recompiled"] if measured["compiled"] else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for trainer in ("stock", *measured["ratio"]):
        ratios = measured["ratio"].get(trainer, dict.fromkeys(("step", "memory", "loader", "validation"), 1.0))
        bars = content["bars"].get(trainer, {})
        cells = [f"`{trainer}`", str(measured["networks"].get(trainer, ""))]
        for quantity in QUANTITIES:
            bar = f" (bar {bars[quantity]:.2f})" if quantity in bars else ""
            cells.append(f"{ratios[quantity]:.2f}{bar}" if quantity in ratios else "")
        counts = measured["counts"].get(trainer, {})
        cells += [str(counts.get(key, "")) for key in ("waits", "recompilations")[: len(head) - len(cells)]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"`evidence/step/{name}`: {device}, {how}, {network}.", "", *lines])
