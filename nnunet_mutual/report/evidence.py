"""`nnunet_mutual report --evidence`: a page about the runs of a benchmark, from its evidence files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_mutual.disk.files import read_json
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.report import blocks, plots
from nnunet_mutual.report.blocks import Figure, Missing, Notice, Page, Section, Table, Text
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.scores import ModelDifference, compare

KEYS = ("arm", "seed", "dice")
FEW_SEEDS = 3


@dataclass(frozen=True)
class Evidence:
    """The runs of a benchmark.

    Attributes:
        name: of the benchmark.
        runs: what the file of each run says beside its scores.
        scores: columns arm, seed, case, label, dice; NaN where neither drawing nor prediction has the label.
    """

    name: str
    runs: list[dict[str, Any]]
    scores: pd.DataFrame

    @property
    def means(self) -> pd.DataFrame:
        """Columns arm, seed, dice: the mean over labels of the mean over cases of each run."""
        by_label = self.scores.groupby(["arm", "seed", "label"], sort=False).dice.mean()
        return by_label.groupby(["arm", "seed"], sort=False).mean().reset_index()


def read_evidence(folder: Path) -> Evidence:
    """Reads the evidence files of a folder; other files are passed over.

    Raises:
        MutualError: there is none.
    """
    if not folder.is_dir():
        raise MutualError(f"{folder} is no folder; give --evidence a folder of evidence files, one per arm and seed")
    runs, rows = [], []
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        if not isinstance(content, dict) or not all(key in content for key in KEYS):
            continue
        runs.append({key: value for key, value in content.items() if key != "dice"})
        rows += [
            (content["arm"], content["seed"], case, label, np.nan if dice is None else float(dice))
            for case, labels in content["dice"].items()
            for label, dice in labels.items()
        ]
    if not runs:
        raise MutualError(
            f"{folder} holds no evidence file, a JSON object with {', '.join(KEYS)} as benchmarks/run.py writes it; "
            "give a folder such as benchmarks/evidence/hippocampus"
        )
    scores = pd.DataFrame(rows, columns=["arm", "seed", "case", "label", "dice"])
    return Evidence(str(runs[0].get("benchmark", folder.name)), runs, scores)


def report_evidence(
    folder: str, *, output: str | None = None, against: str | None = None, with_names: bool = False
) -> Path:
    """Writes a page about a benchmark, and a tidy table beside it.

    Args:
        folder: of the evidence files.
        output: page to write; report_NAME.html in the current folder if None.
        against: arm from which the others differ; the best one if None.
        with_names: show names of cases in the table instead of numbers.

    Raises:
        MutualError: no evidence, no such arm, or the page cannot be written.
    """
    evidence = read_evidence(Path(folder))
    path = blocks.choose_output(output, Path(f"report_{Path(folder).resolve().name}.html"))
    means = evidence.means
    arms = [str(arm) for arm in means.groupby("arm").dice.mean().sort_values(ascending=False).index]
    if against is not None and against not in arms:
        raise MutualError(f"{folder} has no arm {against}{meant(against, arms)}; it has: {', '.join(arms)}")
    reference = against or arms[0]
    differences = [difference(evidence.scores, arm, reference) for arm in arms if arm != reference]
    section = Section("arms", "Arms and seeds", [_table(evidence, arms), _plot(evidence, arms)])
    section.blocks += _differences(differences, reference)
    names = Identities(evidence.scores.case, shown=with_names)
    page = Page(
        title=f"Benchmark {evidence.name}",
        kind="benchmark",
        facts=[
            ("arms", str(len(arms))),
            ("runs", str(len(evidence.runs))),
            ("cases", str(evidence.scores.case.nunique())),
        ],
        findings=_notes(evidence, arms),
        questions=(),
        sections=[section, Section("origin", "Where the numbers come from", _origin(evidence))],
        footer=[f"Made by nnunet_mutual {version('nnunet_mutual')} from the evidence files alone."],
    )
    tables = {"dice": evidence.scores.assign(case=[names.case(key) for key in evidence.scores.case])}
    if differences:
        tables["differences"] = pd.DataFrame(
            [(*astuple(one), one.mean) for one in differences],
            columns=["arm", "arm_dice", "reference_dice", "cases", "low", "high", "better", "worse", "difference"],
        ).assign(reference=reference)
    for file in blocks.write(path, blocks.render(page), tables):
        print(file)
    print("Next: compare with the protocol in benchmarks/README.md before you believe a difference")
    return path


def difference(scores: pd.DataFrame, arm: str, reference: str) -> ModelDifference:
    """Compares two arms case by case: the mean over labels and over the seeds that both have."""
    seeds = set(scores.seed[scores.arm == arm]) & set(scores.seed[scores.arm == reference])
    common = scores[scores.seed.isin(seeds)]
    by_case = common.groupby(["arm", "case", "seed"]).dice.mean().groupby(["arm", "case"]).mean().unstack("arm")
    if not seeds:
        return compare(arm, np.array([]), np.array([]))
    return compare(arm, by_case[arm].to_numpy(float), by_case[reference].to_numpy(float))


def _table(evidence: Evidence, arms: Sequence[str]) -> Table:
    labels = list(dict.fromkeys(evidence.scores.label))
    words = {run["arm"]: str(run.get("words", "")) for run in evidence.runs}
    updates = {run["arm"]: run.get("total_updates") for run in evidence.runs}
    of_label = evidence.scores.groupby(["arm", "seed", "label"]).dice.mean().groupby(["arm", "label"]).mean()
    means = evidence.means
    rows: list[list[str | None]] = []
    for arm in arms:
        own = means.dice[means.arm == arm]
        spread = f"{own.min():.3f} to {own.max():.3f}" if len(own) > 1 else None
        values = [f"{value:.3f}" if value == value else None for value in of_label[arm].reindex(labels)]
        cost = f"{updates[arm]:,}" if isinstance(updates[arm], int) else None
        rows.append([arm, f"{own.mean():.3f}", spread, str(len(own)), *values, cost, words[arm] or None])
    return Table(
        "Mean Dice over cases, then labels, then seeds.",
        ["arm", "mean", "range of seeds", "seeds", *labels, "updates", "what it is"],
        rows,
        "differences between arms that are larger than the range of the seeds, at the same number of updates.",
    )


def _plot(evidence: Evidence, arms: Sequence[str]) -> Figure:
    return Figure(
        "Each run: a row per arm, a marker per seed; the bar is the mean of the seeds.",
        "arms whose seeds overlap: another seed may turn their order around.",
        [plots.arms_plot(evidence.means, arms)],
    )


def _differences(differences: Sequence[ModelDifference], reference: str) -> list[blocks.Block]:
    paired = [one for one in differences if one.n]
    found: list[blocks.Block] = []
    if paired:
        rows = [
            [
                one.label,
                f"{one.mean:+.4f}",
                None if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}",
                f"{one.better} / {one.worse}",
                str(one.n),
            ]
            for one in paired
        ]
        shows = (
            f"Paired differences from {reference}, case by case (mean of labels and of the seeds that both arms have). "
            "The interval is over resampled cases and holds for these seeds."
        )
        look = "intervals that contain 0, and arms with few seeds: there is no evidence of a difference."
        head = ["arm", "difference", "95 % interval", "cases better / worse", "cases"]
        found = [Figure(shows, look, [plots.differences_plot(paired, reference)]), Table(shows, head, rows)]
    lonely = [one.label for one in differences if not one.n]
    if lonely:
        found.append(Missing(f"No seed or case in common with {reference}: {', '.join(lonely)}."))
    return found


def _notes(evidence: Evidence, arms: Sequence[str]) -> list[Notice]:
    seeds = evidence.means.groupby("arm").size()
    few = [arm for arm in arms if seeds[arm] < FEW_SEEDS]
    notes = [Notice("note", f"Fewer than {FEW_SEEDS} seeds: {', '.join(few)}.")] if few else []
    cases = evidence.scores.groupby(["arm", "seed"]).case.agg(frozenset)
    if len(set(cases)) > 1:
        notes.append(Notice("note", "Not all runs were scored on the same cases; differences use those in common."))
    updates = {run["total_updates"] for run in evidence.runs if "total_updates" in run}
    if len(updates) > 1:
        notes.append(Notice("note", "The arms differ in their number of updates; the table says which had more."))
    return notes


def _origin(evidence: Evidence) -> list[blocks.Block]:
    said = list(dict.fromkeys(str(run["source"]) for run in evidence.runs if "source" in run))
    rows: list[list[str | None]] = []
    for key in (
        "scored_on",
        "schedule",
        "network",
        "augmentation",
        "precision",
        "checkpoint",
        "prediction",
        "versions",
    ):
        values = list(dict.fromkeys(_plain(run[key]) for run in evidence.runs if key in run))
        if values:
            rows.append([key.replace("_", " "), values[0] if len(values) == 1 else f"differs: {len(values)} forms"])
    found: list[blocks.Block] = [Text(f"Data: {text}.") for text in said]
    if not rows:
        return [*found, Missing("The evidence files hold scores only.")]
    return [*found, Table("The same in all runs, unless it says that it differs.", ["", ""], rows)]


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
