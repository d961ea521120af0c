"""The page about a training: what is on it, what is not, and what it says where something is missing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny
from report_folder import EPOCHS, KEYS, write_folder
from training import GROUPS, SHORT, trainer_for

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli import parser as cli
from nnunet_mutual.disk.trainings import device_option
from nnunet_mutual.report.scores import read_other
from nnunet_mutual.trainers import MutualPartialTrainer

VOID = {"meta", "link", "br", "img", "hr", "input"}
HEADING = re.compile(r"h[1-6]")
SETTINGS = {"num_epochs": EPOCHS, "num_iterations_per_epoch": 10}
LINE = "report 901 3d_fullres -tr {} -f 0"


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in its order."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self) -> str:
        """All that a reader reads."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append({"caption": "", "alternatives": [], "table": False})
        if self.figures and "figure" in self.open:
            if tag in ("svg", "img"):
                self.figures[-1]["alternatives"].append(dict(attrs).get("aria-label") or dict(attrs).get("alt"))
            self.figures[-1]["table"] |= tag == "table"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} in line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "figcaption" in self.open:
            self.figures[-1]["caption"] += data


def report(capsys: pytest.CaptureFixture[str], line: str, status: int = 0) -> str:
    """Runs the command and returns what it said."""
    capsys.readouterr()
    assert cli.main(line.split()) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_is_a_good_page(page: Page) -> None:
    """It loads nothing, runs nothing, and says in words what it shows."""
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), (tag, target)
        assert not any(name.startswith("on") for name in attributes), attributes
    assert not re.search(r"@import|url\((?!#)|https?://", page.source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in page.elements if tag in ("a", "use")}
    assert targets <= set(ids)
    assert page.figures
    for figure in page.figures:
        kind = "Table" if figure["table"] else "Figure"
        assert re.match(rf"{kind} \d+\. \w", figure["caption"].strip()), figure
        assert figure["table"] or ("Look for:" in figure["caption"] and figure["alternatives"])
        assert all(text and len(text) > 15 for text in figure["alternatives"])
    numbers = [re.match(r"Figure (\d+)", f["caption"].strip()) for f in page.figures if not f["table"]]
    assert [int(match[1]) for match in numbers if match] == list(range(1, len(numbers) + 1))
    headings = [tag for tag, _ in page.elements if HEADING.fullmatch(tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1
    assert "not a medical device" in page.text.lower()


@pytest.fixture()
def folder(nnunet_folders: Path) -> Callable[..., Path]:
    return lambda **more: write_folder(nnunet_folders, **more)


def test_page_of_a_training_that_ran(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    block["cases"] = {key: {"source": "ab"[i % 2]} for i, key in enumerate(KEYS)}
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings={**SHORT, "num_epochs": 12, **GROUPS})
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    trainer.perform_actual_validation()
    fold = Path(trainer.output_folder)
    said = report(capsys, LINE.format("MutualPartialTrainer"))
    assert f"{fold / 'report.html'}\n" in said and "Next: " in said
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    for term in ("seg", "pd", "fd", "ps", "dfs", "Dice by label", "Pseudo labels:", "border between stages"):
        assert term in page.text, term
    assert "pseudo labels were learnt from; the networks learn from each other" in page.text
    assert "HD95 mm, median" in page.text and "surface Dice" in page.text
    measured = rows(fold / "report_dice.csv")
    assert all(row["reference_volume_ml"] and float(row["hd95_mm"]) >= 0 for row in measured if row["dice"])
    assert "amp auto off" in page.text and "stage1_networks one groups" in page.text  # settings, default and here
    assert "nnunetv2" in page.text and "case_" not in page.source
    curves = rows(fold / "report_curves.csv")
    found = {(row["kind"], row["name"]) for row in curves}
    assert {
        ("weight", "pd[0]"),
        ("term", "dfs[1]"),
        ("dice", "liver"),
        ("mean dice", "moving average of the mean"),
    } < found
    weights = [float(row["value"]) for row in curves if (row["kind"], row["name"]) == ("weight", "pd[0]")]
    assert weights == sorted(weights) and weights[-1] == 1  # it ramps up
    decisions = rows(fold / "report_pseudo_labels.csv")
    assert decisions and {row["case"].split()[0] for row in decisions} == {"case"}


def test_alarms_come_first_and_names_stay_away(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fold = folder(settings=SETTINGS)
    report(capsys, LINE.format("PartialTrainer"))
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    first = page.text.index("Warning, 2 times, epochs 2 to 4:")
    assert first < page.text.index("Warning, at the start: fold 0: few cases") < page.text.index("Figure 1.")
    assert "predicts 0.4 times as much liver on case 5 of patient 1 (case 5_0000.nii.gz)" in page.text
    assert page.text.count("predicts 0.") == 1  # the same alarm in two epochs is one
    files = sorted(fold.glob("report*"))
    assert len(files) == 5
    for file in files:
        text = re.sub(r"base64,[A-Za-z0-9+/=]*", "", file.read_text())  # pictures may spell anything
        assert not re.search(r"case_\d|Doe|/data", text), file.name

    report(capsys, f"{LINE.format('PartialTrainer')} --with-names --no-images -o {tmp_path / 'named.html'}")
    named = Page(tmp_path / "named.html")
    assert_is_a_good_page(named)
    assert "data:image" in page.source and "data:image" not in named.source
    assert "case_04 of Doe (/data/Doe/case_04_0000.nii.gz)" in named.text
    assert {row["case"] for row in rows(tmp_path / "named_dice.csv")} == {"case_01", "case_02", "case_05"}


def test_only_annotated_labels_are_scored(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The predictions hold every label in every case; nnU-Net's own summary.json says Dice 0 of what nobody drew."""
    fold = folder(settings=SETTINGS)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert min(entry["metrics"]["1"]["Dice"] for entry in summary["metric_per_case"]) == 0
    report(capsys, LINE.format("PartialTrainer"))
    scores = rows(fold / "report_dice.csv")
    assert sorted((row["source"], row["label"]) for row in scores) == sorted(
        [("north", "liver"), *[("south", label) for label in ("tumour", "spleen")] * 2]
    )
    by_label = {label: [float(row["dice"]) for row in scores if row["label"] == label] for label in tiny.PLAIN}
    assert 0.6 < by_label["liver"][0] < 1 and min(by_label["tumour"]) == 0 < max(by_label["tumour"])
    text = Page(fold / "report.html").text
    assert "Missed entirely, of the cases in which it was drawn: tumour (1 of 2)." in text
    assert "fewer than 5 validation cases, which says little: liver (1), tumour (2), spleen (2)" in text
    assert "fell from 0.74 at its peak to 0.60" in text
    assert "liver 2 + 1 – 2 + 1" in text and "cases 2 + 1 1 + 2 3 + 3" in text  # coverage
    assert "network updates 120 (10 in an epoch of a network)" in text  # six epochs of two networks


def test_slices_are_drawn_of_raw_images_only(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder(settings=SETTINGS)
    line = LINE.format("PartialTrainer")
    report(capsys, line)
    captions = re.findall(r'<p class="under">(.*?)</p>', Page(fold / "report.html").source)
    assert all("; axial slice " in caption and ", window " in caption for caption in captions)
    assert [caption.split(":")[0] for caption in captions] == [
        "liver, the only case",
        "tumour, typical",
        "tumour, worst",
        "spleen, typical",
        "spleen, worst",
    ]
    shutil.rmtree(fold.parents[3] / "nnUNet_raw" / tiny.NAME)
    report(capsys, line)
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert "data:image" not in page.source and "No slices are shown: they need the images in nnUNet_raw" in page.text


def test_a_second_model_is_compared_on_the_same_cases(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder(settings=SETTINGS)
    other = fold.parent.with_name("Other__nnUNetPlans__3d_fullres")
    shutil.copytree(fold.parent, other)
    file = other / "fold_0" / "validation" / "summary.json"
    summary = json.loads(file.read_text())
    for entry in summary["metric_per_case"]:
        for metrics in entry["metrics"].values():
            metrics["Dice"] = 0.25
    file.write_text(json.dumps(summary))
    line = LINE.format("PartialTrainer")
    table = AnnotationTable.from_dataset_json(json.loads((other / "dataset.json").read_text()))
    for given in (other, other / "fold_0", other / "fold_0" / "validation"):
        name, scores = read_other(given, "0", table)
        assert name == "Other, nnUNetPlans, 3d_fullres" and set(scores.dice) == {0.25}
    report(capsys, f"{line} --compare {other}")
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert "with another model: Other, nnUNetPlans, 3d_fullres" in page.text
    pairs = rows(fold / "report_paired.csv")
    assert len(pairs) == 5 and {row["dice_other"] for row in pairs} == {"0.25"}
    means = {row["label"]: float(row["dice"]) for row in pairs}
    assert f"liver 1 {means['liver']:.3f} 0.250 {means['liver'] - 0.25:+.3f} – 1 / 0" in page.text
    report(capsys, line)
    assert not (fold / "report_paired.csv").exists()  # it would be taken for one of the new page
    (other / "fold_0" / "validation" / "summary.json").write_text('{"metric_per_case": []}')
    assert "has no case in common" in report(capsys, f"{line} --compare {other}", status=2)
    assert "holds no summary.json" in report(capsys, f"{line} --compare {fold.parents[1]}", status=2)


def test_what_is_missing_is_said_with_its_command(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder(settings=SETTINGS, validated=False, trainer="MutualPartialTrainer")
    train = f"nnunet_mutual train 901 3d_fullres 0 -tr MutualPartialTrainer{device_option()}"
    assert f"Next: {train} --val" in report(capsys, LINE.format("MutualPartialTrainer"))
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert (
        f"no validation of whole cases yet, so nothing is known about how good the model is. {train} --val" in page.text
    )
    assert "no record of pseudo labels" in page.text
    for file in fold.glob("*"):
        file.unlink()
    assert f"Next: {train} --c" in report(capsys, LINE.format("MutualPartialTrainer"))
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert "there are no curves" in page.text and "The training is not finished" in page.text


def test_stock_trainers_have_a_page_too(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder(trainer="nnUNetTrainer")
    assert "Next: nnUNetv2_find_best_configuration 901" in report(capsys, LINE.format("nnUNetTrainer"))
    page = Page(fold / "report.html")
    assert_is_a_good_page(page)
    assert "Dice by label" in page.text and "Loss" in page.text and "no trainer of nnunet_mutual" in page.text
    assert "network updates 1,500 (250 in an epoch of a network)" in page.text


def test_a_fold_without_held_out_cases_says_so(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fold = folder(settings=SETTINGS)
    fold.rename(fold.with_name("fold_all"))
    report(capsys, LINE.format("PartialTrainer").replace("-f 0", "-f all"))
    page = Page(fold.with_name("fold_all") / "report.html")
    assert "the results below are on cases that the model was trained on" in page.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report 901 3d_fullres -tr PartialTrainer -f 3", "has no fold 3 (there: 0)"),
        ("report 901 3d_fullres -tr PartialTrainr -f 0", "did you mean 'PartialTrainer__nnUNetPlans__3d_fullres'?"),
        ("report 905 3d_fullres -tr PartialTrainer -f 0", "no dataset has the ID 905"),
        ("report 901 3d_fullres", "report needs DATASET, CONFIGURATION and -tr TRAINER"),
        ("report 901 3d_fullres -tr PartialTrainer -o page.pdf", "ends in .html"),
        ("report 901 3d_fullres -tr PartialTrainer -o nowhere/page.html", "is no folder; create it"),
        ("report 901 --evidence x", "give one of them"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    fold = folder(settings=SETTINGS, validated=False)
    error = report(capsys, line, status=2)
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not list(fold.glob("report*"))


def test_a_file_of_somebody_else_is_never_replaced(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder(settings=SETTINGS, validated=False)
    page = tmp_path / "letter.html"
    page.write_text("<p>Dear colleague</p>")
    assert "was not written by this command" in report(capsys, f"{LINE.format('PartialTrainer')} -o {page}", status=2)
    assert page.read_text() == "<p>Dear colleague</p>" and not list(tmp_path.glob("letter_*"))
    table = tmp_path / "mine_dice.csv"
    table.write_text("1,2")
    line = f"{LINE.format('PartialTrainer')} -o {tmp_path / 'mine.html'}"
    assert "may be yours" in report(capsys, line, status=2)
    assert table.read_text() == "1,2" and not (tmp_path / "mine.html").exists()


def test_images_that_cannot_be_read_cost_their_slices_only(
    folder: Callable[..., Path], nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = folder(settings=SETTINGS)
    report(capsys, LINE.format("PartialTrainer"))
    assert "data:image/png" in (fold / "report.html").read_text()
    for image in (nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTr").iterdir():
        image.write_bytes(b"no image")
    report(capsys, LINE.format("PartialTrainer"))
    page = Page(fold / "report.html")
    assert "data:image/png" not in page.source
    assert_is_a_good_page(page)


def test_other_folds_since_are_not_those_of_the_training(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = write_folder(nnunet_folders, settings=SETTINGS)
    splits = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME / "splits_final.json"
    split = json.loads(splits.read_text())[0]
    splits.write_text(json.dumps([{"train": [*split["train"], "came_later"], "val": split["val"]}]))
    shutil.copytree(fold / "validation", fold / "validation_old")  # no modality group
    report(capsys, LINE.format("PartialTrainer"))
    page = Page(fold / "report.html")
    assert "3 training and 3 validation cases" in page.text and "came_later" not in page.text
    assert {row["network"] for row in rows(fold / "report_dice.csv")} == {""}
    splits.write_text(json.dumps([{"train": split["val"], "val": split["train"]}]))
    report(capsys, LINE.format("PartialTrainer"))
    assert "is not at hand, or was changed since" in Page(fold / "report.html").text


def test_results_alone_are_found_by_the_name_of_the_dataset(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = write_folder(nnunet_folders, settings=SETTINGS)
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.rmtree(nnunet_folders / name / tiny.NAME)
    report(capsys, LINE.format("PartialTrainer").replace("901", tiny.NAME))
    assert (fold / "report.html").is_file()
