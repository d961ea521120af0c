"""Whether a training can be exported: its checkpoints are there, and its validation is of the networks that go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.disk.host_files import read_fingerprint, read_plans
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.disk.trainings import (
    BEST,
    FINAL,
    LATEST,
    NamedTraining,
    checkpoints_in,
    fold_of,
    parts_of_name,
    progress_of,
    validated_checkpoint,
    validated_progress,
)
from nnunet_mutual.engine.checkpoints import STATE_KEY, load_own
from nnunet_mutual.engine.folds import difference, require_recorded
from nnunet_mutual.engine.trained import open_trained
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.trainer_names import find_own
from nnunet_mutual.preprocessing.fingerprint import FILE as FINGERPRINT

PROGRESS = "progress.png"
OF_ALL = (FINAL, LATEST, BEST)  # of modality groups, hold or stand for the networks of all


@dataclass(frozen=True)
class Model:
    """One stock model to be written.

    Attributes:
        target: its folder.
        plan: its plans.
        dataset_json: its dataset.json, without identities.
        group: name of its modality group, None for a model of all channels.
    """

    target: Path
    plan: dict[str, Any]
    dataset_json: dict[str, Any]
    group: str | None = None

    @property
    def suffix(self) -> str:
        """What the names of its files in a training folder end in."""
        return "" if self.group is None else f"_{self.group}"


@dataclass(frozen=True)
class Request:
    """What is exported: the folder of a training, and the arguments of :func:`export`."""

    source: Path
    folders: DatasetFolders
    trainer: str
    folds: Sequence[str]
    checkpoint: str
    peers: bool

    def asked(self, models: Sequence[Model]) -> dict[str, Any]:
        """Returns what goes into the models, in builtins: another training's, or a later state, is something else."""
        folders = [(fold_of(self.source, fold), model) for fold in self.folds for model in models]
        files = {checkpoint_file(folder, self.checkpoint, model) for folder, model in folders}
        states = [(str(file), file.stat()) for file in sorted(files) if file.is_file()]
        return {
            "folds": list(self.folds),
            "peers": self.peers,
            "checkpoints": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
        }

    @property
    def configuration(self) -> str:
        """The trained configuration."""
        return parts_of_name(self.source)[2]

    def training(self, fold: str) -> NamedTraining:
        """Returns one fold of the training."""
        trainer, plans, configuration = parts_of_name(self.source)
        return NamedTraining(self.folders.name, configuration, fold, trainer, plans)


def require_trained(models: Sequence[Model], request: Request, validate: bool) -> None:
    """Verifies that all folds were trained and validated; if that was asked for, validates them, after all else."""
    if request.checkpoint not in OF_ALL and any(model.group is not None for model in models):
        raise MutualError(
            f"-chk {request.checkpoint} is of one modality group, or of none; name {', '.join(OF_ALL)} (the last takes "
            "the best of each group)"
        )
    if validate and find_own(request.trainer).by_group and request.checkpoint == BEST:
        raise MutualError(
            "checkpoint_best.pth of modality groups is one file for each, which cannot be validated together; export "
            "-chk checkpoint_latest.pth --validate, or finish the training"
        )
    read_fingerprint(request.source / FINGERPRINT)
    for fold in request.folds:
        _require_checkpoints(models, request, fold, validate)
    for fold in request.folds if validate else ():
        _validate(request, fold)
    for fold in request.folds:
        _require_validated(models, request, fold)


def _require_checkpoints(models: Sequence[Model], request: Request, fold: str, validate: bool) -> None:
    """Verifies that a fold has what is exported of it, beside its validation, and can be validated if it is to be."""
    folder = request.training(fold).find_fold()
    for model in models:
        file = checkpoint_file(folder, request.checkpoint, model)
        if file.is_file():
            continue
        finished = (folder / FINAL).is_file()
        there = [name for name in checkpoints_in(folder) if model.group is None or name in OF_ALL]
        if finished and (there := [name for name in there if name != request.checkpoint]):
            raise MutualError(f"{folder} has no {file.name}; export one of {', '.join(there)} with -chk")
        also = f", or export one of {', '.join(there)} with -chk" if there else ""
        also += " --validate" if there and not finished else ""
        command = request.training(fold).command
        raise MutualError(f"{folder} has no {file.name}; finish the training with: {command} --c{also}")
    for file in {checkpoint_file(folder, request.checkpoint, model) for model in models}:
        trained = load_own(file, torch.device("cpu"), mapped=True)
        require_recorded(trained, request.source, fold)
        _refuse_first_stage(trained[STATE_KEY], file)
        if validate:
            _require_same_data(trained, request, fold)
        if request.peers and len(deployed_weights(trained[STATE_KEY]["peers"])) < 2:
            raise MutualError(
                f"{file.name} holds one network that stock nnU-Net knows, so there is no ensemble of peers; "
                "leave --peers out"
            )
    if not (folder / PROGRESS).is_file():
        raise MutualError(
            f"{folder / PROGRESS} is missing, which nnUNetv2_export_model_to_zip needs; resume the training with --c"
        )


def _require_validated(models: Sequence[Model], request: Request, fold: str) -> None:
    """Verifies that a fold's validation is there, and of the networks that go out."""
    folder = request.training(fold).find_fold()
    for model in models:
        if not (folder / f"validation{model.suffix}" / "summary.json").is_file():
            how = "add --validate, which predicts them first"
            if model.group is not None and request.checkpoint == BEST:
                how = "name another checkpoint with -chk, and add --validate"
            if request.checkpoint == FINAL:  # nnU-Net's --val validates no other
                how = f"validate with: {request.training(fold).command} --val"
            raise MutualError(
                f"the validation cases of {folder} were not predicted, so nothing is known about the model; {how}"
            )
        other = validated_otherwise(folder, model, request.checkpoint)
        if other is not None and model.group is None:  # of groups, the best ones are of different epochs
            raise MutualError(
                f"the validation cases of {folder} were predicted with {other}, not with {request.checkpoint}, "
                "so its results are not those of the model; add --validate, which predicts them again"
            )


def deployed_weights(peers: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Returns the weights of what is validated and deployed: an average of each deployable network, else itself.

    Args:
        peers: as of :meth:`Peers.state_dict`; further averages only teach.
    """
    number = peers["deployable"]
    averages: list[dict[str, torch.Tensor]] = [average["weights"] for average in peers["averages"][:number]]
    return averages or peers["networks"][:number]


def _refuse_first_stage(state: Mapping[str, Any], file: Path) -> None:
    """Refuses networks that know labels of their group alone: a model would stand for all labels."""
    in_groups = state["settings"].get("stage1_networks") == "groups" and state.get("peers", {}).get("deployable", 1) > 1
    if state.get("stage") == 1 and in_groups:
        raise MutualError(
            f"{file} is of the first stage, whose networks each know the labels of their group alone; finish the "
            "training, and export checkpoint_final.pth"
        )


def validated_otherwise(folder: Path, model: Model, checkpoint: str) -> str | None:
    """Returns the checkpoint that a fold was validated with if it is another one; trainings of 0.1.0 do not say it."""
    place, file = folder / f"validation{model.suffix}", checkpoint_file(folder, checkpoint, model)
    known, progress = validated_checkpoint(place), validated_progress(place)
    if known is not None and known == file.name and progress is not None:
        now = progress_of(load_own(file, torch.device("cpu"), mapped=True))
        return None if progress == now else f"an earlier {known}"
    return None if known in (None, file.name) else known


def _validate(request: Request, fold: str) -> None:
    """Predicts the validation cases with the networks that are exported, as the end of a training does."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    open_trained(request.source, fold, request.checkpoint, device).perform_actual_validation()


def _require_same_data(trained: Mapping[str, Any], request: Request, fold: str) -> None:
    """Verifies that the validation cases were preprocessed with the plans of the training."""
    plans = Path() if request.folders.preprocessed is None else request.folders.preprocessed
    plans /= f"{request.training(fold).plans}.json"
    if not plans.is_file():
        return  # opening the training says what is missing
    place = difference(trained, read_plans(plans), read_dataset_json(request.source))
    if place:
        raise MutualError(
            f"{plans} is another one than fold {fold} was trained with ({place}), so the preprocessed validation cases "
            "are not what its networks know; put that of the training back and preprocess again, or export without "
            "--validate"
        )


def checkpoint_file(fold: Path, checkpoint: str, model: Model) -> Path:
    """Path of a checkpoint; of the best one, each modality group has its own."""
    if model.group is not None and checkpoint == BEST:
        return fold / f"checkpoint_best_{model.group}.pth"
    return fold / checkpoint
