"""A training as its checkpoint left it, to ask its networks outside of ``nnUNetv2_train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.trainings import fold_of, parts_of_name
from nnunet_mutual.engine.checkpoints import STATE_KEY, load_own
from nnunet_mutual.engine.folds import require_recorded
from nnunet_mutual.engine.stock_model import require_known_networks
from nnunet_mutual.plugin.trainer_names import find_own
from nnunet_mutual.settings import BLOCK


def open_trained(folder: Path, fold: str, checkpoint: str, device: torch.device) -> Any:
    """Returns a trainer of this package with the networks of a checkpoint.

    Args:
        folder: of the training, ``<trainer>__<plans>__<configuration>``.
        fold: "0" ... "4" or "all".
        checkpoint: file name in the fold.
        device: where its networks go.

    Raises:
        MutualError: a file is missing, damaged or of another training.
    """
    name, _, configuration = parts_of_name(folder)
    plan, dataset_json = read_plans(folder / "plans.json"), read_dataset_json(folder)
    number = fold if fold == "all" else int(fold)
    file = fold_of(folder, fold) / checkpoint
    require_known_networks(plan, folder / "plans.json")
    trained = load_own(file, torch.device("cpu"), mapped=True)
    require_recorded(trained, folder, fold)
    kind = find_own(name)
    # With the settings that it was trained with, whatever is default now.
    settings = kind.settings_class.earlier | trained[STATE_KEY]["settings"]
    configurations = plan["configurations"]
    configurations[configuration] = {**configurations[configuration], BLOCK: settings}
    made = kind({**plan, "continue_training": True}, configuration, number, dataset_json, device)
    made.continues, made.data.asked = False, True  # the networks, and nothing is trained
    made.load_checkpoint(str(file))
    return made
