"""The benchmark runner: its rules and its table, on made-up evidence; no training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from scipy import ndimage

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RULE = {"range": 0.01, "gain": 0.01}


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


def length(updates: int, mean: float | None, spread: float | None) -> dict[str, Any]:
    return {"updates": updates, "mean": mean, "range": spread}


def evidence(arm: str, seed: int, dice: float, updates: int = 500, networks: int = 1) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "updates_of_each_network": updates,
        "total_updates": updates * networks,
        "networks_deployed": networks,
        "training_seconds": [60.0] * networks,
        "schedule": {"updates": updates, "rate": 0.01},
        "dice": {
            "a": {"Anterior": dice + 0.1, "Posterior": dice - 0.1},
            "b": {"Anterior": None, "Posterior": dice - 0.1},
        },
    }


def test_no_case_serves_two_purposes(bench: SimpleNamespace) -> None:
    for file in (BENCHMARKS / "protocol").glob("*.json"):
        lists = bench.settings.protocol_of(file.stem)["cases"]
        everything = [case for cases in lists.values() for case in cases]
        assert len(everything) == len(set(everything)), file


def test_a_protocol_is_like_another_one(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.settings, "HERE", tmp_path)
    (tmp_path / "protocol").mkdir()
    for name, text in {
        "first": '{"cases": {"test": ["a"]}, "title": "{labelled} of many", "network": {"batch_size": 2}}',
        "second": '{"like": "first", "network": {"patch_size": [8, 8]}}',
        "third": '{"title": "third", "like": "second"}',
    }.items():
        (tmp_path / "protocol" / f"{name}.json").write_text(text)
    whole = {"cases": {"test": ["a"]}, "title": "3 of many", "network": {"patch_size": [8, 8]}}
    assert bench.settings.protocol_of("second", 3) == whole
    assert bench.settings.protocol_of("third") == {**whole, "title": "third"}


def test_a_patient_is_in_one_pool_and_labelled_patients_are_drawn_from_theirs(bench: SimpleNamespace) -> None:
    drawn = [bench.settings.Setting(name, None) for name in bench.settings.names()]
    for setting in (found for found in drawn if found.labelled):
        pools = {pool: {setting.patients[case] for case in cases} for pool, cases in setting["cases"].items()}
        assert sum(map(len, pools.values())) == len(set().union(*pools.values())), setting.name
        for pool, cases in setting["cases"].items():
            assert sorted(setting.cases_of(pools[pool])) == cases, setting.name  # all of a patient's cases
        draws = [list(draw.values()) if isinstance(draw, dict) else [draw] for draw in setting.draws]  # of each source
        assert len(draws) >= setting["draws"]["needed"] and len(set(map(str, draws))) > 1
        for draw in draws:
            assert len({*draw[0]}) == setting.labelled and len({len(source) for source in draw}) <= 2, setting.name
            assert all({*source} <= pools["training"] for source in draw), setting.name
        for draw in draws:
            everybody = [patient for source in draw for patient in source]
            assert len({*everybody}) == len(everybody), setting.name
    heart = {pool: len(cases) for pool, cases in bench.settings.Setting("acdc_unlabelled_3", None)["cases"].items()}
    assert heart == {"training": 96, "calibration": 20, "test": 40}  # ED and ES


def test_names_of_draws(bench: SimpleNamespace, tmp_path: Path) -> None:
    one, two = (bench.settings.Setting(f"hippocampus_few_{n}", None, tmp_path) for n in (1, 2))
    assert one["title"].startswith("Hippocampus, 1 labelled") and two["title"].startswith("Hippocampus, 2 labelled")
    assert one.evidence.name == "hippocampus_few_1" and one.seeds == list(range(12))
    assert one.work == two.work  # what all labels need is trained once
    schedule = bench.settings.Schedule(480, 0.01)
    few, everything = (one.networks(arm)[0] for arm in ("mean_teacher", "all_average"))
    assert one.weights_file(everything, schedule, 3) == two.weights_file(everything, schedule, 3)
    assert one.weights_file(few, schedule, 3) != two.weights_file(few, schedule, 3)
    assert one.dataset_name("few", 3) != one.dataset_name("few", 4) != two.dataset_name("few", 4)
    double, longer = one.networks("mean_teacher_double")[0], bench.settings.Schedule(960, 0.01)
    assert one.weights_file(double, schedule, 3) == one.weights_file(few, longer, 3)  # one training, two places


def test_a_draw_links_its_own_patients_and_never_a_label_of_another(bench: SimpleNamespace, tmp_path: Path) -> None:
    setting = bench.settings.Setting("acdc_unlabelled_1", None, tmp_path)
    unlabelled = importlib.import_module("nnunet_mutual.preprocessing.unlabelled")
    pool, labelled = setting["cases"]["training"], setting.cases_of(setting.draws[2])
    data = setting.work / "nnUNet_preprocessed"
    for dataset, place in (("all", "."), ("unlabelled", unlabelled.UNLABELLED)):
        folder = data / setting.dataset_name(dataset, 0) / place / setting.data_identifier
        folder.mkdir(parents=True)
        for name in (f"{case}{ending}" for case in pool for ending in unlabelled.ENDINGS):
            (folder / name).write_text(f"{dataset} {name}")
        unlabelled.write_record(unlabelled.record_of(folder), {case: {"plans": case} for case in pool})
    content = {"numTraining": len(pool), "mutual": {"sources": {}, "cases": {case: {"source": "A"} for case in pool}}}
    for name, text in (("dataset.json", content), ("nnUNetPlans.json", {}), ("dataset_fingerprint.json", {})):
        bench.settings.write_json(data / setting.dataset_name("all", 0) / name, text)

    bench.draws.link_draw(setting, "few", 2)
    target = data / setting.dataset_name("few", 2)
    seen = {path.name: path.read_text() for path in (target / setting.data_identifier).iterdir()}
    assert seen == {f"{c}{e}": f"all {c}{e}" for c in labelled for e in unlabelled.ENDINGS}
    hidden = {
        path.name: path.read_text() for path in (target / unlabelled.UNLABELLED / setting.data_identifier).iterdir()
    }
    others = {*pool} - {*labelled}
    assert hidden == {f"{c}{e}": f"unlabelled {c}{e}" for c in others for e in unlabelled.ENDINGS}
    record = unlabelled.read_record(unlabelled.record_of(target / unlabelled.UNLABELLED / setting.data_identifier))
    assert set(record) == others
    made = bench.settings.read_json(target / "dataset.json")
    assert made["numTraining"] == 2 and list(made["mutual"]["cases"]) == labelled
    assert bench.settings.read_json(target / "nnUNetPlans.json") == {"dataset_name": target.name}

    assert setting.plans_from("few") == "all"
    setting.protocol["draws"]["patients"]["1"][2] = ["patient003"]  # of the calibration patients
    with pytest.raises(bench.settings.BenchmarkError, match="patient003_frame01, which is not in its pool"):
        bench.draws.link_draw(setting, "few", 2)


def test_a_draw_of_sources_links_each_from_where_its_label_is(bench: SimpleNamespace, tmp_path: Path) -> None:
    setting = bench.settings.Setting("hippocampus_sources_1", None, tmp_path)
    data, draw = setting.work / "nnUNet_preprocessed", setting.draws[1]
    endings = importlib.import_module("nnunet_mutual.preprocessing.unlabelled").ENDINGS
    for dataset in ("all", "anterior", "posterior"):
        folder = data / setting.dataset_name(dataset, 0)
        (folder / setting.data_identifier).mkdir(parents=True)
        for name in (f"{case}{ending}" for case in setting["cases"]["training"] for ending in endings):
            (folder / setting.data_identifier / name).write_text(dataset)
        cases = {case: {"source": dataset} for case in setting["cases"]["training"]}
        content = {"labels": {"background": 0}, "mutual": {"sources": {dataset: {}}, "cases": cases}}
        for name, text in (("dataset.json", content), ("nnUNetPlans.json", {}), ("dataset_fingerprint.json", {})):
            bench.settings.write_json(folder / name, text)

    def made(dataset: str) -> tuple[dict[str, str], dict]:
        bench.draws.link_draw(setting, dataset, 1)
        target = data / setting.dataset_name(dataset, 1)
        linked = {
            path.name.split(".")[0]: path.read_text() for path in (target / setting.data_identifier).glob("*.pkl")
        }
        return linked, bench.settings.read_json(target / "dataset.json")

    (anterior,), (posterior,) = draw["A"], draw["B"]
    linked, content = made("sources")
    assert linked == {anterior: "anterior", posterior: "posterior"} and content["numTraining"] == 2
    assert content["mutual"]["cases"] == {anterior: {"source": "anterior"}, posterior: {"source": "posterior"}}
    assert set(content["mutual"]["sources"]) == {"anterior", "posterior"}
    linked, content = made("whole")
    assert linked == {anterior: "all", posterior: "all"} and list(content["mutual"]["sources"]) == ["all"]


def test_patients_must_be_those_of_the_data(bench: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "acdc" / "imagesTr").mkdir(parents=True)
    setting = bench.settings.Setting("acdc_unlabelled_1", tmp_path, tmp_path / "work")
    cases = {case: {"patient": patient} for case, patient in setting.patients.items()}
    bench.settings.write_json(tmp_path / "acdc" / "cases.json", cases)
    bench.preparation.verify_patients(setting)
    cases["patient001_frame12"]["patient"] = "patient002"
    bench.settings.write_json(tmp_path / "acdc" / "cases.json", cases)
    with pytest.raises(bench.settings.BenchmarkError, match="patient001_frame12 is of patient patient002"):
        bench.preparation.verify_patients(setting)


def test_kernels_and_strides_of_the_protocol(bench: SimpleNamespace) -> None:
    network = bench.settings.Setting("acdc_unlabelled_1", None)["network"]
    plans = tiny.plans()
    base = plans["configurations"]["3d_fullres"]["architecture"]
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    changed = {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 64],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": strides,
    }
    changed |= {"n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
    assert bench.preparation.small_configuration(plans, network) == {
        "inherits_from": "3d_fullres",
        "patch_size": [8, 96, 96],
        "batch_size": 2,
        "architecture": {**base, "arch_kwargs": {**base["arch_kwargs"], **changed}},
    }
    plain = {"patch_size": [40, 56, 40], "batch_size": 2, "features_per_stage": [8, 16, 32, 64]}
    found = bench.preparation.small_configuration(plans, plain, num_epochs=3)
    made = found["architecture"]["arch_kwargs"]
    assert made["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 3 and made["kernel_sizes"] == [[3, 3, 3]] * 4
    assert found["mutual"] == {"num_epochs": 3}
    for wrong, words in (({"patch_size": [8, 90, 96]}, "multiples of"), ({"strides": [[1, 1, 1]]}, "4 by --features")):
        with pytest.raises(bench.settings.BenchmarkError, match=words):
            bench.preparation.small_configuration(plans, {**network, **wrong})


def test_networks_of_the_memory_model_can_be_built(bench: SimpleNamespace) -> None:
    plans = tiny.plans()
    found = importlib.import_module("memory").networks(plans)
    assert [entry.pop("inherits_from") for entry in found.values()] == ["3d_fullres"] * 5
    for name, entry in found.items():
        network = entry["architecture"]
        parts = network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"]
        built = get_network_from_plans(*parts, 1, 3, deep_supervision=False)
        assert ("Residual" in type(built).__name__) == ("residual" in name)
        with torch.no_grad(), torch.device("meta"):
            patch = entry["patch_size"]
            assert built.to("meta")(torch.zeros(1, 1, *patch)).shape == (1, 3, *patch)


def test_a_crop_is_around_the_foreground_and_inside_the_image(bench: SimpleNamespace) -> None:
    labels = np.zeros((3, 10, 12), np.uint8)
    labels[1, 4:7, 0:3] = 1
    assert bench.crops.box_around(labels, [None, 5, 6]) == (slice(0, 3), slice(3, 8), slice(0, 6))
    assert bench.crops.box_around(labels, [None, 5, 20]) == (slice(0, 3), slice(3, 8), slice(0, 12))
    assert bench.crops.box_around(np.zeros_like(labels), [1, 5, 6]) == (slice(1, 2), slice(2, 7), slice(3, 9))


def test_the_shortest_length_that_is_stable_and_converged_is_chosen(bench: SimpleNamespace) -> None:
    lengths = [length(250, 0.70, 0.001), length(500, 0.80, 0.02), length(1000, 0.805, 0.005), length(2000, 0.812, 0.02)]
    assert bench.calibration.decide(lengths, RULE)[0] == 1000


@pytest.mark.parametrize(
    "lengths",
    [
        [length(250, 0.80, 0.001)],  # nothing says that it has converged
        [length(250, 0.80, 0.001), length(500, None, None)],
        [length(250, 0.80, 0.001), length(500, 0.82, 0.001)],  # it has not
        [length(250, 0.80, 0.02), length(500, 0.80, 0.001)],  # the seeds differ
    ],
)
def test_no_length_is_chosen_without_reason(bench: SimpleNamespace, lengths: list[dict[str, Any]]) -> None:
    assert bench.calibration.decide(lengths, RULE)[0] is None


def test_the_shortest_length_at_which_two_arms_differ_is_chosen(bench: SimpleNamespace) -> None:
    def both(updates: int, mean: float, spread: float, other: float, spread_of_other: float) -> dict[str, Any]:
        return {**length(updates, mean, spread), "reference": length(updates, other, spread_of_other)}

    rule = {"reference": "few", "gap": 3}
    lengths = [both(250, 0.80, 0.001, 0.78, 0.01), both(500, 0.83, 0.01, 0.79, 0.005), both(1000, 0.9, 0, 0.5, 0)]
    assert bench.calibration.decide(lengths, rule)[0] == 500
    assert bench.calibration.decide(lengths[:1], rule)[0] is None
    unfinished = {**length(500, 0.83, 0.01), "reference": length(500, None, None)}
    assert bench.calibration.decide([unfinished], rule)[0] is None


GATE = {"arm": "mean_teacher", "reference": "all_average", "seeds": [0, 1], "gain": 0.005, "room": 0.04}


def both(updates: int, *scores: float | None, reference: float | None = None) -> dict[str, Any]:
    """What two draws of the arm have at a length, and what all labels have."""

    def entry(values: tuple[float | None, ...]) -> dict[str, Any]:
        known = {str(n): v for n, v in enumerate(values) if v is not None}
        return {
            "updates": updates,
            "mean_dice_by_seed": known,
            "mean": sum(known.values()) / 2 if len(known) == 2 else None,
        }

    return {**entry(scores), "reference": entry((reference, reference))}


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.704, 0.725)], 480),  # +0.0045, 0.09 of room
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.706, 0.725)], None),  # +0.0055: no plateau
        ([both(480, 0.70, 0.72, reference=0.749), both(960, 0.70, 0.72)], None),  # 0.039 of room
        ([both(480, 0.70, 0.72), both(960, 0.70, 0.72)], None),  # room not known
        ([both(480, 0.70, 0.72, reference=0.8), both(960, 0.70, None)], None),  # a draw is missing
        ([both(480, 0.6, 0.6, reference=0.8), both(960, 0.70, 0.72, reference=0.8), both(1920, 0.69, 0.72)], 960),
    ],
)
def test_a_benchmark_needs_a_plateau_and_room(
    bench: SimpleNamespace, lengths: list[dict[str, Any]], chosen: int | None
) -> None:
    assert bench.calibration.decide(lengths, GATE)[0] == chosen


def test_the_gate_says_what_it_knows(bench: SimpleNamespace) -> None:
    first, second = bench.gate.judge([both(480, 0.70, 0.72, reference=0.8), both(960, 0.704, 0.725)], GATE)
    assert first["doubling"]["mean"] == 0.0045 and first["doubling"]["passed"] and first["doubling"]["draws"] == 2
    assert first["room"]["mean"] == 0.09 and first["room"]["passed"]
    low, high = first["doubling"]["t_interval"]
    half = 12.7062 * 0.0005  # t of one degree of freedom; the draws differ by 0.001
    assert (low, high) == pytest.approx((0.0045 - half, 0.0045 + half), abs=1e-5)
    assert second == {"updates": 960, "doubling": None, "room": None}


def test_the_gate_asks_for_the_doubled_length_before_all_labels(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "protocol").mkdir()
    protocol = (BENCHMARKS / "protocol" / "hippocampus_few.json").read_text()
    (tmp_path / "protocol" / "hippocampus_few.json").write_text(protocol)
    monkeypatch.setattr(bench.settings, "HERE", tmp_path)  # the evidence is made up
    setting = bench.settings.Setting("hippocampus_few_1", None, tmp_path / "work")
    asked = []
    for dice in (0.70, 0.704, 0.78):
        wanted = bench.calibration.missing(setting, bench.calibration.collect(setting))
        asked.append({(arm, schedule.updates) for arm, schedule, _ in wanted})
        for arm, schedule, seed in wanted:
            made = evidence(arm, seed, dice, schedule.updates)
            bench.settings.write_json(bench.calibration.run_file(setting, schedule, seed, arm), made)
    assert asked == [{("mean_teacher", 480)}, {("mean_teacher", 960)}, {("all_average", 480)}]
    state = bench.calibration.collect(setting)
    assert state["chosen"] == {"updates": 480, "rate": 0.01}
    assert "adds +0.0040, all labels have 0.0800 more" in state["reason"]


def test_screening_compares_every_form_with_both_controls(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = bench.settings.Setting("hippocampus_few_1", None, tmp_path)
    screening = importlib.import_module("screening")
    schedule = bench.settings.Schedule(480, 0.01)
    double = screening.file_of(setting, schedule, "mean_teacher_double", 1)
    assert double.name == "u960_lr0.01_seed1.json", "the gate has trained the longer control"
    assert screening.file_of(setting, schedule, "mean_teacher", 1).name == "u480_lr0.01_seed1.json"
    monkeypatch.setattr(screening, "schedule_of", lambda _: schedule)
    monkeypatch.setattr(bench.settings.Setting, "evidence", tmp_path)
    monkeypatch.setattr(bench.settings.Setting, "patients", {"a": "a", "b": "b"})
    for arm, dice in {"mean_teacher": 0.70, "mean_teacher_double": 0.72, "consensus": 0.75}.items():
        for seed in (0, 1):
            found = evidence(arm, seed, dice + seed / 100)
            bench.settings.write_json(screening.file_of(setting, schedule, arm, seed), found)
    rows = screening.render(setting).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == ["mean_teacher", "mean_teacher_double", "consensus"]
    cells = [cell.strip() for cell in rows[2].split("|")[2:-1]]
    assert cells[:5] == ["0.7500", "0.7600", "not run", "0.7550", "500"]
    assert cells[5:7] == ["+0.0500", "+0.0500 to +0.0500"] and cells[8] == "+0.0300"
    assert rows[0].split("|")[7:10] == ["  "] * 3, "a control is not compared with itself"


def test_run_before_calibrate_says_what_to_do(bench: SimpleNamespace, setting: Any) -> None:
    with pytest.raises(bench.settings.BenchmarkError, match="run.py calibrate hippocampus"):
        bench.calibration.chosen(setting)


def test_calibration_goes_rate_by_rate_then_length_by_length(bench: SimpleNamespace, setting: Any) -> None:
    rule = setting["calibration"]
    wanted = bench.calibration.missing(setting, bench.calibration.collect(setting))
    assert {s.rate for _, s, _ in wanted} == set(rule["rates"])
    assert {s.updates for _, s, _ in wanted} == {rule["lengths"][0]}
    for arm, schedule, seed in wanted:
        dice = 0.8 if schedule.rate == rule["rates"][1] else 0.7
        file = bench.calibration.run_file(setting, schedule, seed, arm)
        bench.settings.write_json(file, evidence("full", seed, dice))
    following = bench.calibration.missing(setting, bench.calibration.collect(setting))
    best = bench.settings.Schedule(rule["lengths"][1], rule["rates"][1])
    assert following == [(rule["arm"], best, seed) for seed in rule["seeds"]]
    setting.protocol["calibration"] = {**rule, "reference": "partial", "gap": 3}
    arms = [arm for arm, *_ in bench.calibration.missing(setting, bench.calibration.collect(setting))]
    assert set(arms) == {"partial"}  # the rates were done of the first arm only


def test_the_table_says_not_run_and_compares_only_seeds_that_both_arms_have(
    bench: SimpleNamespace, setting: Any, tmp_path: Path
) -> None:
    for arm, seed, dice in (("partial", 0, 0.80), ("partial", 1, 0.70), ("full", 0, 0.81)):
        bench.settings.write_json(setting.evidence_file(arm, seed), evidence(arm, seed, dice))
    bench.table.write(setting)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `partial`"))
    assert "| 0.850 | 0.650 | 0.750 | 0.800 | 0.700 | not run | 500 | 500 | 1 | 1.0 |" in row
    assert "| `separate`" not in text and "Not run: `separate`" in text
    assert "within 0.02 of `full`: yes, difference of the means -0.0100 (seeds 0)" in text


def test_pairs_of_draws_have_both_intervals_and_a_verdict_when_there_are_enough(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    setting = bench.settings.Setting("acdc_unlabelled_1", None, tmp_path)
    cases = list(setting.patients)[:4]

    def one(draw: int, dice: float) -> dict[str, Any]:
        return {**evidence("", draw, dice), "dice": {c: {"LV": dice + 0.01 * n} for n, c in enumerate(cases)}}

    first, second = ({s: one(s, dice + s / 1000 * dice)["dice"] for s in range(6)} for dice in (0.80, 0.70))
    cells = bench.table.pair(setting, first, second)
    assert cells[0] == "+0.1003" and cells[3:] == ["2 / 0", "6", "better"]  # two hearts, four cases
    few = bench.table.pair(setting, *({s: found[s] for s in range(5)} for found in (first, second)))
    assert few[3:] == ["2 / 0", "5", "open (6 draws decide)"]


def test_pooled_in_shares_of_the_gaps(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pooling = importlib.import_module("pooling")
    settings = [bench.settings.Setting(f"hippocampus_few_{n}", None, tmp_path) for n in (1, 2)]
    scores = {"mean_teacher": 0.70, "all_average": 0.80, "average": 0.75}

    def rows(setting: Any) -> dict[str, dict[int, Any]]:
        return {
            arm: {s: evidence(arm, s, value + s / 1000 if arm == "average" else value) for s in range(12)}
            for arm, value in scores.items()
        }

    monkeypatch.setattr(bench.table, "rows", rows)
    monkeypatch.setattr(bench.settings.Setting, "patients", {"a": "a", "b": "b"})
    monkeypatch.setattr(bench.calibration, "chosen", lambda setting: None)
    compared = [(setting, "average", "mean_teacher") for setting in settings]
    lines = pooling.render(compared).splitlines()
    assert lines[2].startswith("| `hippocampus_few_1` | `average` - `mean_teacher` | 0.1000 | +0.0555 |")
    assert lines[2].endswith("| 12 | better |") and lines[4].endswith("| 24 | better |")
    assert lines[4].startswith("| pooled, in shares of the gap |  | 1 | +0.5550 |")
    with pytest.raises(bench.settings.BenchmarkError, match="no arm other"):
        pooling.render([(settings[0], "other", "mean_teacher")])
    monkeypatch.setattr(bench.table, "rows", lambda setting: {**rows(setting), "average": {0: evidence("", 0, 0.7)}})
    with pytest.raises(bench.settings.BenchmarkError, match="has 1 draws of average and mean_teacher, 12 decide"):
        pooling.render(compared)


def test_the_tables_are_those_of_the_evidence(bench: SimpleNamespace) -> None:
    text = (BENCHMARKS / "README.md").read_text()
    names = ("cost.table", "real_channels", "suggesting")
    cost, real_channels, suggesting = (importlib.import_module(name) for name in names)
    tables = {name: bench.table.render(bench.settings.Setting(name, None)) for name in bench.settings.names()}
    screening = importlib.import_module("screening")
    settings = [bench.settings.Setting(name, None) for name in tables]
    passed = [setting.name for setting in settings if bench.gate.passed(setting)]
    assert passed == ["acdc_slices_1", "hippocampus_few_1"]
    screened = [setting for setting in settings if screening.schedule_of(setting)]
    for name, table in {
        **tables,
        **{f"screening_{setting.name}": screening.render(setting) for setting in screened},
        "step": cost.render(),
        "explained": cost.render_explained(),
        "scale": importlib.import_module("scale").render(),
        "real_channels": real_channels.render(),
        "gate": bench.gate.render(),
        "suggesting_hippocampus": suggesting.render(suggesting.Simulation("hippocampus", None)),
    }.items():
        found = text.split(f"<!-- table:{name} -->\n")[1].split(f"\n<!-- /table:{name} -->")[0]
        assert found == table, f"write it anew: benchmarks/run.py table {name} (step.py, real_channels.py: --table)"


def test_a_label_map_keeps_only_what_was_annotated(bench: SimpleNamespace, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.array([[[0, 1, 2, 3]]], dtype=np.uint8))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "old.nii.gz"))
    bench.preparation.write_labels(tmp_path / "old.nii.gz", tmp_path / "new.nii.gz", {3: 1})
    new = sitk.ReadImage(str(tmp_path / "new.nii.gz"))
    assert sitk.GetArrayFromImage(new).ravel().tolist() == [0, 0, 0, 1]
    assert new.GetSpacing() == (1.0, 2.0, 3.0)


def test_separate_networks_merge_by_the_higher_probability(bench: SimpleNamespace) -> None:
    scoring = importlib.import_module("scoring")
    first = np.array([0.9, 0.6, 0.4, 0.1], dtype=np.float32).reshape(1, 1, 4)
    second = np.array([0.1, 0.8, 0.3, 0.7], dtype=np.float32).reshape(1, 1, 4)
    outputs = [((p > 0.5).astype(np.uint8), np.stack([1 - p, p])) for p in (first, second)]
    merged = scoring.merge(
        outputs, [["Anterior"], ["Posterior"]], [["Anterior"], ["Posterior"]], ["Anterior", "Posterior"]
    )
    assert merged.ravel().tolist() == [1, 2, 0, 2]


def test_dice_of_nothing_is_not_a_number_to_average(bench: SimpleNamespace) -> None:
    scoring = importlib.import_module("scoring")
    empty, full = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    assert scoring.dice(empty, empty) is None
    assert scoring.dice(full, empty) == 0
    assert scoring.dice(full, np.array([True, True, False, False])) == pytest.approx(2 / 3)


def test_finished_runs_are_skipped_and_another_schedule_is_refused(bench: SimpleNamespace, setting: Any) -> None:
    file = setting.evidence_file("full", 0)
    bench.settings.write_json(file, evidence("full", 0, 0.8))
    arguments = SimpleNamespace(jobs=1, budget=None)
    assert bench.run.run_jobs(
        setting, [bench.run.Job("full", 0, bench.settings.Schedule(500, 0.01), "test", file)], arguments
    )
    other = bench.run.Job("full", 0, bench.settings.Schedule(1000, 0.01), "test", file)
    with pytest.raises(bench.settings.BenchmarkError, match="delete it to run it again"):
        bench.run.run_jobs(setting, [other], arguments)


def test_runs_that_would_not_end_within_the_budget_are_not_started(
    bench: SimpleNamespace, setting: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [setting.evidence_file("full", seed) for seed in range(3)]
    jobs = [bench.run.Job("full", n, bench.settings.Schedule(500, 0.01), "test", files[n]) for n in range(3)]
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    files[0].parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(evidence("full", 0, 0.8))
    monkeypatch.setattr(bench.run, "command", lambda setting, job: ["-c", write, str(job.out), content])
    assert not bench.run.run_jobs(setting, jobs, SimpleNamespace(jobs=1, budget=0.4))
    assert "2 run(s) are left" in capsys.readouterr().out and [f.is_file() for f in files] == [True, False, False]
    assert bench.run.run_jobs(setting, jobs, SimpleNamespace(jobs=2, budget=None))


def test_durations(bench: SimpleNamespace) -> None:
    assert [bench.run.seconds(t) for t in ("90", "90s", "60m", "2h")] == [90, 90, 3600, 7200]
    with pytest.raises(Exception, match="60m"):
        bench.run.seconds("an hour")


def test_a_second_modality_hides_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulate = importlib.import_module("second_modality").second_modality
    labels = np.zeros((21, 24, 23), np.uint8)
    labels[4:10, 4:12, 4:12], labels[12:18, 12:20, 12:20] = 1, 2
    image = np.array([200.0, 300.0, 300.0])[labels] + np.random.default_rng(0).normal(0, 3, labels.shape)
    image[0, :12], image[0, 12:] = 50, 400  # what else is in an image

    def contrast(x: np.ndarray, label: int) -> float:
        inner = ndimage.binary_erosion(labels == label, iterations=2)
        other = x[2:][labels[2:] == 0]
        return abs(x[inner].mean() - other.mean()) / other.std()

    made = simulate(image, labels, 2, "case_1")
    assert made.shape == image.shape and made.dtype == np.float32 and made.min() >= 0
    assert contrast(image, 2) > 10 and contrast(made, 1) > 10 * contrast(made, 2)
    assert np.array_equal(made, simulate(image, labels, 2, "case_1"))
    assert not np.array_equal(made, simulate(image, labels, 2, "case_2"))
    other = simulate(image, labels, 1, "case_1")
    assert contrast(other, 2) > 10 * contrast(other, 1)

    first, second = importlib.import_module("second_modality").two_modalities(image, labels, (1, 2), 0.3, "case_1")
    assert first.shape == second.shape == image.shape and first.dtype == second.dtype == np.float32
    assert contrast(first, 2) > 4 * contrast(first, 1) and contrast(second, 1) > 4 * contrast(second, 2)
    edge = ndimage.binary_dilation(labels == 1) & (labels == 0)
    inner = (labels == 1) & ~ndimage.binary_erosion(labels == 1)
    assert abs(first[edge].mean() - first[inner].mean()) < 0.5 * np.ptp(first[labels == 2]), "the mask has an edge"

    shown = importlib.import_module("second_modality").two_modalities(
        image, labels, (1, 2), 0.3, "case_1", enhanced=0.4
    )
    for seen, bright, hidden in zip(shown, (2, 1), (1, 2), strict=True):
        assert contrast(seen, bright) > 4 * contrast(seen, hidden)
        core, around = (
            ndimage.binary_erosion(labels == bright),
            ndimage.binary_dilation(labels == bright) & (labels == 0),
        )
        assert 300 < np.median(seen[core]) - np.median(seen[around]) < 500, "the agent adds 0.4 of 1000"


def test_the_same_slices_are_hidden_in_every_arm(bench: SimpleNamespace, tmp_path: Path) -> None:
    """As 0, or as the ignore label."""
    setting = bench.settings.Setting("acdc_incomplete_3", None, tmp_path)
    groups = [group for entry in setting["datasets"].values() for group in entry.get("groups", [])]
    rules = [group["hidden"] for group in groups if "hidden" in group]
    assert len(rules) == 3 and rules.count(rules[0]) == 3
    old = np.zeros((8, 4, 4), np.uint8)
    old[:, 0], old[1:7, 1] = 3, 1
    files, maps = (tmp_path / "old.nii.gz", tmp_path / "new.nii.gz"), []
    tiny.write_nifti(old, files[0], (1.0, 1.0, 10.0))
    for gap in (0, 4):
        hide = bench.preparation.hiding_of(rules[0], setting["labels"], "patient001_frame01")
        bench.preparation.write_labels(*files, {3: 1, 1: 3}, hide=hide, gap=gap)
        maps.append(sitk.GetArrayFromImage(sitk.ReadImage(str(files[1]))))
    left, ignored = maps
    assert np.array_equal(left, np.where(ignored == 4, 0, ignored)) and np.array_equal(ignored == 0, old == 0)
    assert [(ignored[:, row] == 4).all(1).sum() for row in (0, 1)] == [4, 3], "half of the slices of each"
    entry = setting["datasets"]["ignored"]
    assert bench.preparation.labels_of(entry) == {"background": 0, "RV": 1, "MYO": 2, "LV": 3, "ignore": 4}


def test_an_arm_may_leave_out_a_source_of_its_draw(bench: SimpleNamespace) -> None:
    setting = bench.settings.Setting("acdc_incomplete_3", None)
    draw = setting.draws[1]
    assert setting.labelled_cases("complete_alone", 1) == {"all": setting.cases_of(draw["complete"])}
    both = setting.labelled_cases("some", 1)
    assert both == {"all": setting.cases_of(draw["complete"]), "in_part": setting.cases_of(draw["in_part"])}
    assert len(draw["in_part"]) == 9


def test_what_is_drawn_in_a_simulation(bench: SimpleNamespace, tmp_path: Path) -> None:
    suggesting = importlib.import_module("suggesting")
    simulation = suggesting.Simulation("hippocampus", None, tmp_path)
    first, second = simulation.draws[3]
    order = suggesting.shuffled(simulation, 3)
    assert len({*order}) == 2 * 138 and not {case for case, _ in order} & {first, second}
    assert order == suggesting.shuffled(simulation, 3) != suggesting.shuffled(simulation, 4)
    run = suggesting.Run(3, "suggest", 4)
    drawn = simulation.cases_with(3, [("x", "Posterior"), ("y", "Anterior"), ("x", "Anterior"), ("z", "Posterior")])
    simulation.add(run, drawn)
    found = simulation.labelled_cases("suggest4", 3)
    assert found == {"all": [first, second, "x"], "anterior": ["y"], "posterior": ["z"]}
    names = [simulation.dataset_name(*place) for place in (("suggest4", 3), ("suggest4", 1003), ("all", 0))]
    assert names[0] == names[1] == "Dataset745_SuggestinghippocampusSuggest42Draw3"
    assert names[2] == "Dataset741_SuggestinghippocampusAll"
    files = {run.file for draw in range(12) for run in simulation.runs(draw)}
    assert len(files) == 12 * 7 and {"start_draw0.json", "random16_draw11.json"} < files


def test_suggested_against_random_structures(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suggesting = importlib.import_module("suggesting")
    monkeypatch.setattr(suggesting.Simulation, "evidence", tmp_path)
    monkeypatch.setattr(suggesting.Simulation, "patients", {"a": "a", "b": "b"})
    simulation = suggesting.Simulation("hippocampus", None, tmp_path)
    for arm, dice in {"suggest": 0.86, "random": 0.84}.items():
        for draw in range(3 if arm == "suggest" else 2):
            made = evidence(arm, draw, dice + draw * (0.002 if arm == "suggest" else 0))
            bench.settings.write_json(tmp_path / suggesting.Run(draw, arm, 8).file, made)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in suggesting.render(simulation).splitlines()[4:]]
    assert rows[0][0] == "2 cases" and rows[1][1:] == ["not run"] * 6 + ["0"]
    half = 12.7062 * 0.001  # t of one degree of freedom; the differences of the two draws are 0.020 and 0.022
    assert rows[2][3:5] == ["+0.0210", f"{0.021 - half:+.4f} to {0.021 + half:+.4f}"] and rows[2][7] == "2"
