"""Unlabelled images (``nnUNet_raw/D/imagesUn``): preprocessed by nnU-Net's own preprocessor, only what has changed."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.case_voxels import inspect_case, missing_files
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.datasets.volumes import exact
from nnunet_mutual.disk.case_files import read_properties
from nnunet_mutual.disk.folders import temporary_folder
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.locate import DatasetFolders, locate, plans_file
from nnunet_mutual.disk.workers import Workers
from nnunet_mutual.disk.writing import require_space
from nnunet_mutual.errors import MutualError, meant, shorten
from nnunet_mutual.preprocessing.by_group import GroupPreprocessor
from nnunet_mutual.preprocessing.unlabelled import (
    ENDINGS,
    SOFT,
    UNLABELLED,
    add_to_record,
    folder_of,
    plans_fingerprint,
    read_record,
    record_of,
    state_of,
    write_record,
)

_HANDFUL = 4  # up to here starting processes takes longer than the work


@dataclass(frozen=True)
class UnlabelledImages:
    """The images without label map of a raw dataset, their names verified, and its training cases."""

    folders: DatasetFolders
    dataset_json: Mapping[str, Any]
    table: AnnotationTable
    cases: Mapping[str, CaseFiles]
    training: Mapping[str, CaseFiles]


@dataclass(frozen=True)
class _Job:
    """One image to preprocess, complete for a process of its own."""

    files: CaseFiles
    case: Case | None
    table: AnnotationTable
    dataset_json: Mapping[str, Any]
    plans: Mapping[str, Any]
    configuration: str
    folder: Path


def list_unlabelled(dataset: str | int) -> UnlabelledImages:
    """Lists the images in imagesUn and verifies their names.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.

    Raises:
        MutualError: a wrong name, a name that imagesTr has too, or channels that do not fit dataset.json; or an accept
            was interrupted, so that half of the dataset is new.
    """
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    refuse_interrupted(folders)
    content = read_dataset_json(folders.raw)
    table = AnnotationTable.from_dataset_json(content)
    training = training_cases(folders.raw, content)[0]
    cases, problems = unlabelled_cases(folders.raw, content, training)
    errors = [f"{problem.place}: {problem.text}" for problem in problems if problem.severity == ERROR]
    if errors:
        raise MutualError(f"{folders.name}/{errors[0]}" + (f" ({len(errors)} such names)" if len(errors) > 1 else ""))
    return UnlabelledImages(folders, content, table, cases, training)


def preprocess_unlabelled(
    dataset: str | int,
    *,
    configurations: Sequence[str] | None = None,
    plans: str = "nnUNetPlans",
    processes: int | None = None,
) -> None:
    """Brings the preprocessed unlabelled images up to date with imagesUn and the plans.

    New and changed images are preprocessed, removed ones removed, the rest is left alone. Every image is complete or
    absent at any moment, so an interrupted run goes on where it stopped.

    Args:
        dataset: ID or name of a planned dataset.
        configurations: of the plans; None takes those whose labelled cases are preprocessed.
        plans: name of the plans file without .json.
        processes: at most so many; None: as nnU-Net.

    Raises:
        MutualError: nothing is planned, an unknown configuration, wrong names, or images that cannot be used (the
            others are then done).
    """
    images = list_unlabelled(dataset)
    folders = locate(dataset, need_raw=True, need_preprocessed=True)
    assert folders.preprocessed is not None
    if processes is not None and processes < 1:
        raise MutualError(f"-np {processes}: the number of processes must be 1 or more")
    manager = PlansManager(read_plans(plans_file(folders.preprocessed, plans)))
    if not images.cases and not (folders.preprocessed / UNLABELLED).is_dir():
        print(f"{folders.name}: imagesUn holds no images, there is nothing to preprocess")
        return
    failures: dict[str, str] = {}
    for name, configuration in _chosen(manager, configurations, folders.preprocessed).items():
        try:
            failures |= _update(images, folders.preprocessed, manager, name, configuration, processes)
        except OSError as error:
            raise MutualError(
                f"the preprocessed images of {configuration.data_identifier} could not be written "
                f"({error.strerror or error}); free space or get write permission for {folders.preprocessed}, then "
                "repeat, what is done is kept"
            ) from None
    if failures:
        first = next(iter(failures.values()))
        raise MutualError(
            f"{len(failures)} unlabelled image(s) cannot be used, the others are done; {first}"
            + (f"; also {shorten(list(failures)[1:])}" if len(failures) > 1 else "")
            + f"; then repeat nnunet_mutual preprocess_unlabelled -d {folders.number} -p {plans}"
        )


def _chosen(manager: PlansManager, names: Sequence[str] | None, preprocessed: Path) -> dict[str, ConfigurationManager]:
    """Returns configurations with different data: 3d_cascade_fullres, say, uses that of 3d_fullres."""
    known = manager.available_configurations
    for name in names or ():
        if name not in known:
            raise MutualError(
                f"the plans {manager.plans_name} have no configuration {name!r}{meant(name, known)}; they have: "
                f"{', '.join(known)}"
            )
    every = {name: manager.get_configuration(name) for name in names or known}
    if names is None:
        every = {name: found for name, found in every.items() if (preprocessed / found.data_identifier).is_dir()}
    if not every:
        raise MutualError(
            f"no configuration of {preprocessed.name} is preprocessed yet; run nnunet_mutual plan_and_preprocess -d "
            f"{int(preprocessed.name[7:10])}, or name one with -c"
        )
    by_data = {found.data_identifier: name for name, found in reversed(every.items())}
    return {name: found for name, found in every.items() if by_data[found.data_identifier] == name}


def _update(
    images: UnlabelledImages,
    preprocessed: Path,
    manager: PlansManager,
    name: str,
    configuration: ConfigurationManager,
    processes: int | None,
) -> dict[str, str]:
    """Does one configuration; returns a sentence for each image that cannot be used."""
    folder = folder_of(preprocessed, UNLABELLED, configuration.data_identifier)
    record = record_of(folder)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    left = sorted({file.removesuffix(".pkl") for file in there if file.endswith(".pkl")} - {*images.training})
    if left and not images.cases:
        raise MutualError(
            f"imagesUn of {images.folders.name} is empty, but {folder} holds preprocessed images ({shorten(left, 3)}); "
            "put the images back, or delete that folder if they shall no longer be used"
        )
    fingerprint = plans_fingerprint(manager.plans, configuration)
    lacks = {key: case.missing for key, case in images.table.cases.items()} if PLANS_KEY in manager.plans else {}
    wanted = {key: state_of(files, fingerprint, lacks.get(key, ())) for key, files in images.cases.items()}
    done = {
        key: state
        for key, state in read_record(record).items()
        if wanted.get(key) == state and all(key + ending in there for ending in ENDINGS)
    }
    pending = [key for key in wanted if key not in done]
    surplus = sorted(there - {key + ending for key in wanted for ending in ENDINGS})
    print(
        f"{configuration.data_identifier}: {len(done)} unlabelled image(s) up to date, {len(pending)} to preprocess, "
        f"{sum(file.endswith('.pkl') for file in surplus)} to remove"
    )
    _remove_soft(folder_of(preprocessed, SOFT, folder.name), wanted)
    if not pending and not surplus:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    failures = {}
    with temporary_folder(folder, "preprocessing", "preprocessing") as scratch:
        for file in sorted(surplus, key=lambda file: file.endswith(("_seg.b2nd", ".pkl"))):
            (folder / file).unlink()
        write_record(record, done)
        jobs = [
            _Job(
                images.cases[key],
                images.table.cases.get(key),
                images.table,
                images.dataset_json,
                manager.plans,
                name,
                scratch,
            )
            for key in pending
        ]
        progress = tqdm(
            _run(jobs, processes), total=len(jobs), desc=name, unit="image", file=sys.stderr, disable=not jobs
        )
        for job, failure in progress:
            key = job.files.key
            (folder / f"{key}.b2nd").unlink(missing_ok=True)  # of an image that has changed
            if failure is not None:
                failures[key] = failure
                continue
            for ending in reversed(ENDINGS):
                os.replace(scratch / (key + ending), folder / (key + ending))
            add_to_record(record, key, wanted[key])
    return failures


def _remove_soft(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Removes soft labels of images that are no longer there."""
    endings = sorted(ENDINGS, key=len, reverse=True)  # "_seg.b2nd" ends in ".b2nd", too
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((ending for ending in endings if path.name.endswith(ending)), None)
        if ending is not None and path.name.removesuffix(ending) not in wanted:
            path.unlink()


def _run(jobs: Sequence[_Job], processes: int | None) -> Iterator[tuple[_Job, str | None]]:
    """Yields each job with None or what is wrong with its image, in order."""
    number = min(processes or min(default_num_processes, os.cpu_count() or 1), len(jobs))
    if number < 2 or len(jobs) <= _HANDFUL:
        for job in jobs:
            yield job, _preprocess(job)
        return
    try:
        with Workers(number) as workers:
            yield from zip(jobs, workers.map(_preprocess, jobs), strict=True)
    except BrokenProcessPool:
        raise MutualError(
            "a process that preprocessed unlabelled images was killed, usually because memory ran out; repeat with "
            "fewer processes (-np 1), what is done is kept"
        ) from None


def _preprocess(job: _Job) -> str | None:
    """Writes one case into the job's folder; returns what is wrong with its image instead of failing."""
    files = job.files
    manager = PlansManager(dict(job.plans))
    configuration = manager.get_configuration(job.configuration)
    finding = inspect_case(files, job.case, job.table, manager.image_reader_writer_class())
    errors = [f"{problem.place}: {problem.text}" for problem in finding.problems if problem.severity == ERROR]
    volumes = list(finding.images.values())
    lacking = [] if PLANS_KEY in job.plans else missing_files(files, job.case, job.table)
    if lacking:
        errors.append(f"case {files.key}: has no image of {', '.join(lacking)}; add one of zeros, or declare groups")
    if not errors and all(volume.voxels.min() == volume.voxels.max() for volume in volumes):
        errors.append(
            f"imagesUn/{volumes[0].path.name}: every voxel is {exact(volumes[0].voxels.flat[0])}; replace or remove it"
        )
    if errors:
        return errors[0]
    try:
        kind = GroupPreprocessor if PLANS_KEY in job.plans else configuration.preprocessor_class
        preprocessor = kind(verbose=False)
        target = job.folder / files.key
        paths = [str(path) for path in files.images.values()]
        preprocessor.run_case_save(str(target), paths, None, manager, configuration, dict(job.dataset_json))
        properties_file = target.with_name(f"{files.key}.pkl")
        properties = read_properties(properties_file)
        properties["class_locations"] = {key: [] for key in _foreground(manager, job.dataset_json)}
        properties_file.write_bytes(pickle.dumps(properties))
    except OSError:
        raise  # a full disk, not a bad image
    except Exception as error:  # one image must not stop the others; whatever it is, the sentence names it
        require_space(job.folder)
        return f"case {files.key}: nnU-Net's preprocessor stopped ({type(error).__name__}: {error}); remove the image"
    return None


def _foreground(manager: PlansManager, dataset_json: Mapping[str, Any]) -> list[Any]:
    """Keys that nnU-Net's loader looks up in ``class_locations``."""
    labels = manager.get_label_manager(dict(dataset_json))
    keys = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
    if labels.has_ignore_label:
        keys.append([-1, *labels.all_labels])
    return [tuple(key) if isinstance(key, (list, tuple)) else int(key) for key in keys]
