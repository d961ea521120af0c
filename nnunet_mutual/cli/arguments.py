"""Options that several commands share."""

from __future__ import annotations

import argparse

from nnunet_mutual.cli import types as cli_types


def add_dataset(command: argparse.ArgumentParser) -> None:
    """Adds the argument that names a dataset."""
    command.add_argument("dataset", metavar="DATASET", help="dataset name or number, as in nnU-Net's commands")


def add_training(command: argparse.ArgumentParser, *, fold: bool = False, fitting: bool = False) -> None:
    """Adds the arguments that name a training.

    Args:
        command: to which.
        fold: whether one fold is named, too.
        fitting: whether the trainer may be left out, for the one that fits the dataset.
    """
    add_dataset(command)
    command.add_argument("configuration", metavar="CONFIGURATION", help="configuration of the training")
    if fold:
        command.add_argument("fold", metavar="FOLD", type=cli_types.fold, help="fold of the training, or 'all'")
    said = "trainer of the training" + " (default: the one that fits what the dataset holds)" * fitting
    command.add_argument("-tr", dest="trainer", metavar="TRAINER", required=not fitting, help=said)
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")
