"""Two networks that see the same strong view of unlabelled images: a control of views of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.trainers import MutualCorrelationTrainer


class SameViewTrainer(MutualCorrelationTrainer):
    """Both networks see what the first one sees."""

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """See :meth:`MutualTrainer.training_batch`."""
        batch = super().training_batch(raw)
        return batch if batch.views is None else replace(batch, views=replace(batch.views, further=()))
