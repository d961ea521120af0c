"""Finds the schedule on cases that are neither trained on nor held out; it is the same for all arms.

The rule, fixed before any arm was compared: (1) the learning rate with the highest mean Dice over the seeds at the
shortest length; (2) with it, the shortest length at which the seeds' mean Dice differ by less than ``range`` and at
which training twice as long changes the mean over the seeds by less than ``gain``; (3) every arm gets ``factor`` times
as many network updates (1 unless the protocol says otherwise), so that networks that share them are not cut short.

Where the protocol names a ``reference`` arm, (2) is: the shortest length at which the means of the two arms differ by
at least ``gap`` times the larger range of their seeds, so that there is a gap in which methods can be told apart.

Where it names ``room``, the benchmark has to pass a gate, and (2) is: the shortest length at which (a) the arm is on a
plateau, training twice as long adds at most ``gain`` to its mean, and (b) there is room, the reference arm has at least
``room`` more. What that says is in ``gate``, length by length, with the t interval over the draws.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gate
import table
from settings import BenchmarkError, Schedule, Setting, read_json, write_json


def run_file(setting: Setting, schedule: Schedule, seed: int, arm: str) -> Path:
    name = f"{schedule}_seed{seed}" if arm == setting["calibration"]["arm"] else f"{arm}_{schedule}_seed{seed}"
    return setting.evidence / "calibration" / f"{name}.json"


def collect(setting: Setting) -> dict[str, Any]:
    """Applies the rule to the runs that there are and writes calibration.json."""
    rule = setting["calibration"]
    rates = [_scores(setting, Schedule(rule["lengths"][0], rate)) for rate in rule["rates"]]
    rate = None if any(e["mean"] is None for e in rates) else max(rates, key=lambda e: e["mean"])["rate"]
    lengths = [] if rate is None else [_scores(setting, Schedule(updates, rate)) for updates in rule["lengths"]]
    updates, reason = decide(lengths, rule)
    state = {
        "benchmark": setting.name,
        "rule": " ".join(" ".join((__doc__ or "").split("\n\n")[1:]).split()),
        **{k: rule[k] for k in ("arm", "reference", "seeds", "range", "gain", "gap", "room") if k in rule},
        "factor": rule.get("factor", 1),
        "scored_on": "calibration cases: neither trained on nor among the held-out test cases",
        "training": setting["training"],
        "learning_rates": rates,
        "lengths": lengths,
        **({"gate": gate.judge(lengths, rule)} if "room" in rule else {}),
        "chosen": None if updates is None or rate is None else asdict(Schedule(updates * rule.get("factor", 1), rate)),
        "reason": reason,
        "source": setting["source"],
    }
    write_json(setting.calibration_file, state)
    return state


def _scores(setting: Setting, schedule: Schedule) -> dict[str, Any]:
    rule = setting["calibration"]
    entry = _of_arm(setting, schedule, rule["arm"])
    return entry | ({"reference": _of_arm(setting, schedule, rule["reference"])} if "reference" in rule else {})


def _of_arm(setting: Setting, schedule: Schedule, arm: str) -> dict[str, Any]:
    files = {seed: run_file(setting, schedule, seed, arm) for seed in setting["calibration"]["seeds"]}
    label = setting["calibration"].get("label")  # None: the mean over all
    found = {str(seed): read_json(f) for seed, f in files.items() if f.is_file()}
    dice = {seed: table.label_means(e)[label] if label else table.mean_dice(e) for seed, e in found.items()}
    scores = {seed: round(value, 5) for seed, value in dice.items()}
    entry: dict[str, Any] = {**asdict(schedule), "mean_dice_by_seed": scores, "mean": None, "range": None}
    if len(scores) == len(files):
        entry["mean"] = round(statistics.fmean(scores.values()), 5)
        entry["range"] = round(max(scores.values()) - min(scores.values()), 5)
    return entry


def decide(lengths: list[dict[str, Any]], rule: dict[str, Any]) -> tuple[int | None, str]:
    """Returns the chosen number of updates, or None, and the reason."""
    if "room" in rule:
        return gate.decide(gate.judge(lengths, rule))
    by_updates = {entry["updates"]: entry for entry in lengths}
    for entry in lengths:
        if "reference" in rule:
            other = entry["reference"]
            if entry["range"] is None or other["range"] is None:
                continue
            gap, spread = entry["mean"] - other["mean"], max(entry["range"], other["range"])
            if gap >= rule["gap"] * spread:
                return entry["updates"], f"the arms differ by {gap:.4f}, the seeds of one by at most {spread:.4f}"
            continue
        double = by_updates.get(2 * entry["updates"])
        if entry["range"] is None or double is None or double["mean"] is None:
            continue
        gain = double["mean"] - entry["mean"]
        if entry["range"] < rule["range"] and abs(gain) < rule["gain"]:
            longer = f"{double['updates']} updates change the mean by {gain:+.4f}"
            return entry["updates"], f"seeds differ by {entry['range']:.4f}, {longer}"
    return None, "no length fulfils the rule yet"


def missing(setting: Setting, state: dict[str, Any]) -> list[tuple[str, Schedule, int]]:
    """Returns the runs to do next: the learning rates, then length by length until the rule decides."""
    for arm, entries in _steps(setting["calibration"], state):
        wanted = [
            (arm, Schedule(e["updates"], e["rate"]), seed)
            for e in entries
            for seed in setting["calibration"]["seeds"]
            if str(seed) not in (e if arm == setting["calibration"]["arm"] else e["reference"])["mean_dice_by_seed"]
        ]
        if wanted:
            return wanted
    return []


def _steps(rule: dict[str, Any], state: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns arms and entries in the order in which their runs are needed."""
    lengths = [[entry] for entry in state["lengths"]]
    if "room" in rule:  # the doubled length says whether there is a plateau at which room is worth a look
        steps = [(rule["arm"], entries) for entries in (state["learning_rates"], *lengths[:1])]
        for shorter, longer in zip(lengths, lengths[1:], strict=False):
            steps += [(rule["arm"], longer), (rule["reference"], shorter)]
        return steps
    arms = [rule[key] for key in ("arm", "reference") if key in rule]
    return [(arm, entries) for entries in (state["learning_rates"], *lengths) for arm in arms]


def chosen(setting: Setting) -> Schedule:
    if not setting.calibration_file.is_file():
        raise BenchmarkError(
            f"{setting.name} is not calibrated; run first: python benchmarks/run.py calibrate {setting.name}"
        )
    state = read_json(setting.calibration_file)
    if state["chosen"] is None:
        raise BenchmarkError(
            f"the calibration has not ended ({state['reason']}); repeat: run.py calibrate {setting.name}"
        )
    return Schedule(**state["chosen"])
