"""The benchmark of loaders: what it measures, and its table."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("loaders")


def test_loaders_are_those_of_known_trainers(loaders: Any) -> None:
    assert set(loaders.KINDS) <= set(importlib.import_module("cost.trainers").recipes(2, [2]))


def test_seconds_of_processes_are_counted(loaders: Any) -> None:
    before = loaders.processor([os.getpid()])
    assert before > 0
    while loaders.processor([os.getpid()]) == before:
        pass
    assert loaders.processor([os.getpid()] * 2) >= 2 * before


def test_the_table_has_samples_per_second_in_those_of_stock(loaders: Any) -> None:
    one = {"processor": 0.2, "clock": 0.4}
    seconds = {"stock": one, **dict.fromkeys(loaders.KINDS, {"processor": 0.1, "clock": 0.8})}
    found = {"seconds_per_sample": {"4": seconds}, "ratio": {"4": dict.fromkeys(loaders.KINDS, 2.0)}}
    head, _, *rows = loaders.render(found).splitlines()
    assert "4 worker(s)" in head and len(rows) == 3 and all(row.endswith("| 2.00 (0.50) |") for row in rows)
