"""Soft labels: what a trained model says about raw images, as probabilities.

For another model to learn from, or as a second opinion on the masks of another tool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.annotation.travelling import without_identities
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, unlabelled_cases
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.folders import output_folder
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.images import read_images
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.engine.stock_model import open_predictor
from nnunet_mutual.errors import MutualError, shorten, typed
from nnunet_mutual.plugin.compat import require_device
from nnunet_mutual.preprocessing.soft_folder import SoftFolder, model_of


def write_soft_labels(
    dataset: str,
    configuration: str,
    fold: str,
    *,
    trainer: str,
    plans: str,
    checkpoint: str,
    output: str,
    device: str,
) -> None:
    """Predicts the unlabelled images of a dataset with a trained model and writes probabilities.

    Each image in imagesUn becomes ``<case>.npz`` in the geometry of the image, as nnU-Net's ``--save_probabilities``
    writes it, but in steps of 1/255. What this model has written already is kept, so an interrupted run goes on where
    it stopped; what it wrote of images that are no longer there is removed.

    Args:
        dataset: ID or name, whose images are predicted; it may have more channels than the model needs.
        configuration: of the training.
        fold: of the training.
        trainer: of the training, stock nnU-Net's or one of this package.
        plans: identifier.
        checkpoint: of the training.
        output: folder for the soft labels.
        device: "cuda", "cpu" or "mps".

    Raises:
        MutualError: the model or the images are missing, the dataset lacks a channel that the model needs, or the
            folder holds soft labels of another model.
    """
    folder = output_folder(output)
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    training = NamedTraining(folders.name, configuration, fold, trainer, plans)
    _weights(training, checkpoint)
    content = read_dataset_json(folders.raw)
    cases = unlabelled_cases(folders.raw, content, ())[0]
    if not cases:
        raise MutualError(f"{folders.name} has no unlabelled image; put them into {folders.raw / 'imagesUn'}")
    made = predict_softly(training, checkpoint, device, cases, content, SoftFolder(folder))
    print(f"{made} soft label(s) in {folder}")
    command = f"nnunet_mutual preprocess_unlabelled -d DATASET --soft {typed(folder)}"
    print(f"Next, for the dataset of the other model:  {command}")


def predict_softly(
    training: NamedTraining,
    checkpoint: str,
    device: str,
    cases: Mapping[str, CaseFiles],
    content: Mapping[str, Any],
    soft: SoftFolder,
    *,
    anew: bool = False,
) -> int:
    """Predicts raw images with a trained model and writes probabilities; those that are there already are kept.

    Args:
        training: of the model.
        checkpoint: of the training.
        device: "cuda", "cpu" or "mps".
        cases: the images.
        content: of their dataset.json, which may name more channels than the model needs.
        soft: where probabilities go.
        anew: throw away what another model has written there, instead of refusing.

    Returns:
        The number of images; those that lack a channel of the model are left out.

    Raises:
        MutualError: the model is missing or needs what the images lack, or the folder is of another model.
    """
    weights = _weights(training, checkpoint)
    model = weights.parents[1]
    numbers = _channels(read_object(model / "dataset.json"), content)
    cases = _complete(cases, numbers, AnnotationTable.from_dataset_json(content))
    require_device(device)
    predictor = open_predictor(model, training.fold, checkpoint, torch.device(device))
    soft.claim(model_of(weights), anew=anew)
    done = soft.keep(cases)
    write_json(soft.folder / "dataset.json", without_identities(read_object(model / "dataset.json")))
    reader = predictor.plans_manager.image_reader_writer_class()
    for key, files in tqdm(cases.items(), desc="predicting", unit="case"):
        if key in done:
            continue
        image, properties = read_images(reader, [files.images[number] for number in numbers])
        _, probabilities = predictor.predict_single_npy_array(image, properties, None, None, True)
        soft.write(files, probabilities)
    return len(cases)


def _complete(cases: Mapping[str, CaseFiles], numbers: Sequence[int], table: AnnotationTable) -> dict[str, CaseFiles]:
    """Returns the images that have all of some channels, and says which have not, or zeros in the place of one."""
    needed = {table.channels[number] for number in numbers}
    declared = {key for key, case in table.cases.items() if not needed.isdisjoint(case.missing)}
    lacking = sorted(key for key, files in cases.items() if key in declared or not {*numbers} <= files.images.keys())
    if len(lacking) == len(cases):
        raise MutualError(
            f"each of the {len(cases)} image(s) lacks a channel that the model needs ({shorten(lacking, 3)}); "
            "name a model of the channels that they have"
        )
    if lacking:
        print(f"Left out, for want of a channel that the model needs: {shorten(lacking)}")
    return {key: files for key, files in cases.items() if key not in lacking}


def _weights(training: NamedTraining, checkpoint: str) -> Path:
    """Returns the checkpoint of a model that predicts from images alone."""
    model = training.find_model()
    plans = read_plans(model / "plans.json")
    if PlansManager(plans).get_configuration(training.configuration).previous_stage_name is not None:
        raise MutualError(
            f"{training.configuration} is the second stage of a cascade, which needs predictions of the first; name "
            "3d_fullres or 3d_lowres"
        )
    if PLANS_KEY in plans:
        raise MutualError(
            f"{model.name} has a network for each modality group; export it and name one, with -tr nnUNetTrainer and "
            "-p as nnunet_mutual export prints it"
        )
    return training.find_checkpoint(checkpoint)


def _channels(of_model: Mapping[str, Any], of_dataset: Mapping[str, Any]) -> Sequence[int]:
    """Returns which channels of the dataset are those of the model, by name."""
    wanted, there = (
        list(content.get("channel_names", content.get("modality", {})).values()) for content in (of_model, of_dataset)
    )
    absent = [name for name in wanted if name not in there]
    if absent:
        raise MutualError(f"the model needs {', '.join(absent)}; the dataset has {', '.join(there)}")
    return [there.index(name) for name in wanted]
