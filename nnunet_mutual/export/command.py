"""`nnunet_mutual export`: a trained model as a folder that stock nnU-Net predicts from, zips and installs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.annotation.travelling import (
    checkpoint_of,
    fingerprint_of,
    plans_of,
    without_case_names,
    without_identities,
)
from nnunet_mutual.batches.decisions import read_decisions
from nnunet_mutual.batches.pseudo import CSV as DECISIONS
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.folders import finish_interrupted, written_folders
from nnunet_mutual.disk.host_files import read_fingerprint, read_plans, read_summary
from nnunet_mutual.disk.label_maps import TRUTH
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.trainings import (
    FINAL,
    NamedTraining,
    device_option,
    fold_of,
    folds_in,
    training_name,
)
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.checkpoints import STATE_KEY, STOCK_TRAINER, load_own, save_atomically, whole
from nnunet_mutual.errors import MutualError, typed
from nnunet_mutual.export import model_card
from nnunet_mutual.export.container.write import require_container, tag, write_container
from nnunet_mutual.export.groups import (
    group_dataset,
    group_plan,
    group_weights,
    modality_groups_of,
    require_fit,
)
from nnunet_mutual.export.model_card import TrainedFold
from nnunet_mutual.export.ready import (
    FINGERPRINT,
    PROGRESS,
    Model,
    Request,
    checkpoint_file,
    deployed_weights,
    require_trained,
    validated_otherwise,
)
from nnunet_mutual.export.sequences import FILE as SEQUENCES
from nnunet_mutual.export.sequences import references_of

CARD = "model_card.md"
_LONGEST = 100  # letters of a plans name, with which folders are named


def export(
    dataset: str,
    configuration: str,
    *,
    trainer: str,
    plans: str,
    folds: Sequence[str],
    checkpoint: str,
    output_name: str | None,
    peers: bool = False,
    compared: int = 5,
    container: str | None = None,
    validate: bool = False,
) -> None:
    """Writes ``nnUNetTrainer__<plans>_<method>__<configuration>`` beside the training folder.

    Neither files nor checkpoint hold case names, patients or paths, and the model needs no part of this package. Of a
    training by modality group, every group becomes a model of its own, ``..._<method>_<group>__...``.

    Args:
        dataset: ID or name of the dataset.
        configuration: the trained configuration.
        trainer: the trainer it was trained with.
        plans: the plans it was trained with.
        folds: trained folds ("0" ... "4", "all"); all go into the one folder.
        checkpoint: which checkpoint becomes the model, usually checkpoint_final.pth.
        output_name: plans name of the export; by default ``<plans>_<trainer without "Trainer">``.
        peers: export all networks that learnt together, network p as fold_p: stock prediction averages them.
        container: new folder for what a container of the model is built from; of modality groups, one in it for each.
        validate: predict the validation cases first, with the checkpoint that is exported; of a training that was
            stopped, nnU-Net does not.
        compared: validation cases that each modality group's model predicts, to compare it with the training.

    Raises:
        MutualError: a file is missing (with the command that makes it), or the target exists; nothing is written then.
    """
    folders = locate(dataset)
    if len(set(folds)) < len(folds):
        raise MutualError(f"-f {' '.join(folds)} names a fold more than once; give each fold once")
    source = NamedTraining(folders.name, configuration, folds[0], trainer, plans).find_model()
    if peers and len(folds) != 1:
        raise MutualError(
            f"--peers exports the networks of one fold as an ensemble, found -f {' '.join(folds)}; name one"
        )
    plans_name = output_name or f"{plans}_{trainer.removesuffix('Trainer')}{'_Peers' if peers else ''}"
    if not re.fullmatch(r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*", plans_name) or len(plans_name) > _LONGEST:
        raise MutualError(
            f"the export cannot be called {plans_name!r}: use letters, digits, '-' and single '_', at most {_LONGEST} "
            "(--name)"
        )
    models = _plan_models(source, plans_name, configuration)
    if peers and len(models) > 1:
        raise MutualError(
            "the networks of modality groups have different inputs and are no ensemble; leave --peers out"
        )
    chosen = None if container is None else Path(container).absolute()
    targets = [*([] if chosen is None else [chosen]), *(model.target for model in models)]
    request = Request(source, folders, trainer, folds, checkpoint, peers)
    asked = request.asked(models)
    if finish_interrupted(targets, asked):
        print("What an interrupted export had written is now in its place")
    else:
        _require_new(models, chosen, configuration)
        require_trained(models, request, validate)
        with written_folders(targets, asked) as staged:
            _write_all(models, request, compared, staged)
    _say(models, folders, configuration, chosen)


def _say(models: Sequence[Model], folders: DatasetFolders, configuration: str, container: Path | None) -> None:
    for model in models:
        print(f"{model.target}: a stock nnU-Net model, read model_card.md in it first")
    for model in models:
        options = f"-d {folders.number} -c {configuration} -p {model.plan['plans_name']}"
        options += f" -f {' '.join(folds_in(model.target))}"
        images = "IMAGES"
        if model.group is not None and (model.target / SEQUENCES).is_file():
            images = f"{model.group}_IMAGES"
            print(
                f"Next, whether images are of {model.group}: nnunet_mutual check_images {typed(model.target)} {images}"
            )
        stage = PlansManager(model.plan).get_configuration(configuration).previous_stage_name
        before = "" if stage is None else f" -prev_stage_predictions SEGMENTATIONS_OF_{stage}"
        print(f"Next: nnUNetv2_predict {options} -i {images} -o SEGMENTATIONS{before}{device_option()}")
        if container is not None:
            print(f"Or:   docker build -t {tag(model.plan['plans_name'])} {typed(container / (model.group or ''))}")


def _require_new(models: Sequence[Model], container: Path | None, configuration: str) -> None:
    for model in models:
        if os.path.lexists(model.target):
            raise MutualError(
                f"{model.target} exists and is never overwritten; remove it or choose another name with --name"
            )
    if container is not None:
        for model in models:
            if model.target in (container, *container.parents) or container in model.target.parents:
                raise MutualError(f"--container {container} would lie in {model.target}, or around it; give another")
        require_container(container, models[0].plan, configuration)


def _write_all(models: Sequence[Model], request: Request, compared: int, staged: Sequence[Path]) -> None:
    """Writes models, and a container where there is one more folder."""
    references = _references(models, request)
    container = staged[0] if len(staged) > len(models) else None
    for model, folder in zip(models, staged[-len(models) :], strict=True):
        shown = _write_model(folder, model, request)
        if references is not None:
            write_json(folder / SEQUENCES, references)
        if model.group is not None and request.checkpoint == FINAL and compared:
            _compare(folder, model, request, shown, compared)
        if container is not None:
            write_container(container / (model.group or ""), folder)


def _references(models: Sequence[Model], request: Request) -> dict[str, Any] | None:
    """Returns what the sequences of modality groups look like, None without groups or raw images."""
    if models[0].group is None or request.folders.raw is None:
        return None
    content = read_dataset_json(request.folders.raw)
    cases, table = training_cases(request.folders.raw, content)[0], AnnotationTable.from_dataset_json(content)
    return references_of(cases.values(), table, PlansManager(models[0].plan).image_reader_writer_class())


def _compare(folder: Path, model: Model, request: Request, folds: Sequence[str], number: int) -> None:
    """Says how well a group's model does what its network did in training, in its card, too."""
    from nnunet_mutual.export import parity

    try:
        found = parity.compare(folder, model, request, folds, number)
    except parity.NotComparedError as reason:
        print(f"{model.group}: not compared with the training, {reason}")
        return
    with (folder / CARD).open("a", encoding="utf-8") as stream:
        stream.write(parity.card(found))
    agreement = sum(one.agreement for one in found) / len(found)
    said = f"{model.group}: {agreement:.3%} of the voxels of {len(found)} validation case(s) have the training's label"
    print(said if agreement >= parity.BAR else f"WARNING: {said}, less than {parity.BAR:.1%}; see model_card.md")


def _plan_models(source: Path, plans_name: str, configuration: str) -> list[Model]:
    """Returns the models of a training: one, or one for each modality group."""

    def named(name: str) -> Path:
        return source.parent / training_name(STOCK_TRAINER, name, configuration)

    dataset_json, trained_plan = read_dataset_json(source), read_plans(source / "plans.json")
    AnnotationTable.from_dataset_json(dataset_json)
    clean, plan = without_identities(dataset_json), plans_of(trained_plan, configuration)
    groups = modality_groups_of(trained_plan, dataset_json)
    if groups is None:
        return [Model(named(plans_name), {**plan, "plans_name": plans_name}, clean)]
    models = []
    for group, channels in groups.channels.items():
        name = f"{plans_name}_{group}"
        own = {**group_plan(plan, channels), "plans_name": name}
        models.append(Model(named(name), own, group_dataset(clean, channels), group))
    return models


def _write_model(folder: Path, model: Model, request: Request) -> list[str]:
    """Writes a model folder and returns the names of its folds."""
    folder.mkdir()
    write_json(folder / "plans.json", model.plan)
    write_json(folder / "dataset.json", model.dataset_json)
    write_json(folder / FINGERPRINT, fingerprint_of(read_fingerprint(request.source / FINGERPRINT)))
    trained_folds, shown = [], []
    for name, origin, trained in _models(model, request):
        trained_folds.append(_export_fold(origin, request.checkpoint, fold_of(folder, name), trained, model))
        shown.append(name)
    card = _card(model, request, trained_folds[:1] if request.peers else trained_folds)
    card += model_card.PEERS.format(number=len(shown)) if request.peers else ""
    (folder / CARD).write_text(card, encoding="utf-8")
    return shown


def _card(model: Model, request: Request, trained: Sequence[TrainedFold]) -> str:
    """Returns the model card."""
    dataset_json = read_object(request.source / "dataset.json")
    table = AnnotationTable.from_dataset_json(dataset_json)
    configuration = PlansManager(model.plan).get_configuration(request.configuration)
    preprocessed = request.folders.preprocessed
    channels = AnnotationTable.from_dataset_json(model.dataset_json).channels
    if preprocessed is not None:
        table = _of_training_cases(table, preprocessed / TRUTH, dataset_json["file_ending"])
    if model.group is not None:  # whose network saw the cases that have its channels
        seen = {key: case for key, case in table.cases.items() if case.missing.isdisjoint(channels)}
        table = replace(table, cases=seen)
    origin = model_card.Origin(
        model.target.name,
        request.trainer,
        request.configuration,
        configuration.spacing,
        request.folds,
        request.checkpoint,
        channels,
        len(table.cases) if table.declared else int(dataset_json["numTraining"]),
        "pixels" if model.plan["image_reader_writer"] == "NaturalImage2DIO" else "mm",
    )
    card = model_card.model_card(origin, table, trained)
    if model.group is not None:
        card += model_card.GROUP.format(group=model.group, channels=", ".join(channels))
    return card


def _of_training_cases(table: AnnotationTable, references: Path, ending: str) -> AnnotationTable:
    """Leaves out images in imagesUn, which may be listed, too, and seem to annotate what their source does."""
    drawn = {path.name.removesuffix(ending) for path in references.glob(f"*{ending}")}
    cases = {key: case for key, case in table.cases.items() if key in drawn}
    return replace(table, cases=cases) if cases else table


def _models(model: Model, request: Request) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yields the name of each exported fold, the folder it comes from and its checkpoint, one in memory at a time."""
    source, checkpoint = request.source, request.checkpoint
    dataset_json, plan = read_object(source / "dataset.json"), read_plans(source / "plans.json")
    for fold in request.folds:
        origin = fold_of(source, fold)
        trained = load_own(checkpoint_file(origin, checkpoint, model), torch.device("cpu"))
        if model.group is not None:
            groups = modality_groups_of(plan, dataset_json)
            assert groups is not None
            weights = group_weights(
                trained,
                groups.names.index(model.group),
                groups.channels[model.group],
                plan=plan,
                dataset_json=dataset_json,
                configuration=request.configuration,
            )
            yield fold, origin, {**trained, "network_weights": weights}
            continue
        if not request.peers:
            yield fold, origin, trained
            continue
        for n, weights in enumerate(deployed_weights(trained[STATE_KEY]["peers"])):
            yield str(n), origin, {**trained, "network_weights": weights}


def _export_fold(source: Path, checkpoint: str, folder: Path, trained: Mapping[str, Any], model: Model) -> TrainedFold:
    (folder / "validation").mkdir(parents=True)
    with whole(str(source / checkpoint)):
        content = checkpoint_of(trained, STOCK_TRAINER, model.plan, model.dataset_json)
        require_fit(content, model.plan, model.dataset_json)
    save_atomically(content, folder / FINAL, "repeat: nothing was kept")
    shutil.copyfile(source / PROGRESS, folder / PROGRESS)
    summary = without_case_names(read_summary(source / f"validation{model.suffix}" / "summary.json"))
    write_json(folder / "validation" / "summary.json", summary)
    decisions = source / "pseudo_labels" / DECISIONS
    return TrainedFold(
        summary,
        trained[STATE_KEY]["settings"],
        trained["current_epoch"],
        read_decisions(decisions) if decisions.is_file() else (),
        Acted.of_state(trained[STATE_KEY]),
        validated_otherwise(source, model, checkpoint),
    )
