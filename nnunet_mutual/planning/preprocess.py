"""Preprocesses a dataset by plans that are there: labelled and unlabelled images, then folds and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.group_notes import grouped_otherwise, note_groups
from nnunet_mutual.annotation.modality_groups import ModalityGroups
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.splits import describe_splits, first_fold, stratified_splits
from nnunet_mutual.datasets.sync import take_over
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.host_files import read_plans, read_splits
from nnunet_mutual.disk.label_maps import TRUTH, outdated, record
from nnunet_mutual.disk.locate import locate, require_root
from nnunet_mutual.disk.trainings import train_command
from nnunet_mutual.errors import MutualError
from nnunet_mutual.planning.configuration import choose_trainer
from nnunet_mutual.planning.refusals import SPLITS
from nnunet_mutual.planning.stock_steps import stock_step
from nnunet_mutual.preprocessing.by_group import GroupPreprocessor
from nnunet_mutual.preprocessing.label_changes import renew_truth
from nnunet_mutual.preprocessing.unlabelled import unlabelled_keys
from nnunet_mutual.preprocessing.update import UnlabelledImages, preprocess_unlabelled


def preprocess(
    images: UnlabelledImages,
    training: Mapping[str, CaseFiles],
    groups: ModalityGroups | None,
    plans: str,
    configurations: Sequence[str],
    counts: Sequence[int],
    *,
    limited: bool,
) -> None:
    """Preprocesses labelled and unlabelled images, makes folds, and prints the next command.

    Args:
        images: of the dataset, with its table.
        training: its training cases.
        groups: of modalities, by which it is preprocessed; None: as nnU-Net does.
        plans: name of the plans file without .json.
        configurations: to preprocess; those that the plans do not have are left out.
        counts: processes of each.
        limited: whether a user gave the numbers of processes, so that unlabelled images take no more.

    Raises:
        MutualError: the plans have none of the configurations.
    """
    folders = images.folders
    preprocessed = require_root("nnUNet_preprocessed") / folders.name
    available = read_plans(preprocessed / f"{plans}.json")["configurations"]
    chosen = [name for name in configurations if name in available]
    if not chosen:
        raise MutualError(
            f"the plans of {folders.name} have none of the configurations {', '.join(configurations)}; they have: "
            f"{', '.join(available)}"
        )
    with stock_step("preprocessing", folders):
        if groups is None:
            preprocess_dataset(folders.number, plans, configurations, list(counts))
        else:
            for name, count in zip(configurations, counts, strict=True):
                if name in chosen:
                    GroupPreprocessor(verbose=False).run(folders.number, name, plans, count)
            preprocess_dataset(folders.number, plans, [], [])  # only copies the label maps
        _record_origin(preprocessed, plans, chosen, images, training)
        take_over(locate(folders.number))
    if images.cases:
        most = max(counts) if limited else None
        preprocess_unlabelled(folders.number, configurations=chosen, plans=plans, processes=most)
    _provide_splits(preprocessed, images, training)
    _say_outdated(images, plans, list(training))
    first = next(name for name in ("3d_fullres", *chosen) if name in chosen)
    fold = first_fold(preprocessed, images.table, list(training))
    trainer, _ = choose_trainer(locate(folders.number), read_plans(preprocessed / f"{plans}.json"), first)
    print(f"Next:  {train_command(folders.number, first, trainer, plans=plans, fold=fold)}")


def _record_origin(
    preprocessed: Path, plans: str, chosen: Sequence[str], images: UnlabelledImages, training: Mapping[str, CaseFiles]
) -> None:
    """Keeps copies of the label maps, and notes of which maps and groups data are: a training notices changes."""
    labels = {key: files.label for key, files in training.items()}
    renew_truth(preprocessed / TRUTH, labels, images.dataset_json["file_ending"])
    for identifier in _identifiers(preprocessed, plans, chosen):
        record(preprocessed / identifier, labels, images.dataset_json["file_ending"])
        if images.table.modality_groups:
            note_groups(preprocessed / identifier, images.table, training)


def _provide_splits(preprocessed: Path, images: UnlabelledImages, training: Mapping[str, CaseFiles]) -> None:
    """Keeps existing folds, else makes them, and prints them."""
    path = preprocessed / SPLITS
    if path.is_file():
        splits = read_splits(path)
        print(f"\nFolds: as {path} says (delete it to get new ones)")
    else:
        try:
            splits = stratified_splits(images.table, list(training))
        except MutualError as error:
            print(f"\nNo folds: {error}")
            return
        write_json(path, splits)
        print(f"\nFolds: new, in {path}; every label in every fold where possible, cases of a patient together")
    rows = {}
    if images.cases:
        rows["unlabelled"] = [len(unlabelled_keys(images.table, images.cases, fold["val"])) for fold in splits]
    print(describe_splits(splits, images.table, rows))


def _say_outdated(images: UnlabelledImages, plans: str, cases: Sequence[str]) -> None:
    """Names other configurations whose data are of older label maps, or groups, than those preprocessed now."""
    preprocessed = require_root("nnUNet_preprocessed") / images.folders.name
    ending, table = images.dataset_json["file_ending"], images.table

    def is_old(data: Path) -> bool:
        return bool(outdated(data, cases, ending) or grouped_otherwise(data, table, cases))

    data = _identifiers(preprocessed, plans)
    stale = [name for identifier, name in data.items() if is_old(preprocessed / identifier)]
    if stale:
        since = "what has been changed since" if table.modality_groups else "label maps that were drawn anew since"
        print(
            f"\n{', '.join(stale)}: preprocessed from {since}; before you train that:  "
            f"nnunet_mutual plan_and_preprocess -d {images.folders.number} -c {' '.join(stale)} --as-planned {plans}"
        )


def _identifiers(preprocessed: Path, plans: str, configurations: Sequence[str] | None = None) -> dict[str, str]:
    """Returns nnU-Net's name for the data of configurations (None: of all) -> one of them: some share theirs."""
    manager = PlansManager(read_object(preprocessed / f"{plans}.json"))
    found: dict[str, str] = {}
    for name in manager.available_configurations if configurations is None else configurations:
        found.setdefault(manager.get_configuration(name).data_identifier, name)
    return found
