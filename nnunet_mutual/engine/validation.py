"""Validation that scores a label only where it is annotated, in files that stock nnU-Net tools evaluate correctly.

``nnUNetv2_find_best_configuration``, ensembling and postprocessing recompute metrics from the reference labels, where
a label that nobody drew looks absent. So ``validation/`` holds predictions *restricted* to what the case annotates:
stock metrics give NaN there and skip it. The full predictions are in ``validation_full/``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join, maybe_mkdir_p, save_pickle
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, save_summary_json
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
    resample_and_save,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_mutual.annotation.restriction import Restriction, restrict, restriction_for
from nnunet_mutual.engine.networks import collect
from nnunet_mutual.engine.window import predictor_for

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer

BARRIER_EVERY = 20  # cases; NCCL gives up on a rank that is silent for too long


def export_case(
    logits: Tensor,
    properties: dict,
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict,
    folders: tuple[str, str],
    key: str,
    restriction: Restriction | None,
    save_probabilities: bool,
) -> None:
    """Writes the restricted and the full prediction of one case (runs in a worker process).

    Args:
        logits: (C, *spatial) of the preprocessed image.
        properties: nnU-Net's properties of the case.
        configuration_manager: nnU-Net's.
        plans_manager: nnU-Net's.
        dataset_json: content of dataset.json.
        folders: of restricted predictions and of full ones.
        key: the case.
        restriction: None for a fully annotated case, whose two files are the same.
        save_probabilities: also write the npz that ensembling needs (restricted).
    """
    restricted, full = (os.path.join(folder, key) for folder in folders)
    ending = dataset_json["file_ending"]
    managers = (configuration_manager, plans_manager)
    if restriction is None:
        export_prediction_from_logits(logits, properties, *managers, dataset_json, restricted, save_probabilities)
        shutil.copyfile(restricted + ending, full + ending)
        return
    labels = plans_manager.get_label_manager(dataset_json)
    segmentation, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans_manager, configuration_manager, labels, properties, return_probabilities=True
    )
    writer = plans_manager.image_reader_writer_class()
    writer.write_seg(segmentation, full + ending, properties)
    probabilities = restrict(probabilities, restriction)
    kept = np.asarray(labels.convert_probabilities_to_segmentation(probabilities)).astype(segmentation.dtype)
    writer.write_seg(kept, restricted + ending, properties)
    if save_probabilities:
        np.savez_compressed(restricted + ".npz", probabilities=probabilities)
        save_pickle(properties, restricted + ".pkl")


class ExportPool:
    """Spawned workers for :func:`export_case` and nnU-Net's own export functions, with a bounded queue."""

    def __init__(self, processes: int):
        self.processes = processes
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        self._jobs: list[Future] = []

    def __enter__(self) -> ExportPool:
        return self

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queues a job; waits while more than twice as many are open as there are workers."""
        while sum(not job.done() for job in self._jobs) > 2 * self.processes:
            time.sleep(0.05)
        self._jobs.append(self._pool.submit(function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            wait(self._jobs)
        self._pool.shutdown(cancel_futures=True)
        if kind is None:
            for job in self._jobs:
                job.result()


def validate_fold(trainer: MutualTrainer, save_probabilities: bool) -> None:
    """Predicts the validation cases of a fold and writes restricted and full predictions.

    In ``validation/`` and ``validation_full/``, or in folders with further words where several networks are deployed.

    Args:
        trainer: an initialised trainer; its ``validation/summary.json`` is nnU-Net's, of the restricted predictions.
        save_probabilities: also write the npz files that ensembling needs.
    """
    collect(trainer)
    for suffix, network in trainer.validated.items():
        keys = sorted(key for key in trainer.do_split()[1] if trainer.can_see(network, key))
        folders = validation_folders(trainer.output_folder, suffix)
        for folder in folders:
            maybe_mkdir_p(folder)
        with (
            ExportPool(default_num_processes) as pool,
            predictor_for(trainer, trainer.peers.evaluated[network], mirroring=True) as predictor,
        ):
            for key in _mine(trainer, keys, suffix):
                _predict_case(trainer, predictor, network, pool, key, folders, save_probabilities)
        trainer.ranks.barrier()
        if trainer.local_rank == 0:
            _summarise(trainer, keys, folders[0], suffix)


def validation_folders(fold: str, suffix: str) -> tuple[str, str]:
    """Returns the folders of restricted and of full predictions."""
    return join(fold, f"validation{suffix}"), join(fold, f"validation_full{suffix}")


def _mine(trainer: MutualTrainer, keys: Sequence[str], suffix: str) -> Iterator[str]:
    """Yields the cases that this process predicts, and waits for the others from time to time."""
    mine = trainer.ranks.share(keys)
    by = f" by network {suffix.removeprefix('_')}" if suffix else ""
    for i, key in enumerate(mine):
        trainer.print_to_log_file(f"predicting {key}{by} ({i + 1} of {len(mine)})")
        yield key
        if (i + 1) % BARRIER_EVERY == 0 and i + 1 < len(keys) // trainer.ranks.size:
            trainer.ranks.barrier()


def _predict_case(
    trainer: MutualTrainer,
    predictor: nnUNetPredictor,
    network: int,
    pool: ExportPool,
    key: str,
    folders: tuple[str, str],
    save_probabilities: bool,
) -> None:
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder, [key], trainer.folder_with_segs_from_previous_stage
    )
    data, _, previous, properties = dataset.load_case(key)
    data = data[:]
    if trainer.is_cascaded:
        one_hot = convert_labelmap_to_one_hot(
            previous[:], trainer.label_manager.foreground_labels, output_dtype=data.dtype
        )
        data = np.vstack((data, one_hot))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        image = torch.from_numpy(data)
    logits = predictor.predict_sliding_window_return_logits(trainer.seen_by(network, image[None])[0]).cpu()
    managers = (trainer.configuration_manager, trainer.plans_manager)
    restriction = restriction_for(trainer.table, trainer.table.case(key))
    pool.submit(
        export_case, logits, properties, *managers, trainer.dataset_json, folders, key, restriction, save_probabilities
    )
    for stage in trainer.configuration_manager.next_stage_names or []:
        _pass_on(trainer, pool, key, stage, logits, properties)


def _pass_on(trainer: MutualTrainer, pool: ExportPool, key: str, stage: str, logits: Tensor, properties: dict) -> None:
    """Writes the unrestricted prediction for the next stage of a cascade."""
    plans = trainer.plans_manager
    configuration = plans.get_configuration(stage)
    preprocessed = join(nnUNet_preprocessed, plans.dataset_name, configuration.data_identifier)
    folder = join(trainer.output_folder_base, "predicted_next_stage", stage)
    maybe_mkdir_p(folder)
    try:
        dataset_class = infer_dataset_class(preprocessed)
        shape = dataset_class(preprocessed, [key]).load_case(key)[0].shape[1:]
    except FileNotFoundError:
        trainer.print_to_log_file(
            f"{key} is not preprocessed for {stage}: run nnUNetv2_preprocess for that configuration first"
        )
        return
    arguments = (logits, shape, join(folder, key), plans, configuration, properties, trainer.dataset_json)
    pool.submit(resample_and_save, *arguments, default_num_processes, dataset_class)


def _leave_out_pseudo(trainer: MutualTrainer, metrics: dict[str, Any], file: str) -> None:
    """Makes NaN of what nnU-Net has scored against labels that a model drew; writes the summary again if there are any.

    Args:
        trainer: whose table says which these are.
        metrics: of nnU-Net, changed in place.
        file: summary.json.
    """
    table, ending = trainer.table, trainer.dataset_json["file_ending"]
    scored: list[dict[str, float]] = []
    for entry in metrics["metric_per_case"]:
        case = table.case(os.path.basename(entry["prediction_file"]).removesuffix(ending))
        values = [tuple(table.values[label]) for label in case.pseudo]
        scored += [of for key, of in entry["metrics"].items() if (key if isinstance(key, tuple) else (key,)) in values]
    if not scored:
        return
    for of in scored:
        of.update(dict.fromkeys(of, float("nan")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        for key, mean in metrics["mean"].items():
            for name in mean:
                mean[name] = float(np.nanmean([entry["metrics"][key][name] for entry in metrics["metric_per_case"]]))
    foreground = metrics["foreground_mean"]
    foreground.update({name: float(np.mean([mean[name] for mean in metrics["mean"].values()])) for name in foreground})
    save_summary_json(metrics, file)


def _summarise(trainer: MutualTrainer, keys: Sequence[str], folder: str, suffix: str) -> None:
    """Writes nnU-Net's summary.json and logs one line per label with its number of cases."""
    labels = trainer.label_manager
    of = f"{suffix.removeprefix('_')}: " if suffix else ""
    asked = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        metrics = compute_metrics_on_folder(
            join(trainer.preprocessed_dataset_folder_base, "gt_segmentations"),
            folder,
            join(folder, "summary.json"),
            trainer.plans_manager.image_reader_writer_class(),
            trainer.dataset_json["file_ending"],
            asked,
            labels.ignore_label,
            num_processes=default_num_processes,
        )
    _leave_out_pseudo(trainer, metrics, join(folder, "summary.json"))
    scores = []
    for label in trainer.table.labels:
        values = trainer.table.values[label]
        entry = metrics["mean"][tuple(values) if tuple(values) in metrics["mean"] else values[0]]
        n = sum(label in trainer.table.case(key).annotated for key in keys)
        trainer.logger.log_summary(f"final_val{suffix}/{label}_dice", entry["Dice"])
        trainer.print_to_log_file(
            f"{of}{label}: Dice {entry['Dice']:.4f} (annotated in {n} of {len(keys)} validation cases)"
        )
        scores.append(entry["Dice"])
    mean = float(np.nanmean(scores)) if not np.all(np.isnan(scores)) else float("nan")
    trainer.logger.log_summary(f"final_val{suffix}/foreground_dice", mean)
    trainer.print_to_log_file(f"{of}Mean validation Dice over annotated labels: {mean:.4f}")
