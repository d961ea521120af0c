"""Asks networks about every case in which something may be drawn, and keeps what ranking needs of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.files import read_json, write_json
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.engine.window import Window
from nnunet_mutual.pseudo_labels.generate import (
    Experts,
    identity,
    label_case,
    true_volumes,
    voxel_volume,
)
from nnunet_mutual.pseudo_labels.labeller import PseudoLabeller
from nnunet_mutual.pseudo_labels.opinions import asked_twice
from nnunet_mutual.pseudo_labels.suggest.pool import Pool
from nnunet_mutual.pseudo_labels.suggest.ranking import Pair

_PAIRS = "pairs"
_QUANTILES = (5, 25, 50, 75, 95)
_PAIR: Shape = {
    **dict.fromkeys(("case", "label", "source"), str),
    "patient": (str, None),
    "agreement": (float, None),
    "size": float,
    "expected": bool,
    "look": [float],
}


def measure(
    pool: Pool, window: Window, experts: Experts, store: PseudoStore, say: Callable[[str], Any] = print
) -> list[Pair]:
    """Predicts the cases of a pool; those that are there already are kept.

    Args:
        pool: what may be drawn.
        window: of the configuration.
        experts: the networks, and the filter whose reasons are noted.
        store: where predictions go.
        say: prints.

    Returns:
        The pairs, in the order of the cases.
    """
    with asked_twice(window, experts.networks) as predictors:
        labels, axes = window.labels, window.mirror_axes
        labeller = PseudoLabeller(pool.table, labels, axes, predictors, experts.learnt, experts.settings)
        if store.claim(identity(experts.networks, experts.learnt, experts.settings, pool.content)):
            say(f"{store.folder} held predictions of other networks or of another table: made anew")
        wanted = [(part, key) for part, key in pool.cases() if labeller.open_labels(pool.table.case(key))]
        pending = [(part, key) for part, key in wanted if not _is_there(store, key, part)]
        if pending:
            labeller.true_volumes = true_volumes(pool.table, pool.drawn)
        (store.folder / _PAIRS).mkdir(exist_ok=True)
        done = len(wanted) - len(pending)
        for part, key in tqdm(pending, desc="predicting", unit="case", initial=done, total=len(wanted)):
            label_case(labeller, part, store, key)
            write_json(_file(store, key), [asdict(pair) for pair in _pairs(labeller, part, store, key)])
    return [pair for _, key in wanted for pair in _read(store, key)]


def _pairs(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, key: str) -> list[Pair]:
    """Returns what was measured of the pairs of a case that has just been predicted."""
    data, _, _, properties = load_case(dataset, key)
    image, candidates = np.asarray(data[:]), store.candidates(key)
    assert candidates is not None
    case, voxel = labeller.table.case(key), voxel_volume(properties, image.shape[1:])
    found = []
    for decision in store.decisions([key]):
        mask = np.isin(candidates[0], labeller.table.values[decision.label])
        size, expected = _size(float(mask.sum()) * voxel, labeller.true_volumes[decision.label])
        found.append(_pair(case, decision, size, expected, look(image, mask)))
    return found


def _pair(case: Case, decision: Decision, size: float, expected: bool, look: Sequence[float]) -> Pair:
    return Pair(case.key, decision.label, case.source, case.patient, decision.agreement, size, expected, tuple(look))


def _size(volume: float, drawn: Sequence[float]) -> tuple[float, bool]:
    """Returns a volume as a multiple of the median of drawn ones, and whether all drawn cases have the label."""
    present = [other for other in drawn if other > 0]
    usual = float(np.median(present)) if present else volume
    return (volume / usual if usual else 0.0), bool(present) and len(present) == len(drawn)


def look(image: np.ndarray, mask: np.ndarray) -> list[float]:
    """Returns what a place looks like: quantiles of each channel, and how far the structure reaches.

    Args:
        image: (M, *spatial), preprocessed, so that voxels and intensities of all cases can be compared.
        mask: (*spatial) bool; where it is empty the whole image is looked at.

    Returns:
        5 M quantiles within the box around the mask, the extents of that box and the number of voxels (logarithms).
    """
    places = np.nonzero(mask)
    box = tuple(slice(i.min(), i.max() + 1) for i in places) if len(places[0]) else (slice(None),) * mask.ndim
    inside = image[(slice(None), *box)].reshape(len(image), -1)
    extents = [i.max() - i.min() + 1 if len(i) else 0 for i in places]
    numbers = np.log1p([*extents, mask.sum()])
    return [*np.percentile(inside, _QUANTILES, axis=1).T.ravel().tolist(), *numbers.tolist()]


def _file(store: PseudoStore, key: str) -> Path:
    """What ranking needs of a case; written last."""
    return store.folder / _PAIRS / f"{key}.json"


def _is_there(store: PseudoStore, key: str, dataset: Any) -> bool:
    """Whether a case was predicted, and not preprocessed since."""
    return store.has(key) and _file(store, key).exists() and not store.outdated(key, dataset.source_folder)


def _read(store: PseudoStore, key: str) -> list[Pair]:
    entries = read_json(_file(store, key))
    require_shape(entries, [_PAIR], _file(store, key), f"delete {store.folder} and run nnunet_mutual suggest again")
    return [Pair(**{**{name: entry[name] for name in _PAIR}, "look": tuple(entry["look"])}) for entry in entries]
