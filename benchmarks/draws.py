"""The dataset of a draw: labelled patients and, of the others, the images; linked from preprocessed datasets.

Patients are drawn in the protocol, anew for each seed, and preprocessed once: with their labels in one dataset
(``labelled_from``), without in another one (``unlabelled_from``).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from settings import PLANS, BenchmarkError, Setting, read_json, write_json

from nnunet_mutual.preprocessing.unlabelled import ENDINGS, UNLABELLED, read_record, record_of, write_record


def link_draw(setting: Setting, dataset: str, seed: int) -> None:
    """Makes the preprocessed dataset of one seed.

    Args:
        setting: the benchmark, its datasets but those of draws prepared.
        dataset: of the protocol, one that names ``labelled_from``.
        seed: number of the draw.
    """
    entry, preprocessed = setting["datasets"][dataset], setting.work / "nnUNet_preprocessed"
    drawn = setting.labelled_cases(dataset, seed)
    labelled = [case for cases in drawn.values() for case in cases]
    pool = setting["cases"][setting["draws"]["pool"]]
    strangers = sorted({*labelled} - {*pool})
    if strangers:
        raise BenchmarkError(f"draw {seed} of {setting.name} has {strangers[0]}, which is not in its pool")
    sources = {preprocessed / setting.dataset_name(origin, seed): cases for origin, cases in drawn.items()}
    source, target = next(iter(sources)), preprocessed / setting.dataset_name(dataset, seed)
    shutil.rmtree(target, ignore_errors=True)
    data = setting.data_identifier
    (target / data).mkdir(parents=True)
    for origin, cases in sources.items():
        _link(origin / data, cases, target / data)
    listed: dict[str, Any] = {}
    if "unlabelled_from" in entry:
        others = [case for case in pool if case not in {*labelled} and has_image(setting, dataset, case)]
        source_of_images = preprocessed / setting.dataset_name(entry["unlabelled_from"], seed)
        _link_unlabelled(source_of_images / UNLABELLED / data, others, target / UNLABELLED / data)
        if setting["datasets"][entry["unlabelled_from"]].get("gaps"):
            known = read_json(source_of_images / "dataset.json")["mutual"]["cases"]
            listed = {case: known[case] for case in others if case in known}
    shutil.copyfile(source / "dataset_fingerprint.json", target / "dataset_fingerprint.json")
    write_json(target / f"{PLANS}.json", {**read_json(source / f"{PLANS}.json"), "dataset_name": target.name})
    parts = [(read_json(origin / "dataset.json"), cases) for origin, cases in sources.items()]
    write_json(target / "dataset.json", dataset_json(parts, listed))


def has_image(setting: Setting, dataset: str, case: str) -> bool:
    """Whether a case has any channel of a dataset, as far as the protocol says what it lacks."""
    gaps = setting.lacks(dataset, case)
    return not gaps or len(gaps) < len(setting["datasets"][dataset]["channels"])


def dataset_json(parts: list[tuple[dict[str, Any], list[str]]], images: dict[str, Any]) -> dict[str, Any]:
    """Returns the dataset.json of labelled cases of one dataset or several, which differ in what they annotate.

    Args:
        parts: dataset.json of each, and its cases.
        images: what is said of unlabelled images, such as channels that they lack.
    """
    blocks = [(whole["mutual"], cases) for whole, cases in parts]
    sources = {name: source for block, _ in blocks for name, source in block["sources"].items()}
    cases = {case: block["cases"][case] for block, of_block in blocks for case in of_block}
    first = parts[0][0]
    block = {**first["mutual"], "sources": sources, "cases": cases | images}
    return {**first, "numTraining": len(cases), "mutual": block}


def _link(source: Path, cases: list[str], target: Path) -> None:
    """Links the files of preprocessed cases."""
    for case in cases:
        for ending in ENDINGS:
            os.symlink(source / f"{case}{ending}", target / f"{case}{ending}")


def _link_unlabelled(source: Path, cases: list[str], target: Path) -> None:
    """Links preprocessed images, and copies what their record says of them."""
    target.mkdir(parents=True)
    _link(source, cases, target)
    record = read_record(record_of(source))
    write_record(record_of(target), {case: record[case] for case in cases})
