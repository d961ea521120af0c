"""Networks of modalities teach each other: other weights of who knows what, with the contrast, only at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_mutual.losses.area_similarity import ROBUST
from nnunet_mutual.losses.consistency import mean_of
from nnunet_mutual.objectives import Batch, Objective, Output, Term
from nnunet_mutual.objectives.crossmodal import CrossModalCourse, CrossModalLoss, CrossModalObjective, CrossModalStep
from nnunet_mutual.objectives.crossmodal_teaching import ModalTeaching
from nnunet_mutual.trainers import MutualCrossModalTrainer

LEAST_ERROR = 0.05  # in Dice: where a network is nearly right, no other is left out
UNSEEN = 1e-6  # weight of a network that does not see a sample, next to 1
STEEP = 4  # power of the weights
CONTRAST = 0.4  # its weight where averages teach, as without them


class WeightedTeaching(ModalTeaching):
    r"""All averages teach every class, with the weight 1 / (1 - D + 0.05) of the running Dice D."""

    power = 1

    def weights(self, sees: Tensor | None = None) -> Tensor:
        """See :class:`ModalTeaching`."""
        weights = 1 / (1 - torch.nan_to_num(self.scores)[:, None] + LEAST_ERROR)
        if not self.regions:
            weights[:, :, 0] = weights[:, :, 1:].mean(2)
        weights = weights**self.power
        return weights if sees is None else weights * sees[:, :, None].float().clamp_min(UNSEEN)


class SteepTeaching(WeightedTeaching):
    """Weights to the fourth power: who knows a class a little better says most of it."""

    power = STEEP


class WeightedModalTrainer(MutualCrossModalTrainer):
    """Averages teach together."""

    teaching = WeightedTeaching


class SteepModalTrainer(MutualCrossModalTrainer):
    """Averages teach together, weighted steeply."""

    teaching = SteepTeaching


class ContrastAlone(CrossModalObjective):
    """The area-similarity contrast, beside an objective that supervises."""

    term_names = ("contrast",)

    def terms(self, peer: int, outputs: Sequence[Output], step: CrossModalStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        mine = self._probabilities(outputs[peer], step.batch)
        return {"contrast": Term(self._contrast(peer, mine, step), self.loss.contrast)}


class ContrastedModalTrainer(WeightedModalTrainer):
    """Averages teach together, and networks are contrasted by where they see organs, to the end."""

    def build_objectives(self) -> list[Objective]:
        """See :class:`MutualCrossModalTrainer`."""
        queue = self.settings.queue
        course = CrossModalCourse(area=0.0, ramp_end=1.0, relearn_from=1.0, all_from=1.0, form=ROBUST, queue=queue)
        contrast = ContrastAlone(
            self.knowledge,
            self.supervised,
            networks=len(self.groups.names),
            loss=CrossModalLoss(contrast=CONTRAST, consistency=0.0, relearning=0.0),
            course=course,
            teacher=self._soft_label,
            standing=list,
        )
        return [*super().build_objectives(), contrast]


class EnsembleObjective(CrossModalObjective):
    """Re-learning, by every network, of what all averages say together."""

    def _ask_teachers(self, batch: Batch, *, everybody: bool) -> dict[int, tuple[Tensor, Tensor]]:
        assert batch.views is not None and batch.sight is None
        number = batch.views.unlabelled
        said = mean_of([self.teacher(n, batch.data[:number]) for n in range(self.networks)])
        return dict.fromkeys(range(self.networks), (said, batch.views.inside[:number]))


class EnsembleRelearningTrainer(MutualCrossModalTrainer):
    """Contrast and consistency, then re-learning from the ensemble of all averages."""

    objective = EnsembleObjective
