"""`nnunet_mutual suggest`: where to draw next, as a page, a table to fill in, and masks to correct."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases
from nnunet_mutual.disk.folders import output_folder
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError, shorten, typed
from nnunet_mutual.evaluation.metrics import parse_by_label
from nnunet_mutual.plugin.find import resolve
from nnunet_mutual.pseudo_labels.command import load_networks, require_own
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import Experts
from nnunet_mutual.pseudo_labels.review.doubt import Doubt
from nnunet_mutual.pseudo_labels.review.make import PAGE, write_folder
from nnunet_mutual.pseudo_labels.review.source import ReviewSource
from nnunet_mutual.pseudo_labels.review.verdicts import COLUMNS, TABLE
from nnunet_mutual.pseudo_labels.suggest.measuring import measure
from nnunet_mutual.pseudo_labels.suggest.pool import Pool, open_pool
from nnunet_mutual.pseudo_labels.suggest.ranking import Suggestion, rank

_HEADER = ("rank", *COLUMNS[:2], "disagreement", "size", "variety", "minutes", "why", *COLUMNS[2:])
_TEMPLATE = Path(__file__).with_name("suggestions.html")
_SIMILAR = 0.5  # variety below which a reader is told that one like it is further up


@dataclass(frozen=True)
class _Asked:
    """Networks of one fold or several, and what makes their opinions independent."""

    training: NamedTraining
    store: PseudoStore
    window: Window
    experts: Experts
    opinions: str


def suggest(
    dataset: str,
    configuration: str,
    folds: Sequence[str],
    *,
    trainer: str,
    plans: str,
    checkpoint: str,
    output: str,
    minutes: Sequence[str],
    most: int,
    device: str,
) -> None:
    """Writes a folder for a reader, as ``review`` does, with what to draw next: best first.

    Predictions are kept beside the checkpoint, so that a run that was interrupted, or another one with other minutes,
    goes on with what is there.

    Args:
        dataset: ID or name.
        configuration: of the training.
        folds: whose networks are asked; the validation patients of each are left out.
        trainer: a trainer of this package.
        plans: identifier.
        checkpoint: whose networks are asked.
        output: a folder that does not exist yet, or is empty.
        minutes: that drawing takes, ``MINUTES`` or ``LABEL=MINUTES``; 1, unless said.
        most: at most so many.
        device: "cuda", "cpu" or "mps".

    Raises:
        MutualError: there is nothing to draw, the training or its checkpoint is missing, or an option is wrong.
    """
    place = output_folder(output, new="no decision")
    folders = locate(dataset, need_raw=True, need_preprocessed=True)
    trainings = [NamedTraining(folders.name, configuration, fold, trainer, plans) for fold in dict.fromkeys(folds)]
    minutes_of = _minutes(minutes, folders)
    _require_fitting(trainings[0], folders)
    asked = _ask(trainings, checkpoint, device)
    pool = open_pool(folders, asked.window, [training.fold for training in trainings])
    _warn(pool, asked)
    pairs = measure(pool, asked.window, asked.experts, asked.store)
    if not pairs:
        raise MutualError(
            "none of these networks has learnt a label that a case leaves open, so there is nothing to suggest; draw "
            "a few cases of such a label first, and train again"
        )
    chosen = rank(pairs, minutes_of, most)
    _write(chosen, len(pairs), _source(pool, folders, asked), asked.opinions, place)
    _say(chosen, len(pairs), folders, place)


def _require_fitting(training: NamedTraining, folders: DatasetFolders) -> None:
    """Verifies that the networks can be asked, and that no training case has come since, as accept adds them."""
    assert folders.raw is not None
    require_own(training.trainer)
    if resolve("trainers", training.trainer).by_group:
        raise MutualError(
            f"{training.trainer} has a network for each modality group, which suggest does not ask; name a training of "
            "another trainer with -tr, such as PartialTrainer"
        )
    content = read_dataset_json(training.find_model())
    table = AnnotationTable.from_dataset_json(content)
    new = [key for key in training_cases(folders.raw, content)[0] if table.declared and key not in table.cases]
    if new:
        raise MutualError(
            f"{shorten(new)} became training cases after {training.trainer} was trained, so it knows nothing of them; "
            f"move the folder of that training away, train anew, then suggest: {training.command}"
        )


def _ask(trainings: Sequence[NamedTraining], checkpoint: str, device: str) -> _Asked:
    """Opens the networks of all folds."""
    networks: list[nn.Module] = []
    learnt: list[frozenset[str]] = []
    made: Any = None
    for training in reversed(trainings):
        made = load_networks(training, checkpoint, device)
        made.stage.collect()
        networks += made.pseudo_labelling
        learnt += made.network_labels()
    opinions = "networks" if len(networks) > 1 else "the image and its mirrored copies"
    if len(networks) == 1 and not made.window.mirror_axes:
        opinions = ""
        if made.peers.averages:
            networks, learnt = [*networks, made.peers.deployable[0]], learnt * 2
            opinions = "a network and its moving average"
    store = PseudoStore(Path(made.output_folder) / f"suggest_{Path(checkpoint).stem.removeprefix('checkpoint_')}")
    return _Asked(trainings[0], store, made.window, Experts(networks, learnt, FilterSettings()), opinions)


def _minutes(words: Sequence[str], folders: DatasetFolders) -> dict[str, float]:
    """Returns the minutes that drawing each label takes."""
    assert folders.raw is not None
    table = AnnotationTable.from_dataset_json(read_dataset_json(folders.raw))
    return parse_by_label(
        "--minutes",
        words,
        table.labels,
        general=1.0,
        accepts=lambda value: 0 < value < math.inf,
        expected="expected minutes above 0, such as --minutes 5 or --minutes spleen=3 liver=20",
    )


def _warn(pool: Pool, asked: _Asked) -> None:
    """Says what makes the list less than it could be."""
    if not asked.opinions:
        print(
            "WARNING: one network that mirrors nothing has no second opinion, so disagreement is not measured and size "
            "and variety alone decide; train further folds and name them with -f 0 1 2"
        )
    unlisted = [key for _, key in pool.cases() if pool.files[key].unlabelled and key not in pool.listed]
    if unlisted and len(pool.table.sources) > 1:
        print(
            f"WARNING: the table does not say of which source {shorten(unlisted)} of imagesUn is; accept will ask for "
            "it, so list these images with source and no label: nnunet_mutual annotate"
        )


def _source(pool: Pool, folders: DatasetFolders, asked: _Asked) -> ReviewSource:
    """Returns what the masks and pictures are made of."""
    plans = asked.window.plans
    return ReviewSource(
        asked.training,
        folders,
        pool.content,
        pool.table,
        pool.files,
        asked.store,
        [],
        asked.experts.settings,
        plans.image_reader_writer_class(),
        plans,
    )


def _write(chosen: Sequence[Suggestion], pairs: int, source: ReviewSource, opinions: str, place: Path) -> None:
    """Writes the folder of the reader."""
    decisions = {(d.case, d.label): d for d in source.store.decisions(dict.fromkeys(one.pair.case for one in chosen))}
    shown = [(decisions[one.pair.case, one.pair.label], Doubt(one.score, _why(one), True)) for one in chosen]
    rows = [_row(number, one) for number, one in enumerate(chosen, 1)]
    words = {"suggestions": chosen, "pairs": pairs, "opinions": opinions or "there are none here"}
    write_folder(source, shown, place, [_HEADER, *rows], _TEMPLATE, **words)


def _row(number: int, one: Suggestion) -> list[object]:
    """A line of the table, of which the reader fills in the last columns."""
    measures = [f"{value:.2f}" for value in (one.disagreement, one.size, one.variety)]
    return [number, one.pair.case, one.pair.label, *measures, f"{one.minutes:g}", _why(one), "", "", ""]


def _why(one: Suggestion) -> str:
    """Says in words why it is there."""
    pair = one.pair
    if pair.missed:
        said = "nothing was found, but every drawn case has it: missed, or outside of the image"
    else:
        agree = "not measured" if pair.agreement is None else f"{pair.agreement:.2f}"
        said = f"agreement of independent predictions (Dice): {agree}; {pair.size:.2g} times the usual volume"
    return said if one.variety >= _SIMILAR else f"{said}; like one further up"


def _say(chosen: Sequence[Suggestion], pairs: int, folders: DatasetFolders, place: Path) -> None:
    rest = f" of {pairs}" if len(chosen) < pairs else ""
    print(f"{len(chosen)}{rest} undrawn structures of {folders.name}, the most instructive first: {place / PAGE}")
    for number, one in enumerate(chosen[:5], 1):
        print(f"  {number}. {one.pair.label} in {one.pair.case}: {_why(one)}; {one.minutes:g} min")
    print(f"Next: correct or draw the masks in {place / 'candidates'}, fill in {place / TABLE}, then run")
    print(f"  nnunet_mutual accept {folders.number} {typed(place / TABLE)} --dry-run")
