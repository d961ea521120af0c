"""Predicts the training cases of a fold and turns what the networks are sure of into pseudo labels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_mutual.annotation.codes import UNDECIDED
from nnunet_mutual.annotation.restriction import vouched
from nnunet_mutual.annotation.table import AnnotationTable, Case, table_fingerprint
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.images import voxel_ml
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.engine.validation import BARRIER_EVERY
from nnunet_mutual.engine.window import Window
from nnunet_mutual.evaluation.masks import dice
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.judge import Judge, Prediction, Volumes
from nnunet_mutual.pseudo_labels.opinions import asked_twice

SLAB = 32  # planes


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


class PseudoLabeller(Judge):
    """Makes the pseudo labels of single cases by networks.

    Args:
        table: who drew what.
        labels: nnU-Net's.
        mirror_axes: that the predictors mirror.
        predictors: one per network, as :class:`~nnunet_mutual.pseudo_labels.opinions.TwoOpinions`.
        learnt: labels that each network was trained on.
        settings: of the filter.
    """

    def __init__(
        self,
        table: AnnotationTable,
        labels: LabelManager,
        mirror_axes: Sequence[int] | None,
        predictors: Sequence[nnUNetPredictor],
        learnt: Sequence[frozenset[str]],
        settings: FilterSettings,
    ):
        super().__init__(table, labels.ignore_label, settings)
        self.labels = labels
        self.learnt = list(learnt)
        self.mirror_axes = mirror_axes or ()
        self.predictors = list(predictors)

    def open_labels(self, case: Case) -> list[str]:
        """Labels that the case does not annotate and some network has learnt."""
        everything = frozenset().union(*self.learnt)
        return [label for label in self.table.labels if label in everything - case.annotated]

    def label(
        self,
        case: Case,
        image: Tensor,
        drawn: np.ndarray,
        voxel_ml: float,
        said: Callable[[float], str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[Decision]]:
        """Makes the pseudo labels of a case from its preprocessed image (M, *spatial); see :meth:`Judge.judge`."""
        return self.judge(case, self._predict(self.open_labels(case), image), drawn, voxel_ml, said)

    def _predict(self, names: Sequence[str], image: Tensor) -> Prediction:
        networks = {name: [n for n, own in enumerate(self.learnt) if name in own] for name in names}
        masks: dict[str, list[np.ndarray]] = {name: [] for name in names}
        total: Any = 0.0
        for n in sorted({n for members in networks.values() for n in members}):
            own = [name for name in names if n in networks[name]]
            p, above = self._ask(n, image, [self.channel[name] for name in own])
            weight = np.zeros((len(p), *[1] * (p.ndim - 1)), np.float32)
            for i, name in enumerate(own):
                weight[self.channel[name]] = 1 / len(networks[name])
                alone = len(networks[name]) == 1  # then nnU-Net's mirroring gives the second opinion
                masks[name] += list(above[1:, i] if alone else above[:1, i])
            total = total + weight * p
        agreements = {
            name: min((dice(a, b, empty=1.0) for a, b in itertools.combinations(found, 2)), default=None)
            for name, found in masks.items()
        }
        # Within one softmax only one label can exceed one half: two of them come from two networks.
        several = (total[[self.channel[name] for name in names]] > 0.5).sum(0) > 1
        return Prediction(total, agreements, networks, None if self.table.is_regions else several)

    def _ask(self, network: int, image: Tensor, channels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Asks a network; on its device, and slab by slab, since float32 takes several times the memory of the logits.

        Returns:
            (C, *spatial) float32 probabilities, and (1 + halves, channels, *spatial) bool, where some of them exceed
            one half: with mirroring, then by the image alone and by its mirrored copies alone.
        """
        p, above = [], []
        halves = self._halves(network, image)
        for slabs in zip(*(half.split(SLAB, 1) for half in halves), strict=True):
            parts = [slab.float() for slab in slabs]
            said = [self._probabilities(z) for z in (_mean_of(parts, 2 ** len(self.mirror_axes)), *parts)]
            p.append(said[0].cpu())
            above.append(torch.stack([opinion[list(channels)] > 0.5 for opinion in said]).cpu())
        return torch.cat(p, 1).numpy(), torch.cat(above, 2).numpy()

    def _halves(self, network: int, image: Tensor) -> list[Tensor]:
        """Logits without mirroring, and the mean over all mirrored images where there are axes to mirror."""
        logits: Tensor = self.predictors[network].predict_sliding_window_return_logits(image)
        return list(logits.chunk(2)) if self.mirror_axes else [logits]

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.table.is_regions else logits.softmax(0)


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
    with asked_twice(window, networks) as predictors:
        labeller = PseudoLabeller(fold.table, window.labels, window.mirror_axes, predictors, learnt, settings)
        dataset = fold.open(sorted(fold.training))
        wanted = [key for key in sorted(fold.training) if labeller.open_labels(fold.table.case(key))]
        if ranks.rank == 0 and store.claim(identity(networks, learnt, settings, window.dataset_json)):
            say(f"{store.folder} held pseudo labels of other networks or settings: made anew")
        ranks.barrier()
        mine = ranks.share(wanted)
        if not all(store.has(key) for key in mine):
            labeller.true_volumes = true_volumes(fold.table, dataset)
        for i, key in enumerate(mine):
            if not store.has(key):
                say(f"pseudo labels of {key} ({i + 1} of {len(mine)})")
                label_case(labeller, dataset, store, key)
                between_cases()
            if (i + 1) % BARRIER_EVERY == 0 and i + 1 < len(wanted) // ranks.size:
                ranks.barrier()
    ranks.barrier()
    return store.summarise(wanted) if ranks.rank == 0 else store.decisions(wanted)


def _mean_of(halves: Sequence[Tensor], number: int) -> Tensor:
    """nnU-Net's mean over an image and its ``number - 1`` mirrored ones."""
    return halves[0] if len(halves) == 1 else (halves[0] + (number - 1) * halves[1]) / number


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
        values, counts = np.unique(seg[0], return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        for label in table.case(key).annotated:
            voxels = sum(found.get(value, 0) for value in table.values[label])
            volumes[label].append(voxels * voxel_volume(properties, seg.shape[1:]))
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


def label_case(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, key: str) -> None:
    """Makes the pseudo labels of a case and stores them."""
    data, seg, _, properties = load_case(dataset, key)
    case = labeller.table.case(key)
    drawn = vouched(np.asarray(seg[0]), labeller.table, case)
    image = torch.from_numpy(np.array(data[:], copy=True))
    size = voxel_volume(properties, drawn.shape)
    codes, candidates, decisions = labeller.label(case, image, drawn, size, in_voxels(properties))
    decided = labeller.codes.decided_values(codes)
    found = locations(labeller.table, labeller.labels, case, np.where(decided == UNDECIDED, drawn, decided), decisions)
    store.write(key, codes[None], found, decisions, candidates=candidates[None], like=seg)


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
