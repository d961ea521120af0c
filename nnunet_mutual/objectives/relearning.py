"""Re-learning from soft labels that another model gave to unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Views
from nnunet_mutual.losses.area_similarity import area_similarity_contrast
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.base import Objective, Output, Step, Term
from nnunet_mutual.objectives.crossmodal import organ_maps
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective

KNOWN = 0.5  # the probabilities of a voxel add up to 1 inside of an image and to 0 where there is no soft label


class SoftLabelObjective(Objective[Step]):
    """Supervision of labelled samples, and soft labels of unlabelled ones.

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        weight: of re-learning.
        area: share of the area-similarity contrast in it.

    Source: PReL of Zhang et al., Med. Image Anal. 83, 102656 (2023).
    """

    term_names = ("supervised", "relearning")

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        *,
        weight: float,
        area: float,
    ):
        self.regions = knowledge.table.is_regions
        self.supervised = supervised
        self.weight = weight
        self.area = area

    def terms(self, peer: int, outputs: Sequence[Output], step: Step) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels, batch = outputs[peer].levels, step.batch
        loss = levels[0].flatten()[0] * 0
        if batch.views is not None:
            target, counted = self._soft(batch.views)
            mine = levels[0][: len(target)]
            loss = soft_label_loss(mine, target, counted, regions=self.regions, squared=True)
            if self.area > 0:
                said = probabilities(mine, regions=self.regions)
                mapped, taught = (organ_maps(p, counted, regions=self.regions) for p in (said, target))
                present = torch.ones(len(target), dtype=torch.bool, device=target.device)
                contrast, _ = area_similarity_contrast(mapped, taught, present)
                loss = self.area * contrast + (1 - self.area) * loss
        return {"supervised": Term(self.supervised.labelled(levels, batch)), "relearning": Term(loss, self.weight)}

    def _soft(self, views: Views) -> tuple[Tensor, Tensor]:
        """Probabilities (unlabelled, C, *spatial), and where they count (unlabelled, 1, *spatial)."""
        assert views.soft is not None
        inside = views.inside[: views.unlabelled]
        if self.regions:
            return views.soft.clamp(0, 1), inside
        total = views.soft.sum(1, keepdim=True)
        return views.soft / total.clamp_min(KNOWN), inside & (total > KNOWN)
