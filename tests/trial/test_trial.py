"""A trial on the tiny dataset, in this process: runs, a kill, and that nothing of the user's changes."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from tiny import NAME, make_dataset
from training import KEYS, partial_block

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.trainings import FINAL, LATEST
from nnunet_mutual.engine.scheduled_stock import ScheduledStock
from nnunet_mutual.trial import command, scoring
from nnunet_mutual.trial.protocol import TrialFolder
from nnunet_mutual.trial.training_data import Draw, draw_raw, held_out, prepare

SETTINGS = {"num_epochs": 3, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "checkpoint_epochs": 1}
WORDS = ["trial", "901", "3d_fullres", "-o", "here"]
ARMS = ["-device", "cpu", "--arms", "nnUNetTrainer", "PartialTrainer", "--seeds", "2"]
LABELS = ("liver", "tumour", "spleen")
RUNS = [f"{arm}_seed{seed}" for seed in range(2) for arm in ("nnUNetTrainer", "PartialTrainer")]


class Here:
    """Does runs in this process, and remembers which."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, names: Sequence[str], start: Any, logs: Path, places: Any, say: Any) -> dict[str, int]:
        statuses = {}
        for name in names:
            self.started.append(name)
            (logs / f"{name}.log").touch()
            statuses[name] = main(start(name)[2:])
        return statuses


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "case")


def state(root: Path) -> dict[str, str]:
    """Hashes of everything that is the user's."""
    own = (p for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results") for p in (root / n).rglob("*"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file()}


def test_a_trial_is_killed_and_goes_on(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    splits = [{"train": KEYS[:4], "val": KEYS[4:]}]
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.chdir(nnunet_folders)
    before, folder, here = state(nnunet_folders), nnunet_folders / "here", Here()
    monkeypatch.setattr(command, "run_all", here)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)  # seconds each

    # What is needed before the first training.
    assert main([*WORDS, *ARMS, "--list-jobs"]) == 0
    said = capsys.readouterr()
    assert [line.split("--job ")[1] for line in said.out.splitlines() if "--job" in line] == RUNS
    assert "Forecast: 4 runs in about" in said.err and "No winner will be named: the cases draw different" in said.err
    assert here.started == ["timing_nnUNetTrainer", "timing_PartialTrainer"]

    # A method in stages is measured without labelling whole cases, which is forecast.
    assert main([*WORDS, "--job", "timing_MutualPartialTrainer"]) == 0
    measured = json.loads((folder / "timing" / "MutualPartialTrainer.json").read_text())
    assert measured["seconds"] > 0 and measured["whole"] == pytest.approx(4 * measured["prediction"], abs=0.1)
    assert "pseudo labels of" not in capsys.readouterr().out
    assert not [*(folder / "nnUNet_results").rglob("*_timing")]

    # Killed after an epoch of the first run.
    original = ScheduledStock.on_epoch_end

    def killed(self: Any) -> None:
        original(self)
        if self.current_epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScheduledStock, "on_epoch_end", killed)
    assert main([*WORDS, "--job", RUNS[0]]) == 130
    model = folder / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres_seed0" / "fold_all"
    assert (model / LATEST).is_file() and not (model / FINAL).exists()

    # Gone on with, without repeating the options; the disk is full when a prediction is written.
    monkeypatch.setattr(ScheduledStock, "on_epoch_end", original)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_label_map", full)
        assert main(WORDS) == 2
    said = capsys.readouterr()
    assert "the disk is full; free some space" in said.err and "4 run(s) failed" in said.err
    assert "0 of 4 runs are finished" in said.out

    # Free again: what was trained is not trained again.
    trained = (model / FINAL).stat().st_mtime_ns
    assert main(WORDS) == 0 and (model / FINAL).stat().st_mtime_ns == trained
    said = capsys.readouterr()
    assert here.started[2:] == RUNS * 2 and len(json.loads((model / "pauses.json").read_text())) == 1
    assert "No winner is named: the cases draw different labels" in said.out and "not concluded" in said.out
    assert "better" not in said.out.split("No winner is named")[1]
    page = (folder / "trial.html").read_text()
    assert "no winner" in page and "Take " not in page and "not concluded" in page
    assert "case_04" not in page + (folder / "trial_dice.csv").read_text()

    # What the runs kept: paired scores of held-out cases where a label is drawn, and stock models.
    runs = {name: json.loads((folder / "runs" / f"{name}.json").read_text()) for name in RUNS}
    assert all(set(one["dice"]) == set(KEYS[4:]) and one["total_updates"] == 6 for one in runs.values())
    assert runs[RUNS[0]]["dice"]["case_04"]["spleen"] is None  # source a draws the liver alone
    assert runs[RUNS[0]]["minutes"] > 0
    assert torch.load(model / FINAL, weights_only=False)["trainer_name"] == "nnUNetTrainer"

    # Finished: nothing is trained again; the user's folders are as before.
    assert main(WORDS) == 0 and len(here.started) == 10
    assert state(nnunet_folders) == before

    # One folder, one trial at a time, of one kind.
    capsys.readouterr()
    with FileLock(folder / ".locks" / "trial.lock"):
        assert main(WORDS) == 2
    assert main([*WORDS, "--seeds", "3"]) == 2
    assert main([*WORDS, "--job", "PartialTrainer_seed7"]) == 2
    said = capsys.readouterr()
    assert "another trial works in" in said.err and "(seeds: 2, now 3)" in said.err
    assert "did you mean 'PartialTrainer_seed0'" in said.err or "has no run 'PartialTrainer_seed7'" in said.err
    assert main([*WORDS[:3], *ARMS, "-o", str(nnunet_folders / "nnUNet_raw" / "x")]) == 2
    assert "lies in your nnUNet_raw" in capsys.readouterr().err


class Pretended:
    """Writes what runs would keep, without training: an arm is the better the later it stands in the list."""

    def __init__(self, folder: Path, arms: Sequence[str], cases: Sequence[str]) -> None:
        self.folder, self.arms, self.cases = folder, list(arms), cases

    def __call__(self, names: Sequence[str], start: Any, logs: Path, places: Any, say: Any) -> dict[str, int]:
        for name in names:
            if name.startswith("timing_"):
                content: Any = {"seconds": 0.5, "networks": 1, "prediction": 1.0, "gigabytes": 1.0}
                file = self.folder / "timing" / f"{name[7:]}.json"
            else:
                gain = 0.05 * self.arms.index(name.split("_")[0])
                rows = {case: dict.fromkeys(LABELS, 0.5 + gain + 0.001 * n) for n, case in enumerate(self.cases)}
                content = {"dice": rows, "surface_dice": rows, "minutes": 1.0, "gigabytes": 1.0, "total_updates": 6}
                file = self.folder / "runs" / f"{name}.json"
            file.write_text(json.dumps(content))
        return dict.fromkeys(names, 0)


def test_hidden_labels_are_scored_by_the_truth(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(nnunet_folders, settings=SETTINGS)
    splits = [{"train": KEYS[:4], "val": KEYS[4:]}]
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.chdir(nnunet_folders)
    before, folder = state(nnunet_folders), nnunet_folders / "here"
    arms = ("nnUNetTrainer", "PartialTrainer", "TaughtPartialTrainer")
    monkeypatch.setattr(command, "run_all", Pretended(folder, arms, KEYS[4:]))
    assert main([*WORDS, "-device", "cpu", "--keep", "a:liver", "--keep", "b:tumour,spleen"]) == 0
    said = capsys.readouterr().out
    assert "which draw different labels, another draw for every seed" in said
    assert "Take TaughtPartialTrainer, because it is better than nnUNetTrainer (+0.100)" in said
    assert "Next: nnunet_mutual train 901 3d_fullres 0 -tr TaughtPartialTrainer" in said

    # Every seed has a draw of its own, in which the labels are hidden; the held-out cases are drawn as before.
    folder_, options, _ = TrialFolder.open(folder, {})
    drawn = [draw_raw(folder_, options, Draw(None, seed)) for seed in range(3)]
    assert [raw.name for raw in drawn] == ["Dataset001_Draw0", "Dataset002_Draw1", "Dataset003_Draw2"]
    sets = {frozenset(raw.table.case(key).annotated) for raw in drawn for key in KEYS[:4]}
    assert sets == {frozenset({"liver"}), frozenset({"tumour", "spleen"})}
    assert len({str(raw.content["mutual"]["cases"]) for raw in drawn}) > 1
    assert held_out(folder_).table.case("case_04").annotated == frozenset(LABELS)
    preprocessed = prepare(folder_, options, Draw(None, 1))
    assert sorted(path.name for path in (preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl")) == [
        f"{key}.pkl" for key in KEYS[:4]
    ]
    assert state(nnunet_folders) == before


def test_channels_are_hidden_in_training_cases_only(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(nnunet_folders, settings=SETTINGS)
    raw = nnunet_folders / "nnUNet_raw" / NAME
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT", "1": "PET"}}))
    for image in (raw / "imagesTr").glob("*_0000*"):
        shutil.copyfile(image, image.with_name(image.name.replace("_0000", "_0001")))
    splits = [{"train": KEYS[:4], "val": KEYS[4:]}]
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.chdir(nnunet_folders)
    arms = ["nnUNetTrainer", "PartialTrainer"]
    monkeypatch.setattr(command, "run_all", Pretended(nnunet_folders / "here", arms, KEYS[4:]))
    words = [*WORDS, *ARMS, "--missing", "PET=0.5"]
    assert main(words) == 0 and main(WORDS) == 0
    assert "another draw for every seed" in capsys.readouterr().out
    folder, options, _ = TrialFolder.open(nnunet_folders / "here", {})
    for seed in range(2):
        drawn = draw_raw(folder, options, Draw(None, seed))
        assert sum(drawn.table.case(key).missing == {"PET"} for key in KEYS[:4]) == 2
    assert not held_out(folder).table.case("case_04").missing
    assert main([*WORDS, "--missing", "CT=0.5"]) == 2
    assert "(missing: PET=0.5, now CT=0.5)" in capsys.readouterr().err
