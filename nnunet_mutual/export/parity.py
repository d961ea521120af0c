"""Compares what an exported modality group does in stock nnU-Net with what its network did in training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_mutual.annotation.modality_groups import PLANS_KEY, ModalityGroups, same_groups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.images import read_images, read_label_map
from nnunet_mutual.disk.trainings import FINAL, fold_of, parts_of_name
from nnunet_mutual.engine.stock_model import open_predictor
from nnunet_mutual.evaluation.masks import dice
from nnunet_mutual.export.ready import Model, Request, validated_otherwise

BAR = 0.999  # of voxels with the same label
CARD = """
## Comparison with the training

{cases} validation case(s), predicted from their images by stock nnU-Net with fold {fold} of this folder, against the
training's own prediction: {agreement:.4%} of the voxels have the same label (least: {least:.4%}), mean Dice between
the two {dice:.4f}. Preprocessed voxels differ by {mean:.4f} on average and {most:.4f} at most, in units of the
normalised image.
"""


@dataclass(frozen=True)
class Parity:
    """One case: export against training.

    Attributes:
        fold: that predicted.
        agreement: share of voxels with the same label.
        dice: between the two segmentations, mean over labels that either has; 1 where neither has any.
        mean: difference of preprocessed voxels, mean.
        most: the largest one.
    """

    fold: str
    agreement: float
    dice: float
    mean: float
    most: float


class NotComparedError(Exception):
    """Why there is no comparison."""


@dataclass(frozen=True)
class Trained:
    """What a training predicted of validation cases that have the channels of a group.

    Attributes:
        fold: the first one with such cases.
        predicted: its own unrestricted predictions.
        channels: of the group in the raw images.
        stored: where they lie in the preprocessed data.
        content: the raw dataset.json.
        cases: raw files of the predicted cases that are there.
        preprocessed: cases as the training saw them.
    """

    fold: str
    predicted: Path
    channels: Sequence[int]
    stored: slice
    content: dict[str, Any]
    cases: dict[str, CaseFiles]
    preprocessed: Path

    @classmethod
    def of(cls, model: Model, request: Request, folds: Sequence[str]) -> Trained:
        """Looks for what there is to compare with.

        Raises:
            NotComparedError: nothing, or images are not on this machine or were preprocessed otherwise since.
        """
        folders, source, content = request.folders, request.source, read_dataset_json(request.source)
        if folders.raw is None or folders.preprocessed is None:
            raise NotComparedError("which needs the raw and the preprocessed images")
        groups, table = ModalityGroups.of(AnnotationTable.from_dataset_json(content)), read_dataset_json(folders.raw)
        plans = folders.preprocessed / f"{parts_of_name(source)[1]}.json"
        data = folders.preprocessed / PlansManager(model.plan).get_configuration(request.configuration).data_identifier
        if not data.is_dir() or not plans.is_file():
            raise NotComparedError("whose preprocessed images are not there")
        if not same_groups(read_plans(plans).get(PLANS_KEY), groups.described()):
            raise NotComparedError("whose images have been preprocessed for other modality groups since")
        assert model.group is not None
        channels, raw = groups.channels[model.group], training_cases(folders.raw, table)[0]
        for fold in folds:
            if (other := validated_otherwise(fold_of(source, fold), model, FINAL)) is not None:
                raise NotComparedError(f"whose validation cases were predicted with {other}")
            place = fold_of(source, fold) / f"validation_full{model.suffix}"
            keys = [path.name.removesuffix(table["file_ending"]) for path in sorted(place.glob("*"))]
            cases = {k: raw[k] for k in keys if k in raw and {*channels} <= raw[k].images.keys()}
            cases = {key: files for key, files in cases.items() if (data / f"{key}.b2nd").is_file()}
            if cases:
                return cls(fold, place, channels, groups.stored[model.group], table, cases, data)
        raise NotComparedError("no validation case has its channels")


def compare(folder: Path, model: Model, request: Request, folds: Sequence[str], number: int) -> list[Parity]:
    """Predicts validation cases with an exported model and compares.

    Args:
        folder: of the exported model.
        model: what it holds.
        request: what was exported.
        folds: in the folder.
        number: of cases at most.

    Returns:
        One entry per case.

    Raises:
        NotComparedError: there is nothing to compare with.
    """
    trained = Trained.of(model, request, folds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = open_predictor(folder, trained.fold, FINAL, device)
    manager, configuration = predictor.plans_manager, predictor.configuration_manager
    reader = manager.image_reader_writer_class()
    found = []
    chosen = list(trained.cases.items())[:number]
    for key, of_case in tqdm(chosen, desc=f"comparing {manager.plans_name}", unit="case"):
        files = [str(of_case.images[channel]) for channel in trained.channels]
        image, properties = read_images(reader, [Path(file) for file in files])
        theirs = predictor.predict_single_npy_array(image, properties)
        ours, _ = read_label_map(reader, trained.predicted / f"{key}{trained.content['file_ending']}")
        alone = DefaultPreprocessor(verbose=False).run_case(files, None, manager, configuration, predictor.dataset_json)
        before = str(trained.preprocessed)
        data, _, _, of_all = load_case(infer_dataset_class(before)(before, [key]), key)
        own = _own_box(np.asarray(data[trained.stored]), of_all, alone[2], alone[0].shape[1:])
        difference = np.abs(alone[0] - own)
        found.append(
            Parity(
                trained.fold,
                float((ours == theirs).mean()),
                _mean_dice(ours, theirs),
                float(difference.mean()),
                float(difference.max()),
            )
        )
    return found


def card(found: Sequence[Parity]) -> str:
    """Returns the section of the model card."""
    return CARD.format(
        cases=len(found),
        fold=found[0].fold,
        agreement=statistics.fmean(one.agreement for one in found),
        least=min(one.agreement for one in found),
        dice=statistics.fmean(one.dice for one in found),
        mean=statistics.fmean(one.mean for one in found),
        most=max(one.most for one in found),
    )


def _own_box(
    data: NDArray[Any], of_all: Mapping[str, Any], own: Mapping[str, Any], shape: Sequence[int]
) -> NDArray[Any]:
    """Cuts the box of a group out of the preprocessed data of all, and brings it to a shape."""
    outer, inner = of_all["bbox_used_for_cropping"], own["bbox_used_for_cropping"]
    place = [slice(None)]
    for size, (first, last), (begin, end) in zip(data.shape[1:], outer, inner, strict=True):
        scale = size / (last - first)
        place.append(slice(round((begin - first) * scale), max(round((end - first) * scale), 1)))
    cut = data[tuple(place)]
    if cut.shape[1:] == tuple(shape):
        return cut
    resized = F.interpolate(torch.from_numpy(cut.copy())[None], tuple(shape), mode="trilinear")
    return resized[0].numpy()


def _mean_dice(a: NDArray[Any], b: NDArray[Any]) -> float:
    labels = sorted({*np.unique(a), *np.unique(b)} - {0})
    return statistics.fmean(dice(a == n, b == n) for n in labels) if labels else 1.0
