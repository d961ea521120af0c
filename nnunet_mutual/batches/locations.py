"""Where predicted foreground lies, for the sampling of unlabelled patches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_mutual.disk.case_files import read_arrays
from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError


def write_locations(file: Path, locations: Mapping[Any, np.ndarray]) -> None:
    """Writes nnU-Net's ``class_locations``, a whole file or none."""
    arrays: dict[str, Any] = {json.dumps(key): np.asarray(value) for key, value in locations.items()}
    with written(file, ending=".npz", sweeping=False) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_locations(file: Path, fix: str) -> dict[Any, np.ndarray]:
    """Reads what :func:`write_locations` wrote: label or tuple of integers -> (n, 4).

    Args:
        file: the file.
        fix: what makes it anew, for the sentence.

    Raises:
        MutualError: the file is damaged.
    """
    found = read_arrays(file, fix)
    try:
        names = {key: json.loads(key) for key in found}
    except ValueError:
        raise MutualError(f"{file} holds other arrays than locations of labels; {fix}") from None
    return {tuple(n) if isinstance(n := names[key], list) else n: value for key, value in found.items()}
