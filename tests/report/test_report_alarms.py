"""What a reader must see first: alarms with what to do, and no export while there are any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from report_folder import write_folder
from test_report import LINE, SETTINGS, Page, assert_is_a_good_page, report, rows
from unlabelled_images import add_unlabelled

from nnunet_mutual.disk.trainings import begin_validation
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.report.findings import _state, _still_falling
from nnunet_mutual.report.logs import read_alarms

STEADY = [1.0, 0.5, 0.3, 0.22, 0.205, 0.2, 0.2, 0.2, 0.2, 0.2]


@pytest.fixture()
def folder(nnunet_folders: Path) -> Callable[..., Path]:
    return lambda **more: write_folder(nnunet_folders, settings=SETTINGS, **more)


def says(fold: Path, acted: Acted) -> None:
    """Writes what a training says of itself into its checkpoint."""
    file = fold / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save({**content, "mutual_state": {"acted": acted.as_state()}}, file)


def change_summary(fold: Path, label: str, **metrics: float) -> None:
    file = fold / "validation" / "summary.json"
    summary = json.loads(file.read_text())
    for entry in summary["metric_per_case"]:
        entry["metrics"][label].update(metrics)
    file.write_text(json.dumps(summary))


def test_no_alarm_no_red(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder()
    says(fold, Acted("one network on 3 cases", ("PartialTrainer",)))
    said = report(capsys, LINE.format("PartialTrainer"))
    assert "ALARM" not in said and "Next: nnunet_mutual export 901 3d_fullres -tr PartialTrainer" in said
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert "Trained: one network on 3 cases." in page.text and "Next: nnunet_mutual export 901" in page.text
    assert not [attributes for _, attributes in page.elements if attributes.get("class") == "alarm"]


def test_what_was_not_learnt_forbids_an_export(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder()
    says(fold, Acted("one network", ("PartialTrainer",), idle="MutualX had nothing to be mutual about: no images"))
    change_summary(fold, "2", Dice=0.0, TP=0, n_pred=0)
    change_summary(fold, "3", Dice=0.0, TP=0, n_pred=7)
    said = report(capsys, LINE.format("PartialTrainer"))
    assert said.count("ALARM: ") == 3 and "export" not in said.replace("exported", "")
    assert "Next: answer the 3 alarm(s) before this model is used or passed on" in said
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    order = [
        "Alarm: MutualX had nothing to be mutual about: no images.",
        "Alarm: Missed in every case in which it was drawn: tumour (n = 2). What to do: train longer, or with",
        "Alarm: Hardly found, by the mean Dice: spleen 0.00 (n = 2). What to do: look at the slices",
        "Warning, 2 times",
        "Note: ",
        "Next: answer the 3 alarm(s)",
    ]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places) and "nnunet_mutual export" not in page.text
    assert "Missed entirely" not in page.text, "the alarm says so"
    assert [tag for tag, attributes in page.elements if attributes.get("class") == "alarm"] == ["div", "li", "li", "li"]
    assert [row["level"] for row in rows(fold / "report_findings.csv")][:4] == ["alarm"] * 3 + ["warning"]


def test_what_the_log_said_of_an_idle_method_is_not_said_twice(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder()
    says(fold, Acted("one network", idle="fold 0: few cases"))
    report(capsys, LINE.format("PartialTrainer"))
    page = Page(fold / "report.html")
    assert page.text.count("old 0: few cases") == 1 and "Alarm: Fold 0: few cases." in page.text


def test_images_that_wait_are_named(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder()
    add_unlabelled(fold.parents[3], 2)
    says(fold, Acted("one network", ("PartialTrainer",)))
    report(capsys, LINE.format("PartialTrainer"))
    said = "2 unlabelled images are at hand, and PartialTrainer did not learn from them"
    assert f"Note: {said}" in Page(fold / "report.html").text
    says(fold, Acted("one network", ("MeanTeacherTrainer",), 2))
    report(capsys, LINE.format("PartialTrainer"))
    text = Page(fold / "report.html").text
    assert said not in text and "2 unlabelled images were learnt from, too" in text


def test_dice_0_on_patches_where_nothing_was_validated(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder(validated=False)
    file = fold / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["logging"]["dice_per_class_or_region"] = [[0.5, 0.0, 0.4]] * 6
    torch.save(content, file)
    said = report(capsys, LINE.format("PartialTrainer"))
    assert "ALARM: Hardly found, by the Dice on the last validation patches: tumour 0.00." in said and "--val" in said


def test_a_validation_of_another_checkpoint_is_said(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder()
    said = "Whole cases were validated with checkpoint_best.pth: their results are not those of checkpoint_final.pth."
    report(capsys, LINE.format("PartialTrainer"))
    assert said not in Page(fold / "report.html").text
    summary = (fold / "validation" / "summary.json").read_text()
    begin_validation(fold / "validation", "checkpoint_best.pth", [3, 1.0])
    assert not (fold / "validation" / "summary.json").exists(), "half of a validation has no results"
    (fold / "validation" / "summary.json").write_text(summary)
    report(capsys, LINE.format("PartialTrainer"))
    assert said in Page(fold / "report.html").text


def test_modality_groups_whose_validation_was_killed_are_named(tmp_path: Path) -> None:
    (tmp_path / "validation_T1").mkdir()
    (tmp_path / "validation_T1" / "summary.json").write_text("{}")
    table = SimpleNamespace(modality_groups={"T1": [], "T2": [], "both": []})
    known = {"finished": True, "acted": None, "folder": tmp_path, "table": table, "fold": "0"}
    (said,) = _state(SimpleNamespace(**known), pd.DataFrame({"dice": [0.5]}))  # type: ignore[arg-type]
    assert said == "Whole cases were not validated by the networks of T2, both: nothing is known about these."
    table.modality_groups.clear()
    assert list(_state(SimpleNamespace(**known), pd.DataFrame({"dice": [0.5]}))) == []  # type: ignore[arg-type]


def falling(training: list[float], validation: list[float] | None = None, **more: Any) -> list[str]:
    series = {"training": training, **({} if validation is None else {"validation": validation})}
    curves = pd.DataFrame(
        [(epoch, "loss", name, value) for name, values in series.items() for epoch, value in enumerate(values)]
        + [(epoch, "term", "a" if epoch < more.get("border", 0) else "b", 1.0) for epoch in range(len(training))],
        columns=["epoch", "kind", "name", "value"],
    )
    folders = SimpleNamespace(number=7)
    known = {"finished": True, "settings": {}, "folders": folders, "configuration": "2d", "epochs_asked": 10}
    known |= {"plans": "nnUNetPlans", **more}
    return [f"{one.text} {one.do}" for one in _still_falling(SimpleNamespace(**known), curves)]  # type: ignore[arg-type]


def test_a_loss_that_still_falls() -> None:
    linear = list(np.linspace(1, 0.1, 10))
    (said,) = falling(linear, linear)
    assert "brought 25% of the whole fall" in said  # two of the eight steps between the means of fifths
    assert "plan -d 7 -c 2d --name long --set num_epochs=40" in said
    assert "plan -d 7 -c 2d -p Others --name long" in falling(linear, linear, plans="Others")[0]
    assert len(falling(linear)) == 1  # without a validation loss
    assert "plan" not in falling(linear, settings=None)[0]  # of a stock trainer, which has no settings
    for quiet in (
        falling(STEADY, STEADY),
        falling(linear, STEADY[::-1]),  # learnt by heart: longer is not better
        falling(linear, linear, finished=False),
        falling(linear[:2], linear[:2]),  # too short to say
        falling([*linear, *STEADY], border=10),  # only the last stage counts
        falling(STEADY[::-1]),
    ):
        assert quiet == []


def test_logs_of_an_earlier_training_in_the_folder_are_not_its_own(tmp_path: Path) -> None:
    def log(name: str, *lines: str) -> None:
        text = "\n".join(f"2026-01-01 10:00:00.0: {line} " for line in lines)
        (tmp_path / f"training_log_2026_1_{name}.txt").write_text(text)

    log("9_08_00_00", "Epoch 0", "WARNING: of an earlier training")
    log("10_08_00_00", "WARNING: at the start", "Epoch 0", "Epoch 1")
    log("10_09_00_00", "Epoch 2", "WARNING: after it was continued")
    assert {alarm.text for alarm in read_alarms(tmp_path)} == {"at the start", "after it was continued"}


def test_an_unfinished_training_whose_labels_changed_is_trained_anew(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """--c would be refused, as after accept."""
    fold = folder()
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    assert "--c" in report(capsys, LINE.format("PartialTrainer")).splitlines()[-1]
    trained = fold.parent / "dataset.json"
    content = json.loads(trained.read_text())
    next(iter(content["mutual"]["cases"].values()))["patient"] = "somebody"
    trained.write_text(json.dumps(content))
    last = report(capsys, LINE.format("PartialTrainer")).splitlines()[-1]
    assert "--c" not in last and "move its folder away" in last and "train anew: nnunet_mutual train 901" in last
