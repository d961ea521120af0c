"""Predicts held-out cases with nnU-Net's predictor and measures Dice against their full labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from settings import CONFIGURATION, Network, Setting, read_json

from nnunet_mutual.evaluation import masks


@dataclass(frozen=True)
class Model:
    """A stock network, or one with its prototypes, and the labels that it is asked for."""

    network: Network
    weights: dict[str, torch.Tensor]
    labels: list[str]


Scores = dict[str, dict[str, float | None]]  # case -> label -> 0 to 1


def score(setting: Setting, models: list[Model], cases: list[str]) -> tuple[Scores, Scores]:
    """Returns Dice and precision for each case and label.

    Dice is null where neither reference nor prediction has the label, precision where the prediction has not.
    """
    predictors = [make_predictor(setting, model) for model in models]
    folder = setting.test_folder()
    dataset_json = read_json(folder / "dataset.json")
    reader = SimpleITKIO()
    found: tuple[Scores, Scores] = {}, {}
    for case in cases:
        reference = reader.read_seg(str(folder / "labelsTr" / f"{case}.nii.gz"))[0][0]
        outputs = []
        for model, predictor in zip(models, predictors, strict=True):
            image, properties = reader.read_images([str(path) for path in image_files(setting, model.network, case)])
            outputs.append(predictor.predict_single_npy_array(image, properties, None, None, True))
        names = [setting["datasets"][m.network.dataset]["labels"] for m in models]
        prediction = merge(outputs, names, [m.labels for m in models], setting["labels"])
        for scores, measure in zip(found, (dice, precision), strict=True):
            scores[case] = {
                label: measure(prediction == i + 1, reference == dataset_json["labels"][label])
                for i, label in enumerate(setting["labels"])
            }
    return found


def channels_of(setting: Setting, network: Network) -> list[str]:
    """Returns the channels that a deployed network sees."""
    entry = setting["datasets"][network.dataset]
    kind, _, group = network.deployed.partition(":")
    if kind == "group":
        return list(entry["modality_groups"][group])
    return list(entry.get("channels", setting.channel_names(setting["folder"])))


def image_files(setting: Setting, network: Network, case: str) -> list[Path]:
    """Returns the images of a case that a deployed network sees."""
    names = setting.channel_names(setting["folder"])
    numbers = [names.index(channel) for channel in channels_of(setting, network)]
    return [setting.images(setting["folder"]) / f"{case}_{number:04d}.nii.gz" for number in numbers]


def merge(
    outputs: list[tuple[NDArray[Any], NDArray[Any]]],
    names: list[list[str]],
    asked: list[list[str]],
    labels: list[str],
) -> NDArray[Any]:
    """Returns one label map, label i of ``labels`` as i + 1.

    One network: its own segmentation. Several: the label with the highest probability p over all networks that are
    asked for it, where that exceeds the background's, which is 1 - max p: each network knows only its own labels.

    Args:
        outputs: for each network its segmentation (Z, Y, X) and its probabilities (1 + its outputs, Z, Y, X).
        names: the outputs of each network.
        asked: the labels for which each network is asked.
        labels: the labels of the benchmark.
    """
    if len(outputs) == 1:
        return outputs[0][0]
    foreground = np.zeros((len(labels), *outputs[0][0].shape), dtype=np.float32)
    for (_, probabilities), own, wanted in zip(outputs, names, asked, strict=True):
        for label in wanted:
            row = labels.index(label)
            foreground[row] = np.maximum(foreground[row], probabilities[1 + own.index(label)])
    return np.where(foreground.max(0) > 0.5, foreground.argmax(0) + 1, 0)


def make_predictor(setting: Setting, model: Model) -> nnUNetPredictor:
    """Returns nnU-Net's predictor around the network of the plans; strict loading shows that it is one."""
    name = setting.dataset_name(setting.plans_from(model.network.dataset), 0)
    folder = setting.work / "nnUNet_preprocessed" / name
    dataset_json, plan = read_json(folder / "dataset.json"), read_json(folder / "nnUNetPlans.json")
    if model.network.deployed.startswith("group:"):
        from nnunet_mutual.export.groups import group_dataset, group_plan

        names = list(dataset_json["channel_names"].values())
        channels = [names.index(channel) for channel in channels_of(setting, model.network)]
        dataset_json, plan = group_dataset(dataset_json, channels), group_plan(plan, channels)
    plans = PlansManager(plan)
    configuration = plans.get_configuration(CONFIGURATION)
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    builder: Any = nnUNetTrainer
    if model.network.deployed == "rectified":
        from nnunet_mutual.trainers import RectifiedPredictor as builder
    net = builder.build_network_architecture(plans, configuration, len(dataset_json["channel_names"]), heads, False)
    net.load_state_dict(model.weights)
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device(setting.device),
        allow_tqdm=False,
    )
    predictor.manual_initialization(net, plans, configuration, [model.weights], dataset_json, "nnUNetTrainer", None)
    return predictor


def dice(prediction: NDArray[Any], reference: NDArray[Any]) -> float | None:
    """Returns the Dice coefficient of two masks, None if both are empty."""
    found = masks.dice(prediction, reference)
    return None if math.isnan(found) else found


def precision(prediction: NDArray[Any], reference: NDArray[Any]) -> float | None:
    """Returns |P and R| / |P|, None if nothing is predicted."""
    predicted = int(prediction.sum())
    return None if predicted == 0 else int((prediction & reference).sum()) / predicted
