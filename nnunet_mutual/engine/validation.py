"""Validation that scores a label only where it is annotated, in files that stock nnU-Net tools evaluate correctly.

``nnUNetv2_find_best_configuration``, ensembling and postprocessing recompute metrics from the reference labels, where
a label that nobody drew looks absent. So ``validation/`` holds predictions *restricted* to what the case draws: stock
metrics give NaN there and skip it. The full predictions are in ``validation_full/``. Of a label that is drawn in part
stock metrics are wrong; here they are left out, and the share of the drawn voxels that is found is said.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from torch import Tensor, nn

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.restriction import RegionRestriction, Restriction, restriction_for
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.workers import Workers
from nnunet_mutual.disk.writing import require_space, written
from nnunet_mutual.engine.log import RunLog
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError

METRICS = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")  # of nnU-Net's summary.json
BARRIER_EVERY = 20  # cases; NCCL gives up on a rank that is silent for too long


def export_case(
    logits: Tensor,
    properties: dict,
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict,
    folders: tuple[str, str],
    key: str,
    restriction: Restriction | RegionRestriction | None,
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
        require_space(folders[0])  # or the label map may be half a one: SimpleITK says nothing of a full disk
        return
    labels = plans_manager.get_label_manager(dataset_json)
    segmentation, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans_manager, configuration_manager, labels, properties, return_probabilities=True
    )
    writer = plans_manager.image_reader_writer_class()
    writer.write_seg(segmentation, full + ending, properties)
    probabilities = restriction.apply(probabilities)
    kept = np.asarray(labels.convert_probabilities_to_segmentation(probabilities)).astype(segmentation.dtype)
    writer.write_seg(kept, restricted + ending, properties)
    if save_probabilities:
        np.savez_compressed(restricted + ".npz", probabilities=probabilities)
        save_pickle(properties, restricted + ".pkl")
    require_space(folders[0])


class ExportPool:
    """Workers for :func:`export_case` and nnU-Net's own export functions, with a bounded queue."""

    def __init__(self, processes: int):
        self.processes = processes
        self._pool = Workers(processes)
        self._jobs: list[Future] = []

    def __enter__(self) -> ExportPool:
        return self

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queues a job; waits, as nnU-Net does, while two more are open than there are workers: each holds an image."""
        while sum(not job.done() for job in self._jobs) >= self.processes + 2:
            time.sleep(0.05)
        self._jobs.append(self._pool.submit(function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            wait(self._jobs)
        self._pool.shutdown(cancel_futures=True)
        if kind is None:
            for job in self._jobs:
                job.result()


def validation_folders(fold: str, suffix: str) -> tuple[str, str]:
    """Returns the folders of restricted and of full predictions."""
    return join(fold, f"validation{suffix}"), join(fold, f"validation_full{suffix}")


@dataclass(frozen=True)
class FoldValidation:
    """Predicts the validation cases of a fold and writes restricted and full predictions.

    In ``validation/`` and ``validation_full/``, or in folders with further words where several networks are deployed;
    ``validation/summary.json`` is nnU-Net's, of the restricted predictions.

    Attributes:
        window: of the configuration.
        fold: whose validation cases are predicted.
        folder: output folder of the fold.
        log: of the training.
        ranks: which share the work.
        save_probabilities: also write the npz files that ensembling needs.
        passes_on: also write what the next stage of a cascade starts from.
    """

    window: Window
    fold: Fold
    folder: str
    log: RunLog
    ranks: Ranks
    save_probabilities: bool
    passes_on: bool = True

    def run(self, suffix: str, network: nn.Module, keys: Sequence[str], see: Callable[[Tensor], Tensor]) -> None:
        """Validates one network.

        Args:
            suffix: what the names of its folders end in.
            network: that is deployed.
            keys: cases that it can see.
            see: what it sees of images (B, M, *spatial).
        """
        folders = validation_folders(self.folder, suffix)
        for folder in folders:
            maybe_mkdir_p(folder)
            if self.ranks.rank == 0:
                self._remove_others(Path(folder), keys)
        with (
            ExportPool(default_num_processes) as pool,
            self.window.around(network, mirroring=True) as predictor,
        ):
            for key in self._mine(keys, suffix):
                self._predict_case(predictor, see, pool, key, folders)
        self.ranks.barrier()
        if self.ranks.rank == 0:
            self._summarise(keys, folders[0], suffix)

    def _remove_others(self, folder: Path, keys: Sequence[str]) -> None:
        """Removes predictions of an earlier training that validated other cases: every file there is scored."""
        for ending in (self.window.dataset_json["file_ending"], ".npz", ".pkl"):
            for file in folder.glob(f"[!.]*{ending}"):
                if file.name.removesuffix(ending) not in keys:
                    file.unlink()

    def _mine(self, keys: Sequence[str], suffix: str) -> Iterator[str]:
        """Yields the cases that this process predicts, and waits for the others from time to time."""
        mine = self.ranks.share(keys)
        by = f" by network {suffix.removeprefix('_')}" if suffix else ""
        for i, key in enumerate(mine):
            self.log.say(f"predicting {key}{by} ({i + 1} of {len(mine)})")
            yield key
            if (i + 1) % BARRIER_EVERY == 0 and i + 1 < len(keys) // self.ranks.size:
                self.ranks.barrier()

    def _predict_case(
        self,
        predictor: nnUNetPredictor,
        see: Callable[[Tensor], Tensor],
        pool: ExportPool,
        key: str,
        folders: tuple[str, str],
    ) -> None:
        window, table = self.window, self.fold.table
        data, _, previous, properties = load_case(self.fold.open([key]), key)
        image = data[:]
        if self.fold.previous_stage is not None:
            one_hot = convert_labelmap_to_one_hot(
                previous[:], window.labels.foreground_labels, output_dtype=image.dtype
            )
            image = np.vstack((image, one_hot))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensor = torch.from_numpy(image)
        logits = predictor.predict_sliding_window_return_logits(see(tensor[None])[0]).cpu()
        managers = (window.configuration, window.plans, window.dataset_json)
        restriction = restriction_for(table, table.case(key), window.labels.regions_class_order)
        pool.submit(export_case, logits, properties, *managers, folders, key, restriction, self.save_probabilities)
        for stage in (window.configuration.next_stage_names or []) if self.passes_on else []:
            self._pass_on(pool, key, stage, logits, properties)

    def _pass_on(self, pool: ExportPool, key: str, stage: str, logits: Tensor, properties: dict) -> None:
        """Writes the unrestricted prediction for the next stage of a cascade."""
        plans = self.window.plans
        configuration = plans.get_configuration(stage)
        preprocessed = join(nnUNet_preprocessed, plans.dataset_name, configuration.data_identifier)
        folder = join(os.path.dirname(self.folder), "predicted_next_stage", stage)
        maybe_mkdir_p(folder)
        try:
            dataset_class = infer_dataset_class(preprocessed)
            shape = load_case(dataset_class(preprocessed, [key]), key)[0].shape[1:]
        except (FileNotFoundError, MutualError):
            self.log.say(f"{key} is not preprocessed for {stage}: run nnUNetv2_preprocess for that configuration first")
            return
        arguments = (logits, shape, join(folder, key), plans, configuration, properties, self.window.dataset_json)
        pool.submit(resample_and_save, *arguments, default_num_processes, dataset_class)

    def _summarise(self, keys: Sequence[str], folder: str, suffix: str) -> None:
        """Writes nnU-Net's summary.json and logs one line per label with its number of cases."""
        table = self.fold.table
        of = f"{suffix.removeprefix('_')}: " if suffix else ""
        if keys:
            metrics = self._score(folder)
            found = self._found_in_part(metrics)
            self._leave_out_unknown(metrics)
        else:
            metrics, found = self._no_scores(), {}
            self.log.say(f"{of}no validation case has the channels that this network sees (n = 0)")
        with written(Path(folder) / "summary.json", ending=".json") as summary:
            save_summary_json(metrics, str(summary))
        scores = []
        for label in table.labels:
            entry = _entry_of(metrics["mean"], table.values[label])
            n = sum(label in table.case(key).annotated for key in keys)
            self.log.result(f"final_val{suffix}/{label}_dice", entry["Dice"])
            self.log.say(f"{of}{label}: Dice {entry['Dice']:.4f} (annotated in {n} of {len(keys)} validation cases)")
            scores.append(entry["Dice"])
        for label, shares in found.items():
            self.log.result(f"final_val{suffix}/{label}_sensitivity_in_part", float(np.mean(shares)))
            self.log.say(
                f"{of}{label}: {np.mean(shares):.4f} of the drawn voxels found (sensitivity) in {len(shares)} "
                "validation cases in which it is drawn in part, and which have no Dice of it"
            )
        mean = float(np.nanmean(scores)) if not np.all(np.isnan(scores)) else float("nan")
        self.log.result(f"final_val{suffix}/foreground_dice", mean)
        self.log.say(f"{of}Mean validation Dice over annotated labels: {mean:.4f}")

    def _score(self, folder: str) -> dict[str, Any]:
        """Returns what nnU-Net measures of a folder of predictions."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")
            found: dict[str, Any] = compute_metrics_on_folder(
                str(self.fold.references),
                folder,
                None,
                self.window.plans.image_reader_writer_class(),
                self.window.dataset_json["file_ending"],
                self._scored(),
                self.window.labels.ignore_label,
                num_processes=default_num_processes,
            )
        return found

    def _case_of(self, entry: dict[str, Any]) -> Case:
        """The case of an entry of nnU-Net's summary."""
        name = os.path.basename(entry["prediction_file"])
        return self.fold.table.case(name.removesuffix(self.window.dataset_json["file_ending"]))

    def _found_in_part(self, metrics: dict[str, Any]) -> dict[str, list[float]]:
        """Returns, of labels that are drawn in part, the share of the drawn voxels that is found in each such case."""
        found: dict[str, list[float]] = {}
        for entry in metrics["metric_per_case"]:
            case = self._case_of(entry)
            for label in (label for label in self.fold.table.labels if label in case.incomplete):
                of = _entry_of(entry["metrics"], self.fold.table.values[label])
                if of["TP"] + of["FN"]:
                    found.setdefault(label, []).append(of["TP"] / (of["TP"] + of["FN"]))
        return found

    def _leave_out_unknown(self, metrics: dict[str, Any]) -> None:
        """Makes NaN of what nnU-Net has scored against labels that are drawn in part, by a model, or not at all.

        A region that was not drawn seems to be there where one within it was; a label may have been drawn since the
        training, whose table does not say so.

        Args:
            metrics: of nnU-Net, changed in place.
        """
        scored: list[dict[str, float]] = []
        for entry in metrics["metric_per_case"]:
            case = self._case_of(entry)
            values = [self.fold.table.values[label] for label in self.fold.table.labels if label not in case.annotated]
            found = [_entry_of(entry["metrics"], own) for own in values]
            scored += [of for of in found if not np.isnan(of["Dice"])]
        if not scored:
            return
        for of in scored:
            of.update(dict.fromkeys(of, float("nan")))
        cases = [entry["metrics"] for entry in metrics["metric_per_case"]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")
            for key, mean in metrics["mean"].items():
                mean.update({name: float(np.nanmean([case[key][name] for case in cases])) for name in mean})
        foreground, means = metrics["foreground_mean"], metrics["mean"].values()
        foreground.update({name: float(np.mean([mean[name] for mean in means])) for name in foreground})

    def _no_scores(self) -> dict[str, Any]:
        """The same where there is nothing to predict, of which nnU-Net can make no summary."""
        unknown = dict.fromkeys(METRICS, float("nan"))
        return {"metric_per_case": [], "mean": dict.fromkeys(self._scored(), unknown), "foreground_mean": unknown}

    def _scored(self) -> list[Any]:
        """The labels, or regions, that nnU-Net scores."""
        labels = self.window.labels
        return list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)


def _entry_of(metrics: dict[Any, Any], values: Sequence[int]) -> Any:
    """Returns what nnU-Net's metrics hold of a label, which is a tuple of integers where it is a region."""
    return metrics[tuple(values) if tuple(values) in metrics else values[0]]
