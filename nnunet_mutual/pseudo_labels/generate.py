"""Predicts the training cases of a fold and turns what the networks are sure of into pseudo labels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.possible import hypotheses, left_open, output_channels
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
from nnunet_mutual.pseudo_labels.filter import (
    FilterSettings,
    decide_regions,
    decide_voxels,
    judge_label,
    keep_main_component,
)
from nnunet_mutual.pseudo_labels.opinions import asked_twice

Volumes = dict[str, list[float]]
SLAB = 32  # planes


@dataclass(frozen=True)
class Prediction:
    """What the networks say about a case.

    Attributes:
        probability: (C, *spatial), mean over the networks that learnt the output; 0 where none did.
        agreements: smallest Dice between two opinions on a label; None if there is only one.
        networks: which networks were asked about a label.
        conflict: (*spatial) bool, where two networks are sure of different labels; None for regions.
    """

    probability: np.ndarray
    agreements: dict[str, float | None]
    networks: dict[str, list[int]]
    conflict: np.ndarray | None


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


class PseudoLabeller:
    """Makes the pseudo labels of single cases.

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
        self.table = table
        self.labels = labels
        self.settings = settings
        self.learnt = list(learnt)
        self.codes = PseudoCodes.from_table(self.table, self.labels.ignore_label)
        self.mirror_axes = mirror_axes or ()
        self.predictors = list(predictors)
        self.channel = output_channels(table)
        self.true_volumes: Volumes = {}

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
        """Makes the pseudo labels of a case.

        Args:
            case: who it is and what it annotates.
            image: (M, *spatial), preprocessed.
            drawn: (*spatial) integers of the preprocessed label map.
            voxel_ml: volume of a voxel in millilitres.
            said: how a volume is written where that is none in millilitres, since the image says no size.

        Returns:
            (*spatial) int16 codes of drawn and decided values; (*spatial) int16 candidates, the likelier value of every
            open voxel, sure or not and accepted or not, -1 elsewhere; and a decision for each open label.
        """
        return self.judge(case, self.predict(case, image), drawn, voxel_ml, said)

    def predict(self, case: Case, image: Tensor) -> Prediction:
        """Asks the networks about the open labels of a case.

        Args:
            case: who it is and what it annotates.
            image: (M, *spatial), preprocessed.
        """
        return self._predict(self.open_labels(case), image)

    def judge(
        self,
        case: Case,
        found: Prediction,
        drawn: np.ndarray,
        voxel_ml: float,
        said: Callable[[float], str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[Decision]]:
        """Filters what the networks said; arguments and what is returned are those of :meth:`label`."""
        names = self.open_labels(case)
        decided = self._decide_main(case, names, found, drawn, self.settings)
        candidates = self._decide_main(case, names, found, drawn, replace(self.settings, voxel=False))
        chosen = decided != UNDECIDED
        share = float(chosen.sum()) / max(1, int((chosen | self._is_open(case, names, drawn)).sum()))
        decisions = []
        rejected = np.zeros(drawn.shape, bool)
        for name in names:
            inside = np.isin(decided, self.table.values[name])
            volume = float((inside | self._is_certain(case, name, drawn)).sum()) * voxel_ml
            verdict = judge_label(
                volume_ml=volume,
                agreement=found.agreements[name],
                true_volumes_ml=self.true_volumes.get(name, []),
                settings=self.settings,
                said=said,
            )
            if not verdict.accepted and not self.table.is_regions:
                rejected |= inside
            decision = Decision(
                case=case.key,
                source=case.source,
                label=name,
                accepted=verdict.accepted,
                reason=verdict.reason,
                volume_ml=volume if said is None or not volume else None,
                agreement=found.agreements[name],
                z=verdict.z,
                decided_share=share,
                networks="+".join(map(str, found.networks[name])),
            )
            decisions.append(decision)
        if rejected.any():  # "none of the accepted labels" may still be certain there
            accepted = [decision.label for decision in decisions if decision.accepted]
            none = self._decide(case, accepted, found, drawn, self.settings) == drawn
            decided[rejected] = np.where(none, drawn, UNDECIDED)[rejected]
        return self.codes.encode(drawn, decided), candidates, decisions

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

    def _decide_main(
        self, case: Case, names: Sequence[str], found: Prediction, drawn: np.ndarray, settings: FilterSettings
    ) -> np.ndarray:
        decided = self._decide(case, names, found, drawn, settings)
        for name in names:
            if name in self.table.singles:
                decided = self._keep_main(case, name, decided, drawn)
        return decided

    def _decide(
        self, case: Case, names: Sequence[str], found: Prediction, drawn: np.ndarray, settings: FilterSettings
    ) -> np.ndarray:
        if self.table.is_regions:
            hypotheses, membership = self._hypotheses(case)
            unknown = set(self.table.labels) - case.annotated - set(names)
            found.probability[[self.channel[name] for name in unknown]] = np.nan
            return decide_regions(found.probability, drawn, hypotheses, membership, settings)
        return decide_voxels(found.probability, drawn, self._open_values(case, names), found.conflict, settings)

    def _open_values(self, case: Case, names: Sequence[str]) -> dict[int, tuple[int, ...]]:
        """Per drawn value, the unannotated values that it leaves open."""
        values = {name: self.table.values[name][0] for name in names}
        return {
            drawn: tuple(value for name, value in values.items() if name in labels)
            for drawn, labels in left_open(self.table, case).items()
        }

    def _hypotheses(self, case: Case) -> tuple[dict[int, tuple[int, ...]], np.ndarray]:
        """Per drawn integer, those that agree with it on every annotated region; and which regions each is in."""
        same = hypotheses(self.table, case)
        membership = np.zeros((max(same) + 1, len(self.table.labels)), bool)
        for label in self.table.labels:
            membership[list(self.table.values[label]), self.channel[label]] = True
        return {y: tuple(sorted(integers)) for y, integers in sorted(same.items())}, membership

    def _is_certain(self, case: Case, name: str, drawn: np.ndarray) -> np.ndarray:
        """Where other drawn regions leave no doubt that a region is there, as a drawn core for the whole around it."""
        if not self.table.is_regions:
            return np.zeros(drawn.shape, bool)
        values = set(self.table.values[name])
        return np.isin(drawn, [y for y, integers in self._hypotheses(case)[0].items() if values.issuperset(integers)])

    def _keep_main(self, case: Case, name: str, decided: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        values, certain = self.table.values[name], self._is_certain(case, name, drawn)
        whole = np.where(certain, values[0], decided)  # pieces that a drawn part connects are one
        return np.where(certain, decided, keep_main_component(whole, [values], self.settings))

    def _is_open(self, case: Case, names: Sequence[str], drawn: np.ndarray) -> np.ndarray:
        """Where what was drawn leaves a choice."""
        if self.table.is_regions:
            choice = [y for y, integers in self._hypotheses(case)[0].items() if len(integers) > 1]
        else:
            choice = [y for y, values in self._open_values(case, names).items() if values]
        return np.isin(drawn, choice)


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


def _in_voxels(properties: dict[str, Any]) -> Callable[[float], str] | None:
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


def _read_image(dataset: Any, key: str) -> Tensor:
    return torch.from_numpy(np.array(load_case(dataset, key)[0][:], copy=True))


def _write_case(labeller: PseudoLabeller, dataset: Any, store: PseudoStore, key: str, found: Prediction) -> None:
    _, seg, _, properties = load_case(dataset, key)
    case = labeller.table.case(key)
    drawn = vouched(np.asarray(seg[0]), labeller.table, case)
    size = voxel_volume(properties, drawn.shape)
    codes, candidates, decisions = labeller.judge(case, found, drawn, size, _in_voxels(properties))
    accepted = case.annotated | {decision.label for decision in decisions if decision.accepted}
    decided = labeller.codes.decided_values(codes)
    merged = np.where(decided == UNDECIDED, drawn, decided)
    table, manager = labeller.table, labeller.labels
    classes: list[Any] = [tuple(table.values[n]) if table.is_regions else table.values[n][0] for n in table.labels]
    known = [c for c, name in zip(classes, table.labels, strict=True) if name in accepted]
    asked = [*known, (-1, *map(int, manager.all_labels))] if manager.has_ignore_label else known
    locations = DefaultPreprocessor._sample_foreground_locations(merged[None], asked) if asked else {}
    locations = {c: locations.get(c, []) for c in [*classes, *asked]}
    store.write(key, codes[None], locations, decisions, candidates=candidates[None], like=seg)
