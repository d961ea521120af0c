"""The benchmark runner: its rules and its table, on made-up evidence; no training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RULE = {"range": 0.01, "gain": 0.01}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("settings", "table", "calibration", "preparation", "run")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def setting(bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hippocampus, with its own copy of README.md and no evidence."""
    (tmp_path / "protocol").mkdir()
    protocol = (BENCHMARKS / "protocol" / "hippocampus.json").read_text()
    (tmp_path / "protocol" / "hippocampus.json").write_text(protocol)
    (tmp_path / "README.md").write_text("before\n<!-- table:hippocampus -->\nold\n<!-- /table:hippocampus -->\nafter\n")
    for module in (bench.settings, bench.table):
        monkeypatch.setattr(module, "HERE", tmp_path)
    return bench.settings.Setting("hippocampus", None, tmp_path / "work")


def length(updates: int, mean: float | None, spread: float | None) -> dict[str, Any]:
    return {"updates": updates, "mean": mean, "range": spread}


def evidence(arm: str, seed: int, dice: float, updates: int = 500, networks: int = 1) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "updates_of_each_network": updates,
        "total_updates": updates * networks,
        "networks_deployed": networks,
        "training_seconds": [60.0] * networks,
        "schedule": {"updates": updates, "rate": 0.01},
        "dice": {
            "a": {"Anterior": dice + 0.1, "Posterior": dice - 0.1},
            "b": {"Anterior": None, "Posterior": dice - 0.1},
        },
    }


def test_no_case_serves_two_purposes() -> None:
    for file in (BENCHMARKS / "protocol").glob("*.json"):
        lists = json.loads(file.read_text())["cases"]
        everything = [case for cases in lists.values() for case in cases]
        assert len(everything) == len(set(everything)), file


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
    assert "not run" in next(line for line in text.splitlines() if line.startswith("| `separate`"))
    assert "within 0.02 of `full`: yes, difference of the means -0.0100 (seeds 0)" in text


def test_the_tables_are_those_of_the_evidence(bench: SimpleNamespace) -> None:
    text = (BENCHMARKS / "README.md").read_text()
    cost, real_channels = (importlib.import_module(name) for name in ("cost.table", "real_channels"))
    tables = {name: bench.table.render(bench.settings.Setting(name, None)) for name in bench.settings.NAMES}
    for name, table in {**tables, "step": cost.render(), "real_channels": real_channels.render()}.items():
        found = text.split(f"<!-- table:{name} -->\n")[1].split(f"\n<!-- /table:{name} -->")[0]
        assert found == table, f"write it anew: benchmarks/run.py table {name} (step.py, real_channels.py: --table)"


def test_a_label_map_keeps_only_what_was_annotated(bench: SimpleNamespace, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.array([[[0, 1, 2, 3]]], dtype=np.uint8))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "old.nii.gz"))
    bench.preparation.write_labels(tmp_path / "old.nii.gz", tmp_path / "new.nii.gz", {3: 1})
    new = sitk.ReadImage(str(tmp_path / "new.nii.gz"))
    assert sitk.GetArrayFromImage(new).ravel().tolist() == [0, 0, 0, 1]
    assert new.GetSpacing() == (1.0, 2.0, 3.0)


def test_separate_networks_merge_by_the_higher_probability(bench: SimpleNamespace) -> None:
    scoring = importlib.import_module("scoring")
    first = np.array([0.9, 0.6, 0.4, 0.1], dtype=np.float32).reshape(1, 1, 4)
    second = np.array([0.1, 0.8, 0.3, 0.7], dtype=np.float32).reshape(1, 1, 4)
    outputs = [((p > 0.5).astype(np.uint8), np.stack([1 - p, p])) for p in (first, second)]
    merged = scoring.merge(
        outputs, [["Anterior"], ["Posterior"]], [["Anterior"], ["Posterior"]], ["Anterior", "Posterior"]
    )
    assert merged.ravel().tolist() == [1, 2, 0, 2]


def test_dice_of_nothing_is_not_a_number_to_average(bench: SimpleNamespace) -> None:
    scoring = importlib.import_module("scoring")
    empty, full = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    assert scoring.dice(empty, empty) is None
    assert scoring.dice(full, empty) == 0
    assert scoring.dice(full, np.array([True, True, False, False])) == pytest.approx(2 / 3)


def test_finished_runs_are_skipped_and_another_schedule_is_refused(bench: SimpleNamespace, setting: Any) -> None:
    file = setting.evidence_file("full", 0)
    bench.settings.write_json(file, evidence("full", 0, 0.8))
    job = bench.run.Job("full", 0, bench.settings.Schedule(500, 0.01), "test", file, 1)
    scheduler = bench.run.Scheduler(setting, 1, None)
    assert scheduler.finished(job)
    assert scheduler.run([job])
    other = bench.run.Job("full", 0, bench.settings.Schedule(1000, 0.01), "test", file, 1)
    with pytest.raises(bench.settings.BenchmarkError, match="delete it to run it again"):
        scheduler.finished(other)


def test_arms_that_share_a_network_do_not_train_it_at_the_same_time(bench: SimpleNamespace, tmp_path: Path) -> None:
    schedule, files = bench.settings.Schedule(500, 0.01), [frozenset({tmp_path / name}) for name in "aab"]
    jobs = [bench.run.Job(f"arm{i}", 0, schedule, "test", tmp_path, 1, files[i]) for i in range(3)]
    following = bench.run.Scheduler.next
    assert following(jobs, []) is jobs[0] and following(jobs[1:], jobs[:1]) is jobs[2]
    assert following(jobs[1:2], jobs[:1]) is None


def test_a_run_that_would_not_end_within_the_budget_is_not_started(
    bench: SimpleNamespace, setting: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = bench.run.Scheduler(setting, 1, 60.0)
    scheduler.seconds_per_update = 1.0
    job = bench.run.Job("full", 0, bench.settings.Schedule(500, 0.01), "test", setting.evidence_file("full", 0), 1)
    assert not scheduler.run([job])
    assert "budget is spent" in capsys.readouterr().out
    assert not setting.evidence_file("full", 0).exists()


def test_durations(bench: SimpleNamespace) -> None:
    assert [bench.run.seconds(t) for t in ("90", "90s", "60m", "2h")] == [90, 90, 3600, 7200]
    with pytest.raises(Exception, match="60m"):
        bench.run.seconds("an hour")


def test_a_second_modality_hides_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulate = importlib.import_module("second_modality").second_modality
    labels = np.zeros((21, 24, 23), np.uint8)
    labels[4:10, 4:12, 4:12], labels[12:18, 12:20, 12:20] = 1, 2
    image = np.array([200.0, 300.0, 300.0])[labels] + np.random.default_rng(0).normal(0, 3, labels.shape)
    image[0, :12], image[0, 12:] = 50, 400  # what else is in an image

    def contrast(x: np.ndarray, label: int) -> float:
        inner = importlib.import_module("scipy.ndimage").binary_erosion(labels == label, iterations=2)
        other = x[2:][labels[2:] == 0]
        return abs(x[inner].mean() - other.mean()) / other.std()

    made = simulate(image, labels, 2, "case_1")
    assert made.shape == image.shape and made.dtype == np.float32 and made.min() >= 0
    assert contrast(image, 2) > 10 and contrast(made, 1) > 10 * contrast(made, 2)
    assert np.array_equal(made, simulate(image, labels, 2, "case_1"))
    assert not np.array_equal(made, simulate(image, labels, 2, "case_2"))
    other = simulate(image, labels, 1, "case_1")
    assert contrast(other, 2) > 10 * contrast(other, 1)
