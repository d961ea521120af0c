"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.errors import MutualError


def add_dataset(command: argparse.ArgumentParser) -> None:
    """Adds the argument that names a dataset."""
    command.add_argument("dataset", metavar="DATASET", help="dataset name or number, as in nnU-Net's commands")


def add_dataset_option(command: argparse.ArgumentParser) -> None:
    """Adds the option ``-d``, as nnU-Net's planning commands have it."""
    command.add_argument("-d", dest="dataset", metavar="DATASET", required=True, help="dataset name or number")


def add_settings(command: argparse.ArgumentParser, said: str) -> None:
    """Adds the option ``--set`` with its words of help."""
    command.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=said
    )


def add_training(
    command: argparse.ArgumentParser, *, fold: bool = False, fitting: bool = False, optional: bool = False
) -> None:
    """Adds the arguments that name a training.

    Args:
        command: to which.
        fold: whether one fold is named, too.
        fitting: whether the trainer may be left out, for the one that fits the dataset.
        optional: whether the whole training may be left out; see :func:`names_training`.
    """
    add_dataset(command)
    number: dict[str, Any] = {"nargs": "?"} if optional else {}
    command.add_argument("configuration", metavar="CONFIGURATION", help="configuration of the training", **number)
    if fold:
        said = "fold of the training, or 'all'"
        command.add_argument("fold", metavar="FOLD", type=cli_types.fold, help=said, **number)
    said = "trainer of the training" + " (default: the one that fits what the dataset holds)" * fitting
    command.add_argument("-tr", dest="trainer", metavar="TRAINER", required=not (fitting or optional), help=said)
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")


def names_training(options: argparse.Namespace, command: str) -> bool:
    """Whether a training is named where it may be left out.

    Raises:
        MutualError: it is named in part.
    """
    words = {"CONFIGURATION": options.configuration, "FOLD": options.fold, "-tr TRAINER": options.trainer}
    absent = [word for word, value in words.items() if value is None]
    if 0 < len(absent) < len(words):
        raise MutualError(
            f"the training is named in part, {' and '.join(absent)} is missing; see nnunet_mutual {command} --help"
        )
    return not absent
