"""Lengths of trainings, the answer, the page and the processes of a trial, without a training."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from waiting import has_ended, wait_until

from nnunet_mutual.cli.trial_commands import _seconds
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.differences import Interval
from nnunet_mutual.trial import command, training
from nnunet_mutual.trial.answer import Answer, printed
from nnunet_mutual.trial.forecast import Timing, duration, schedules, total_seconds
from nnunet_mutual.trial.jobs import Run, run_all, runs_of, slots
from nnunet_mutual.trial.page import write_page
from nnunet_mutual.trial.protocol import Options, TrialFolder
from nnunet_mutual.trial.results import ArmComparison, Choice, choose, collect, compare_arms, too_vague

ARMS = ("nnUNetTrainer", "PartialTrainer", "MutualPartialTrainer")
PATIENTS = {f"case_{n:02d}": f"case_{n:02d}" for n in range(12)}
BLOCK = {"num_epochs": 100, "num_iterations_per_epoch": 50, "num_val_iterations_per_epoch": 10}
TIMINGS = {
    "nnUNetTrainer": Timing(0.1, 1, 2.0, 1.0),
    "PartialTrainer": Timing(0.1, 1, 2.0, 1.0),
    "MutualPartialTrainer": Timing(0.4, 2, 2.0, 2.0),
}


def options(**more: Any) -> Options:
    return Options("Dataset901_Tiny", "3d_fullres", arms=ARMS, device="cpu", **more)


def lengths(**more: Any) -> dict[str, Any]:
    return schedules(options(**more), BLOCK, TIMINGS, runs=3, cases=10, slots=1)


def test_equal_updates_are_shared_by_networks_that_learn_together() -> None:
    found = lengths()
    assert {arm: one.updates for arm, one in found.items()} == dict.fromkeys(ARMS, 5000)
    assert (found["MutualPartialTrainer"].epochs, found["MutualPartialTrainer"].iterations) == (50, 50)
    assert all(one.validations == 10 for one in found.values())


def test_equal_minutes_are_those_of_the_first_arm() -> None:
    found = lengths(equal="minutes")
    minutes = [TIMINGS[arm].minutes(one) for arm, one in found.items()]
    assert minutes == pytest.approx([5000 * 0.1 / 60] * 3, rel=0.02)
    assert found["MutualPartialTrainer"].updates == 2500


def test_a_budget_shortens_all_arms_alike() -> None:
    found = lengths(budget=3600.0)
    updates = [one.updates for one in found.values()]
    assert max(updates) < 5000 and max(updates) / min(updates) < 1.05
    assert total_seconds(found, TIMINGS, 3, 10, 1) == pytest.approx(3600, rel=0.05)
    assert min(one.epochs for one in found.values()) >= 20
    assert lengths(budget=1e9) == lengths()
    with pytest.raises(MutualError, match=r"--budget 5 min is too small: 9 runs need 7 min at least"):
        lengths(budget=300.0)


def test_a_budget_can_be_changed_until_it_has_decided_something(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "here")
    folder.path.mkdir()
    folder.save(options(budget=300.0))
    asked = {"dataset": "Dataset901_Tiny", "configuration": "3d_fullres", "budget": 7200.0}
    assert TrialFolder.open(folder.path, asked)[1:] == (options(budget=7200.0), False)
    folder.schedule_file.touch()
    with pytest.raises(MutualError, match="other options .budget: 300.0, now 7200.0."):
        TrialFolder.open(folder.path, asked)


def test_durations() -> None:
    assert [_seconds(text) for text in ("90s", "1.5h", "2d")] == [90, 5400, 172800]
    assert [duration(n) for n in (45, 720, 12000, 187200)] == ["45 s", "12 min", "3 h 20 min", "2 days 4 h"]


def folder_of(path: Path, asked: Options, means: dict[str, float], minutes: dict[str, float]) -> TrialFolder:
    """A trial whose runs are finished: Dice around a mean, paired by seed and patient."""
    folder = TrialFolder(path)
    folder.save(asked)
    rng = np.random.default_rng(7)
    of_patient, of_seed = rng.normal(0, 0.05, len(PATIENTS)), rng.normal(0, 0.01, asked.seeds)
    for run in runs_of(asked):
        noise = np.random.default_rng(ARMS.index(run.arm)).normal(0, 0.003, len(PATIENTS))
        gain = 0.0 if run.labelled is None else 0.01 * run.labelled
        rows = {
            case: dict.fromkeys(("liver", "spleen"), float(means[run.arm] + gain + p + of_seed[run.seed] + e))
            for case, p, e in zip(PATIENTS, of_patient, noise, strict=True)
        }
        rows["case_00"]["spleen"] = None  # absent in both
        content = {"dice": rows, "surface_dice": rows, "minutes": minutes[run.arm], "gigabytes": 1.0}
        folder.run_file(run.name).write_text(json.dumps({**content, "total_updates": 5000, "labelled": run.labelled}))
    return folder


def answer_of(folder: TrialFolder, asked: Options) -> Answer:
    outcomes = collect(folder, asked, runs_of(asked), PATIENTS)
    comparisons = [compare_arms(outcome, asked.arms) for outcome in outcomes]
    choice = choose(outcomes[-1], asked.arms, comparisons[-1])
    runs = len(runs_of(asked))
    return Answer(asked, dict.fromkeys(ARMS, "an arm"), outcomes, comparisons, choice, [], runs, runs, "some", "others")


MINUTES = {"nnUNetTrainer": 10.0, "PartialTrainer": 10.0, "MutualPartialTrainer": 21.0}


@pytest.mark.parametrize(
    ("means", "minutes", "taken", "because"),
    [
        ((0.80, 0.85, 0.90), {}, "MutualPartialTrainer", "it is better than PartialTrainer (+0.0"),
        ((0.80, 0.85, 0.85), {}, "PartialTrainer", "it is level with MutualPartialTrainer"),
        ((0.80, 0.80, 0.80), {}, "nnUNetTrainer", "could not be shown), at about the same"),
        ((0.80, 0.80, 0.80), {"PartialTrainer": 5.0}, "PartialTrainer", "it is level with nnUNetTrainer"),
        ((0.80, 0.85, 0.70), {}, "PartialTrainer", "it is better than MutualPartialTrainer (+0.15"),
        ((0.85, 0.80, 0.70), {}, "nnUNetTrainer", "it is better than PartialTrainer (+0.0"),
    ],
)
def test_what_to_take(
    tmp_path: Path, means: tuple[float, ...], minutes: dict[str, float], taken: str, because: str
) -> None:
    asked = options()
    found = answer_of(folder_of(tmp_path, asked, dict(zip(ARMS, means, strict=True)), MINUTES | minutes), asked)
    assert found.choice.arm == taken and because in found.sentence
    primary, *others = found.comparisons[0]
    assert (primary.first, primary.second, primary.confidence) == (ARMS[2], ARMS[1], 0.95)
    assert [one.confidence for one in others] == [pytest.approx(0.975)] * 2


def test_level_says_nothing_where_runs_vary_too_much() -> None:
    def compared(half: float) -> ArmComparison:
        difference: Any = SimpleNamespace(
            over_draws=Interval(0.1, 0.1 - half, 0.1 + half), over_patients=Interval(0.1, 0.05, 0.15)
        )
        return ArmComparison(ARMS[1], ARMS[0], True, 0.95, difference, {})

    taken = Choice(ARMS[0], ())
    assert not too_vague(taken, [compared(0.04)]) and not too_vague(taken, [compared(0.05)]), "better, not level"
    (why,) = too_vague(taken, [compared(0.2), compared(0.42)])
    assert "a difference below 0.42 could not be shown" in why
    assert not too_vague(Choice(ARMS[2], ()), [compared(0.42)]), "of others"
    assert too_vague(taken, [compared(math.nan)])[0].startswith("a single patient shows what is scored")


def test_learning_curve_and_page(tmp_path: Path) -> None:
    asked = options(labelled=(4, 8, 16))
    assert [run.labelled for run in runs_of(asked)][:9] == [16] * 9  # what matters most first
    found = answer_of(folder_of(tmp_path, asked, {ARMS[0]: 0.6, ARMS[1]: 0.65, ARMS[2]: 0.65}, MINUTES), asked)
    text = printed(found)
    asked_for = replace(found, options=replace(asked, missing=("T2=0.5",)))
    assert "--labelled 4 8 16; --missing T2=0.5" in write_page(tmp_path / "trial.html", asked_for)[0].read_text()
    assert "16 labelled cases" in text and "Take PartialTrainer, because" in text
    files = write_page(tmp_path / "trial.html", found)
    page = files[0].read_text()
    assert [file.name for file in files] == ["trial.html", "trial_dice.csv", "trial_differences.csv"]
    assert "Learning curve" in page and "+0.0100" in page and "labelled cases" in page
    assert (
        "case_01" not in page + files[1].read_text()
        and "case_01" in write_page(tmp_path / "trial.html", found, with_names=True)[1].read_text()
    )
    assert len(files[1].read_text().splitlines()) == 1 + 27 * 12 * 2


@pytest.mark.parametrize("invented", [True, False])
def test_a_label_that_no_scored_case_shows_is_left_out(tmp_path: Path, invented: bool) -> None:
    asked = options(labelled=(4, 8))
    folder = folder_of(tmp_path, asked, dict.fromkeys(ARMS, 0.6), MINUTES)
    for number, run in enumerate(runs_of(asked)):
        content = json.loads(folder.run_file(run.name).read_text())
        for case, row in content["dice"].items():
            row["spleen"] = 0.0 if invented and not number and case == "case_03" else None
        folder.run_file(run.name).write_text(json.dumps(content))
    found = answer_of(folder, asked)
    assert [outcome.labels for outcome in found.outcomes] == [["liver"]] * 2
    assert "Learning curve" in write_page(tmp_path / "trial.html", found)[0].read_text()


def test_a_pause_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed again before its next checkpoint, a training has gone on twice from the same one."""
    for now, saved in ((36000.0, 0.0), (36300.0, 0.0), (40000.0, 39000.0)):
        monkeypatch.setattr(training.time, "time", lambda now=now: now)
        training._note_pause(tmp_path, saved)
    assert sum(training._pauses(tmp_path).values()) == 37300


def test_nothing_is_concluded_from_half_of_the_runs(tmp_path: Path) -> None:
    asked = options()
    folder = folder_of(tmp_path, asked, dict.fromkeys(ARMS, 0.8), MINUTES)
    for seed in range(3):
        folder.run_file(Run(ARMS[2], seed).name).unlink()
    (outcome,) = collect(folder, asked, runs_of(asked), PATIENTS)
    comparisons = compare_arms(outcome, asked.arms)
    assert [(one.first, one.second, one.primary) for one in comparisons] == [(ARMS[1], ARMS[0], False)]
    open_ = Answer(asked, dict.fromkeys(ARMS, ""), [outcome], [comparisons], Choice(None, ()), ["6 of 9"], 6, 9, "", "")
    assert "not run" in printed(open_) and "No winner is named: 6 of 9." in printed(open_)
    write_page(tmp_path / "trial.html", open_)


def test_what_has_not_been_learnt_is_an_alarm(tmp_path: Path) -> None:
    asked = options()
    folder = folder_of(tmp_path, asked, {ARMS[0]: 0.8, ARMS[1]: 0.8, ARMS[2]: 0.0}, MINUTES)
    found = answer_of(folder, asked)
    missed = [(ARMS[2], seed) for seed in range(3)]
    assert found.outcomes[0].not_learnt() == {"liver": missed, "spleen": missed}
    page = write_page(tmp_path / "trial.html", found)[0].read_text()
    assert (
        "liver has not been learnt (Dice below 0.05): MutualPartialTrainer seed 0, MutualPartialTrainer seed 1" in page
    )


def test_runs_side_by_side_fail_alone(tmp_path: Path) -> None:
    code = {"good": "print('fine')", "bad": "import sys; sys.exit(2)", "gpu": "import os; print(os.environ['PLACE'])"}
    said: list[str] = []
    found = run_all(
        list(code), lambda name: ["-c", code[name]], tmp_path, [{"PLACE": "0"}, {"PLACE": "1"}], said.append
    )
    assert found == {"good": 0, "bad": 2, "gpu": 0}
    assert (tmp_path / "gpu.log").read_text().splitlines()[1] in ("0", "1")
    assert any("FAILED (exit status 2) bad" in line for line in said)


@pytest.mark.parametrize(("visible", "expected"), [(None, "012"), ("4,6", "46")])
def test_each_of_several_gpus_has_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    places = slots(replace(options(), device="cuda"), None)
    told = "import os, sys, time; open(sys.argv[1] + os.environ['CUDA_VISIBLE_DEVICES'], 'x')"
    names = [str(n) for n in range(len(places))]
    assert set(run_all(names, lambda _: ["-c", told, f"{tmp_path}/gpu"], tmp_path, places).values()) == {0}
    assert {file.name for file in tmp_path.glob("gpu*")} == {f"gpu{n}" for n in expected}


def test_a_killed_trial_takes_its_runs_with_it(tmp_path: Path) -> None:
    child = "from nnunet_mutual.trial.jobs import end_with_parent as e; e(); import os, time; "
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = "from pathlib import Path; from nnunet_mutual.trial.jobs import run_all; "
    parent += f"run_all(['a'], lambda name: ['-c', {child!r}], Path({str(tmp_path)!r}), [{{}}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.is_file() and pid.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: has_ended(int(pid.read_text())))


def test_what_a_run_says_of_its_last_attempt(tmp_path: Path) -> None:
    """A log goes on with every attempt; why an earlier one failed is past."""
    fails = ["-c", "print('error: the disk is full'); raise SystemExit(2)"]
    killed = ["-c", "import os, signal; print('epoch 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)"]
    silent = ["-c", "raise SystemExit(3)"]
    said = []
    for words in (fails, killed, silent):
        statuses = run_all(["one"], lambda _, words=words: words, tmp_path, [{}], lambda text: None)
        said.append(command._failure(tmp_path / "one.log", statuses["one"]).removesuffix(f" (log: {tmp_path}/one.log)"))
    assert said == [
        "the disk is full",
        "killed by signal 9, as the system does where memory is short",
        "nothing was said, exit status 3",
    ]
    assert (tmp_path / "one.log").read_text().count("=== begun ") == 3


def test_a_trial_that_cannot_begin_removes_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    own, empty = tmp_path / "own", tmp_path / "empty"
    (own / ".git").mkdir(parents=True)
    (own / ".git" / "config").touch()
    for place in (own, empty):
        folder = TrialFolder(place)
        begun = command._removed_unless_begun(place, new=True)
        with folder.locked("trial", 0, ""), pytest.raises(KeyboardInterrupt), begun:
            folder.save(options())
            raise KeyboardInterrupt
    assert [path.name for path in own.iterdir()] == [".git"] and (own / ".git" / "config").is_file()
    assert not empty.exists()
