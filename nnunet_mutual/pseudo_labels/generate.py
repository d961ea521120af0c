"""Predicts the training cases of a fold and turns what the networks are sure of into pseudo labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.codes import UNDECIDED
from nnunet_mutual.annotation.restriction import vouched
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.images import voxel_ml
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.engine.validation import BARRIER_EVERY
from nnunet_mutual.engine.window import Window
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.judge import Prediction, Volumes, volumes_of
from nnunet_mutual.pseudo_labels.labeller import PseudoLabeller
from nnunet_mutual.pseudo_labels.opinions import asked_twice


@dataclass(frozen=True)
class Experts:
    """Networks that make pseudo labels.

    Attributes:
        networks: to ask.
        learnt: labels that each was trained on.
        settings: of the filter of what they say.
    """

    networks: Sequence[nn.Module]
    learnt: Sequence[frozenset[str]]
    settings: FilterSettings


def make_pseudo_labels(
    window: Window,
    fold: Fold,
    store: PseudoStore,
    experts: Experts,
    *,
    ranks: Ranks | None = None,
    say: Callable[..., Any] = print,
    between_cases: Callable[[], None] = lambda: None,
) -> list[Decision]:
    """Makes the pseudo labels of a fold's training cases; cases that are there are kept, processes share the work.

    Args:
        window: of the configuration.
        fold: whose training cases are labelled.
        store: where they go.
        experts: the networks to ask, and the filter.
        ranks: the processes of the training.
        say: prints to the log.
        between_cases: called after each case, to stop on a signal.

    Returns:
        All decisions.
    """
    ranks = ranks or Ranks()
    networks, learnt, settings = experts.networks, experts.learnt, experts.settings
    with ExitStack() as stack:
        predictors = stack.enter_context(asked_twice(window, networks))
        labeller = PseudoLabeller(fold.table, window.labels, window.mirror_axes, predictors, learnt, settings)
        dataset = fold.open(sorted(fold.training))
        wanted = [key for key in sorted(fold.training) if labeller.open_labels(fold.table.case(key))]
        if ranks.rank == 0 and store.claim(identity(networks, learnt, settings, window.dataset_json)):
            say(f"{store.folder} held pseudo labels of other networks or settings: made anew")
        ranks.barrier()
        mine = ranks.share(wanted)
        new = [key for key in mine if not store.has(key)]
        if new:
            labeller.true_volumes = true_volumes(fold.table, dataset)
        done = stack.enter_context(closing(label_cases(labeller, dataset, store, new)))
        missing = set(new)
        for i, key in enumerate(mine):
            if key in missing:
                say(f"pseudo labels of {key} ({i + 1} of {len(mine)})")
                next(done)
                between_cases()
            if (i + 1) % BARRIER_EVERY == 0 and i + 1 < len(wanted) // ranks.size:
                ranks.barrier()
        next(done, None)
    ranks.barrier()
    return store.summarise(wanted) if ranks.rank == 0 else store.decisions(wanted)


def identity(
    networks: Sequence[nn.Module],
    learnt: Sequence[frozenset[str]],
    settings: FilterSettings,
    dataset_json: dict[str, Any],
) -> dict[str, Any]:
    """Returns what pseudo labels depend on, as builtins: weights (hashed), labels, table (hashed), settings."""
    digest = hashlib.sha256()
    for network in networks:
        for value in unwrap(network).state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "weights": digest.hexdigest(),
        "learnt": [sorted(labels) for labels in learnt],
        "labels": dataset_json["labels"],  # with the table, what the codes mean
        "table": hashlib.sha256(table_fingerprint(dataset_json).encode()).hexdigest(),
        "settings": asdict(settings),
    }


def true_volumes(table: AnnotationTable, dataset: Any) -> Volumes:
    """Returns, per label, its volumes in millilitres in the cases that annotate it, zeros included."""
    volumes: Volumes = {label: [] for label in table.labels}
    for key in dataset.identifiers:
        _, seg, _, properties = load_case(dataset, key)
        size = voxel_volume(properties, seg.shape[1:])
        for label, volume in volumes_of(seg[0], table.case(key).annotated, table, size).items():
            volumes[label].append(volume)
    return volumes


def voxel_volume(properties: dict[str, Any], shape: Sequence[int]) -> float:
    """Returns the volume of a preprocessed voxel in millilitres, of whatever configuration.

    Args:
        properties: nnU-Net's, of the case.
        shape: of the preprocessed image.
    """
    before = properties["shape_after_cropping_and_before_resampling"]
    cubic_millimetres = np.prod(properties["spacing"]) * np.prod(before) / np.prod(shape)
    return float(cubic_millimetres) / 1000


def in_voxels(properties: dict[str, Any]) -> Callable[[float], str] | None:
    """Returns what says a volume in voxels of an image whose size nnU-Net's reader has invented."""
    if voxel_ml(properties) is not None:
        return None
    voxel = float(np.prod(properties["spacing"])) / 1000
    return lambda volume: f"{volume / voxel:.0f} voxels"


def label_cases(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, keys: Sequence[str]) -> Generator[str]:
    """Labels cases, reading the next one and filtering and writing the last one while the networks are asked.

    So there is one image more in memory than is predicted, and the probabilities of one case that is filtered.

    Args:
        labeller: knows the networks.
        dataset: nnU-Net's.
        store: where the pseudo labels go.
        keys: of the cases.

    Yields:
        The case of which the networks were asked; whoever asks for the next one, or closes this, waits until the last
        one is written.
    """
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        images = [ahead.submit(_read_image, dataset, key) for key in keys[:1]]
        written: list[Future[None]] = []
        for key, following in zip_longest(keys, keys[1:]):
            image = images.pop().result()
            if following is not None:
                images.append(ahead.submit(_read_image, dataset, following))
            found = labeller.predict(labeller.table.case(key), image)
            if written:
                written.pop().result()
            written.append(behind.submit(_write_case, labeller, dataset, store, key, found))
            del found, image
            yield key
        if written:
            written.pop().result()


def label_case(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, key: str) -> None:
    """Makes the pseudo labels of a case and stores them."""
    for _ in label_cases(labeller, dataset, store, [key]):
        pass


def _read_image(dataset: Any, key: str) -> Tensor:
    return torch.from_numpy(np.array(load_case(dataset, key)[0][:], copy=True))


def _write_case(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, key: str, found: Prediction) -> None:
    _, seg, _, properties = load_case(dataset, key)
    case = labeller.table.case(key)
    drawn = vouched(np.asarray(seg[0]), labeller.table, case)
    size = voxel_volume(properties, drawn.shape)
    codes, candidates, decisions = labeller.judge(case, found, drawn, size, in_voxels(properties))
    decided = labeller.codes.decided_values(codes)
    merged = np.where(decided == UNDECIDED, drawn, decided)
    places = locations(labeller.table, labeller.labels, case, merged, decisions)
    store.note(key, dataset.source_folder)
    store.write(key, codes[None], places, decisions, candidates=candidates[None], like=seg)


def locations(
    table: AnnotationTable, manager: LabelManager, case: Case, merged: np.ndarray, decisions: Sequence[Decision]
) -> dict[Any, Any]:
    """Returns nnU-Net's ``class_locations`` of drawn and accepted labels, from which patches are drawn.

    Args:
        table: who drew what.
        manager: nnU-Net's, of the labels.
        case: what it annotates.
        merged: (*spatial) decided values, drawn ones where nothing was decided.
        decisions: about the case.
    """
    accepted = case.drawn | {decision.label for decision in decisions if decision.accepted}
    classes: list[Any] = [tuple(table.values[n]) if table.is_regions else table.values[n][0] for n in table.labels]
    known = [c for c, name in zip(classes, table.labels, strict=True) if name in accepted]
    asked = [*known, (-1, *map(int, manager.all_labels))] if manager.has_ignore_label else known
    found = DefaultPreprocessor._sample_foreground_locations(merged[None], asked) if asked else {}
    return {c: found.get(c, []) for c in [*classes, *asked]}
