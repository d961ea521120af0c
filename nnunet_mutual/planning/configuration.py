"""`nnunet_mutual plan`: a new configuration in the plans file, which inherits a base one and changes settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.fitting import fitting_trainers
from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.datasets.splits import first_fold
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.locate import DatasetFolders, locate, plans_file
from nnunet_mutual.disk.trainings import train_command
from nnunet_mutual.errors import MutualError, closest
from nnunet_mutual.planning.method import method_for
from nnunet_mutual.planning.shape import Shape, describe, reshaped
from nnunet_mutual.plugin.find import resolve, training_names
from nnunet_mutual.settings import (
    BLOCK,
    PLANNED,
    block_for,
    differences,
    groups_of_settings,
    merged_block,
    parse_settings,
    planned_trainer,
    read_settings,
)

_UNPLANNED = {"memory": "auto", "labelled_per_batch": None, "unlabelled_per_batch": None}


def plan(
    dataset: str, *, configuration: str, plans: str, name: str, settings: Sequence[str] = (), shape: Shape | None = None
) -> None:
    """Adds the configuration ``<configuration>_<name>`` to a plans file of nnUNet_preprocessed.

    What is not given is inherited from the base configuration: patch, batch, network, preprocessed data, settings. It
    survives re-planning and has a results folder of its own; with another spacing, it has data of its own, too.

    Args:
        dataset: ID or name of a planned dataset.
        configuration: the base configuration, such as 3d_fullres.
        plans: name of the plans file without .json.
        name: suffix of the new configuration.
        settings: ``key=value`` each; dots go into objects, values are JSON or plain text.
        shape: patch, batch, network and spacing that differ.

    Raises:
        MutualError: unknown setting, wrong value, a network that cannot be, or a configuration of that name with other
            settings exists; the plans file is then unchanged.
    """
    folders = locate(dataset, need_preprocessed=True)
    assert folders.preprocessed is not None
    path = plans_file(folders.preprocessed, plans)
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise MutualError(f"--name {name!r} must consist of letters, digits and '-': it becomes part of a folder name")
    content = read_plans(path)
    merged_block(content, configuration)  # refuses an unknown base configuration
    new = f"{configuration}_{name}"
    entry = new_configuration(content, configuration, new, shape, parse_settings(settings))
    whole = {**content, "configurations": {**content["configurations"], new: entry}}
    changed = differences(_flat(content, new), _flat(whole, new)) if new in content["configurations"] else []
    if changed:
        raise MutualError(
            f"{path.name} already has a configuration {new}, which would change ({'; '.join(changed)}); choose another "
            "--name, since results trained with the old one are kept under this name"
        )
    first = PlansManager(dict(whole)).get_configuration(new).previous_stage_name
    content = whole if first is None else _named_by_its_first_stage(whole, first, new)
    block = merged_block(content, new)
    trainers = _fitting_trainers(content, new)
    trainer, why = choose_trainer(folders, content, new)
    lines = []
    found = Contents.of_planned(folders)
    if shape:
        given = block_for(resolve("trainers", trainer), block)
        method = method_for(found.table, found.cases, found.unlabelled, trainer, given)
        lines = describe(content, new, method)
    write_json(path, content)
    print(f"{path.name}: {new} = {configuration} with {json.dumps(entry.get(BLOCK, {}))}; for {', '.join(trainers)}")
    print("\n".join(f"  {line}" for line in lines), end="\n" * bool(lines))
    if first is not None:
        again = train_command(folders.number, first, trainer, plans=plans, fold="FOLD")
        print(f"Before, so that the first stage predicts for it, too: {again} --val")
    data = PlansManager(dict(content)).get_configuration(new).data_identifier
    if not (folders.preprocessed / data).is_dir():
        preprocess = f"nnunet_mutual plan_and_preprocess -d {folders.number} -c {new} --as-planned {plans}"
        print(f"Next, {'data of this spacing' if 'data_identifier' in entry else 'its data'}: {preprocess}")
    else:
        fold = first_fold(folders.preprocessed, found.table, found.cases)
        print(f"Next: {train_command(folders.number, new, trainer, plans=plans, fold=fold)}     ({trainer}: {why})")


def new_configuration(
    plans: Mapping[str, Any], base: str, new: str, shape: Shape | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns a configuration that inherits a base one and holds what differs.

    Args:
        plans: content of a plans file.
        base: name of the base configuration.
        new: name of the new one, of which its data are called where they differ.
        shape: patch, batch, network and spacing that differ.
        settings: of trainings.

    Raises:
        MutualError: what the network does not allow, with the nearest that it does.
    """
    other = reshaped(plans, base, shape, new) if shape else {}
    block = {**(settings or {}), **(_open_again(merged_block(plans, base), shape) if shape else {})}
    return {"inherits_from": base, **other, **({BLOCK: block} if block else {})}


def _open_again(block: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Returns what undoes the choices of a planner that are right for its own patch, batch and network only."""
    planned = block[PLANNED] if planned_trainer(block) else {"settings": {}}
    chosen = {*planned["settings"]} - {*planned.get("given", ())}
    undone = {name: value for name, value in _UNPLANNED.items() if name in chosen and (name == "memory" or shape.batch)}
    return {PLANNED: {"settings": undone}} if undone else {}


def _named_by_its_first_stage(plans: Mapping[str, Any], first: str, new: str) -> dict[str, Any]:
    """Returns plans in which the first stage of a cascade predicts for a new second stage, too."""
    known = PlansManager(dict(plans)).get_configuration(first).next_stage_names or []
    stage = {**plans["configurations"][first], "next_stage": list(dict.fromkeys([*known, new]))}
    return {**plans, "configurations": {**plans["configurations"], first: stage}}


def _flat(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a configuration with what it inherits, its network and its settings beside each other."""
    found = dict(PlansManager(dict(plans)).get_configuration(name).configuration)
    network = dict(found.pop("architecture", {}))
    parts = network.pop("arch_kwargs", {})
    return {**found, **network, **parts, BLOCK: None, **merged_block(plans, name)}


def choose_trainer(folders: DatasetFolders, plans: dict[str, Any], configuration: str) -> tuple[str, str]:
    """Returns the trainer that fits a planned dataset and the settings of a configuration, and why.

    Args:
        folders: of the dataset.
        plans: content of its plans file.
        configuration: that is to be trained.

    Raises:
        MutualError: no trainer knows the settings, or there is no such configuration.
    """
    block = merged_block(plans, configuration)
    trainers = _fitting_trainers(plans, configuration)
    planned_for = planned_trainer(block)
    accepting = [planned_for] if planned_for in trainers else trainers
    found = Contents.of_planned(folders)
    return fitting_trainers(
        found.table, found.cases, found.unlabelled, by_group=PLANS_KEY in plans, accepting=accepting
    )[0]


def _fitting_trainers(plans: Mapping[str, Any], configuration: str) -> list[str]:
    """Names the trainers for which the settings are valid, of a cascade those that train cascades."""
    trainers = _trainers_that_accept(merged_block(plans, configuration))
    if PlansManager(dict(plans)).get_configuration(configuration).previous_stage_name is None:
        return trainers
    return [name for name in trainers if resolve("trainers", name).no_cascade is None]


def _trainers_that_accept(block: dict[str, Any]) -> list[str]:
    """Names the trainers for which the settings are valid."""
    # From few settings to many: the last one knows most if none does.
    classes = {name: resolve("trainers", name) for name in training_names()}
    accepting, reasons = [], {}
    for name in sorted(classes, key=lambda name: (len(fields(classes[name].settings_class)), name)):
        try:
            read_settings(classes[name].settings_class, block_for(classes[name], block), "", f"for {name}")
            accepting.append(name)
        except MutualError as error:
            reasons[name] = error
    if not accepting:
        fits = {name: _fit(classes[name].settings_class, block) for name in reasons}
        if not any(fits.values()):
            raise MutualError(
                f"no trainer of this package has a setting called {' or '.join(block)}; docs/settings.md lists "
                "those of each"
            )
        raise reasons[max(fits, key=lambda name: fits[name])]
    return accepting


def _fit(settings_class: type[Any], block: Mapping[str, Any]) -> float:
    """Tells how much of a block is meant for a class of settings: 1 for a known name, less for a misspelt one."""
    known = groups_of_settings(settings_class)
    total = 0.0
    for key, value in block.items():
        name = key if key in known else closest(key, known)
        if name is None:
            continue
        total += 1.0 if name == key else 0.9
        group = known[name]
        if group is not None and isinstance(value, Mapping):
            total += _fit(group, value)
    return total
