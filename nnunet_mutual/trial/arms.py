"""The arms of a trial: trainers that make sense on a dataset, from simple to elaborate, and what each is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from nnunet_mutual.annotation.fitting import BY_GROUP, fitting_trainers
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.plugin.find import VARIABLE, public_names, training_names
from nnunet_mutual.plugin.trainer_names import find_own, find_trainer
from nnunet_mutual.settings import block_for, common_settings, read_settings

STOCK = "nnUNetTrainer"
# Its num_epochs counts the updates of all its networks, which others share among theirs, and it labels
# whole cases between its stages.
_IN_STAGES = ("MutualPartialTrainer",)
_NEEDS_MORE = ("SoftLabelTrainer",)  # soft labels of another model, which a trial does not make


def fitting_arms(contents: Contents) -> tuple[str, ...]:
    """Returns stock nnU-Net, the simple trainer for such data, and the mutual one.

    Raises:
        MutualError: the dataset has modality groups, whose networks are scored on images of their own.
    """
    if contents.table.modality_groups:
        raise MutualError(
            "a trial compares trainers that see the same images, so none of modality groups; remove "
            '"modality_groups" from dataset.json, or compare with: nnunet_mutual evaluate --compare'
        )
    names = [name for name, _ in fitting_trainers(contents.table, contents.cases, contents.unlabelled)]
    return (STOCK, *sorted(names[:2], key=lambda name: name != "PartialTrainer"))  # which is the simpler one


def require_arms(names: Sequence[str]) -> None:
    """Verifies the names that ``--arms`` gives.

    Raises:
        MutualError: an unknown trainer, one of modality groups, one named twice, or a single one.
    """
    known = [STOCK, *(name for name in training_names() if name not in BY_GROUP + _NEEDS_MORE)]
    for name in names:
        if name not in known and not _is_own(name):
            raise MutualError(
                f"--arms names {name!r}, which a trial cannot train{meant(name, known)}; it knows: {', '.join(known)}, "
                f"and trainers of your own that are built on these, in a folder that {VARIABLE} names"
            )
        if names.count(name) > 1:
            raise MutualError(f"--arms names {name} twice; keep one")
    if len(names) == 1:
        raise MutualError(f"--arms names {names[0]} alone; give two or more, from simple to elaborate")


def _is_own(name: str) -> bool:
    """Whether somebody's own trainer has this name, is built on those of this package and sees all channels."""
    with contextlib.suppress(MutualError):
        return name not in public_names("trainers") and not find_own(name).by_group
    return False


def networks_of(arm: str, contents: Contents, block: dict[str, Any]) -> int:
    """Returns how many networks share the updates of an arm, and verifies its settings.

    Args:
        arm: name of the trainer.
        contents: what it learns from.
        block: ``"mutual"`` of the plans.

    Raises:
        MutualError: a setting that the trainer does not know.
    """
    if arm == STOCK:
        return 1
    trainer = find_trainer(arm)
    settings = read_settings(trainer.settings_class, block_for(trainer, block), origin=f"in the plans, for {arm}")
    needs = trainer.needs(settings, contents.table, contents.cases)
    return 1 if _in_stages(arm) else int(needs.trained)


def labelled_between(arm: str, contents: Contents) -> int:
    """Returns how many cases an arm labels in the middle of its training."""
    return len(contents.cases) if arm != STOCK and _in_stages(arm) and contents.partial else 0


def _in_stages(arm: str) -> bool:
    return any(cls.__name__ in _IN_STAGES for cls in find_trainer(arm).__mro__)


def own_block(arm: str, block: dict[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """Returns the ``"mutual"`` block of an arm's configuration: settings of the plans, and the trial's schedule."""
    known = common_settings(block) if arm == STOCK else block_for(find_trainer(arm), block)
    return {**known, **schedule}


def words(arm: str, contents: Contents) -> str:
    """Says what an arm is, on such data."""
    if arm == STOCK:
        parts = ["nnU-Net's own trainer"]
        parts += ["what a case does not draw is background to it"] * contents.partial
        parts += ["it sees labelled images only"] * contents.unlabelled
        return "; ".join(parts)
    doc = (find_trainer(arm).__doc__ or arm).strip().splitlines()[0]
    return doc.rstrip(".").split(" [S]")[0]
