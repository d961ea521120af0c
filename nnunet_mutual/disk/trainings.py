"""Trainings in nnUNet_results: which folder, which files."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunet_mutual.errors import MutualError, meant


def results_of(dataset_name: str) -> Path:
    """Returns the folder of a dataset in nnUNet_results, which need not exist.

    Raises:
        MutualError: nnUNet_results is not set.
    """
    if not nnUNet_results.is_set():
        raise MutualError(
            'nnUNet_results is not set; set it as for nnU-Net: export nnUNet_results="/path/to/nnUNet_results"'
        )
    return Path(str(nnUNet_results)) / dataset_name


def training_folder(dataset_name: str, trainer: str, plans: str, configuration: str) -> Path:
    """Returns the folder of a training in nnUNet_results.

    Raises:
        MutualError: nnUNet_results is not set, or there is no such training; says which there are.
    """
    base = results_of(dataset_name)
    wanted = f"{trainer}__{plans}__{configuration}"
    trained = sorted(f.name for f in base.glob("[!.]*__*") if f.is_dir())
    if wanted not in trained:
        raise MutualError(
            f"{base} has no training called {wanted}{meant(wanted, trained)}; trained there: "
            f"{', '.join(trained) or 'nothing yet'}"
        )
    return base / wanted
