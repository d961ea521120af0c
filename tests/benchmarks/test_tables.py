"""Tables of benchmarks are those of the evidence."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_evidence import BENCHMARKS, evidence


def test_the_table_says_not_run_and_compares_only_seeds_that_both_arms_have(
    bench: SimpleNamespace, setting: Any, tmp_path: Path
) -> None:
    for arm, seed, dice in (("partial", 0, 0.80), ("partial", 1, 0.70), ("full", 0, 0.81)):
        bench.settings.write_json(setting.evidence_file(arm, seed), evidence(arm, seed, dice))
    bench.table.write(setting)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `partial`"))
    assert "| 0.850 | 0.650 | 0.750 | 0.800 | 0.700 | not run | 500 | 500 | 1 | 1.0 |" in row
    assert "| `separate`" not in text and "Not run: `separate`" in text
    assert "within 0.02 of `full`: yes, difference of the means -0.0100 (seeds 0)" in text


def test_pairs_of_draws_have_both_intervals_and_a_verdict_when_there_are_enough(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    setting = bench.settings.Setting("acdc_unlabelled_1", None, tmp_path)
    cases = list(setting.patients)[:4]

    def one(draw: int, dice: float) -> dict[str, Any]:
        return {**evidence("", draw, dice), "dice": {c: {"LV": dice + 0.01 * n} for n, c in enumerate(cases)}}

    first, second = ({s: one(s, dice + s / 1000 * dice)["dice"] for s in range(6)} for dice in (0.80, 0.70))
    cells = bench.table.pair(setting, first, second)
    assert cells[0] == "+0.1003" and cells[3:] == ["2 / 0", "6", "better"]  # two hearts, four cases
    few = bench.table.pair(setting, *({s: found[s] for s in range(5)} for found in (first, second)))
    assert few[3:] == ["2 / 0", "5", "open (6 draws decide)"]


def test_a_pair_may_look_at_one_label(bench: SimpleNamespace, tmp_path: Path) -> None:
    setting = bench.settings.Setting("acdc_unlabelled_1", None, tmp_path)
    setting.protocol["pairs"] = [["a", "b", "RV"], ["a", "b"]]
    dice = {"a": {"RV": 0.7, "LV": 0.9}, "b": {"RV": 0.6, "LV": 0.9}}
    found = {arm: {s: {"dice": dict.fromkeys(setting.patients, of)} for s in range(2)} for arm, of in dice.items()}
    rows = bench.table.paired(setting, found).splitlines()[-2:]
    assert rows[0].startswith("| `a` - `b` (RV) | +0.1000 |") and rows[1].startswith("| `a` - `b` | +0.0500 |")


def test_pooled_in_shares_of_the_gaps(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pooling = importlib.import_module("pooling")
    settings = [bench.settings.Setting(f"hippocampus_few_{n}", None, tmp_path) for n in (1, 2)]
    scores = {"mean_teacher": 0.70, "all_average": 0.80, "average": 0.75}

    def rows(setting: Any) -> dict[str, dict[int, Any]]:
        return {
            arm: {s: evidence(arm, s, value + s / 1000 if arm == "average" else value) for s in range(12)}
            for arm, value in scores.items()
        }

    monkeypatch.setattr(bench.table, "rows", rows)
    monkeypatch.setattr(bench.settings.Setting, "patients", {"a": "a", "b": "b"})
    monkeypatch.setattr(bench.calibration, "chosen", lambda setting: None)
    compared = [(setting, "average", "mean_teacher") for setting in settings]
    lines = pooling.render(compared).splitlines()
    assert lines[2].startswith("| `hippocampus_few_1` | `average` - `mean_teacher` | 0.1000 | +0.0555 |")
    assert lines[2].endswith("| 12 | better |") and lines[4].endswith("| 24 | better |")
    assert lines[4].startswith("| pooled, in shares of the gap |  | 1 | +0.5550 |")
    with pytest.raises(bench.settings.BenchmarkError, match="no arm other"):
        pooling.render([(settings[0], "other", "mean_teacher")])
    monkeypatch.setattr(bench.table, "rows", lambda setting: {**rows(setting), "average": {0: evidence("", 0, 0.7)}})
    with pytest.raises(bench.settings.BenchmarkError, match="has 1 draws of average and mean_teacher, 12 decide"):
        pooling.render(compared)


def test_the_tables_are_those_of_the_evidence(bench: SimpleNamespace) -> None:
    text = (BENCHMARKS / "README.md").read_text()
    names = ("cost.table", "real_channels", "suggesting")
    cost, real_channels, suggesting = (importlib.import_module(name) for name in names)
    tables = {name: bench.table.render(bench.settings.Setting(name, None)) for name in bench.settings.names()}
    screening = importlib.import_module("screening")
    settings = [bench.settings.Setting(name, None) for name in tables]
    passed = [setting.name for setting in settings if bench.gate.passed(setting)]
    assert passed == ["acdc_slices_1", "acdc_slices_shown_3", "acdc_slices_sources_1", "hippocampus_few_1"]
    screened = [setting for setting in settings if screening.schedule_of(setting)]
    for name, table in {
        **tables,
        **{f"screening_{setting.name}": screening.render(setting) for setting in screened},
        "step": cost.render(),
        "explained": cost.render_explained(),
        "scale": importlib.import_module("scale").render(),
        "real_channels": real_channels.render(),
        "gate": bench.gate.render(),
        "suggesting_hippocampus": suggesting.render(suggesting.Simulation("hippocampus", None)),
    }.items():
        found = text.split(f"<!-- table:{name} -->\n")[1].split(f"\n<!-- /table:{name} -->")[0]
        assert found == table, f"write it anew: benchmarks/run.py table {name} (step.py, real_channels.py: --table)"


def test_suggested_against_random_structures(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suggesting = importlib.import_module("suggesting")
    monkeypatch.setattr(suggesting.Simulation, "evidence", tmp_path)
    monkeypatch.setattr(suggesting.Simulation, "patients", {"a": "a", "b": "b"})
    simulation = suggesting.Simulation("hippocampus", None, tmp_path)
    for arm, dice in {"suggest": 0.86, "random": 0.84}.items():
        for draw in range(3 if arm == "suggest" else 2):
            made = evidence(arm, draw, dice + draw * (0.002 if arm == "suggest" else 0))
            bench.settings.write_json(tmp_path / suggesting.Run(draw, arm, 8).file, made)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in suggesting.render(simulation).splitlines()[4:]]
    assert rows[0][0] == "2 cases" and rows[1][1:] == ["not run"] * 6 + ["0"]
    half = 12.7062 * 0.001  # t of one degree of freedom; the differences of the two draws are 0.020 and 0.022
    assert rows[2][3:5] == ["+0.0210", f"{0.021 - half:+.4f} to {0.021 + half:+.4f}"] and rows[2][7] == "2"
