"""How long a benchmark trains, and whether it decides: on made-up evidence; no training."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_evidence import BENCHMARKS, evidence, length

RULE = {"range": 0.01, "gain": 0.01}


def test_the_shortest_length_that_is_stable_and_converged_is_chosen(bench: SimpleNamespace) -> None:
    lengths = [length(250, 0.70, 0.001), length(500, 0.80, 0.02), length(1000, 0.805, 0.005), length(2000, 0.812, 0.02)]
    assert bench.calibration.decide(lengths, RULE)[0] == 1000


@pytest.mark.parametrize(
    "lengths",
    [
        [length(250, 0.80, 0.001)],  # nothing says that it has converged
        [length(250, 0.80, 0.001), length(500, None, None)],
        [length(250, 0.80, 0.001), length(500, 0.82, 0.001)],  # it has not
        [length(250, 0.80, 0.02), length(500, 0.80, 0.001)],  # the seeds differ
    ],
)
def test_no_length_is_chosen_without_reason(bench: SimpleNamespace, lengths: list[dict[str, Any]]) -> None:
    assert bench.calibration.decide(lengths, RULE)[0] is None


def test_the_shortest_length_at_which_two_arms_differ_is_chosen(bench: SimpleNamespace) -> None:
    def both(updates: int, mean: float, spread: float, other: float, spread_of_other: float) -> dict[str, Any]:
        return {**length(updates, mean, spread), "reference": length(updates, other, spread_of_other)}

    rule = {"reference": "few", "gap": 3}
    lengths = [both(250, 0.80, 0.001, 0.78, 0.01), both(500, 0.83, 0.01, 0.79, 0.005), both(1000, 0.9, 0, 0.5, 0)]
    assert bench.calibration.decide(lengths, rule)[0] == 500
    assert bench.calibration.decide(lengths[:1], rule)[0] is None
    unfinished = {**length(500, 0.83, 0.01), "reference": length(500, None, None)}
    assert bench.calibration.decide([unfinished], rule)[0] is None


GATE = {"arm": "mean_teacher", "reference": "all_average", "seeds": [0, 1], "gain": 0.005, "room": 0.04}


def both(updates: int, *scores: float | None, reference: float | None = None) -> dict[str, Any]:
    """What two draws of the arm have at a length, and what all labels have."""

    def entry(values: tuple[float | None, ...]) -> dict[str, Any]:
        known = {str(n): v for n, v in enumerate(values) if v is not None}
        return {
            "updates": updates,
            "mean_dice_by_seed": known,
            "mean": sum(known.values()) / 2 if len(known) == 2 else None,
        }

    return {**entry(scores), "reference": entry((reference, reference))}


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.704, 0.725)], 480),  # +0.0045, 0.09 of room
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.706, 0.725)], None),  # +0.0055: no plateau
        ([both(480, 0.70, 0.72, reference=0.749), both(960, 0.70, 0.72)], None),  # 0.039 of room
        ([both(480, 0.70, 0.72), both(960, 0.70, 0.72)], None),  # room not known
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.70, None)], None),  # a draw is missing
        ([both(480, 0.6, 0.6, reference=0.8), both(960, 0.70, 0.72, reference=0.8), both(1920, 0.69, 0.72)], 960),
    ],
)
def test_a_benchmark_needs_a_plateau_and_room(
    bench: SimpleNamespace, lengths: list[dict[str, Any]], chosen: int | None
) -> None:
    assert bench.calibration.decide(lengths, GATE)[0] == chosen


def test_the_gate_says_what_it_knows(bench: SimpleNamespace) -> None:
    first, second = bench.gate.judge([both(480, 0.70, 0.72, reference=0.8), both(960, 0.704, 0.725)], GATE)
    assert first["doubling"]["mean"] == 0.0045 and first["doubling"]["passed"] and first["doubling"]["draws"] == 2
    assert first["room"]["mean"] == 0.09 and first["room"]["passed"]
    low, high = first["doubling"]["t_interval"]
    half = 12.7062 * 0.0005  # t of one degree of freedom; the draws differ by 0.001
    assert (low, high) == pytest.approx((0.0045 - half, 0.0045 + half), abs=1e-5)
    assert second == {"updates": 960, "doubling": None, "room": None}


def test_the_gate_asks_for_the_doubled_length_before_all_labels(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "protocol").mkdir()
    protocol = (BENCHMARKS / "protocol" / "hippocampus_few.json").read_text()
    (tmp_path / "protocol" / "hippocampus_few.json").write_text(protocol)
    monkeypatch.setattr(bench.settings, "HERE", tmp_path)  # the evidence is made up
    setting = bench.settings.Setting("hippocampus_few_1", None, tmp_path / "work")
    asked = []
    for dice in (0.70, 0.704, 0.78):
        wanted = bench.calibration.missing(setting, bench.calibration.collect(setting))
        asked.append({(arm, schedule.updates) for arm, schedule, _ in wanted})
        for arm, schedule, seed in wanted:
            made = evidence(arm, seed, dice, schedule.updates)
            bench.settings.write_json(bench.calibration.run_file(setting, schedule, seed, arm), made)
    assert asked == [{("mean_teacher", 480)}, {("mean_teacher", 960)}, {("all_average", 480)}]
    state = bench.calibration.collect(setting)
    assert state["chosen"] == {"updates": 480, "rate": 0.01}
    assert "adds +0.0040, all labels have 0.0800 more" in state["reason"]


def test_screening_compares_every_form_with_both_controls(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = bench.settings.Setting("hippocampus_few_1", None, tmp_path)
    screening = importlib.import_module("screening")
    schedule = bench.settings.Schedule(480, 0.01)
    double = screening.file_of(setting, schedule, "mean_teacher_double", 1)
    assert double.name == "u960_lr0.01_seed1.json", "the gate has trained the longer control"
    assert screening.file_of(setting, schedule, "mean_teacher", 1).name == "u480_lr0.01_seed1.json"
    monkeypatch.setattr(screening, "schedule_of", lambda _: schedule)
    monkeypatch.setattr(bench.settings.Setting, "evidence", tmp_path)
    monkeypatch.setattr(bench.settings.Setting, "patients", {"a": "a", "b": "b"})
    for arm, dice in {"mean_teacher": 0.70, "mean_teacher_double": 0.72, "consensus": 0.75}.items():
        for seed in (0, 1):
            found = evidence(arm, seed, dice + seed / 100)
            bench.settings.write_json(screening.file_of(setting, schedule, arm, seed), found)
    rows = screening.render(setting).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == ["mean_teacher", "mean_teacher_double", "consensus"]
    cells = [cell.strip() for cell in rows[2].split("|")[2:-1]]
    assert cells[:5] == ["0.7500", "0.7600", "not run", "0.7550", "500"]
    assert cells[5:7] == ["+0.0500", "+0.0500 to +0.0500"] and cells[8] == "+0.0300"
    assert rows[0].split("|")[7:10] == ["  "] * 3, "a control is not compared with itself"


def test_run_before_calibrate_says_what_to_do(bench: SimpleNamespace, setting: Any) -> None:
    with pytest.raises(bench.settings.BenchmarkError, match="run.py calibrate hippocampus"):
        bench.calibration.chosen(setting)


def test_calibration_goes_rate_by_rate_then_length_by_length(bench: SimpleNamespace, setting: Any) -> None:
    rule = setting["calibration"]
    wanted = bench.calibration.missing(setting, bench.calibration.collect(setting))
    assert {s.rate for _, s, _ in wanted} == set(rule["rates"])
    assert {s.updates for _, s, _ in wanted} == {rule["lengths"][0]}
    for arm, schedule, seed in wanted:
        dice = 0.8 if schedule.rate == rule["rates"][1] else 0.7
        file = bench.calibration.run_file(setting, schedule, seed, arm)
        bench.settings.write_json(file, evidence("full", seed, dice))
    following = bench.calibration.missing(setting, bench.calibration.collect(setting))
    best = bench.settings.Schedule(rule["lengths"][1], rule["rates"][1])
    assert following == [(rule["arm"], best, seed) for seed in rule["seeds"]]
    setting.protocol["calibration"] = {**rule, "reference": "partial", "gap": 3}
    arms = [arm for arm, *_ in bench.calibration.missing(setting, bench.calibration.collect(setting))]
    assert set(arms) == {"partial"}  # the rates were done of the first arm only
