"""The table of what a step costs, made from ``evidence/step`` and written between markers in README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from settings import HERE, read_json
from table import heading, row

EVIDENCE = HERE / "evidence"
QUANTITIES = {
    "step": "step",
    "memory": "memory",
    "loader": "batch of the loader",
    "validation": "validation batch",
    "separate": "against separate trainings",
    "occ": "with / without OCC",
    "case": "pseudo labels of a case",
    "peak": "peak",
}
ALWAYS = ("step", "memory", "loader", "validation")  # 1 in stock nnU-Net
COUNTS = {"waits": "waits", "recompilations": "recompiled"}
BESIDE = "loader"
SHARES = ("forward", "backward", "teacher", "views", "losses", "optimiser", "host waits", "rest", "not in networks")
COLUMNS = ("networks", *QUANTITIES.values(), *COUNTS.values())


def render() -> str:
    """Returns a table for every file and every combination of precision and compilation in it."""
    parts = [_file(path) for path in sorted((EVIDENCE / "step").glob("*.json"))]
    return "\n\n".join(parts) if parts else "not run"


def render_explained() -> str:
    """Returns a table of the shares of a step for every file and precision in it."""
    found = [(path.name, read_json(path)) for path in sorted((EVIDENCE / "explained").glob("*.json"))]
    return "\n\n".join(_shares(name, content, one) for name, content in found for one in content["explained"])


def _shares(name: str, content: dict[str, Any], explained: dict[str, Any]) -> str:
    rows = explained["shares"]
    head = [title for title in (*SHARES, BESIDE) if any(title in row for row in rows.values())]
    lines = _lines(head, {trainer: {t: f"{100 * v:.1f} %" for t, v in row.items()} for trainer, row in rows.items()})
    return "\n".join([f"`evidence/explained/{name}`: {_how(content, explained)}.", "", *lines])


def _file(path: Path) -> str:
    content = read_json(path)
    return "\n\n".join(_one(path.name, content, measured) for measured in content["measured"])


def _one(name: str, content: dict[str, Any], measured: dict[str, Any]) -> str:
    rows = {name: _cells(name, content["bars"].get(name, {}), measured) for name in ("stock", *measured["ratio"])}
    head = [title for title in COLUMNS if any(title in row for row in rows.values())]
    return "\n".join([f"`evidence/step/{name}`: {_how(content, measured)}.", "", *_lines(head, rows)])


def _how(content: dict[str, Any], measured: dict[str, Any]) -> str:
    where = content["hardware"]
    device = where["cpu"] if where["accelerator"] == "none used" else where["accelerator"]
    how = f"{measured['precision']}, {'compiled' if measured['compiled'] else 'not compiled'}"
    how += f", CUDA graphs {measured['cuda_graphs']}" if measured.get("cuda_graphs", "off") != "off" else ""
    patch = " x ".join(map(str, measured["patch_size"]))
    return f"{device}, {how}, features {measured['features'][0]} to {measured['features'][-1]}, patch {patch}"


def _lines(head: list[str], rows: dict[str, dict[str, str]]) -> list[str]:
    cells = [[f"`{trainer}`", *(of_trainer.get(title, "") for title in head)] for trainer, of_trainer in rows.items()]
    return [*heading(["trainer", *head]), *map(row, cells)]


def _cells(trainer: str, bars: dict[str, float], measured: dict[str, Any]) -> dict[str, str]:
    """What is known of a trainer, by the title of the column."""
    known = [quantity for quantity in ALWAYS if measured["median_seconds"].get(quantity, True)]
    ratios = measured["ratio"].get(trainer, dict.fromkeys(known, 1.0))
    counts = measured["counts"].get(trainer, {})
    if "peak_bytes" in counts:
        ratios = {**ratios, "peak": counts["peak_bytes"] / measured["counts"]["stock"]["peak_bytes"]}
    cells = {"networks": str(measured["networks"][trainer])} if trainer in measured["networks"] else {}
    for quantity, ratio in ratios.items():
        bar = f" (bar {bars[quantity]:.2f})" if quantity in bars else ""
        cells[QUANTITIES[quantity]] = f"{ratio:.2f}{bar}"
    return cells | {title: str(counts[key]) for key, title in COUNTS.items() if key in counts}
