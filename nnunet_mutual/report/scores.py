"""Scores of whole validation cases, only of what each case annotates, and how two models differ on the same cases."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.files import plain_cell, read_object
from nnunet_mutual.disk.host_files import read_summary
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.command import FOLDER
from nnunet_mutual.evaluation.output import TIDY

MEASURED = ("hd95_mm", "surface_dice", "volume_ml", "reference_volume_ml")
COLUMNS = ("network", "case", "source", "label", "dice", "precision", "recall", "voxels_drawn", "voxels_predicted")
DRAWS = 10_000


def validations(fold: Path, groups: Iterable[str]) -> dict[str, Path]:
    """Returns the validation folders of a fold by network: "" or the name of a modality group."""
    folders = {"": fold / "validation"} | {name: fold / f"validation_{name}" for name in sorted(groups)}
    return {name: folder for name, folder in folders.items() if (folder / "summary.json").is_file()}


def read_scores(folders: Mapping[str, Path], table: AnnotationTable) -> pd.DataFrame:
    """Reads summary.json files.

    Args:
        folders: validation folders by network.
        table: labels, and what each case annotates: other labels are left out, whatever the file says of them.

    Returns:
        A row for each network, case and annotated label; Dice is NaN where prediction and reference both lack it,
        distances and volumes where they were not measured.
    """
    parts = [
        pd.DataFrame(_rows(name, folder, table, table), columns=list(COLUMNS)).merge(
            _measured(folder), on=["case", "label"], how="left"
        )
        for name, folder in folders.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, *MEASURED])


def _measured(folder: Path) -> pd.DataFrame:
    """Distances and volumes of a validation folder, by its own metrics.csv or else that of ``evaluate``."""
    for file in (folder / TIDY, folder / FOLDER / TIDY):
        if not file.is_file():
            continue
        try:
            empty: dict[str, Any] = {"keep_default_na": False, "na_values": {"value": [""]}}  # a label may be called NA
            tidy = pd.read_csv(file, dtype={"case": str, "label": str}, **empty)
            tidy = tidy.assign(case=tidy.case.map(plain_cell), label=tidy.label.map(plain_cell))
            found = tidy[tidy.metric.isin(MEASURED)].astype({"value": float})
            wide = found.pivot(index=["case", "label"], columns="metric", values="value").reset_index()
        except (ValueError, KeyError, AttributeError) as error:
            raise MutualError(
                f"{file} is no table of nnunet_mutual evaluate ({str(error)[:80]}); delete it, or validate again"
            ) from None
        return wide.reindex(columns=["case", "label", *MEASURED])
    return pd.DataFrame(columns=["case", "label", *MEASURED]).astype(dict.fromkeys(MEASURED, float))


def read_other(path: Path, fold: str, table: AnnotationTable) -> tuple[str, pd.DataFrame]:
    """Reads the scores of another model.

    Args:
        path: a training folder, a fold of it, or a validation folder.
        fold: of a training folder.
        table: of the training that it is compared with, which says what is annotated.

    Returns:
        What to call the model, and its scores.

    Raises:
        MutualError: there is no summary.json.
    """
    for folder in (path, path / "validation", path / f"fold_{fold}" / "validation"):
        if (folder / "summary.json").is_file():
            break
    else:
        raise MutualError(
            f"{path} holds no summary.json, neither itself nor in validation or fold_{fold}/validation; give --compare "
            "a folder that nnU-Net has validated or evaluated (nnUNetv2_train ... --val)"
        )
    folder = folder.resolve()
    described = [parent for parent in (folder, *list(folder.parents)[:2]) if (parent / "dataset.json").is_file()]
    own = AnnotationTable.from_dataset_json(read_object(described[0] / "dataset.json")) if described else table
    name = described[0].name if described else folder.name
    return name.replace("__", ", "), pd.DataFrame(_rows("", folder, table, own), columns=list(COLUMNS))


def _rows(network: str, folder: Path, table: AnnotationTable, own: AnnotationTable) -> list[tuple[Any, ...]]:
    """Rows of one summary.json; ``own`` says by which integers its labels go, ``table`` what is annotated."""
    rows = []
    entries = read_summary(folder / "summary.json")["metric_per_case"]
    for entry in tqdm(entries, desc="reading scores", unit="case", file=sys.stderr, leave=False):
        key = _key(entry["prediction_file"])
        if table.declared and key not in table.cases:
            continue
        case = table.case(key)
        for label in table.labels:
            if label not in case.annotated or label not in own.values:
                continue
            values = own.values[label]
            metrics = entry["metrics"].get(str(tuple(values)), entry["metrics"].get(str(values[0])))
            if metrics is None or any(metrics[name] != metrics[name] for name in ("TP", "n_ref", "n_pred")):
                continue  # NaN: what this validation did not take for annotated
            hit, drawn, predicted = (int(metrics[name]) for name in ("TP", "n_ref", "n_pred"))
            dice = float("nan") if metrics["Dice"] is None else float(metrics["Dice"])
            precision, recall = (hit / n if n else float("nan") for n in (predicted, drawn))
            rows.append((network, key, case.source, label, dice, precision, recall, drawn, predicted))
    return rows


def _key(file: str) -> str:
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    for ending in (".nii.gz", ".gipl.gz"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name.rpartition(".")[0] or name


@dataclass(frozen=True)
class ModelDifference:
    """How two models differ on the same cases.

    Attributes:
        label: label, or arm of a benchmark.
        first: mean Dice of the first model; likewise second.
        n: pairs.
        low: lower end of the 95 % interval of the mean difference first - second over resampled cases; None below five.
        high: its upper end.
        better: pairs in which the first one is better by at least 0.005; likewise worse.
    """

    label: str
    first: float
    second: float
    n: int
    low: float | None
    high: float | None
    better: int
    worse: int

    @property
    def mean(self) -> float:
        """Mean difference."""
        return self.first - self.second


def compare(label: str, first: np.ndarray, second: np.ndarray) -> ModelDifference:
    """Compares paired scores (n,) of two models; pairs with a NaN are left out."""
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    difference = first - second
    low, high = bootstrap(difference) if len(difference) >= 5 else (None, None)
    means = (float(first.mean()), float(second.mean())) if len(first) else (float("nan"), float("nan"))
    better, worse = int((difference >= 0.005).sum()), int((difference <= -0.005).sum())
    return ModelDifference(label, *means, len(difference), low, high, better, worse)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of (n,) values over seeded draws of cases."""
    index = np.random.default_rng(2407).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[index].mean(1), [2.5, 97.5])
    return float(low), float(high)


def paired(scores: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Joins the scores of two models on case and label: columns ``dice`` and ``dice_other``.

    Where nothing is drawn and one model alone predicts something, the other one has 1, as in ``evaluate``.
    """
    keys, two = ["case", "label"], ["dice", "dice_other"]
    both = scores.merge(other[[*keys, "dice", "voxels_drawn"]], on=keys, suffixes=("", "_other"))
    nothing = both[["voxels_drawn", "voxels_drawn_other"]].eq(0).all(axis=1) & both[two].notna().any(axis=1)
    both.loc[nothing, two] = both.loc[nothing, two].fillna(1.0)
    return both.drop(columns="voxels_drawn_other")


def first_network(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the network that stands for a training; of modality groups, the first by name."""
    return scores[scores.network == scores.network.iloc[0]] if len(scores) else scores
