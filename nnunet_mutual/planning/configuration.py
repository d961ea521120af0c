"""`nnunet_mutual plan`: a new configuration in the plans file, which inherits a base one and changes settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.locate import locate, plans_file
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import BLOCK, block_for, merged_block, parse_settings, read_plans, read_settings


def plan(dataset: str, *, configuration: str, plans: str, name: str, settings: Sequence[str]) -> None:
    """Adds the configuration ``<configuration>_<name>`` to a plans file of nnUNet_preprocessed.

    It inherits patch, batch and preprocessed data from the base configuration, survives re-planning and has a results
    folder of its own.

    Args:
        dataset: ID or name of a planned dataset.
        configuration: the base configuration, such as 3d_fullres.
        plans: name of the plans file without .json.
        name: suffix of the new configuration.
        settings: ``key=value`` each; dots go into objects, values are JSON or plain text.

    Raises:
        MutualError: unknown setting, wrong value, or a configuration of that name with other settings exists; the plans
            file is then unchanged.
    """
    folders = locate(dataset, need_preprocessed=True)
    assert folders.preprocessed is not None
    path = plans_file(folders.preprocessed, plans)
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise MutualError(f"--name {name!r} must consist of letters, digits and '-': it becomes part of a folder name")
    content = read_plans(path)
    merged_block(content, configuration)  # refuses an unknown base configuration
    new = f"{configuration}_{name}"
    entry = {"inherits_from": configuration, BLOCK: parse_settings(settings)}
    existing = content["configurations"].get(new)
    if existing not in (None, entry):
        raise MutualError(
            f"{path.name} already has a configuration {new} with other settings ({json.dumps(existing)}); choose "
            "another --name, since results trained with the old settings are kept under this one"
        )
    content["configurations"][new] = entry
    trainers = _trainers_that_accept(merged_block(content, new))
    write_json(path, content)
    print(f"{path.name}: {new} = {configuration} with {json.dumps(entry[BLOCK])}; for {', '.join(trainers)}")
    print(f"Next: nnUNetv2_train {folders.number} {new} 0 -p {plans} -tr {trainers[0]}")


def _trainers_that_accept(block: dict[str, Any]) -> list[str]:
    """Names the trainers for which the settings are valid."""
    import nnunet_mutual.trainers as trainers

    # From few settings to many: the first one suits if several do, the last one knows most if none does.
    classes = {name: getattr(trainers, name) for name in trainers.TRAINING}
    accepting, reason = [], None
    for name in sorted(classes, key=lambda name: (len(fields(classes[name].settings_class)), name)):
        try:
            read_settings(classes[name].settings_class, block_for(classes[name], block))
            accepting.append(name)
        except MutualError as error:
            reason = error
    if reason is not None and not accepting:
        raise reason
    return accepting
