"""What of a dataset may travel with a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nnunet_mutual.settings import BLOCK


def without_identities(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a dataset.json without the annotation table and without lists of files."""
    return {key: value for key, value in dataset_json.items() if key not in (BLOCK, "dataset", "training", "test")}


def without_case_names(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary.json whose cases are numbered instead of named by path."""
    cleaned = copy.deepcopy(dict(summary))
    for number, case in enumerate(cleaned["metric_per_case"], 1):
        case["reference_file"] = case["prediction_file"] = f"case_{number:03d}"
    return cleaned
