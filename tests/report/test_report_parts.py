"""The parts of a report, by hand: names, paired differences, curves, plots, and the page of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from report_folder import write_checkpoint, write_log
from test_report import Page, assert_is_a_good_page, report, rows

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.output import write_tidy
from nnunet_mutual.pseudo_labels.review.figures import PLANES
from nnunet_mutual.report import findings
from nnunet_mutual.report.blocks import Table
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import networks_per_epoch, read_alarms, read_curves, read_versions, stage_borders
from nnunet_mutual.report.overlays import _place, _planes, _read, _Volume
from nnunet_mutual.report.plots import Frame, Series, decisions_plot, families, line_plots, score_plots, thin
from nnunet_mutual.report.results import _distances
from nnunet_mutual.report.scores import _measured, compare, paired, read_scores
from nnunet_mutual.report.training import Training


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("look at a_1 and a_10.", "look at case 1 and case 3."),
        ("a_1_b is another one, a_1_0001.nii.gz is not", "case 2 is another one, case 1_0001.nii.gz is not"),
        ("xa_1, a_12 and a_1c are unknown", "xa_1, a_12 and a_1c are unknown"),
        ("/home/me/a_1/b.nii.gz of Ms Roe", "b.nii.gz of patient 1"),
        (r"C:\data\a_1.nii.gz", "case 1.nii.gz"),
        ("0.5 of 1/2, a/b", "0.5 of 1/2, a/b"),
        ("not measured: '/data/Klinik Mitte/Studie M/x/metrics.csv'", "not measured: 'metrics.csv'"),
        ("'/srv/dr.o'hara/images/a_1.nii.gz' and it's 'fine'", "'case 1.nii.gz' and it's 'fine'"),
        (r"C:\Users\Jane Roe\data\a_1.nii.gz is damaged", "case 1.nii.gz is damaged"),
    ],
)
def test_names_become_numbers(text: str, clean: str) -> None:
    assert Identities(["a_10", "a_1", "a_1_b"], ["Ms Roe"]).clean(text) == clean
    assert Identities(["a_10", "a_1", "a_1_b"], ["Ms Roe"], shown=True).clean(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("3 labels in 17 cases at epoch 9, loss 0.3, 17.3", "3 labels in 17 cases at epoch 9, loss 0.3, 17.3"),
        ("the label maps of 17 and 0023 changed since", "the label maps of case 2 and case 3 changed since"),
        ("case 17, 0023 (patient 9), case 17.5", "case 2, case 3 (patient 1), case 17.5"),
        ("/data/imagesTr/0023_0000.nii.gz is damaged", "case 3_0000.nii.gz is damaged"),
        ("'3', 3.nii.gz and 20240117", "'case 1', case 1.nii.gz and case 4"),
    ],
)
def test_short_numbers_are_names_only_where_that_is_said(text: str, clean: str) -> None:
    assert Identities(["3", "17", "0023", "20240117"], ["9"]).clean(text) == clean


def test_difference_by_hand() -> None:
    first, second = np.array([0.8, 0.9, 0.7, np.nan]), np.array([0.7, 0.9, 0.8, 0.5])
    found = compare("liver", first, second)
    assert (found.n, found.better, found.worse) == (3, 1, 1)
    assert found.first == pytest.approx(0.8) and found.mean == pytest.approx(0) and found.low is None
    constant = compare("liver", np.full(6, 0.9), np.full(6, 0.8))
    assert constant.low == pytest.approx(0.1) and constant.high == pytest.approx(0.1)
    wide = compare("liver", np.array([0.1, 0.9] * 10), np.full(20, 0.5))
    assert wide.low is not None and wide.high is not None and wide.low < 0 < wide.high
    # 1.96 standard errors of the mean: 1.96 * 0.4 / sqrt(20)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.4 / np.sqrt(20), rel=0.15)


def test_a_false_positive_of_one_model_alone_is_a_pair() -> None:
    """As evaluate --compare does it; absent in both it is none, and nor is what the other one has no drawing of."""
    one = {"dice": [0.8, float("nan"), float("nan"), 0.7], "voxels_drawn": [9, 0, 0, 9]}
    two = {"dice": [0.6, 0.0, float("nan"), float("nan")], "voxels_drawn": [9, 0, 0, 0]}
    keys = {"case": list("abcd"), "label": ["liver"] * 4}
    both = paired(pd.DataFrame({**keys, **one}), pd.DataFrame({**keys, **two}))
    found = both.set_index("case")[["dice", "dice_other"]].T.to_dict("list")
    assert found["a"] == [0.8, 0.6] and found["b"] == [1.0, 0.0]
    assert np.isnan(found["c"]).all() and np.isnan(found["d"][1])


def test_volumes_are_of_cases_that_have_the_label() -> None:
    values = {"hd95_mm": [1.0, None, None], "surface_dice": [0.5, None, None], "volume_ml": [2.0, 0.0, 0.0]}
    scores = pd.DataFrame({"label": ["liver"] * 3, **values, "reference_volume_ml": [4.0, 0.0, 0.0]})
    (table,) = _distances(scores, ["liver"], "")
    assert isinstance(table, Table) and table.rows == [["liver", "1", "1.0", "1.0", "0.500", "4", "2", "50 %"]]


def test_logs(tmp_path: Path) -> None:
    write_log(tmp_path)
    write_checkpoint(tmp_path)
    curves = read_curves(tmp_path, ["liver", "tumour", "spleen"])
    assert not curves.duplicated(["epoch", "kind", "name"]).any()
    assert stage_borders(curves) == [3]
    assert networks_per_epoch(curves) == dict.fromkeys(range(6), 2)
    dice = curves[(curves.kind == "dice") & (curves.name == "spleen")].value
    assert dice.iloc[-1] == pytest.approx(0.4)
    alarms = read_alarms(tmp_path)
    assert [(alarm.times, alarm.epochs, alarm.when) for alarm in alarms] == [
        (2, (2, 4), "2 times, epochs 2 to 4"),
        (1, (), "at the start"),
    ]
    assert read_versions(tmp_path) == {"nnunet_mutual": "0.0.7", "torch": "9.9"}


def test_a_log_that_is_ahead_of_its_checkpoint_comes_after_it(tmp_path: Path) -> None:
    write_log(tmp_path)
    write_checkpoint(tmp_path)
    with (tmp_path / "mutual_log.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"epoch": 6, "loss": 0.5}))
    curves = read_curves(tmp_path, ["liver", "tumour", "spleen"])
    loss = curves[(curves.kind == "loss") & (curves.name == "training")]
    assert loss.epoch.tolist() == list(range(7)) and loss.value.iloc[-1] == 0.5


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "checkpoint_final.pth").rename(tmp_path / "checkpoint_best.pth")
    (tmp_path / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    assert len(read_curves(tmp_path, ["liver", "tumour", "spleen"])) > 0


def test_thinning_keeps_means() -> None:
    x, y = np.arange(1000), np.random.default_rng(1).normal(size=1000)
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) == 250 and thin_y.mean() == pytest.approx(y.mean()) and thin_y[0] == pytest.approx(y[:4].mean())
    assert np.array_equal(thin(x[:250], y[:250])[1], y[:250])


def test_curves_that_differ_in_a_label_share_a_plot() -> None:
    x, y = np.arange(3), np.ones(3)
    names = ["mu of liver", "mu of liver cyst", "volume of liver by network 0 on group 1", "bank"]
    found = families([Series(name, x, y) for name in names], ["liver", "liver cyst"])
    assert {family: [one.name for one in series] for family, series in found.items()} == {
        "mu of …": ["liver", "liver cyst"],
        "volume of … by … on …": ["liver, network 0, group 1"],
        "bank": ["bank"],
    }


def test_a_name_is_no_formula() -> None:
    x, y = np.arange(3), np.ones(3)
    assert r"$\frac$" in line_plots("Dice", [Series(r"$\frac$", x, y), Series("liver", x, y)])[0]


def test_what_a_validation_did_not_take_for_annotated_has_no_row(tmp_path: Path) -> None:
    """The table may have changed since, and counts are NaN where a label was drawn in part then."""
    unknown = dict.fromkeys(("Dice", "TP", "FP", "FN", "TN", "n_pred", "n_ref", "IoU"), float("nan"))
    known = unknown | {"Dice": 0.5, "TP": 2, "n_pred": 4, "n_ref": 4}
    case = {"prediction_file": "a_1.nii.gz", "reference_file": "a_1.nii.gz", "metrics": {"1": unknown, "2": known}}
    content = {"metric_per_case": [case], "mean": {}, "foreground_mean": {}}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    table = AnnotationTable.from_dataset_json(
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    )
    assert read_scores({"": tmp_path}, table).label.tolist() == ["spleen"]


def test_many_curves_are_spread_over_plots_that_can_be_told_apart() -> None:
    series = [Series(f"label {n}", np.arange(4), np.full(4, n)) for n in range(14)]
    drawn = line_plots("Dice", series)
    assert len(drawn) == 3 and sum(plot.count(">label ") for plot in drawn) == 14
    assert "label 13: 13 at epoch 0" in drawn[2]
    # what is no label is drawn in ink, in the page's, which is not fixed on light ground
    assert "var(--c0)" not in drawn[0] and "currentColor" in drawn[0]


def test_a_label_has_one_colour_in_all_figures() -> None:
    labels = [f"organ {n}" for n in range(8)]
    frame = Frame(labels=labels)
    x, y = np.arange(4), np.ones(4)
    (alone,) = line_plots("Dice", [Series("organ 2, network 1", x, y)], frame=frame)
    (both,) = line_plots("Dice", [Series("organ 1", x, y), Series("organ 7", x, y)], frame=frame)
    assert "var(--c2)" in alone and "var(--c0)" not in alone and "#0072b2" not in alone.lower()
    assert "var(--c1)" in both and "var(--c0)" not in both and "stroke-dasharray" in both  # the eighth: another line
    scores = pd.DataFrame([("organ 2", "a", 0.5), ("organ 3", "b", 0.7)], columns=["label", "source", "dice"])
    (points,) = score_plots("Dice", scores, labels, ["a", "b"])
    counts = pd.DataFrame([("organ 2", 3, 1)], columns=["label", "accepted", "rejected"])
    for drawn in (points, decisions_plot(counts, labels)):
        assert "var(--c2)" in drawn and "var(--c0)" not in drawn
    assert "var(--c3)" in points


def test_points_that_would_cover_each_other_are_one() -> None:
    dice = np.linspace(0, 1, 5000)
    drawn = [
        score_plots(
            "Dice", pd.DataFrame({"label": "organ", "source": "a", "dice": dice[:: 5000 // n]}), ["organ"], ["a"]
        )
        for n in (100, 5000)
    ]
    few, many = (plot.count("<use") for (plot,) in drawn)
    assert 100 <= few < 150 and many < 300


@pytest.mark.parametrize("directions", ["LPS", "RAI", "PIR", "SAR"])
def test_slices_are_counted_as_they_lie_in_the_file(tmp_path: Path, directions: str) -> None:
    """A mark in one voxel is found in the slice whose number, counted in the file, is the mark's."""
    upright = sitk.GetImageFromArray(np.zeros((5, 6, 7), np.int16))
    upright[2, 4, 1] = 100
    stored = sitk.DICOMOrient(upright, directions)
    sitk.WriteImage(stored, str(tmp_path / "image.nii.gz"))
    image = _read(tmp_path / "image.nii.gz")
    assert image.oriented and image.voxels.shape == (5, 6, 7)
    in_file = np.argwhere(sitk.GetArrayFromImage(stored) == 100)[0][::-1]  # x, y, z
    mark = np.argwhere(image.voxels == 100)[0]
    for plane, pair in zip(PLANES, ("SI", "AP", "LR"), strict=True):
        axis = next(n for n, letter in enumerate(directions) if letter in pair)
        expected = f"{plane.name} slice {in_file[axis] + 1} of {image.voxels.shape[plane.axis]}"
        assert _place(image, plane, int(mark[plane.axis])) == expected


def test_axial_first_then_the_plane_of_thick_slices() -> None:
    def names(*spacing: float, slices: int = 4) -> list[str]:
        return [plane.name for plane in _planes(_Volume(np.zeros((slices, 4, 4)), spacing))]

    assert names(1, 1, 1) == names(5, 1, 1) == names(1, 1.2, 1) == names(np.inf, 1, 1, slices=1) == ["axial"]
    assert names(1, 5, 1) == ["axial", "coronal"] and names(1, 1, 3) == ["axial", "sagittal"]


def test_damaged_distances_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("case,label,metric,value\nc,liver,hd95_mm,2.5\nc,liver,volume_ml,\n")
    found = _measured(tmp_path)
    assert found.hd95_mm.tolist() == [2.5] and found.volume_ml.isna().all()
    for text in ("", "case,label\nc,liver\n", "case,label,metric,value\nc,liver,hd95_mm,far\n"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(MutualError, match="is no table of nnunet_mutual evaluate"):
            _measured(tmp_path)


def test_names_in_a_table_of_distances_stay_as_they_are(tmp_path: Path) -> None:
    scores = {"hd95_mm": 2.5, "volume_ml": float("nan")}
    write_tidy(tmp_path / "metrics.csv", {"=1": {"NA": scores, "None": scores}})  # type: ignore[dict-item]
    found = _measured(tmp_path)
    assert found.case.tolist() == ["=1", "=1"] and found.label.tolist() == ["NA", "None"]
    assert found.hd95_mm.tolist() == [2.5, 2.5] and found.volume_ml.isna().all()


def test_modality_groups_are_called_by_name() -> None:
    training = Training(Path("x"), None, "T", "P", "2d", "0")  # type: ignore[arg-type]
    vars(training).update(plan={"modality_groups": {}}, table=SimpleNamespace(modality_groups={"T1": [], "FLAIR": []}))
    assert training.named("network 1 and network 0, network 7") == "FLAIR and T1, network 7"
    vars(training).update(plan={})
    assert training.named("network 1") == "network 1"


def write_evidence(folder: Path) -> None:
    folder.mkdir()
    for arm, shift in (("good", 0.1), ("bad", 0.0)):
        for seed in (0, 1) if arm == "good" else (0,):
            dice = {f"p{n}": {"liver": 0.5 + shift + 0.01 * n + 0.02 * seed, "spleen": None} for n in range(6)}
            content = {"benchmark": "toy", "arm": arm, "seed": seed, "words": f"{arm} arm", "dice": dice}
            (folder / f"{arm}_seed{seed}.json").write_text(json.dumps(content))
    (folder / "calibration.json").write_text('{"rate": 0.01}')


def test_page_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evidence(tmp_path / "toy")
    report(capsys, f"report --evidence {tmp_path / 'toy'} -o {tmp_path / 'page.html'} --compare bad")
    page = Page(tmp_path / "page.html")
    assert_is_a_good_page(page)
    assert "good 0.635 0.625 to 0.645 2 0.635 – – good arm" in page.text
    assert "good +0.1000 +0.1000 to +0.1000 6 / 0 6" in page.text  # of seed 0, which both have
    assert "Fewer than 3 seeds: good, bad." in page.text
    table = pd.DataFrame(rows(tmp_path / "page_dice.csv"))
    assert len(table) == 36 and set(table.case) == {f"case {n}" for n in range(1, 7)}
    assert "has no arm best; it has: good, bad" in report(
        capsys, f"report --evidence {tmp_path / 'toy'} --compare best", status=2
    )
    (tmp_path / "empty").mkdir()
    assert "holds no evidence file" in report(capsys, f"report --evidence {tmp_path / 'empty'}", status=2)
    assert "is no folder" in report(capsys, f"report --evidence {tmp_path / 'nowhere'}", status=2)


def test_a_sentence_names_twenty_labels_at_most() -> None:
    assert findings.named(f"l{n}" for n in range(300)).endswith("l19 and 280 more")
