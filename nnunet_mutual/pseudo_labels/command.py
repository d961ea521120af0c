"""`nnunet_mutual pseudo_label`: pseudo labels of a fold from a trained checkpoint, outside of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.restriction import vouched
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import CSV, PseudoStore
from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.datasets.simulate.block import restricted
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.folders import finish, not_written, output_folder, temporary_folder
from nnunet_mutual.disk.images import read_label_map, write_label_map
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.disk.writing import require_space
from nnunet_mutual.engine.trained import open_trained
from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.plugin.compat import require_device
from nnunet_mutual.plugin.find import resolve, training_names
from nnunet_mutual.pseudo_labels.audit import summarise
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import Experts, make_pseudo_labels
from nnunet_mutual.pseudo_labels.geometry import in_image_space
from nnunet_mutual.settings import parse_settings, read_settings


def pseudo_label(
    dataset: str,
    configuration: str,
    fold: str,
    *,
    trainer: str,
    plans: str,
    checkpoint: str,
    output: str | None,
    device: str,
    settings: Sequence[str],
) -> None:
    """Makes pseudo labels of the training cases of a fold and says what was decided.

    Args:
        dataset: ID or name.
        configuration: of the training.
        fold: of the training.
        trainer: a trainer of this package.
        plans: identifier.
        checkpoint: whose networks are asked.
        output: folder for label maps in the geometry of the images, of drawn labels and accepted pseudo labels.
        device: "cuda", "cpu" or "mps".
        settings: ``key=value`` of the filter, also as ``pseudo_labels.key``; otherwise those of the training, or the
            defaults.

    Raises:
        MutualError: the training or its checkpoint is missing, or an entry is wrong.
    """
    maps = None if output is None else output_folder(output, new="no label map")
    training = NamedTraining(locate(dataset).name, configuration, fold, trainer, plans)
    _require_same_table(training)
    made = load_networks(training, checkpoint, device)
    base = getattr(made.settings, "pseudo_labels", FilterSettings())
    given = parse_settings(settings)
    if isinstance(given.get("pseudo_labels"), dict):  # as plans name them
        given |= given.pop("pseudo_labels")
    chosen = read_settings(type(base), {**vars(base), **given}, "", "of --set, for the filter of pseudo labels")
    store = PseudoStore(Path(made.output_folder) / f"pseudo_labels_{Path(checkpoint).stem.removeprefix('checkpoint_')}")
    for key in filter(store.has, made.fold_cases.training):
        if store.outdated(key, made.fold_cases.folder):
            store.forget(key)
    made.stage.collect()
    experts = Experts(made.pseudo_labelling, made.network_labels(), chosen)
    decisions = make_pseudo_labels(made.window, made.fold_cases, store, experts, say=made.print_to_log_file)
    print(summarise(decisions))
    print(f"Every decision: {store.folder / CSV}")
    if maps is not None:
        try:
            maps.absolute().parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(maps.absolute(), "pseudo_label", "writing") as folder:
                _write_label_maps(made.window, made.fold_cases, store, folder)
                finish(folder, maps.absolute())
        except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
            raise not_written(maps, error) from error
        print(f"Label maps: {maps}; what was drawn is in them as it was drawn")
    _say_next(decisions, training, checkpoint)


def _require_same_table(training: NamedTraining) -> None:
    """Verifies that nothing was drawn or withdrawn since the training: it judges by the table that it was given."""
    preprocessed = locate(training.dataset).preprocessed
    require_own(training.trainer)
    if preprocessed is None:
        return  # which the training says better
    then, now = (AnnotationTable.from_dataset_json(read_dataset_json(p)) for p in (training.find_model(), preprocessed))
    if _said(then) != _said(now):
        raise MutualError(
            f"what {training.dataset} says was drawn in which case was changed since {training.trainer} was trained, "
            "which would take what was drawn since for open; move the folder of that training away, train anew, then "
            f"make pseudo labels: {training.command}"
        )


def _said(table: AnnotationTable) -> Any:
    drawn = {key: (case.annotated, case.incomplete, table.contained(case)) for key, case in table.cases.items()}
    return table.labels, drawn, table.may_overlap


def _say_next(decisions: Sequence[Decision], training: NamedTraining, checkpoint: str) -> None:
    if not decisions:
        print("Every label is annotated in every training case of this fold, so there is nothing to review")
        return
    accepted = any(decision.accepted for decision in decisions)
    if accepted:
        print("Next, to show the doubtful ones to a reader, or to train with pseudo labels:")
    else:
        print("Nothing was accepted, so a training would learn nothing from it. Next, to show all of it to a reader:")
    print(f"  nnunet_mutual review {training.words} -chk {checkpoint} -o review")
    if accepted:
        print(f"  {replace(training, trainer='MutualPartialTrainer').command}")


def require_own(trainer: str) -> None:
    """Raises MutualError where a trainer is not of this package."""
    known = training_names()
    if trainer not in known:
        raise MutualError(f"{trainer} is no trainer of this package{meant(trainer, known)}; it has {', '.join(known)}")


def load_networks(training: NamedTraining, checkpoint: str, device: str) -> Any:
    """Returns the trainer with the networks of the checkpoint."""
    name = training.trainer
    require_own(name)
    file = training.find_checkpoint(checkpoint)
    require_device(device)
    if resolve("trainers", name).by_group:
        raise MutualError(
            f"{name} has a network for each modality group; use --soft with an exported one (-tr nnUNetTrainer and -p "
            "as nnunet_mutual export prints it)"
        )
    made = open_trained(file.parents[1], training.fold, checkpoint, torch.device(device))
    if made.is_cascaded:
        raise MutualError(
            f"{training.configuration} is the second stage of a cascade, which also needs the first one's prediction "
            "of an image; name a training of 3d_fullres or 3d_lowres"
        )
    return made


def _write_label_maps(window: Window, fold: Fold, store: PseudoStore, folder: Path) -> None:
    """Writes drawn and accepted pseudo labels in the geometry of the images; what an earlier model drew is neither."""
    reader = window.plans.image_reader_writer_class()
    ending = window.dataset_json["file_ending"]
    codes = PseudoCodes.from_table(fold.table)
    cases = [key for key in sorted(fold.training) if store.has(key)]
    accepted = store.accepted(cases)
    dataset = fold.open(cases)
    for key in cases:
        properties = load_case(dataset, key)[3]
        decided = codes.decided_values(np.asarray(store.codes(key)[:])[0])
        values = [v for label in accepted.get(key, ()) for v in fold.table.values[label]]
        found = in_image_space(window.plans, np.where(np.isin(decided, values), decided, UNDECIDED), properties)
        reference = fold.references / f"{key}{ending}"
        case = fold.table.case(key)
        drawn = vouched(read_label_map(reader, reference)[0], fold.table, case)
        fits = codes.fits(drawn, found, fold.table, case)
        if fold.table.is_regions:  # of several rejected regions, an integer may hold one beside an accepted one
            kept = case.drawn | frozenset(accepted.get(key, ()))
            here, found = (restricted(voxels, fold.table, kept) for voxels in (drawn, np.maximum(found, 0)))
            fits &= here != found
        merged = np.where(fits, found, drawn)
        write_label_map(
            reader, merged, folder / f"{key}{ending}", properties
        )  # beside a copied tif its spacing is missing
        require_space(folder)
