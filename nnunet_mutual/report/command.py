"""`nnunet_mutual report`: collects, draws and writes the page about one fold of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.audit import Decision
from nnunet_mutual.report import blocks
from nnunet_mutual.report.blocks import Page, Section, Table, Text
from nnunet_mutual.report.data import coverage_table, data, decisions_of
from nnunet_mutual.report.findings import findings
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import networks_per_epoch, read_alarms, read_curves, read_versions
from nnunet_mutual.report.progress import progress
from nnunet_mutual.report.results import first_network, results
from nnunet_mutual.report.scores import paired, read_other, read_scores, validations
from nnunet_mutual.report.training import Training, open_training

PAGE = "report.html"
QUESTIONS = (
    ("Are your images like those of a source it was trained on: scanner, sequence, contrast, patients?", "data"),
    ("Is every label that you need scored on enough cases, of a source like yours?", "results"),
    ("Would you see the errors of the worst cases, and could you correct them in time?", "results"),
    ("Did the training go as it should, or do alarms and curves say otherwise?", "progress"),
)


def report(
    dataset: str,
    configuration: str,
    *,
    trainer: str,
    plans: str,
    fold: str,
    output: str | None = None,
    compare: str | None = None,
    with_names: bool = False,
    images: bool = True,
) -> Path:
    """Writes a page about one fold of a training, and tidy tables beside it.

    Args:
        dataset: ID or name of the dataset.
        configuration: the trained configuration.
        trainer: the trainer it was trained with.
        plans: the plans it was trained with.
        fold: the fold.
        output: page to write; report.html in the folder of the fold if None.
        compare: folder of another training, or of another validation of the same cases.
        with_names: show names of cases instead of numbers.
        images: show slices of patients' images.

    Returns:
        The page.

    Raises:
        MutualError: there is no such training, or the page cannot be written.
    """
    training = open_training(dataset, configuration, trainer=trainer, plans=plans, fold=fold)
    path = blocks.choose_output(output, training.folder / PAGE)
    table = training.table
    folders = validations(training.folder)
    scores = read_scores(folders, table)
    other = None
    if compare is not None:
        other = read_other(Path(compare), fold, table)
        if scores.empty or paired(scores, other[1]).empty:
            raise MutualError(
                f"{compare} has no case in common with the validation of {training.folder}; compare another"
            )
    names = Identities.of(
        table,
        {*training.split.training, *training.split.validation, *training.unlabelled, *scores.case},
        shown=with_names,
    )
    curves, alarms, decisions = (
        read_curves(training.folder, table.labels),
        read_alarms(training.folder),
        decisions_of(training),
    )
    covered = coverage_table(training)
    noted = findings(training, alarms, scores, curves, decisions, names)
    sections = [
        results(training, scores, folders, other, names, images=images),
        data(training, covered, decisions),
        progress(training, curves),
        _settings(training, curves),
    ]
    title = f"{trainer} on {training.folders.name}, {configuration}, fold {fold}"
    page = Page(
        title,
        "training",
        _facts(training, scores, curves, len(alarms)),
        noted,
        QUESTIONS,
        sections,
        _footer(names, images),
    )
    tables = _tables(scores, other, curves, covered, decisions, noted, names)
    written = blocks.write(path, blocks.render(page), tables)
    for file in written:
        print(file)
    print(f"{len(alarms)} alarm(s) of the training and {len(noted) - len(alarms)} note(s) are at the top of the page")
    print(f"Next: {_next(training, scores)}")
    return path


def _facts(training: Training, scores: pd.DataFrame, curves: pd.DataFrame, alarms: int) -> list[tuple[str, str]]:
    done = int(curves.epoch.max()) + 1 if len(curves) else 0
    of = f" of {training.epochs_planned}" if not training.finished else ""
    facts = [("state", f"{'finished' if training.finished else 'not finished'}, {done}{of} epochs")]
    for network, own in scores.dropna(subset=["dice"]).groupby("network", sort=False):
        means, of = own.groupby("label").dice.mean(), f", {network}" if network else ""
        facts.append((f"mean Dice over labels{of}", f"{means.mean():.3f}"))
        facts.append((f"lowest label{of}", f"{means.idxmin()}, {means.min():.3f}"))
    if len(scores):
        facts.append(("validation cases", str(scores.case.nunique())))
    facts.append(("alarms in the log", str(alarms)))
    return facts


def _settings(training: Training, curves: pd.DataFrame) -> Section:
    section = Section("settings", "Settings and versions")
    networks = networks_per_epoch(curves)
    steps = training.iterations
    epochs = int(curves.epoch.max()) + 1 if len(curves) else 0
    updates = sum(networks.get(epoch, 1) for epoch in range(epochs)) * steps
    hours = float(curves.value[curves.kind == "seconds"].sum()) / 3600
    rows: list[list[str | None]] = [
        ["trainer", training.trainer],
        ["plans, configuration", f"{training.plans}, {training.configuration}"],
        ["epochs", str(epochs)],
        ["network updates", f"{updates:,} ({steps} in an epoch)" if training.settings or epochs else None],
        ["networks that learn together", str(max(networks.values(), default=1))],
        ["hours of the epochs", f"{hours:.1f}" if hours else None],
    ]
    rows += [[name, text] for name, text in read_versions(training.folder).items()]
    section.blocks.append(Table("The training.", ["", ""], rows))
    if training.settings is None:
        section.blocks.append(Text(f"{training.trainer} is no trainer of nnunet_mutual; it keeps no list of settings."))
        return section
    changed = [line.partition(": ") for line in training.changed_settings]
    if changed:
        cells = [[name, *text.split(" -> ", 1)] for name, _, text in changed]
        section.blocks.append(Table("Settings that differ from the defaults.", ["setting", "default", "here"], cells))
    else:
        section.blocks.append(Text("All settings are the defaults."))
    return section


def _footer(names: Identities, images: bool) -> list[str]:
    lines = [f"Made by nnunet_mutual {version('nnunet_mutual')}. Not a medical device; for research."]
    if names.shown:
        lines.append("This page names cases: it stays within the group that works with these data.")
    else:
        lines.append("Cases are numbered in the order of their names; --with-names shows the names.")
    if images:
        lines.append("It may hold slices of patients' images; --no-images leaves them out.")
    return lines


def _tables(
    scores: pd.DataFrame,
    other: tuple[str, pd.DataFrame] | None,
    curves: pd.DataFrame,
    covered: pd.DataFrame,
    decisions: Sequence[Decision],
    noted: Sequence[blocks.Finding],
    names: Identities,
) -> Mapping[str, pd.DataFrame]:
    found: dict[str, pd.DataFrame] = {
        "dice": _named(scores, names),
        "curves": curves,
        "coverage": covered,
        "findings": pd.DataFrame([asdict(one) for one in noted], columns=["level", "text", "when"]),
    }
    if other is not None:
        both = paired(first_network(scores), other[1])
        found["paired"] = _named(both, names)[["case", "source", "label", "dice", "dice_other"]]
    if decisions:
        entries: list[dict[str, Any]] = [asdict(one) for one in decisions]
        found["pseudo_labels"] = _named(pd.DataFrame(entries), names)
    return found


def _named(rows: pd.DataFrame, names: Identities) -> pd.DataFrame:
    return rows.assign(case=[names.case(key) for key in rows.case])


def _next(training: Training, scores: pd.DataFrame) -> str:
    if not training.finished:
        return f"{training.command} --c"
    if scores.empty:
        return f"{training.command} --val"
    if training.settings is None:
        named = f"{training.folders.number} -c {training.configuration} -tr {training.trainer} -p {training.plans}"
        return f"nnUNetv2_find_best_configuration {named} -f {training.fold}"
    return f"nnunet_mutual export {training.options}"
