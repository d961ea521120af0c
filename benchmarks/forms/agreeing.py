"""Two networks learn the mean of their averages, less where these disagree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MutualCorrelationTrainer


def accord(said: Sequence[Tensor]) -> Tensor:
    r"""How much several predictions agree, :math:`w = \exp(-\frac1N \sum_n \mathrm{KL}(p_n \| \bar p))`.

    Args:
        said: p_n, N predictions (B, C, *spatial), distributions over C.

    Returns:
        (B, 1, *spatial) from 1 / N (each is sure of another class) to 1 (equal).

    Source: the weighting by KL divergence of Zheng & Yang, IJCV 2021, of two averages instead of two heads [E].
    """
    mean = mean_of(said)
    ratio = [p / mean.clamp_min(torch.finfo(p.dtype).tiny) for p in said]
    divergence = mean_of([torch.special.xlogy(p, r) for p, r in zip(said, ratio, strict=True)])
    return (-divergence.sum(1, keepdim=True)).exp()


class AgreeingTeaching(Teaching):
    """Weights each voxel of what several teachers say by how much they agree; labels in pasted boxes keep their 1."""

    def common(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        """See :meth:`Teaching.common`."""
        assert not self.regions
        return self.lesson(mean_of(said), batch, accord(said))


class AgreeingCorrelationTrainer(MutualCorrelationTrainer):
    """The consensus of two averages, down-weighted where they disagree."""

    teaching = AgreeingTeaching
