"""`nnunet_mutual report`: collects, draws and writes the page about one fold of a training."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from nnunet_mutual.report import blocks
from nnunet_mutual.report.blocks import Page, Section, Table, Text
from nnunet_mutual.report.collect import Collected, collect, tidy
from nnunet_mutual.report.data import data
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import networks_per_epoch, read_versions
from nnunet_mutual.report.progress import progress
from nnunet_mutual.report.results import results
from nnunet_mutual.report.training import open_training

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
    found = collect(training, compare, with_names=with_names)
    for file in blocks.write(path, blocks.render(_page(found, images)), tidy(found)):
        print(file)
    for alarm in found.alarms:
        print(f"ALARM: {alarm.text}" + (f" What to do: {alarm.do}" if alarm.do else ""))
    others = len(found.findings) - len(found.alarms)
    print(f"{len(found.alarms)} alarm(s) and {others} warning(s) and notes are at the top of the page")
    print(f"Next: {_next(found)}")
    return path


def _page(found: Collected, images: bool) -> Page:
    training = found.training
    where = f"{training.folders.name}, {training.configuration}, fold {training.fold}"
    return Page(
        title=f"{training.trainer} on {where}",
        kind="training",
        facts=_facts(found),
        findings=found.findings,
        questions=QUESTIONS,
        sections=[
            results(training, found.scores, found.validated, found.other, found.names, images=images),
            data(training, found.coverage, found.decisions),
            progress(training, found.curves),
            _settings(found),
        ],
        footer=_footer(found.names, images),
        lead="" if training.acted is None else f"Trained: {training.acted.trained}.",
        next=_next(found),
        labels=training.table.labels,
    )


def _facts(found: Collected) -> list[tuple[str, str]]:
    finished = found.training.finished
    state = "finished, " if finished else "not finished, "
    of = "" if finished else f" of {found.training.epochs_planned}"
    facts = [("state", f"{state}{found.epochs}{of} epochs")]
    for network, own in found.scores.dropna(subset=["dice"]).groupby("network", sort=False):
        means, of = own.groupby("label").dice.mean(), f", {network}" if network else ""
        facts.append((f"mean Dice over labels{of}", f"{means.mean():.3f}"))
        facts.append((f"lowest label{of}", f"{means.idxmin()}, {means.min():.3f}"))
    if len(found.scores):
        facts.append(("validation cases", str(found.scores.case.nunique())))
    return [*facts, ("alarms", str(len(found.alarms)))]


def _settings(found: Collected) -> Section:
    section = Section("settings", "Settings and versions")
    training, networks = found.training, networks_per_epoch(found.curves)
    updates = sum(networks.get(epoch, 1) for epoch in range(found.epochs)) * training.iterations
    hours = float(found.curves.value[found.curves.kind == "seconds"].sum()) / 3600
    rows: list[list[str | None]] = [
        ["trainer", training.trainer],
        ["what it trained", training.acted.trained if training.acted else None],
        ["plans, configuration", f"{training.plans}, {training.configuration}"],
        ["epochs", str(found.epochs)],
        ["network updates", f"{updates:,} ({training.iterations} in an epoch of a network)"],
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


def _next(found: Collected) -> str:
    """The command that comes next; of a model that alarms speak against, no export."""
    training = found.training
    if not training.finished:
        return training.how_on
    if found.scores.empty:
        return f"{training.command} --val"
    if found.alarms:
        return f"answer the {len(found.alarms)} alarm(s) before this model is used or passed on"
    if training.settings is None:
        named = f"{training.folders.number} -c {training.configuration} -tr {training.trainer} -p {training.plans}"
        return f"nnUNetv2_find_best_configuration {named} -f {training.fold}"
    return f"nnunet_mutual export {training.options}"
