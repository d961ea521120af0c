"""What an evaluation prints and writes: a table, tidy CSV, and nnU-Net's summary.json with more in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.coverage import columns
from nnunet_mutual.disk.files import write_csv
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.cases import COUNTS, LabelScores, Pair, Rules
from nnunet_mutual.evaluation.comparison import VERDICTS, Comparison, Paired, worst
from nnunet_mutual.evaluation.metrics import (
    DICE,
    HD95,
    IOU,
    PERFECT,
    SURFACE_DICE,
    VOLUME_ERROR,
    implementation,
)
from nnunet_mutual.evaluation.statistics import CONFIDENCE, RESAMPLES, Statistic

SUMMARY, TIDY = "summary.json", "metrics.csv"
BLOCK = "nnunet_mutual"
WORST = 5
_SHOWN = {
    DICE: ("Dice", 3),
    SURFACE_DICE: ("surface Dice", 3),
    HD95: ("HD95 mm", 1),
    VOLUME_ERROR: ("volume error ml", 2),
}


def counted(cases: Mapping[str, LabelScores], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts, per label, the cases that annotate it, and those where a mask is empty.

    Returns:
        Label -> annotated, missed (drawn, not predicted), invented (predicted, not drawn), absent (neither).
    """
    result = {}
    for label in labels:
        masks = [
            (scores[label]["n_ref"] > 0, scores[label]["n_pred"] > 0) for scores in cases.values() if label in scores
        ]
        result[label] = {
            "annotated": len(masks),
            "missed": masks.count((True, False)),
            "invented": masks.count((False, True)),
            "absent": masks.count((False, False)),
        }
    return result


def summary_json(
    cases: Mapping[str, LabelScores],
    pairs: Sequence[Pair],
    rules: Rules,
    keys: Mapping[str, str],
    statistics: Mapping[str, Mapping[str, Statistic]],
    seed: int,
) -> dict[str, Any]:
    """Returns nnU-Net's summary.json with further metrics in its places and what it does not know under our name.

    A label that a case does not annotate is NaN there, which nnU-Net's means skip.

    Args:
        cases: case -> label -> metric -> value.
        pairs: the files.
        rules: how was measured.
        keys: label -> how nnU-Net writes it, from :func:`label_keys`.
        statistics: metric -> label -> statistic.
        seed: of the bootstrap.
    """
    metrics = [*COUNTS, *statistics]

    def complete(scores: LabelScores) -> dict[str, dict[str, float]]:
        return {
            key: {metric: scores.get(label, {}).get(metric, math.nan) for metric in metrics}
            for label, key in keys.items()
        }

    per_case: list[dict[str, Any]] = [
        {
            "metrics": complete(cases[pair.key]),
            "prediction_file": str(pair.prediction),
            "reference_file": str(pair.reference),
        }
        for pair in pairs
    ]
    mean = {
        key: {metric: _mean([case["metrics"][key][metric] for case in per_case]) for metric in metrics}
        for key in keys.values()
    }
    ours = {
        "version": version("nnunet_mutual"),
        "implementation": implementation(rules.tolerances is not None),
        "tolerance_mm": rules.tolerances,
        "interval": {"confidence": CONFIDENCE, "method": "percentile bootstrap", "resamples": RESAMPLES, "seed": seed},
        "labels": keys,
        "cases": [pair.key for pair in pairs],
        "counts": counted(cases, rules.table.labels),
        "statistics": without_nan(
            {name: {label: one.as_json() for label, one in found.items()} for name, found in statistics.items()}
        ),
    }
    foreground = {metric: _mean([entry[metric] for entry in mean.values()]) for metric in metrics}
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": per_case, BLOCK: ours}


def label_keys(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Returns label -> how nnU-Net writes it in summary.json: its integer, or the tuple of a region."""
    table = AnnotationTable.from_dataset_json(dataset_json)
    regions = {label for label in table.labels if table.is_regions and isinstance(dataset_json["labels"][label], list)}
    return {label: str(values if label in regions else values[0]) for label, values in table.values.items()}


def without_nan(content: Any) -> Any:
    """Returns JSON content in which NaN, which strict JSON does not know, is None."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def write_tidy(path: Path, cases: Mapping[str, LabelScores]) -> None:
    """Writes one line per case, annotated label and metric; NaN becomes an empty cell.

    Raises:
        MutualError: the folder cannot be written.
    """
    rows = [
        (case, label, metric, _cell(value))
        for case, labels in cases.items()
        for label, scores in labels.items()
        for metric, value in scores.items()
        if metric not in COUNTS
    ]
    save_rows(path, [("case", "label", "metric", "value"), *rows])


def write_compared(path: Path, rows: Sequence[Paired]) -> None:
    """Writes one line per case, label and metric with both values.

    Raises:
        MutualError: the folder cannot be written.
    """
    header = ("case", "label", "metric", "a", "b", "difference", "verdict")
    lines = [(r.case, r.label, r.metric, _cell(r.a), _cell(r.b), _cell(r.difference), r.verdict) for r in rows]
    save_rows(path, [header, *lines])


def save_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes a CSV file.

    Raises:
        MutualError: the folder cannot be written.
    """
    try:
        write_csv(path, rows)
    except OSError as error:
        raise MutualError(
            f"{path} could not be written ({error.strerror or error}); choose another folder with -o"
        ) from None


def results_table(statistics: Mapping[str, Mapping[str, Statistic]], counts: Mapping[str, Mapping[str, int]]) -> str:
    """Returns one line per label: cases, means with intervals, missed and invented organs.

    A mean of other cases than the Dice, such as a volume that some images have no size for, says of how many.
    """
    shown = {metric: heading for metric, heading in _SHOWN.items() if metric in statistics}
    rows = [["label", "n", *(heading for heading, _ in shown.values()), "missed", "invented"]]
    for label in statistics[DICE]:
        found = counts.get(label) or {word: sum(c[word] for c in counts.values()) for word in ("missed", "invented")}
        cells = [_mean_of(statistics[metric][label], statistics[DICE][label].n, n) for metric, (_, n) in shown.items()]
        n = str(statistics[DICE][label].n) if label in counts else ""
        rows.append([label, n, *cells, str(found["missed"]), str(found["invented"])])
    return columns(rows, indent="", gap="  ")


def comparison_table(compared: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Returns, per metric, one line per label: difference with interval, verdicts."""
    blocks = []
    for metric, found in compared.items():
        if metric == IOU:
            continue  # says what Dice says
        heading, digits = _SHOWN[metric]
        rows = [[f"{heading}, B - A", "n", "mean", "median", *VERDICTS]]
        for label, one in found.items():
            n = "" if label == "overall" else str(one.difference.n)
            median = _number(one.difference.median, digits)
            rows.append([label, n, _interval(one.difference, digits), median, *map(str, one.verdicts.values())])
        blocks.append(columns(rows, indent="", gap="  "))
    return "\n\n".join(blocks)


def comparison_json(rows: Sequence[Paired], compared: Mapping[str, Mapping[str, Comparison]]) -> dict[str, Any]:
    """Returns, per metric, differences and verdicts by label and the cases that became worst."""
    content = {
        "metrics": {
            metric: {label: {**one.difference.as_json(), **one.verdicts} for label, one in found.items()}
            for metric, found in compared.items()
        },
        "worst": {
            metric: [
                {"case": row.case, "label": row.label, "a": row.a, "b": row.b} for row in worst(rows, metric, WORST)
            ]
            for metric in compared
        },
    }
    return without_nan(content)


def worst_lines(rows: Sequence[Paired]) -> list[str]:
    """Returns one line per metric and case that became worse, the largest losses first; none where none did."""
    lines = [
        f"  {_SHOWN[row.metric][0]}: {row.case}, {row.label}: {_number(row.a, digits)} -> {_number(row.b, digits)}"
        for metric in PERFECT
        if metric != IOU
        for digits in [_SHOWN[metric][1]]
        for row in worst(rows, metric, WORST)
    ]
    return ["Worsened most (A -> B):", *lines] if lines else []


def nothing_worse(rows: Sequence[Paired]) -> str:
    """Returns what is said where no case became worse, be it that there was nothing to compare."""
    if not rows:
        return "Nothing was compared: neither the references nor the predictions hold a voxel of a label."
    return "Nothing became worse by more than the margin."


def _mean_of(one: Statistic, usual: int, digits: int) -> str:
    return _interval(one, digits) + (f" n = {one.n}" if one.n != usual else "")


def _interval(one: Statistic, digits: int) -> str:
    if math.isnan(one.mean):
        return "-"
    if math.isnan(one.low):
        return _number(one.mean, digits)
    return f"{_number(one.mean, digits)} ({_number(one.low, digits)} to {_number(one.high, digits)})"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.00


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _mean(values: Sequence[float]) -> float:
    scored = [value for value in values if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan
