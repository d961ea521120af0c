"""The one call on a GPU: steps that end, fail or are cut, and what a repeated call does."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_is_done_is_not_done_again(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "there"
    steps = [
        gpu.Step("first", python("print('all is well')"), 60),
        gpu.Step("second", python(f"import sys, pathlib; sys.exit(not pathlib.Path({str(marker)!r}).exists())"), 60),
        gpu.Step("third", python("print('3 numbers are above their bars'); raise SystemExit(1)"), 60),
        gpu.Step("long", python("import time; print('at work', flush=True); time.sleep(600)"), 2),
    ]
    monkeypatch.setattr(gpu, "steps", lambda arguments, out: steps)
    monkeypatch.setattr(gpu, "LEAST", 1)
    started = time.monotonic()
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("first: done in ") and said[0].endswith(": all is well")
    assert said[1].startswith("second: failed after ") and said[1].endswith("(exit 1): it said nothing")
    assert said[2].startswith("third: done in ") and said[3].startswith("long: cut after ")
    assert time.monotonic() - started < 120
    assert (tmp_path / "out" / "long.log").read_text() == "at work\n"
    marker.touch()
    steps[0] = gpu.Step("first", python("raise SystemExit(3)"), 60)
    steps.pop()
    assert gpu.main(["--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("first: done in ") and said[0].endswith(" before")
    assert said[1].startswith("second: done in ")


def test_no_step_begins_after_the_end(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "steps", lambda arguments, out: [gpu.Step("first", python("raise SystemExit(3)"), 60)])
    assert gpu.main(["--out", str(tmp_path), "--minutes", "0.1"]) == 1
    assert not (tmp_path / "steps.json").exists()


def test_what_does_not_fit_a_loan_is_said_before_anything_is_run(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "steps", lambda arguments, out: [])
    wheels, data = tmp_path / "wheels", tmp_path / "data"
    for folder, size in ((wheels, 40 << 20), (data, 24 << 20)):
        folder.mkdir()
        with (folder / "file").open("wb") as stream:
            stream.truncate(size)
    call = ["--out", str(tmp_path / "out"), "--data", str(data)]
    assert gpu.main([*call, "--wheels", str(wheels)]) == 0
    (wheels / "more").write_bytes(b"x")
    assert gpu.main(call) == 0, "of data on a machine of one's own nothing travels"
    with pytest.raises(
        SystemExit, match=r"hold 64.0 MiB, more than the 64 MiB that travel with a loan; .*wheels/file \(40 MiB\)"
    ):
        gpu.main([*call, "--wheels", str(wheels)])


@pytest.mark.parametrize("rehearse", [True, False])
def test_every_step_is_a_command_that_its_program_understands(
    gpu: Any, rehearse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = gpu.parse(["--out", str(tmp_path), "--data", str(tmp_path), *(["--rehearse"] if rehearse else [])])
    found = {step.name: list(step.command) for step in gpu.steps(arguments, tmp_path)}
    assert list(found) == ["tests", "planned", "explained", "small", "table1", "table2", "table3"]
    for command in found.values():
        if command[1].endswith(("step.py", "run.py")):
            program = importlib.import_module(Path(command[1]).stem)
            parsed = program.parse(command[2:])
            assert parsed.device == ("cpu" if rehearse else "cuda")
    if not rehearse:
        assert sum(step.seconds for step in gpu.steps(arguments, tmp_path)) < 15 * 60, "more than a loan"


def test_a_benchmark_on_a_gpu_keeps_apart_from_one_on_a_cpu(gpu: Any, tmp_path: Path) -> None:
    settings, preparation = (importlib.import_module(name) for name in ("settings", "preparation"))
    cpu = settings.Setting("acdc_sources_5", None, tmp_path)
    on_gpu = settings.Setting("acdc_sources_5", None, tmp_path, device="cuda", results=tmp_path)
    planned = settings.Setting("acdc_sources_5", None, tmp_path, planned=True)
    network, schedule = cpu.networks("partial")[0], settings.Schedule(40, 0.01)
    files = {setting.weights_file(network, schedule, 0) for setting in (cpu, on_gpu, planned)}
    assert len(files) == 3 and (cpu.amp, on_gpu.amp) == ("off", "auto")
    assert on_gpu.evidence == tmp_path / "acdc_sources_5" and planned.evidence.name == "acdc_sources_5_planned"
    assert cpu.calibration_file == on_gpu.calibration_file
    assert [one.in_readme for one in (cpu, on_gpu, planned)] == [True, False, False]
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {"data_identifier": "x", "batch_size": 3}}}
    assert preparation.small_configuration(plans, planned["network"])["inherits_from"] == "3d_fullres"
