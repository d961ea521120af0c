"""Raw datasets of a benchmark, and their planning and preprocessing by nnU-Net itself.

The images of all datasets of a benchmark are the same; they differ in the labels that are kept. nnU-Net plans one of
them (``plan_on``), the others get the same plans: every arm has the same spacing, normalisation, patch and network.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from images import ENDING, like, write_image
from settings import CONFIGURATION, PLANS, BenchmarkError, Setting, read_json, write_json

Hide = Callable[[Any, Any, int], Any]  # of the mask of an integer, the spacing and the integer: a mask


def prepare(setting: Setting) -> None:
    """Makes and preprocesses what is not there yet; needs the nnUNet_* variables to be set."""
    verify_patients(setting)
    if "crop" in setting.protocol:
        from crops import write_crops

        write_crops(setting)
    if "second_modality" in setting.protocol:
        from second_modality import write_modalities

        write_modalities(setting)
    drawn = [dataset for dataset in setting["datasets"] if setting.is_drawn(dataset)]
    whole = [setting["plan_on"], *(d for d in setting["datasets"] if d not in (setting["plan_on"], *drawn))]
    for dataset, seed in [(dataset, 0) for dataset in whole] + [(d, seed) for d in drawn for seed in setting.seeds]:
        done = setting.work / "nnUNet_preprocessed" / setting.dataset_name(dataset, seed) / "prepared.json"
        if done.is_file():
            continue
        if setting.is_drawn(dataset):
            from draws import link_draw

            link_draw(setting, dataset, seed)
        else:
            write_raw(setting, dataset)
            plan_and_preprocess(setting, dataset)
            if "masks" in setting["datasets"][dataset]:
                from masks import outline

                outline(setting, dataset)
        write_json(done, {"protocol": setting["datasets"][dataset]})


def verify_patients(setting: Setting) -> None:
    """Compares the protocol's patients with those of the public data, where that names them (``cases.json``)."""
    file = setting.public_folder(setting["folder"]) / "cases.json"
    known = read_json(file) if file.is_file() else {}
    for case, patient in setting.patients.items():
        if case in known and known[case]["patient"] != patient:
            raise BenchmarkError(
                f"{case} is of patient {known[case]['patient']} in {file}, of {patient} in the protocol of "
                f"{setting.name}; correct the protocol, a patient's cases must stay together"
            )


def write_raw(setting: Setting, dataset: str) -> None:
    """Writes one raw dataset: images as they are, labels reduced to what the protocol says was annotated."""
    entry = setting["datasets"][dataset]
    target = setting.work / "nnUNet_raw" / setting.dataset_name(dataset, 0)
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (target / folder).mkdir(parents=True)
    sources: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for group in entry["groups"]:
        names = setting.channel_names(group["folder"])
        channels = entry.get("channels", names)
        drawn = annotated_sets(
            setting.data_folder(group["folder"]), group["annotated"], setting["cases"][group["cases"]]
        )
        annotated_of = {case: [x for x in labels if x in entry["labels"]] for case, labels in drawn.items()}
        common = sorted(
            {label for annotated in annotated_of.values() for label in annotated}, key=entry["labels"].index
        )
        sources[group["source"]] = {"annotated": common}
        in_part = {"incomplete": group["incomplete"]} if "incomplete" in group else {}
        for case, annotated in annotated_of.items():
            link_images(setting.images(group["folder"]), case, numbers(names, channels), target / "imagesTr")
            write_label_map(setting, entry, group, case, annotated, target / "labelsTr")
            cases[case] = {"source": group["source"], "annotated": annotated, **in_part}
    listed: dict[str, Any] = {}
    for group in entry.get("unlabelled", []):
        for case in setting["cases"][group["cases"]]:
            gaps = setting.lacks(dataset, case)
            there = numbers(names, channels, without=gaps)
            link_images(setting.images(group["folder"]), case, there, target / "imagesUn")
            if gaps:
                listed[case] = {"source": next(iter(sources)), "missing": gaps}
    block: dict[str, Any] = {"version": 1, "sources": sources, "cases": cases | listed}
    if "modality_groups" in entry:
        block["modality_groups"] = entry["modality_groups"]
    write_json(
        target / "dataset.json",
        {
            "channel_names": {str(n): name for n, name in enumerate(channels)},
            "labels": labels_of(entry),
            "numTraining": len(cases),
            "file_ending": ENDING,
            "reference": setting["source"],
            "mutual": block,
        },
    )


def write_label_map(
    setting: Setting, entry: dict[str, Any], group: dict[str, Any], case: str, annotated: list[str], target: Path
) -> None:
    """Writes what is drawn of a case, and hides what the group of the protocol hides."""
    source = setting.data_folder(group["folder"])
    integers, labels = read_json(source / "dataset.json")["labels"], entry["labels"]
    drawn = [*annotated, *group.get("incomplete", [])]
    keep = {integers[label]: labels.index(label) + 1 for label in drawn}
    hide = hiding_of(group["hidden"], labels, case) if "hidden" in group else None
    gap = labels_of(entry).get("ignore", 0)
    file = f"{case}{ENDING}"
    write_labels(source / "labelsTr" / file, target / file, keep, hide=hide, gap=gap)


def labels_of(entry: dict[str, Any]) -> dict[str, int]:
    """Returns "labels" of dataset.json, with nnU-Net's ignore label where the protocol asks for it."""
    names = ["background", *entry["labels"], *(["ignore"] if "ignore" in entry else [])]
    return {name: value for value, name in enumerate(names)}


def numbers(names: list[str], channels: list[str], without: Sequence[str] = ()) -> dict[int, int]:
    """Returns number in a dataset -> number in the public one, of channels that a case has."""
    return {new: names.index(name) for new, name in enumerate(channels) if name not in without}


def link_images(source: Path, case: str, channels: dict[int, int], target: Path) -> None:
    """Links channels of a case, numbered anew."""
    for new, old in channels.items():
        os.symlink(source / f"{case}_{old:04d}{ENDING}", target / f"{case}_{new:04d}{ENDING}")


def annotated_sets(folder: Path, annotated: list[str] | str, cases: list[str]) -> dict[str, list[str]]:
    """Returns the annotated labels of each case: one list for all, or a JSON file with a list for each case."""
    if isinstance(annotated, str):
        table = read_json(folder / annotated)
        return {case: list(table[case]) for case in cases}
    return {case: list(annotated) for case in cases}


def hiding_of(rule: dict[str, Any], labels: list[str], case: str) -> Hide:
    """Returns what hides a share of each label of a case, in the same places in every dataset of the benchmark."""
    from nnunet_mutual.datasets.simulate.hiding import Hiding

    hiding = Hiding(dict.fromkeys(labels, rule["share"]), rule["pieces"], rule["seed"])
    return lambda mask, spacing, value: hiding.hidden(mask, spacing, case, labels[value - 1])


def write_labels(source: Path, target: Path, keep: dict[int, int], *, hide: Hide | None = None, gap: int = 0) -> None:
    """Copies a label map; integers that are not in ``keep`` become 0, the others are renumbered.

    Args:
        source: the label map.
        target: where the copy goes.
        keep: integer -> new integer.
        hide: says where a new integer is hidden, from its mask and the spacing.
        gap: what is written there.
    """
    image = sitk.ReadImage(str(source))
    old = sitk.GetArrayFromImage(image)
    new = np.zeros(old.shape, dtype=np.uint8)
    for before, after in keep.items():
        new[old == before] = after
        if hide is not None:
            new[hide(old == before, image.GetSpacing()[::-1], after)] = gap
    write_image(like(image, new), target)


def plan_and_preprocess(setting: Setting, dataset: str) -> None:
    """Plans the first dataset with nnU-Net's planner, hands its plans to the others, and preprocesses."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )

    from nnunet_mutual.annotation.modality_groups import PLANS_KEY
    from nnunet_mutual.export.groups import group_plan
    from nnunet_mutual.planning.plan_and_preprocess import preprocess_as_planned

    number = setting["datasets"][dataset]["id"]
    preprocessed = setting.work / "nnUNet_preprocessed"
    folder = preprocessed / setting.dataset_name(dataset, 0)
    if dataset == setting["plan_on"]:
        extract_fingerprint_dataset(number, num_processes=2, show_progress_bar=False)
        plan_experiment_dataset(number)
        plans = read_json(folder / f"{PLANS}.json")
        plans["configurations"][CONFIGURATION] = small_configuration(plans, setting["network"], setting.base)
    else:
        planned = preprocessed / setting.dataset_name(setting["plan_on"], 0)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(planned / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
        raw = setting.work / "nnUNet_raw" / folder.name
        shutil.copyfile(raw / "dataset.json", folder / "dataset.json")
        plans = {**read_json(planned / f"{PLANS}.json"), "dataset_name": folder.name}
        entry = setting["datasets"][dataset]
        if "channels" in entry:
            names = list(read_json(planned / "dataset.json")["channel_names"].values())
            plans = group_plan(plans, [names.index(channel) for channel in entry["channels"]])
        if "modality_groups" in entry:
            plans[PLANS_KEY] = entry["modality_groups"]
    write_json(folder / f"{PLANS}.json", plans)
    preprocess_as_planned(folder.name, PLANS, configurations=[setting.base], processes=[2], check=False)


def small_configuration(
    plans: dict[str, Any], network: dict[str, Any], base: str = "3d_fullres", **settings: Any
) -> dict[str, Any]:
    """Returns nnU-Net's U-Net as the protocol wants it, as a configuration that `nnunet_mutual plan` makes.

    Args:
        plans: content of the plans file.
        network: ``patch_size``, ``batch_size``, ``features_per_stage`` and, of each stage, ``kernel_sizes`` (3 on every
            axis if absent) and ``strides`` (2 on every axis, 1 in the first stage); without a patch, nnU-Net's own.
        base: configuration that it inherits from.
        settings: of trainings.
    """
    from nnunet_mutual.errors import MutualError
    from nnunet_mutual.planning.configuration import new_configuration
    from nnunet_mutual.planning.shape import Shape

    if "patch_size" not in network:
        return new_configuration(plans, base, CONFIGURATION, settings=settings)
    features, patch = network["features_per_stage"], network["patch_size"]
    axes, stages = len(patch), len(features)
    shape = Shape(
        patch=patch,
        batch=network["batch_size"],
        features=features,
        strides=network.get("strides", [[1] * axes, *[[2] * axes] * (stages - 1)]),
        kernels=network.get("kernel_sizes", [[3] * axes] * stages),
    )
    try:
        return new_configuration(plans, base, CONFIGURATION, shape, settings)
    except MutualError as error:
        raise BenchmarkError(f"the network of the protocol: {error}") from None
