"""The runner of benchmarks: what it repeats, starts and scores."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_up_evidence import evidence


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
    arguments = SimpleNamespace(jobs=1, budget=None)
    assert bench.run.run_jobs(
        setting, [bench.run.Job("full", 0, bench.settings.Schedule(500, 0.01), "test", file)], arguments
    )
    other = bench.run.Job("full", 0, bench.settings.Schedule(1000, 0.01), "test", file)
    with pytest.raises(bench.settings.BenchmarkError, match="delete it to run it again"):
        bench.run.run_jobs(setting, [other], arguments)


def test_runs_that_would_not_end_within_the_budget_are_not_started(
    bench: SimpleNamespace, setting: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [setting.evidence_file("full", seed) for seed in range(3)]
    jobs = [bench.run.Job("full", n, bench.settings.Schedule(500, 0.01), "test", files[n]) for n in range(3)]
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    files[0].parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(evidence("full", 0, 0.8))
    monkeypatch.setattr(bench.run, "command", lambda setting, job: ["-c", write, str(job.out), content])
    assert not bench.run.run_jobs(setting, jobs, SimpleNamespace(jobs=1, budget=0.4))
    assert "2 run(s) are left" in capsys.readouterr().out and [f.is_file() for f in files] == [True, False, False]
    assert bench.run.run_jobs(setting, jobs, SimpleNamespace(jobs=2, budget=None))


def test_durations(bench: SimpleNamespace) -> None:
    assert [bench.run.seconds(t) for t in ("90", "90s", "60m", "2h")] == [90, 90, 3600, 7200]
    with pytest.raises(Exception, match="60m"):
        bench.run.seconds("an hour")
