"""What networks say about one case, and its pseudo labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable, Case
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.judge import Judge, Prediction, agreement

SLAB = 32  # planes


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
        return self.judge(case, self.predict(case, image), drawn, voxel_ml, said)

    def predict(self, case: Case, image: Tensor) -> Prediction:
        """Asks the networks about the open labels of a case.

        Args:
            case: who it is and what it annotates.
            image: (M, *spatial), preprocessed.
        """
        return self._predict(self.open_labels(case), image)

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
        agreements = {name: agreement(found) for name, found in masks.items()}
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


def _mean_of(halves: Sequence[Tensor], number: int) -> Tensor:
    """nnU-Net's mean over an image and its ``number - 1`` mirrored ones."""
    return halves[0] if len(halves) == 1 else (halves[0] + (number - 1) * halves[1]) / number
