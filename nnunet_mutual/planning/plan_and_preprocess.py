"""The command ``plan_and_preprocess``: nnU-Net's own planning and preprocessing, then unlabelled images and folds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, plan_experiment_dataset
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_mutual.annotation.modality_groups import PLANS_KEY, ModalityGroups, require_preprocessed_by_group
from nnunet_mutual.datasets.examination import examine
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles, training_cases
from nnunet_mutual.datasets.sync import refuse_planned_otherwise, take_over_files
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.locate import plans_file, require_root
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.planning.method import Method, method_for
from nnunet_mutual.planning.preprocess import preprocess
from nnunet_mutual.planning.refusals import (
    refuse_errors,
    refuse_old_fingerprint,
    refuse_other_data,
    refuse_unknown,
    refuse_wrong_splits,
)
from nnunet_mutual.planning.stock_options import DEFAULT_CONFIGURATIONS, StockOptions
from nnunet_mutual.planning.stock_steps import empty_folder_removed, stock_step
from nnunet_mutual.plugin.compat import processes_of_planners
from nnunet_mutual.plugin.find import public_names, resolve
from nnunet_mutual.preprocessing.by_group import present_channels
from nnunet_mutual.preprocessing.fingerprint import FingerprintExtractor
from nnunet_mutual.preprocessing.update import UnlabelledImages, list_unlabelled
from nnunet_mutual.settings import merged_block, parse_settings, planned_trainer

_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}  # nnUNetv2_plan_and_preprocess's own defaults
OURS = "MutualPlanner"


def plan_and_preprocess(
    dataset: str | int,
    *,
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    processes: Sequence[int] | None = None,
    planner: str | None = None,
    gigabytes: float | None = None,
    trainer: str | None = None,
    settings: Sequence[str] = (),
    stock: StockOptions | None = None,
    clean: bool = False,
    check: bool = True,
    verify: bool = False,
) -> None:
    """Plans and preprocesses a dataset as ``nnUNetv2_plan_and_preprocess`` does, then its unlabelled images.

    A dataset with modality groups is preprocessed by group, under plans of their own.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        configurations: to preprocess; those that the plans do not have are left out, as in nnU-Net.
        processes: one number, or one for each configuration; None: nnU-Net's defaults, not more than nnUNet_def_n_proc.
        planner: class name of a planner of this package or of nnU-Net; None: MutualPlanner where ``trainer`` or
            ``settings`` are given, else nnU-Net's ExperimentPlanner.
        gigabytes: memory of the GPU to plan for; None: the planner's default.
        trainer: what a planner of this package plans for; None: what the dataset asks for.
        settings: of that trainer, ``key=value`` each.
        stock: further options of nnU-Net's own command.
        clean: compute the dataset's fingerprint anew.
        check: examine every file first, as ``nnunet_mutual check`` does, and stop where that finds errors.
        verify: what nnU-Net calls ``--verify_dataset_integrity``; only without ``check``, which covers it.

    Raises:
        MutualError: something is wrong that would spoil the result; found before the long work wherever possible.
    """
    images = list_unlabelled(dataset)
    folders = images.folders
    preprocessed = require_root("nnUNet_preprocessed") / folders.name
    training = _training(images)
    counts = _counts(processes, configurations)
    planner_class = _planner(planner or (OURS if trainer or settings else "ExperimentPlanner"))
    if gigabytes is not None and not gigabytes > 0:
        raise MutualError(f"-gpu_memory_target {gigabytes:g}: give the memory of the GPU in GB, such as 8")
    given = parse_settings(settings)
    method = _method(planner_class, images, list(training), trainer, given)
    groups = ModalityGroups.of(images.table) if images.table.modality_groups else None
    stock = stock or StockOptions()
    name = stock.plans_name or (_default_plans(planner_class) if groups is None else _group_plans(planner_class))
    stock.verify(by_group=groups is not None)
    make_planner = planner_class if method is None else partial(planner_class, trainer=trainer, settings=given)
    complete = list(training) if groups is None else _complete(images, training)
    refuse_unknown(configurations, preprocessed)
    refuse_old_fingerprint(preprocessed, len(complete), images.dataset_json, clean)
    refuse_wrong_splits(folders, preprocessed, images.table, training)
    path = preprocessed / f"{name}.json"
    refuse_other_data(path, folders, stock, make_planner, clean)
    if check:
        refuse_errors(examine(folders, before_planning=True), folders, configurations, verify)
    number = stock.fingerprint_processes or (counts[0] if processes else min(8, default_num_processes))
    _extract_fingerprint(images, training, complete, number, verify and not check, clean)
    with stock_step("planning", folders), processes_of_planners():
        plan_experiment_dataset(
            folders.number,
            make_planner,
            gigabytes,
            stock.preprocessor,
            stock.spacing,
            name,
        )
    if stock.other_data:  # some planners share the data of others
        write_json(path, _with_own_data(read_plans(path)))
    if groups is not None:
        write_json(path, {**_with_own_data(read_plans(path)), PLANS_KEY: groups.described()})
        print(f"{folders.name} has modality groups: preprocessed by group, with the plans {name} for them alone")
    if not stock.preprocess:
        print(f"Next:  nnunet_mutual plan_and_preprocess -d {folders.number} --as-planned {name}")
        return
    preprocess(images, training, groups, name, configurations, counts, limited=processes is not None)


def preprocess_as_planned(
    dataset: str | int,
    plans: str,
    *,
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    processes: Sequence[int] | None = None,
    check: bool = True,
) -> None:
    """Preprocesses a dataset with plans that are there, such as configurations of ``nnunet_mutual plan --spacing``.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        plans: name of the plans file without .json.
        configurations: as in :func:`plan_and_preprocess`.
        processes: likewise.
        check: likewise.

    Raises:
        MutualError: there are no such plans, or they do not fit the dataset; found before the long work.
    """
    images = list_unlabelled(dataset)
    preprocessed = require_root("nnUNet_preprocessed") / images.folders.name
    training = _training(images)
    content = read_plans(plans_file(preprocessed, plans))
    groups = ModalityGroups.of(images.table) if images.table.modality_groups else None
    if groups is not None:
        require_preprocessed_by_group(content, groups, images.folders.number)
    elif PLANS_KEY in content:
        raise MutualError(f"the plans {plans} are of modality groups, which dataset.json no longer declares; plan anew")
    refuse_planned_otherwise(images.folders)
    refuse_unknown(configurations, preprocessed)
    counts = _counts(processes, configurations)
    for name in (name for name in configurations if name in content["configurations"]):
        planned_trainer(merged_block(content, name))  # what is wrong there is said before the long work
    refuse_wrong_splits(images.folders, preprocessed, images.table, training)
    if check:
        refuse_errors(examine(images.folders, before_planning=True), images.folders, configurations, False)
    take_over_files(images.folders)
    preprocess(images, training, groups, plans, configurations, counts, limited=processes is not None)


def _extract_fingerprint(
    images: UnlabelledImages,
    training: Mapping[str, CaseFiles],
    complete: Sequence[str],
    processes: int,
    verify: bool,
    clean: bool,
) -> None:
    folders = images.folders
    with (
        stock_step("fingerprint extraction", folders),
        empty_folder_removed(require_root("nnUNet_preprocessed") / folders.name),
    ):
        try:
            extractor = partial(FingerprintExtractor, cases=complete)
            extract_fingerprint_dataset(folders.number, extractor, processes, verify, clean, verbose=False)
        except Exception:
            if not _all_empty(images, training):
                raise
            what = "hold nothing but the ignore label" if "ignore" in images.dataset_json["labels"] else "are empty"
            raise MutualError(
                f"the label maps of all {len(training)} training case(s) of {folders.name} {what}, so there is "
                "nothing to learn; put label maps with drawn structures into labelsTr"
            ) from None


def _method(
    planner: Any,
    images: UnlabelledImages,
    cases: Sequence[str],
    trainer: str | None,
    settings: Mapping[str, Any],
) -> Method | None:
    """Returns what a planner of this package plans for, None for nnU-Net's own."""
    if planner.__name__ not in public_names("planners"):
        if trainer or settings:
            raise MutualError(
                f"{planner.__name__} plans for one network whatever --for and --set say; plan with -pl {OURS}, or "
                "leave them out"
            )
        return None
    method = method_for(images.table, cases, bool(images.cases), trainer, settings)
    if images.table.modality_groups and not resolve("trainers", method.trainer).by_group:
        raise MutualError(
            f"{images.folders.name} has modality groups, so it is preprocessed by group, which {method.trainer} does "
            'not read; plan --for MutualCrossModalTrainer, or remove "modality_groups" from dataset.json'
        )
    return method


def _with_own_data(plans: dict[str, Any]) -> dict[str, Any]:
    """Returns plans with names of their own for the data: some planners share those of others."""
    for name, configuration in plans["configurations"].items():
        if "data_identifier" in configuration:
            configuration["data_identifier"] = f"{plans['plans_name']}_{name}"
    return plans


def _default_plans(planner: Any) -> str:
    """Returns the name that a planner gives its plans."""
    own = getattr(planner, "default_plans", None)  # of ours; nnU-Net's say it in their signature
    return own or str(inspect.signature(planner.__init__).parameters["plans_name"].default)


def _group_plans(planner: Any) -> str:
    """Returns the name of a planner's plans for data that are preprocessed by group."""
    return f"{_default_plans(planner)}Groups"


def _training(images: UnlabelledImages) -> dict[str, CaseFiles]:
    assert images.folders.raw is not None
    training, problems = training_cases(images.folders.raw, images.dataset_json)
    images.table.require(training)
    errors = [problem for problem in problems if problem.severity == ERROR]
    if errors:
        raise MutualError(
            f"{images.folders.name}/{errors[0].place}: {errors[0].text}"
            + (f" ({len(errors)} errors, nnunet_mutual check {images.folders.name} lists them)" if errors[1:] else "")
        )
    return training


def _complete(images: UnlabelledImages, training: Mapping[str, CaseFiles]) -> list[str]:
    """Returns the training cases with an image of every channel, and no file of zeros; what others lack is declared."""
    for key, files in [*training.items(), *images.cases.items()]:
        present_channels(list(files.images.values()), images.dataset_json, images.table, key)
    complete = [
        key
        for key, files in training.items()
        if len(files.images) == len(images.table.channels) and not images.table.case(key).missing
    ]
    if not complete:
        raise MutualError(
            f"no training case of {images.folders.name} has an image of every channel, so nothing can be planned; add "
            "one, or remove a channel from dataset.json"
        )
    return complete


def _counts(processes: Sequence[int] | None, configurations: Sequence[str]) -> list[int]:
    if processes is None:
        return [min(_PROCESSES.get(name, 4), default_num_processes) for name in configurations]
    if len(processes) not in (1, len(configurations)) or min(processes) < 1:
        raise MutualError(
            f"-np {' '.join(map(str, processes))}: give one number of processes, or one for each of the "
            f"{len(configurations)} configurations, each 1 or more"
        )
    return list(processes) * (len(configurations) if len(processes) == 1 else 1)


def _planner(name: str) -> Any:
    """Finds a planner; nnU-Net's own search ends in ``'NoneType' object is not callable``."""
    ours = public_names("planners")
    if name in ours:
        return resolve("planners", name)
    folder = Path(next(iter(nnunetv2.__path__))) / "experiment_planning"
    found = recursive_find_python_class(str(folder), name, current_module="nnunetv2.experiment_planning")
    if not (isinstance(found, type) and issubclass(found, ExperimentPlanner)):
        known = (*ours, "ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")
        raise MutualError(f"no planner is called {name!r}{meant(name, known)}; known are: {', '.join(known)}")
    return found


def _all_empty(images: UnlabelledImages, training: Mapping[str, CaseFiles]) -> bool:
    """Whether no label map holds anything but the ignore label: nnU-Net's fingerprint of that ends in an IndexError."""
    reader = reader_for(images.dataset_json, [path for one in training.values() for path in one.images.values()])
    try:
        maps = (reader.read_seg(str(files.label))[0] for files in training.values())
        return not any(((values > 0) & (values != images.table.ignore)).any() for values in maps)
    except Exception:  # unreadable files: nnU-Net's own error is the better one
        return False
