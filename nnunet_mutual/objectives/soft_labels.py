"""Re-learning from soft labels that another model gave to unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.area_similarity import area_similarity_contrast
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.base import Objective, Output, Step, Term
from nnunet_mutual.objectives.crossmodal import organ_maps
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective


class SoftLabelObjective(Objective[Step]):
    """Supervision of labelled samples, and soft labels of unlabelled ones.

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        soft: gives (unlabelled, C, *spatial) probabilities of a batch and where they count, (unlabelled, 1, *spatial).
        weight: of re-learning.
        area: share of the area-similarity contrast in it.

    Source: PReL of Zhang et al., Med. Image Anal. 83, 102656 (2023).
    """

    term_names = ("supervised", "relearning")

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        soft: Callable[[Batch], tuple[Tensor, Tensor]],
        *,
        weight: float,
        area: float,
    ):
        self.regions = knowledge.table.is_regions
        self.supervised = supervised
        self.soft = soft
        self.weight = weight
        self.area = area

    def terms(self, peer: int, outputs: Sequence[Output], step: Step) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels, batch = outputs[peer].levels, step.batch
        loss = levels[0].flatten()[0] * 0
        if batch.views is not None:
            target, counted = self.soft(batch)
            mine = levels[0][: len(target)]
            loss = soft_label_loss(mine, target, counted, regions=self.regions, squared=True)
            if self.area > 0:
                said = probabilities(mine, regions=self.regions)
                mapped, taught = (organ_maps(p, counted, regions=self.regions) for p in (said, target))
                present = torch.ones(len(target), dtype=torch.bool, device=target.device)
                contrast, _ = area_similarity_contrast(mapped, taught, present)
                loss = self.area * contrast + (1 - self.area) * loss
        return {"supervised": Term(self.supervised.labelled(levels, batch)), "relearning": Term(loss, self.weight)}
