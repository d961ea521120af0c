"""What networks say about one case, and its pseudo labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.judge import Judge, Prediction
from nnunet_mutual.pseudo_labels.opinions import TwoOpinions


class PseudoLabeller(Judge):
    """Makes the pseudo labels of single cases by networks.

    Args:
        table: who drew what.
        labels: nnU-Net's.
        mirror_axes: that the predictors mirror.
        predictors: one per network.
        learnt: labels that each network was trained on.
        settings: of the filter.
    """

    def __init__(
        self,
        table: AnnotationTable,
        labels: LabelManager,
        mirror_axes: Sequence[int] | None,
        predictors: Sequence[TwoOpinions],
        learnt: Sequence[frozenset[str]],
        settings: FilterSettings,
    ):
        super().__init__(table, settings)
        self.labels = labels
        self.learnt = list(learnt)
        self.mirror_axes = mirror_axes or ()
        self.predictors = list(predictors)

    def open_labels(self, case: Case) -> list[str]:
        """Labels that the case does not annotate and some network has learnt."""
        everything = frozenset().union(*self.learnt)
        return [label for label in self.table.labels if label in everything - case.annotated]

    def predict(self, case: Case, image: Tensor) -> Prediction:
        """Asks the networks about the open labels of a case.

        Args:
            case: who it is and what it annotates.
            image: (M, *spatial), preprocessed.
        """
        return self._predict(self.open_labels(case), image)

    @torch.inference_mode()
    def _predict(self, names: Sequence[str], image: Tensor) -> Prediction:
        """Asks all networks about the same planes at a time; nothing of an opinion is kept but what is counted."""
        networks = {name: [n for n, own in enumerate(self.learnt) if name in own] for name in names}
        asked = sorted({n for members in networks.values() for n in members})
        probability = torch.zeros((len(names), *image.shape[1:]), dtype=torch.half)
        conflict = torch.zeros(image.shape[1:], dtype=torch.bool)
        shared: dict[str, Any] = dict.fromkeys(names, 0)
        for said in zip(*(self.predictors[n].planes(image) for n in asked), strict=True):
            planes, opinions = said[0][0], {n: self._opinions(own) for n, (_, own) in zip(asked, said, strict=True)}
            means = []
            for name, members in networks.items():
                own = [opinions[n][:, self.channel[name]] for n in members]
                means.append(torch.stack([p[0] for p in own]).mean(0))
                # Of one network the image alone and its mirrored copies alone; of several, each with mirroring.
                masks = [p > 0.5 for p in (own[0][1:] if len(own) == 1 else [p[0] for p in own])]
                shared[name] = shared[name] + _shared(masks)
            likely = torch.stack(means)
            probability[:, planes] = likely.half().cpu()
            # Within one softmax only one label can exceed one half: two of them come from two networks.
            conflict[planes] = ((likely > 0.5).sum(0) > 1).cpu()
        return Prediction(
            {self.channel[name]: own for name, own in zip(names, probability.numpy(), strict=True)},
            {name: _smallest_dice(found.tolist()) for name, found in shared.items()},
            networks,
            None if self.table.is_regions else conflict.numpy(),
        )

    def _opinions(self, logits: Sequence[Tensor]) -> Tensor:
        """Probabilities (1 + opinions, C, *planes): with mirroring, then as ``logits``, each (C, *planes)."""
        parts = [own.float() for own in logits]
        every = torch.stack([_mean_of(parts, 2 ** len(self.mirror_axes)), *parts])
        return every.sigmoid() if self.table.is_regions else every.softmax(1)


def _mean_of(halves: Sequence[Tensor], number: int) -> Tensor:
    """nnU-Net's mean over an image and its ``number - 1`` mirrored ones."""
    return halves[0] if len(halves) == 1 else (halves[0] + (number - 1) * halves[1]) / number


def _shared(masks: Sequence[Tensor]) -> Tensor:
    """Returns (pairs, 2): of each pair of masks, the voxels that both have, and those that each has, added."""
    pairs = [torch.stack([(a & b).sum(), a.sum() + b.sum()]) for a, b in itertools.combinations(masks, 2)]
    return torch.stack(pairs) if pairs else torch.zeros((0, 2), dtype=torch.long)


def _smallest_dice(shared: Sequence[tuple[int, int]]) -> float | None:
    return min((2 * both / each if each else 1.0 for both, each in shared), default=None)
