"""What was tried on calibration patients, before one form is fixed and test patients are scored."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibration
import gate
import table
from settings import Schedule, Setting, read_json

from nnunet_mutual.evaluation.differences import Scores, compare_draws


def schedule_of(setting: Setting) -> Schedule | None:
    """Returns how long forms were trained: as the protocol says, or as the gate found; None before it has."""
    said = setting.protocol.get("calibration", {}).get("screening")
    if said:
        return Schedule(**said)
    return calibration.chosen(setting) if gate.passed(setting) else None


def file_of(setting: Setting, schedule: Schedule, arm: str, seed: int) -> Path:
    """Returns where the run of an arm is; the gate has the control with more updates under its length."""
    own = calibration.run_file(setting, schedule, seed, arm)
    control = setting["calibration"]["arm"]
    first, *others = setting.networks(arm)
    if own.is_file() or others or replace(first, share=1.0) != setting.networks(control)[0]:
        return own
    return calibration.run_file(setting, first.schedule(schedule), seed, control)


def render(setting: Setting) -> str:
    """Returns the table of the arms that were scored on calibration patients; one for each part of a protocol.

    A part holds the arms whose names end alike, and looks at one label: the one that these networks cannot see.
    """
    schedule, rule = schedule_of(setting), setting["calibration"]
    assert schedule is not None
    files = {arm: {s: file_of(setting, schedule, arm, s) for s in rule["seeds"]} for arm in setting["arms"]}
    found = {arm: {s: read_json(f) for s, f in of_arm.items() if f.is_file()} for arm, of_arm in files.items()}
    found = {arm: runs for arm, runs in found.items() if runs}
    parts = rule.get("parts", [{"ending": "", "controls": rule["controls"]}])
    tables = [_table(setting, part, found) for part in parts if any(arm.endswith(part["ending"]) for arm in found)]
    return "\n\n".join(tables) if tables else "Not run."


def _table(setting: Setting, part: dict[str, Any], found: dict[str, dict[int, dict[str, Any]]]) -> str:
    seeds, label, controls = setting["calibration"]["seeds"], part.get("label"), part["controls"]
    precise = ["precision"] if setting.protocol.get("precision") else []
    head = [f"form{f' ({label})' * bool(label)}", *(f"draw {s}" for s in seeds), "mean"]
    head += [*(["all labels"] if label else []), *precise, "network updates"]
    for control in controls:
        head += [f"- `{control}`", "95 % over draws (t)", "95 % over patients (bootstrap)"]
    lines = table.heading(head)
    for arm, evidence in ((arm, runs) for arm, runs in found.items() if arm.endswith(part["ending"])):
        means = {s: table.label_means(e)[label] if label else table.mean_dice(e) for s, e in evidence.items()}
        cells = [f"`{arm}`: {setting['arms'][arm]['words']}"]
        cells += [f"{means[s]:.4f}" if s in means else "not run" for s in seeds]
        cells.append(f"{statistics.fmean(means.values()):.4f}")
        cells += [f"{statistics.fmean(map(table.mean_dice, evidence.values())):.4f}"] if label else []
        cells += [f"{statistics.fmean(map(table.precision_means, evidence.values())):.3f}" for _ in precise]
        cells.append(str(next(iter(evidence.values()))["total_updates"]))
        for control in controls:
            cells += _against(setting, arm, control, found, label)
        lines.append(table.row(cells))
    return "\n".join(lines)


def _against(
    setting: Setting, arm: str, control: str, found: dict[str, dict[int, dict[str, Any]]], label: str | None
) -> list[str]:
    """Difference to a control, of the draws that both have; of one label or the mean over all."""
    both = sorted({*found[arm]} & {*found.get(control, ())})
    if arm == control or not both:
        return ["", "", ""] if arm == control else ["not known"] * 3
    scores: list[dict[int, Scores]] = [
        {s: table.of_label(found[name][s]["dice"], label) for s in both} for name in (arm, control)
    ]
    difference = compare_draws(*scores, setting.patients)
    ends = [table.words(interval) for interval in (difference.over_draws, difference.over_patients)]
    return [f"{difference.over_draws.mean:+.4f}", *ends]
