"""`nnunet_mutual evaluate`: which files are compared, what is written, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli import parser as cli
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.evaluation import cases
from nnunet_mutual.evaluation.cases import Pair, Rules, measure_cases
from nnunet_mutual.evaluation.command import EvaluateOptions, _Measured, _same

KEYS = [f"case_{i:02d}" for i in range(6)]
SPACING = (1.0, 1.0, 2.0)  # x, y, z in mm


class Play:
    """A dataset with two sources and two folders of predictions: A moves everything by two voxels, B by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "nnUNet_raw" / tiny.NAME
        self.preprocessed = root / "nnUNet_preprocessed" / tiny.NAME
        for folder in (self.raw / "labelsTr", self.raw / "imagesTr", self.preprocessed, root / "A", root / "B"):
            folder.mkdir(parents=True)
        self.content = {"channel_names": {"0": "CT"}, "labels": tiny.PLAIN, "numTraining": 6, "file_ending": ".nii.gz"}
        self.declare(tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS))
        for number, key in enumerate(KEYS):
            labels = tiny.image_and_labels(number)[1]
            drawn = tiny.keep_only(labels, ["liver"] if number < 3 else ["tumour", "spleen"], tiny.PLAIN)
            tiny.write_nifti(drawn, self.raw / "labelsTr" / f"{key}.nii.gz", SPACING)
            tiny.write_nifti(labels, self.raw / "imagesTr" / f"{key}_0000.nii.gz", SPACING)
            for name, shift in (("A", 2), ("B", 1)):
                tiny.write_nifti(np.roll(labels, shift, 2), root / name / f"{key}.nii.gz", SPACING)

    def declare(self, block: dict | None) -> None:
        content = self.content if block is None else self.content | {"mutual": block}
        (self.raw / "dataset.json").write_text(json.dumps(content))

    def run(self, line: str, status: int = 0) -> None:
        assert cli.main(["evaluate", *line.format(root=self.root).split(), "-np", "1"]) == status


@pytest.fixture()
def play(nnunet_folders: Path) -> Play:
    return Play(nnunet_folders)


@pytest.mark.parametrize(
    ("images", "place", "what"),
    [
        ("imagesTs", "labelsTs", "images of imagesTs"),
        ("imagesTs", None, "images of imagesTs"),
        ("elsewhere", None, "no training cases"),
    ],
)
def test_predictions_of_other_images_need_their_own_references(
    play: Play, images: str, place: str | None, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tests, predicted = play.raw / images, play.root / "predicted"
    tests.mkdir()
    predicted.mkdir()
    folder = play.raw / (place or "drawn")
    folder.mkdir()
    for number in (7, 8):
        labels = tiny.image_and_labels(number)[1]
        tiny.write_nifti(labels, tests / f"test_{number}_0000.nii.gz", SPACING)
        for target in (predicted, folder):
            tiny.write_nifti(labels, target / f"test_{number}.nii.gz", SPACING)
    play.run("{root}/predicted -d 901 --no-surface", status=2)
    said = capsys.readouterr().err
    where = str(folder) if place else "REFERENCES"
    command = f"evaluate {predicted} {where} -d {tiny.NAME} --complete"
    assert f"test_7, test_8; these are {what}, so name" in said and said.endswith(f"nnunet_mutual {command}\n")
    play.run(f"{command.replace('REFERENCES', str(folder)).removeprefix('evaluate ')} --no-surface")
    assert "2 cases, mean" in capsys.readouterr().out


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_only_what_is_annotated_is_measured(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play.run("{root}/A -d 901 --no-surface")
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("6 cases, mean")
    assert f"Next: nnunet_mutual evaluate --compare OTHER_PREDICTIONS {play.root}/A -d 901 --no-surface" in said
    found = rows(play.root / "A" / "evaluation" / "metrics.csv")
    assert {(row["case"], row["label"]) for row in found} == {
        *((key, "liver") for key in KEYS[:3]),
        *((key, label) for key in KEYS[3:] for label in ("tumour", "spleen")),
    }
    assert {row["metric"] for row in found if row["case"] == "case_00"} == {
        "Dice",
        "IoU",
        "volume_ml",
        "reference_volume_ml",
        "volume_error_ml",
        "volume_error_percent",
    }
    drawn, predicted = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "case_03.nii.gz"))) == 3
        for folder in (play.raw / "labelsTr", play.root / "A")
    )
    value = {
        row["metric"]: float(row["value"]) for row in found if (row["case"], row["label"]) == ("case_03", "spleen")
    }
    assert value["Dice"] == pytest.approx(2 * (drawn & predicted).sum() / (drawn.sum() + predicted.sum()), rel=1e-5)
    assert value["volume_ml"] == pytest.approx(predicted.sum() * 2 / 1000)  # 1 x 1 x 2 mm


def test_surfaces_are_measured_in_mm(play: Play) -> None:
    play.run("{root}/A -d 901 --tolerance 1 liver=2")
    content = json.loads((play.root / "A" / "evaluation" / "summary.json").read_text())["nnunet_mutual"]
    assert content["tolerance_mm"] == {"liver": 2, "tumour": 1, "spleen": 1}
    assert content["implementation"]["surface_dice"].startswith("nnunet_mutual ")
    statistics = content["statistics"]
    assert statistics["surface_dice"]["liver"]["mean"] == 1  # moved by two voxels of 1 mm
    assert statistics["surface_dice"]["spleen"]["mean"] < 0.95
    assert statistics["hd95_mm"]["liver"]["mean"] == 2


def test_summary_is_nnunets(play: Play) -> None:
    play.declare(None)
    play.run("{root}/A -d 901 --no-surface")
    summary = load_summary_json(str(play.root / "A" / "evaluation" / "summary.json"))
    for case in summary["metric_per_case"]:
        files = case["reference_file"], case["prediction_file"]
        stock = compute_metrics(*files, SimpleITKIO(), [1, 2, 3])["metrics"]
        for label, expected in stock.items():
            ours = {metric: case["metrics"][label][metric] for metric in expected}
            assert ours == pytest.approx(expected, nan_ok=True)
    assert summary["mean"][1]["Dice"] == pytest.approx(
        np.nanmean([case["metrics"][1]["Dice"] for case in summary["metric_per_case"]])
    )
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean([summary["mean"][n]["Dice"] for n in (1, 2, 3)]))


def test_unannotated_labels_are_nan_in_the_summary_and_null_in_json(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.run("{root}/A -d 901 --no-surface --json")
    said = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert said["metric_per_case"][0]["metrics"]["3"]["Dice"] is None
    assert said["nnunet_mutual"]["counts"]["liver"] == {"annotated": 3, "missed": 0, "invented": 0, "absent": 0}
    summary = load_summary_json(str(play.root / "A" / "evaluation" / "summary.json"))
    assert math.isnan(summary["metric_per_case"][0]["metrics"][3]["Dice"])
    values = [case["metrics"][3]["Dice"] for case in summary["metric_per_case"]]
    assert summary["mean"][3]["Dice"] == pytest.approx(np.nanmean(values))
    assert said["nnunet_mutual"]["statistics"]["Dice"]["spleen"]["n"] == 3


def test_regions_and_ignore_label(play: Play) -> None:
    play.content["labels"] = {**tiny.REGIONS, "ignore": 4}
    play.content["regions_class_order"] = [1, 2, 3]
    play.declare(None)
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(play.raw / "labelsTr" / "case_00.nii.gz")))
    reference[:, :, 9:] = 4
    tiny.write_nifti(reference, play.raw / "labelsTr" / "case_00.nii.gz", SPACING)
    play.run("{root}/A -d 901 --no-surface")
    summary = load_summary_json(str(play.root / "A" / "evaluation" / "summary.json"))
    assert set(summary["mean"]) == set(LabelManager(tiny.REGIONS, [1, 2, 3]).foreground_regions)
    case = summary["metric_per_case"][0]
    regions = list(summary["mean"])
    stock = compute_metrics(case["reference_file"], case["prediction_file"], SimpleITKIO(), regions, 4)["metrics"]
    for region in regions:
        assert {m: case["metrics"][region][m] for m in stock[region]} == pytest.approx(stock[region], nan_ok=True)


def test_a_test_set_with_its_own_dataset_json(play: Play, tmp_path: Path) -> None:
    play.declare(None)
    play.run("{root}/A {root}/nnUNet_raw/" + tiny.NAME + "/labelsTr --no-surface -o {root}/here/results")
    assert len(rows(tmp_path / "here" / "results" / "metrics.csv")) == 6 * 3 * 6
    file = tmp_path / "other.json"
    file.write_text(json.dumps(play.content | {"labels": {"background": 0, "organ": 1, "rest": 2, "more": 3}}))
    play.run("{root}/A {root}/B --no-surface -djfile {root}/other.json")  # B has no dataset.json
    assert {row["label"] for row in rows(tmp_path / "A" / "evaluation" / "metrics.csv")} == {"organ", "rest", "more"}


def test_complete_references_need_no_table(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    del block["cases"]["case_05"]
    play.declare(block)
    play.run("{root}/A -d 901 --no-surface", status=2)
    said = capsys.readouterr().err
    assert "case_05" in said and "if the references draw every label, add --complete" in said
    play.run("{root}/A -d 901 --no-surface --complete")
    assert {r["label"] for r in rows(play.root / "A" / "evaluation" / "metrics.csv") if r["case"] == "case_05"} == {
        "liver",
        "tumour",
        "spleen",
    }


def test_complete_references_keep_the_patients_of_the_table(play: Play) -> None:
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    for number, key in enumerate(KEYS):
        block["cases"][key]["patient"] = f"p{number // 2}"
    play.declare(block)
    asked = EvaluateOptions(dataset="901", complete=True, surface=False)
    assert {*_Measured.of(asked, play.root / "A").patients.values()} == {"patient p0", "patient p1", "patient p2"}


def test_predictions_in_a_folder_that_cannot_be_written_are_not_measured_in_vain(
    play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda place, *_, **__: False)
    monkeypatch.setattr("nnunet_mutual.evaluation.command.measure_cases", None)
    play.run("{root}/A -d 901 --no-surface", status=2)
    assert f"no permission to write in {play.root}/A; give -o another folder" in capsys.readouterr().err


def test_one_fold(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    (play.preprocessed / "splits_final.json").write_text(json.dumps([{"train": KEYS[2:], "val": KEYS[:2]}]))
    for key in KEYS[2:]:
        (play.root / "A" / f"{key}.nii.gz").unlink()
    play.run("{root}/A -d 901 --no-surface", status=2)
    assert "lacks 4 of 6 cases" in capsys.readouterr().err
    for options in ("-f 0", "--chill"):
        play.run("{root}/A -d 901 --no-surface " + options)
        assert {row["case"] for row in rows(play.root / "A" / "evaluation" / "metrics.csv")} == set(KEYS[:2])
    play.run("{root}/A -d 901 --no-surface -f 1", status=2)
    assert "folds 0 to 0" in capsys.readouterr().err


def test_a_volume_error_is_of_the_cases_that_count_and_have_a_size(
    play: Play, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absent organ that is not predicted is no error of 0 ml, and an image without a size has no millilitres."""
    nothing = np.zeros((16, 20, 18), np.uint8)
    for folder in (play.raw / "labelsTr", play.root / "A"):
        tiny.write_nifti(nothing, folder / "case_00.nii.gz", SPACING)
    of_case = cases.measure_case

    def without_a_size(pair: Pair, rules: Rules) -> Any:
        found = of_case(pair, rules)
        if pair.key == "case_05":
            for scores in found.values():
                for metric in [name for name in scores if "volume" in name]:
                    del scores[metric]
        return found

    monkeypatch.setattr(cases, "measure_case", without_a_size)
    play.run("{root}/A -d 901 --no-surface")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["liver"].split()[1] == "2" and "n =" not in lines["liver"]
    assert lines["spleen"].split()[1] == "3" and lines["spleen"].count(" n = 2") == 1
    content = json.loads((play.root / "A" / "evaluation" / "summary.json").read_text())["nnunet_mutual"]
    numbers = {label: found["n"] for label, found in content["statistics"]["volume_error_ml"].items()}
    assert numbers == {"liver": 2, "tumour": 2, "spleen": 2, "overall": 3}
    errors = [
        float(row["value"])
        for row in rows(play.root / "A" / "evaluation" / "metrics.csv")
        if (row["label"], row["metric"]) == ("liver", "volume_error_ml") and row["value"]
    ]
    assert content["statistics"]["volume_error_ml"]["liver"]["mean"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert len(errors) == 2


def test_a_link_in_a_folder_of_predictions_is_not_written_through(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = play.root / "validation"
    precious.mkdir()
    (precious / "summary.json").write_text("mine")
    (play.root / "A" / "evaluation").symlink_to(precious)
    play.run("{root}/A -d 901 --no-surface", 2)
    assert f"leads out of {play.root}/A" in (said := capsys.readouterr().err) and "name another one with -o" in said
    assert [path.read_text() for path in precious.iterdir()] == ["mine"]
    play.run("{root}/A -d 901 --no-surface -o {root}/A_scores")
    assert (play.root / "A_scores" / "summary.json").is_file()


def test_comparison(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_nifti(np.zeros((16, 20, 18), np.uint8), play.root / "B" / "case_04.nii.gz", SPACING)
    play.run("--compare {root}/A {root}/B -d 901 --no-surface")
    said = capsys.readouterr().out
    assert "Dice: case_04, spleen: " in said and "-> 0.000" in said
    content = json.loads((play.root / "B" / "evaluation" / "comparison.json").read_text())
    liver = content["metrics"]["Dice"]["liver"]
    assert (liver["n"], liver["improved"], liver["worsened"]) == (3, 3, 0) and liver["mean"] > 0
    assert {(row["case"], row["label"]) for row in content["worst"]["Dice"]} == {
        ("case_04", "tumour"),
        ("case_04", "spleen"),
    }
    found = rows(play.root / "B" / "evaluation" / "comparison.csv")
    assert {row["verdict"] for row in found if row["case"] == "case_04"} == {"worsened"}
    play.run("--compare {root}/A {root}/B -d 901 --no-surface --margin 0.5 --json")
    assert json.loads(capsys.readouterr().out)["metrics"]["Dice"]["liver"]["stable"] == 3
    (play.root / "B" / "case_04.nii.gz").unlink()
    play.run("--compare {root}/A {root}/B -d 901 --no-surface", status=2)
    assert "B lacks 1 of 6 cases" in capsys.readouterr().err
    play.run("--compare {root}/A {root}/B -d 901 --no-surface --chill")
    said = capsys.readouterr()
    assert "1 case(s) are predicted in one folder only and left out, such as case_04" in said.err
    assert "\n5 cases; " in said.out and "Nothing became worse by more" in said.out and "Next: all numbers" in said.out
    for key in KEYS:
        (play.root / ("A" if key == "case_04" else "B") / f"{key}.nii.gz").unlink(missing_ok=True)
    (play.root / "A" / "case_03.nii.gz").rename(play.root / "B" / "case_03.nii.gz")
    play.run("--compare {root}/A {root}/B -d 901 --no-surface --chill", status=2)
    assert "have no case in common" in capsys.readouterr().err


def test_a_comparison_of_nothing_says_so(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    empty = np.zeros((16, 20, 18), np.uint8)
    for place in (play.raw / "labelsTr", play.root / "A", play.root / "B"):
        for key in KEYS:
            tiny.write_nifti(empty, place / f"{key}.nii.gz", SPACING)
    play.run("--compare {root}/A {root}/B -d 901 --no-surface")
    assert "Nothing was compared: neither" in capsys.readouterr().out


def test_several_processes_give_the_same(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_mutual.evaluation.cases.CASES_PER_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    table = AnnotationTable.from_dataset_json(json.loads((play.raw / "dataset.json").read_text()))
    pairs = [Pair(k, play.root / "A" / f"{k}.nii.gz", play.raw / "labelsTr" / f"{k}.nii.gz") for k in KEYS]
    rules = Rules(table, reader_for(play.content, [pairs[0].reference]), None)
    alone, together = (measure_cases(pairs, rules, processes=number) for number in (1, 3))
    assert list(together) == KEYS
    for key in KEYS:
        for label, found in alone[key].items():
            assert together[key][label] == pytest.approx(found, nan_ok=True)


def shifted(play: Play) -> None:
    image = sitk.ReadImage(str(play.root / "A" / "case_02.nii.gz"))
    image.SetOrigin((3, 0, 0))
    sitk.WriteImage(image, str(play.root / "A" / "case_02.nii.gz"))


def write(play: Play, array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> None:
    tiny.write_nifti(array, play.root / "A" / "case_02.nii.gz", spacing)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda play: (play.root / "A" / "case_02.nii.gz").unlink(), "A lacks 1 of 6 cases"),
        (lambda play: write(play, np.ones((16, 20, 17), np.uint8)), "17 x 20 x 16 voxels, the reference has 18 x 20 x"),
        (lambda play: write(play, np.ones((16, 20, 18), np.uint8), (1, 1, 1)), "voxels of 1 x 1 x 1 mm, the reference"),
        (shifted, "the prediction is shifted by 3 x 0 x 0 mm"),
        (lambda play: write(play, np.full((16, 20, 18), 7, np.uint8)), "does not define: 7 (5760 voxels)"),
        (lambda play: write(play, np.full((16, 20, 18), 0.5, np.float32)), "not whole numbers"),
        (
            lambda play: (play.root / "A" / "case_02.nii.gz").write_bytes(b"?"),
            "A/case_02.nii.gz: is cut off or damaged",
        ),
        (
            lambda play: (play.root / "A" / "case_01.nii.gz").rename(play.root / "A" / "case_1.nii.gz"),
            "without a reference",
        ),
    ],
    ids=["missing", "shape", "spacing", "shifted", "value", "fraction", "broken", "additional"],
)
def test_bad_files_are_named(
    play: Play, spoil: Callable[[Play], None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(play)
    play.run("{root}/A -d 901 --no-surface", status=2)
    said = capsys.readouterr().err
    assert sentence in said and "case_0" in said.replace("case_1", "case_01")
    assert not (play.root / "A" / "evaluation").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "name one folder of segmentations"),
        ("{root}/A {root}/B {root}/A", "at most one of references"),
        ("{root}/A", "name the folder of REFERENCES, or the dataset with -d"),
        ("{root}/A {root}/B", "neither"),
        ("{root}/A {root}/B -f 0", "name the dataset with -d"),
        ("{root}/nothing -d 901", "is not a folder"),
        ("--compare {root}/A {root}/B -d 901 --margin 7", "--margin 7"),
    ],
)
def test_bad_lines_say_what_to_write(play: Play, line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    play.run(line + " --no-surface", status=2)
    assert sentence in capsys.readouterr().err


def test_the_next_command_repeats_what_was_asked() -> None:
    asked = EvaluateOptions("my labels", "901", fold="0", tolerance=("3", "liver=2"), complete=True)
    assert _same(asked) == " 'my labels' -d 901 -f 0 --tolerance 3 liver=2 --complete"
