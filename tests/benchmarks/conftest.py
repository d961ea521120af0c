"""Modules of the benchmarks, which are no package, and a benchmark without evidence."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_evidence import BENCHMARKS


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("settings", "table", "calibration", "preparation", "run", "draws", "crops", "gate")
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
