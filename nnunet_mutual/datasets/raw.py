"""The training cases of a raw dataset, listed as nnU-Net lists them, and what is wrong with the listing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.problems import ERROR, WARNING, Problem
from nnunet_mutual.disk.files import natural, read_object
from nnunet_mutual.disk.names import require_text, safe_name
from nnunet_mutual.errors import MutualError, Spellings, shorten, spelling_key

UNLABELLED = "imagesUn"


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: channel number -> image, and the label map. They need not exist."""

    key: str
    images: Mapping[int, Path]
    label: Path

    @property
    def unlabelled(self) -> bool:
        """Whether it lies in imagesUn, so that there is no label map."""
        return all(path.parent.name == UNLABELLED for path in self.images.values())


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Reads the dataset.json of a dataset folder.

    Raises:
        MutualError: missing or malformed file, or no usable file_ending.
    """
    if not (folder / "dataset.json").is_file():
        raise MutualError(
            f"{folder} has no dataset.json; every nnU-Net dataset needs one, see nnU-Net's dataset_format.md"
        )
    content = read_object(folder / "dataset.json")
    labels = content.get("labels")
    if isinstance(labels, dict) and labels and all(isinstance(name, str) for name in labels.values()):
        raise MutualError(
            f'{folder / "dataset.json"} has the labels the old way ("0": "background"), as nnU-Net v1 and the Medical '
            "Segmentation Decathlon have them; convert the dataset with nnUNetv2_convert_old_nnUNet_dataset "
            "TASK_FOLDER Dataset001_Name (of nnU-Net v1) or nnUNetv2_convert_MSD_dataset -i TASK_FOLDER (of the "
            "Decathlon)"
        )
    if not isinstance(content.get("file_ending"), str):
        raise MutualError(
            f'{folder / "dataset.json"} has no "file_ending"; add it, for example "file_ending": ".nii.gz"'
        )
    safe_name(content["file_ending"], f'"file_ending" of {folder / "dataset.json"}')
    return content


def training_cases(folder: Path, dataset_json: Mapping[str, Any]) -> tuple[dict[str, CaseFiles], list[Problem]]:
    """Lists the training cases, from ``"dataset"`` of dataset.json or else from imagesTr and labelsTr.

    Args:
        folder: the raw dataset.
        dataset_json: its dataset.json.

    Returns:
        The cases by key in natural order, and problems of names (not of contents).

    Raises:
        MutualError: there is no training case at all.
    """
    problems: list[Problem] = []
    if "dataset" in dataset_json:
        cases = _declared_files(folder, dataset_json["dataset"])
        if not cases:
            raise MutualError(
                f'"dataset" of {folder / "dataset.json"} lists no case; list them, or remove it to read imagesTr and '
                "labelsTr"
            )
        problems = [
            Problem(ERROR, f"case {key}", f"{files.label} does not exist; correct the path in dataset.json")
            for key, files in cases.items()
            if not files.label.is_file()
        ]
    else:
        cases, problems = _found_files(folder, dataset_json)
    if not cases:
        raise MutualError(_no_case(folder / "imagesTr", dataset_json["file_ending"]))
    ordered = {key: cases[key] for key in sorted(cases, key=natural)}
    return ordered, problems + _reserved_names(ordered) + _similar_spellings(ordered)


def cases_with_maps(folder: Path, ending: str, table: AnnotationTable) -> list[str]:
    """Returns the cases of which a folder holds label maps, in natural order, without those of withdrawn ones.

    Args:
        folder: such as gt_segmentations, where nnU-Net leaves what is withdrawn.
        ending: of label maps.
        table: which a declared dataset's cases are in.
    """
    found = (path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}"))
    return sorted((key for key in found if not table.declared or key in table.cases), key=natural)


def unlabelled_cases(
    folder: Path, dataset_json: Mapping[str, Any], training: Iterable[str]
) -> tuple[dict[str, CaseFiles], list[Problem]]:
    """Lists the images in imagesUn/, which have no label map and may be listed in the table.

    Args:
        folder: the raw dataset.
        dataset_json: its dataset.json.
        training: the training cases, whose names must be others.

    Returns:
        The cases by key in natural order (``label`` names a file that does not exist), and problems of names.
    """
    drawn = set(training)
    images, problems = images_of(folder / UNLABELLED, dataset_json["file_ending"])
    images_un = folder / UNLABELLED
    cases = {
        key: CaseFiles(key, images[key], images_un / (key + dataset_json["file_ending"]))
        for key in sorted(images, key=natural)
    }
    problems += [
        Problem(
            ERROR,
            f"imagesUn/{next(iter(cases[key].images.values())).name}",
            f"the name {key} is in imagesTr too; remove it here if it is the same image, else rename it",
        )
        for key in cases
        if key in drawn
    ]
    return cases, problems + _reserved_names(cases)


def _declared_files(folder: Path, entries: Any) -> dict[str, CaseFiles]:
    def resolve(path: str) -> Path:
        return folder / os.path.expandvars(path)

    if not isinstance(entries, dict):
        raise MutualError(
            f'"dataset" of dataset.json must be an object {{case: {{"images": [...], "label": ...}}}}, found '
            f"{type(entries).__name__}"
        )
    cases = {}
    for key, entry in entries.items():
        safe_name(key, f'case in "dataset" of {folder / "dataset.json"}')
        paths, label = (entry.get(part) if isinstance(entry, dict) else None for part in ("images", "label"))
        if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths) and isinstance(label, str)):
            raise MutualError(
                f'"dataset" of dataset.json: case "{key}" must be {{"images": [...], "label": ...}}, found {entry!r}'
            )
        cases[key] = CaseFiles(key, {channel: resolve(path) for channel, path in enumerate(paths)}, resolve(label))
    return cases


def _found_files(folder: Path, dataset_json: Mapping[str, Any]) -> tuple[dict[str, CaseFiles], list[Problem]]:
    ending = dataset_json["file_ending"]
    images, problems = images_of(folder / "imagesTr", ending)
    cases = {key: CaseFiles(key, found, folder / "labelsTr" / (key + ending)) for key, found in images.items()}
    labelled = {name[: -len(ending)]: name for name in _names(folder / "labelsTr") if name.endswith(ending)}
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    _refuse_numbered_cases(images, labelled, len(channels))
    spare = Spellings(key for key in labelled if key not in cases)
    for key in sorted(set(cases) - set(labelled), key=natural):
        likely = spare.closest(key)
        hint = (
            f"rename labelsTr/{labelled[likely]}"
            if likely
            else "add it, or move the images to imagesUn/ if nobody drew anything"
        )
        problems.append(Problem(ERROR, f"labelsTr/{key}{ending}", f"the label map of case {key} is missing; {hint}"))
    for key in sorted(set(labelled) - set(cases), key=natural):
        problems.append(Problem(WARNING, f"labelsTr/{labelled[key]}", "has no image in imagesTr and is not used"))
    return cases, problems


def _refuse_numbered_cases(
    images: Mapping[str, Mapping[int, Path]], labelled: Mapping[str, str], n_channels: int
) -> None:
    """Stops where cases are called P_0000, P_0001, ...: without channel numbers, one case with many channels."""
    for key, found in images.items():
        own = [path for number, path in found.items() if f"{key}_{number:04d}" in labelled]
        if own and key not in labelled and len(found) > n_channels:
            stem, dot, ending = own[0].name.partition(".")
            raise MutualError(
                f"imagesTr/{shorten(path.name for path in found.values())}: nnU-Net reads the last four digits as "
                f"channels, so these {len(found)} images are one case, {key}, but labelsTr has a label map for "
                f"{'each' if len(own) == len(found) else f'{len(own)} of them'}; add the channel to the names of the "
                f"images, such as {stem}_0000{dot}{ending} (label maps keep their names)"
            )


def _no_case(folder: Path, ending: str) -> str:
    """Says why no image is a training case."""
    names = _names(folder)
    found = {numbered[1] for name in names if (numbered := re.search(r"_\d{4}(\.\D\S*)$", name))} - {ending}
    if found:
        return (
            f"{folder} holds no image ending in {ending}, but numbered ones ending in {', '.join(sorted(found))}; "
            'correct "file_ending" of dataset.json'
        )
    unnumbered = [name for name in names if name.endswith(ending)]
    if unnumbered:
        first = unnumbered[0].removesuffix(ending)
        return (
            f"{folder} holds {len(unnumbered)} image(s) ending in {ending}, but none with a channel number "
            f"({shorten(unnumbered, 3)}); rename {unnumbered[0]} to {first}_0000{ending} and so on (label maps keep "
            "their names)"
        )
    there = f", but {shorten(names, 3)}" if names else ""
    return f'{folder} holds no image ending in {ending}{there}; check the folder and "file_ending" of dataset.json'


def images_of(folder: Path, ending: str) -> tuple[dict[str, dict[int, Path]], list[Problem]]:
    """Returns the images of each case by channel number, and files that nnU-Net would not read."""
    problems = _no_files(folder, ending)
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    images: dict[str, dict[int, Path]] = defaultdict(dict)
    for name in _names(folder):
        place = f"{folder.name}/{name}"
        if match := pattern.fullmatch(name):
            images[match[1]][int(match[2])] = folder / name
        elif name.endswith(ending):
            text = f"no channel number; nnU-Net expects CASE_0000{ending} (0001 for the second channel), rename it"
            problems.append(Problem(ERROR, place, text))
        elif not (name.endswith(".json") and ending.startswith(".tif")):  # nnU-Net reads the spacing of tif files there
            problems.append(Problem(WARNING, place, f"ignored by nnU-Net because it does not end in {ending}"))
    return {key: dict(sorted(found.items())) for key, found in images.items()}, problems


def _reserved_names(cases: Iterable[str]) -> list[Problem]:
    """nnU-Net stores the label map of a preprocessed case x as x_seg, so it would lose a case of that name."""
    text = "nnU-Net takes names that end in _seg for label maps and would leave it out; rename its files"
    return [Problem(ERROR, f"case {key}", text) for key in cases if key.endswith("_seg")]


def _similar_spellings(cases: Mapping[str, CaseFiles]) -> list[Problem]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key in cases:
        groups[spelling_key(key)].append(key)
    return [
        Problem(
            WARNING,
            shorten(keys),
            'nearly the same name; if this is one patient or one scan, remove the copy or give both the same "patient"',
        )
        for keys in groups.values()
        if len(keys) > 1
    ]


def hidden_files(folder: Path, ending: str) -> list[str]:
    """Returns files such as ``._case_0000.nii.gz``, which macOS makes and stock nnU-Net takes for cases.

    Args:
        folder: of images or label maps.
        ending: file ending of the dataset.
    """
    return [name for name in _names(folder, hidden=True) if name.endswith(ending)]


def _names(folder: Path, *, hidden: bool = False) -> list[str]:
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.startswith(".") == hidden]
    for path in found:
        require_text(path)
    return sorted(path.name for path in found if path.is_file())


def _no_files(folder: Path, ending: str) -> list[Problem]:
    """NnU-Net takes a folder, and a link that leads nowhere, for an image if it is called like one."""
    names = sorted(path.name for path in folder.glob(f"[!.]*{ending}") if not path.is_file())
    text = "is no file, or a link to a file that is not there; put the file there, or remove it"
    return [Problem(ERROR, f"{folder.name}/{name}", text) for name in names]
