"""A model folder of nnU-Net, opened without running anything that lies in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.trainings import fold_of
from nnunet_mutual.engine import standalone as predict
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.engine.folds import require_recorded
from nnunet_mutual.errors import MutualError


def require_known_networks(plans: Mapping[str, Any], place: str | Path) -> None:
    """Refuses plans that name anything but networks and layers of torch and dynamic_network_architectures.

    nnU-Net imports and calls whatever the plans name. Readers, normalisers, preprocessors and resampling it looks up
    in its own packages only.

    Args:
        plans: content of a plans file.
        place: where they lie, for the sentence.

    Raises:
        MutualError: another package is named, which then was not imported, or something that is no network.
    """
    try:
        with _in_our_words(place):
            predict.require_known_networks(dict(plans), str(place))
    except (KeyError, AttributeError, TypeError):
        raise MutualError(f"{place} is no plans file of nnU-Net 2.2 or newer; plan the dataset again") from None


def open_predictor(folder: Path, fold: str, checkpoint: str, device: torch.device) -> nnUNetPredictor:
    """Opens a trained model as nnU-Net does, but reads its checkpoint safely and knows what its plans may name.

    Args:
        folder: of the model, with plans.json, dataset.json and folds.
        fold: in it.
        checkpoint: file name in the fold.
        device: where to predict.

    Raises:
        MutualError: a file is missing or damaged, asks for something to be run, or the files do not fit each other.
    """
    plans, dataset_json = read_object(folder / "plans.json"), read_object(folder / "dataset.json")
    file = fold_of(folder, fold) / checkpoint
    trained = read_checkpoint(file)
    require_known_networks(plans, folder / "plans.json")
    require_recorded(trained, folder, fold)
    with _in_our_words(file):
        predictor: nnUNetPredictor = predict.make_predictor(
            plans, dataset_json, [trained], device, _builder(str(trained.get("trainer_name")), folder)
        )
    return predictor


@contextmanager
def _in_our_words(place: str | Path) -> Iterator[None]:
    try:
        yield
    except predict.InputError as error:
        said = str(error)
        raise MutualError(said if str(place) in said else f"{place}: {said}") from None


def _builder(trainer: str, folder: Path) -> Callable[..., Any]:
    """Returns what builds the network of a trainer that nnU-Net finds."""
    try:
        build: Callable[..., Any] = recursive_find_trainer_class_by_name(trainer).build_network_architecture
    except (RuntimeError, TypeError, AttributeError, AssertionError):
        raise MutualError(
            f"{folder} was trained by {trainer}, which nnU-Net does not find here; name the folder of that trainer in "
            "nnUNet_extTrainer"
        ) from None
    if "plans_manager" in inspect.signature(build).parameters:
        return build

    def as_before(plans: Any, configuration: Any, *numbers: int, **options: Any) -> Any:
        """Trainers that were written for an older nnU-Net."""
        described = (configuration.network_arch_class_name, configuration.network_arch_init_kwargs)
        return build(*described, configuration.network_arch_init_kwargs_req_import, *numbers, **options)

    return as_before
