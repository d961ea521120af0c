"""`nnunet_mutual evaluate`: one folder of predictions, or two against each other."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.folders import output_folder
from nnunet_mutual.disk.names import inside
from nnunet_mutual.errors import MutualError, typed
from nnunet_mutual.evaluation import output
from nnunet_mutual.evaluation.cases import COUNTS, LabelScores, Pair, Rules, measure_cases
from nnunet_mutual.evaluation.comparison import MARGIN, compare, pair_scores
from nnunet_mutual.evaluation.metrics import TOLERANCE, implementation
from nnunet_mutual.evaluation.pairing import find_references, pair_up
from nnunet_mutual.evaluation.statistics import describe

FOLDER = "evaluation"


@dataclass(frozen=True)
class EvaluateOptions:
    """What both forms of the command take.

    Attributes:
        references: folder of reference label maps; None: those of the dataset.
        dataset: name or ID; its dataset.json says what is annotated.
        dataset_json: that file, if it is another one.
        fold: only the validation cases of this fold.
        complete: the references draw every label, whatever the table says.
        chill: cases may lack a prediction.
        tolerance: words such as "1" and "liver=3", in mm.
        surface: whether to measure surfaces.
        processes: at most; None: nnU-Net's number.
        seed: of the bootstrap.
        output: folder for the files; by default ``evaluation`` in the folder of predictions.
        as_json: print JSON instead of a table.
    """

    references: str | None = None
    dataset: str | None = None
    dataset_json: str | None = None
    fold: str | None = None
    complete: bool = False
    chill: bool = False
    tolerance: tuple[str, ...] = ()
    surface: bool = True
    processes: int | None = None
    seed: int = 0
    output: str | None = None
    as_json: bool = False


def evaluate(predictions: str, options: EvaluateOptions) -> dict[str, Any]:
    """Measures a folder of predictions, prints a table, and writes metrics.csv and summary.json.

    Returns:
        The content of summary.json.

    Raises:
        MutualError: bad input; nothing is written then.
    """
    folder = _folder(options.output, Path(predictions))
    measured = _Measured.of(options, Path(predictions))
    cases, rules = measured.cases[0], measured.rules
    statistics = {
        metric: describe(_values(cases, metric), rules.table.labels, measured.patients, seed=options.seed)
        for metric in _metrics(cases)
    }
    content = output.summary_json(cases, measured.pairs[0], rules, measured.keys, statistics, options.seed)
    _make(folder)
    output.write_tidy(folder / output.TIDY, cases)
    write_json(folder / output.SUMMARY, content)
    if options.as_json:
        print(json.dumps(output.without_nan(content), indent=2))
        return content
    counts = output.counted(cases, rules.table.labels)
    print(f"{len(cases)} cases, mean (95 % interval) over those that annotate a label and draw or predict it")
    print(output.results_table(statistics, counts))
    print(_stated(rules))
    print(f"Per case: {folder / output.TIDY}\nnnU-Net's layout: {folder / output.SUMMARY}")
    print(f"Next: nnunet_mutual evaluate --compare OTHER_PREDICTIONS {typed(predictions)}{_same(options)}")
    return content


def compare_predictions(first: str, second: str, options: EvaluateOptions, *, margin: float = MARGIN) -> dict[str, Any]:
    """Compares two folders of predictions case by case, prints tables, and writes comparison.csv and comparison.json.

    Args:
        first: folder A.
        second: folder B, of the same cases.
        options: as in :func:`evaluate`.
        margin: differences of Dice, IoU and surface Dice up to it count as stable; that of HD95 is the tolerance.

    Returns:
        The content of comparison.json.

    Raises:
        MutualError: bad input; nothing is written then.
    """
    if not 0 <= margin < 1:
        raise MutualError(f"--margin {margin:g}: expected a difference of Dice from 0 to 1, such as 0.01")
    folder = _folder(options.output, Path(second))
    measured = _Measured.of(options, Path(first), Path(second))
    a, b = measured.cases
    labels, tolerances = measured.rules.table.labels, measured.rules.tolerances
    rows = pair_scores(a, b, margin=margin, tolerances=tolerances or dict.fromkeys(labels, TOLERANCE))
    compared = compare(rows, labels, measured.patients, seed=options.seed)
    content = {
        "a": first,
        "b": second,
        "margin": margin,
        "tolerance_mm": tolerances,
        "implementation": implementation(options.surface),
        **output.comparison_json(rows, compared),
    }
    _make(folder)
    output.write_compared(folder / "comparison.csv", rows)
    write_json(folder / "comparison.json", content)
    if options.as_json:
        print(json.dumps(content, indent=2))
        return content
    print(f"A: {first}\nB: {second}\n{len(a)} cases; mean difference (95 % interval), number of cases by verdict\n")
    print(output.comparison_table(compared))
    print(f"\nStable: differences up to {margin:g}, of HD95 up to the tolerance. {_stated(measured.rules)}")
    worst = output.worst_lines(rows)
    print("\n".join(worst or [output.nothing_worse(rows)]))
    print(f"Per case: {folder / 'comparison.csv'}")
    look = "look at the cases named here; " if worst else ""
    print(f"Next: {look}all numbers of B: nnunet_mutual evaluate {typed(second)}{_same(options)}")
    return content


@dataclass(frozen=True)
class _Measured:
    """What was measured of one or two folders; a case without a patient is its own."""

    rules: Rules
    keys: dict[str, str]
    patients: dict[str, str]
    pairs: list[list[Pair]]
    cases: list[dict[str, LabelScores]]

    @classmethod
    def of(cls, options: EvaluateOptions, *folders: Path) -> _Measured:
        references = find_references(
            None if options.references is None else Path(options.references),
            dataset=options.dataset,
            dataset_json=None if options.dataset_json is None else Path(options.dataset_json),
            fold=options.fold,
            complete=options.complete,
        )
        pairs = [pair_up(folder, references, chill=options.chill) for folder in folders]
        keys = set.intersection(*({pair.key for pair in own} for own in pairs))
        apart = {pair.key for own in pairs for pair in own} - keys
        if not keys:
            raise MutualError(f"{' and '.join(map(str, folders))} have no case in common; predict the same with both")
        if apart:
            left_out = f"{len(apart)} case(s) are predicted in one folder only and left out, such as {min(apart)}"
            print(left_out, file=sys.stderr)  # --json has stdout
            pairs = [[pair for pair in own if pair.key in keys] for own in pairs]
        rules = references.rules(options.tolerance, surface=options.surface)
        processes = default_num_processes if options.processes is None else options.processes
        return cls(
            rules,
            output.label_keys(references.dataset_json),
            {key: references.patients.get(key, key) for key in keys},
            pairs,
            [measure_cases(some, rules, processes=processes) for some in pairs],
        )


def _values(cases: Mapping[str, LabelScores], metric: str) -> dict[str, dict[str, float]]:
    return {
        case: {label: scores.get(metric, math.nan) for label, scores in labels.items()}
        for case, labels in cases.items()
    }


def _metrics(cases: Mapping[str, LabelScores]) -> list[str]:
    found = {metric: None for labels in cases.values() for scores in labels.values() for metric in scores}
    return [metric for metric in found if metric not in COUNTS]


def _folder(chosen: str | None, predictions: Path) -> Path:
    # A folder of predictions may come from elsewhere, links in it included.
    own = inside(predictions, FOLDER, "folder", fix="name another one with -o") if chosen is None else chosen
    return output_folder(own)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MutualError(
            f"{folder} cannot be made ({error.strerror or error}); choose another folder with -o"
        ) from None


def _stated(rules: Rules) -> str:
    if rules.tolerances is None:
        return "Surfaces were not measured."
    values = sorted(set(rules.tolerances.values()))
    general = (
        f"{values[0]:g} mm" if len(values) == 1 else ", ".join(f"{k} {v:g} mm" for k, v in rules.tolerances.items())
    )
    return f"Tolerance of surface Dice: {general}."


def _same(options: EvaluateOptions) -> str:
    """Returns the options that say what is compared with what, to repeat them in another command."""
    named = {"-d": options.dataset, "-djfile": options.dataset_json, "-f": options.fold}
    words = [options.references] if options.references else []
    words += [word for name, value in named.items() if value is not None for word in (name, str(value))]
    words += ["--tolerance", *options.tolerance] if options.tolerance else []
    words += ["--complete"] * options.complete + ["--chill"] * options.chill + ["--no-surface"] * (not options.surface)
    return "".join(f" {typed(word)}" for word in words)
