"""What forms learn of labelled voxels beside the network's own loss."""

from __future__ import annotations

from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.objectives.organs import truth_of
from nnunet_mutual.objectives.supervised import SupervisedObjective


def labelled_truth(batch: Batch, sample: int, places: Tensor, supervised: SupervisedObjective) -> tuple[Tensor, Tensor]:
    """Returns what the labels of some voxels of a labelled sample say, (C, N), and which are known, (N,) bool.

    Args:
        batch: with views.
        sample: its number in the batch.
        places: (N,) into the flattened spatial axes.
        supervised: of labelled samples.
    """
    assert batch.views is not None
    target, pattern = batch.target[0][sample].flatten(1)[:, places], batch.pattern_index[sample]
    truth, known = truth_of(supervised.knowledge, target, pattern, supervised.ignore_label)
    return truth, known & batch.views.inside[sample].flatten()[places]


def likelihood_loss(log_chances: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Returns the negative log likelihood of the truth, mean over known voxels.

    Args:
        log_chances: (C, N).
        truth: (C, N), 0 or 1.
        known: (N,) bool.
    """
    return -((truth * log_chances).sum(0) * known).sum() / known.sum().clamp_min(1)
