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
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_mutual.datasets.raw import read_dataset_json, training_cases
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.images import read_images, read_label_map
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.disk.trainings import FINAL
from nnunet_mutual.engine.stock_model import open_predictor
from nnunet_mutual.evaluation.masks import dice

BAR = 0.999  # of voxels with the same label
CARD = """
## Comparison with the training

{cases} validation case(s), predicted from their images by stock nnU-Net with this folder, against the training's own
prediction: {agreement:.4%} of the voxels have the same label (least: {least:.4%}), mean Dice between the two
{dice:.4f}. Preprocessed voxels differ by {mean:.4f} on average and {most:.4f} at most, in units of the normalised
image.
"""


@dataclass(frozen=True)
class Parity:
    """One case: export against training.

    Attributes:
        agreement: share of voxels with the same label.
        dice: between the two segmentations, mean over labels that either has; 1 where neither has any.
        mean: difference of preprocessed voxels, mean.
        most: the largest one.
    """

    agreement: float
    dice: float
    mean: float
    most: float


def compare(
    model: Path,
    fold: str,
    validated: Path,
    folders: DatasetFolders,
    stored: slice,
    channels: Sequence[int],
    number: int,
) -> list[Parity]:
    """Predicts validation cases with an exported model and compares.

    Args:
        model: the exported folder.
        fold: in it.
        validated: folder of the training's own unrestricted predictions.
        folders: of the dataset.
        stored: where the group lies in the preprocessed data of the training.
        channels: of the group in the raw images.
        number: of cases at most.

    Returns:
        One entry per case; none where the raw images are not on this machine.
    """
    if folders.raw is None or folders.preprocessed is None:
        return []
    content = read_dataset_json(folders.raw)
    cases = training_cases(folders.raw, content)[0]
    ending = content["file_ending"]
    keys = [path.name.removesuffix(ending) for path in sorted(validated.glob(f"*{ending}"))][:number]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = open_predictor(model, fold, FINAL, device)
    manager = predictor.plans_manager
    configuration = predictor.configuration_manager
    reader = manager.image_reader_writer_class()
    found = []
    for key in tqdm(keys, desc=f"comparing {model.name.split('__')[1]}", unit="case"):
        files = [str(cases[key].images[channel]) for channel in channels]
        image, properties = read_images(reader, [Path(file) for file in files])
        theirs = predictor.predict_single_npy_array(image, properties)
        ours, _ = read_label_map(reader, validated / f"{key}{ending}")
        alone = DefaultPreprocessor(verbose=False).run_case(files, None, manager, configuration, predictor.dataset_json)
        before = folders.preprocessed / configuration.data_identifier
        data, _, _, of_all = load_case(infer_dataset_class(str(before))(str(before), [key]), key)
        difference = np.abs(alone[0] - _own_box(np.asarray(data[stored]), of_all, alone[2], alone[0].shape[1:]))
        found.append(
            Parity(
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
