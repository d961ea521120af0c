"""The pseudo labels of one case: what networks say about it, and what of that is sure enough."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.possible import hypotheses, left_open, output_channels
from nnunet_mutual.annotation.table import AnnotationTable, Case
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.evaluation.masks import dice
from nnunet_mutual.pseudo_labels.filter import (
    FilterSettings,
    decide_regions,
    decide_voxels,
    judge_label,
    keep_main_component,
)

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
        rejected, withheld = (np.zeros(drawn.shape, bool) for _ in range(2))
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
            elif not verdict.accepted and name in case.incomplete:
                withheld |= inside & ~np.isin(drawn, self.table.values[name])
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
        decided[withheld] = UNDECIDED  # the region would be read off the integer, as from a drawn one
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
        """Where what was drawn leaves no doubt that a label is there, as a drawn core for the whole around it."""
        values = set(self.table.values[name])
        if not self.table.is_regions:
            own = [y for y, inner in left_open(self.table, case).items() if y in values and not inner]
            return np.isin(drawn, own)
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


def _mean_of(halves: Sequence[Tensor], number: int) -> Tensor:
    """nnU-Net's mean over an image and its ``number - 1`` mirrored ones."""
    return halves[0] if len(halves) == 1 else (halves[0] + (number - 1) * halves[1]) / number
