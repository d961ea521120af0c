"""The protocols of benchmarks: who is in which pool, what a draw links, which networks."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from made_up_evidence import BENCHMARKS
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


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
