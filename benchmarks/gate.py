"""Whether a benchmark may decide anything: its control is on a plateau, and there is room above it.

The control is what a method has to beat, on calibration patients. (a) Twice as many updates add at most ``gain`` to
it; otherwise the benchmark would only say "train longer". (b) All labels, averaged, have at least ``room`` more.
"""

from __future__ import annotations

from typing import Any

from settings import Setting, names, read_json
from table import heading, row

from nnunet_mutual.evaluation.differences import t_interval


def judge(lengths: list[dict[str, Any]], rule: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what can be said of each length: ``doubling`` (a) and ``room`` (b); null if unknown.

    Args:
        lengths: what calibration knows of them, with the reference.
        rule: of the protocol's calibration, with ``gain`` and ``room``.
    """
    by_updates = {entry["updates"]: entry for entry in lengths}
    found = []
    for entry in lengths:
        double = by_updates.get(2 * entry["updates"])
        doubling, room = _differences(double, entry), _differences(entry["reference"], entry)
        if doubling is not None:
            doubling["passed"] = doubling["mean"] <= rule["gain"]
        if room is not None:
            room["passed"] = room["mean"] >= rule["room"]
        found.append({"updates": entry["updates"], "doubling": doubling, "room": room})
    return found


def _differences(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any] | None:
    """Returns first - second over the draws, or None where runs are missing."""
    if first is None or first["mean"] is None or second["mean"] is None:
        return None
    scores, others = first["mean_dice_by_seed"], second["mean_dice_by_seed"]
    over = t_interval([scores[seed] - others[seed] for seed in scores])
    return {"mean": round(over.mean, 5), "t_interval": [round(over.low, 5), round(over.high, 5)], "draws": len(scores)}


def decide(lengths: list[dict[str, Any]]) -> tuple[int | None, str]:
    """Returns the shortest length that passes both parts of the gate, or None, and the reason."""
    for entry in lengths:
        doubling, room = entry["doubling"], entry["room"]
        if doubling and room and doubling["passed"] and room["passed"]:
            added = f"doubling the updates adds {doubling['mean']:+.4f}"
            return entry["updates"], f"{added}, all labels have {room['mean']:.4f} more"
    known = [entry for entry in lengths if entry["doubling"] and entry["doubling"]["passed"] and entry["room"]]
    if known:
        return (
            None,
            f"on its plateau at {known[0]['updates']} updates all labels have {known[0]['room']['mean']:.4f} more",
        )
    return None, "no length fulfils the rule yet"


def passed(setting: Setting) -> bool:
    """Whether a benchmark that has to pass the gate has passed it."""
    file = setting.calibration_file
    return "room" in setting.protocol.get("calibration", {}) and file.is_file() and bool(read_json(file)["chosen"])


def render() -> str:
    """Returns the table of all benchmarks that have to pass, from their calibration files."""
    head = ["benchmark", "updates", "learning rate", "control", "twice the updates add", "on a plateau"]
    head += ["all labels averaged - control", "room", "draws"]
    lines, absent = heading(head), []
    for setting in (Setting(name, None) for name in names()):
        if "room" not in setting.protocol.get("calibration", {}):
            continue
        state = read_json(setting.calibration_file) if setting.calibration_file.is_file() else {"lengths": []}
        known = [entry for entry in state["lengths"] if entry["mean"] is not None]
        if not known:
            absent.append(f"`{setting.name}`")
        found = {entry["updates"]: entry for entry in state.get("gate", [])}
        for entry in known:
            parts = [_cells(found[entry["updates"]][part]) for part in ("doubling", "room")]
            cells = [f"`{setting.name}`", str(entry["updates"]), f"{entry['rate']:g}", f"{entry['mean']:.3f}"]
            lines.append(row([*cells, *parts[0], *parts[1], str(len(entry["mean_dice_by_seed"]))]))
    return "\n".join([*lines, "", f"Not run: {', '.join(absent)}."] if absent else lines)


def _cells(part: dict[str, Any] | None) -> list[str]:
    if part is None:
        return ["not run", "not known"]
    low, high = part["t_interval"]
    return [f"{part['mean']:+.4f} ({low:+.4f} to {high:+.4f})", "yes" if part["passed"] else "no"]
