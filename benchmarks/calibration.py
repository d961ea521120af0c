"""Finds the schedule on cases that are neither trained on nor held out; it is the same for all arms.

The rule, fixed before any arm was compared: (1) the learning rate with the highest mean Dice over the seeds at the
shortest length; (2) with it, the shortest length at which the seeds' mean Dice differ by less than ``range`` and at
which training twice as long changes the mean over the seeds by less than ``gain``; (3) every arm gets ``factor`` times
as many network updates (1 unless the protocol says otherwise), so that networks that share them are not cut short.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import table
from settings import BenchmarkError, Schedule, Setting, read_json, write_json


def run_file(setting: Setting, schedule: Schedule, seed: int) -> Path:
    return setting.evidence / "calibration" / f"{schedule}_seed{seed}.json"


def collect(setting: Setting) -> dict[str, Any]:
    """Applies the rule to the runs that there are and writes calibration.json."""
    rule = setting["calibration"]
    rates = [_scores(setting, Schedule(rule["lengths"][0], rate)) for rate in rule["rates"]]
    rate = None if any(e["mean"] is None for e in rates) else max(rates, key=lambda e: e["mean"])["rate"]
    lengths = [] if rate is None else [_scores(setting, Schedule(updates, rate)) for updates in rule["lengths"]]
    updates, reason = decide(lengths, rule)
    state = {
        "benchmark": setting.name,
        "rule": " ".join((__doc__ or "").split("\n\n")[1].split()),
        **{k: rule[k] for k in ("arm", "seeds", "range", "gain")},
        "factor": rule.get("factor", 1),
        "scored_on": "calibration cases: neither trained on nor among the held-out test cases",
        "training": setting["training"],
        "learning_rates": rates,
        "lengths": lengths,
        "chosen": None if updates is None or rate is None else asdict(Schedule(updates * rule.get("factor", 1), rate)),
        "reason": reason,
        "source": setting["source"],
    }
    write_json(setting.calibration_file, state)
    return state


def _scores(setting: Setting, schedule: Schedule) -> dict[str, Any]:
    files = {seed: run_file(setting, schedule, seed) for seed in setting["calibration"]["seeds"]}
    scores = {str(seed): round(table.mean_dice(read_json(f)), 5) for seed, f in files.items() if f.is_file()}
    entry: dict[str, Any] = {**asdict(schedule), "mean_dice_by_seed": scores, "mean": None, "range": None}
    if len(scores) == len(files):
        entry["mean"] = round(statistics.fmean(scores.values()), 5)
        entry["range"] = round(max(scores.values()) - min(scores.values()), 5)
    return entry


def decide(lengths: list[dict[str, Any]], rule: dict[str, Any]) -> tuple[int | None, str]:
    """Returns the chosen number of updates, or None, and the reason."""
    by_updates = {entry["updates"]: entry for entry in lengths}
    for entry in lengths:
        double = by_updates.get(2 * entry["updates"])
        if entry["range"] is None or double is None or double["mean"] is None:
            continue
        gain = double["mean"] - entry["mean"]
        if entry["range"] < rule["range"] and abs(gain) < rule["gain"]:
            longer = f"{double['updates']} updates change the mean by {gain:+.4f}"
            return entry["updates"], f"seeds differ by {entry['range']:.4f}, {longer}"
    return None, "no length fulfils the rule yet"


def missing(setting: Setting, state: dict[str, Any]) -> list[tuple[Schedule, int]]:
    """Returns the runs to do next: the learning rates, then length by length until the rule decides."""
    seeds = setting["calibration"]["seeds"]
    for entries in (state["learning_rates"], *([entry] for entry in state["lengths"])):
        wanted = [
            (Schedule(e["updates"], e["rate"]), s)
            for e in entries
            for s in seeds
            if str(s) not in e["mean_dice_by_seed"]
        ]
        if wanted:
            return wanted
    return []


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
