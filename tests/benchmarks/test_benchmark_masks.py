"""How the benchmark takes a tool's masks over: a reader who does not look, and a command that fails."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from nnunet_mutual.batches.decisions import ALONE, Decision, write_decisions

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def decision(case: str, reason: str) -> Decision:
    return Decision(case, "A", "Mandible", False, reason, 60.0, None, 0.1, 1.0, "a tool")


def test_what_was_not_rejected_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    masks = importlib.import_module("masks")
    review, decisions = tmp_path / "review.csv", tmp_path / "decisions.csv"
    write_decisions(decisions, [decision("a", f"{ALONE}: plausible"), decision("b", "too small: 1 ml")])
    review.write_text("case,label,decision,comment\na,Mandible,,\nb,Mandible,,\n")
    masks.accept_all(review, decisions)
    with review.open(newline="") as stream:
        assert [(row["case"], row["decision"]) for row in csv.DictReader(stream)] == [("a", "accept"), ("b", "reject")]


def test_a_command_that_fails_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    masks, settings = (importlib.import_module(name) for name in ("masks", "settings"))
    with pytest.raises(settings.BenchmarkError, match="did not end well"):
        masks.command("accept", "001", "nowhere.csv", "--weight", "2")
    assert "--weight" in capsys.readouterr().err
