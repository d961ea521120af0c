"""The training whose pseudo labels are reviewed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """A training as the user names it."""

    dataset: str
    configuration: str
    fold: str
    trainer: str
    plans: str

    @property
    def words(self) -> str:
        """As nnUNetv2_train and nnunet_mutual pseudo_label take them; safe to copy, whoever wrote the review."""
        number = str(int(self.dataset[7:10]))
        return shlex.join([number, self.configuration, self.fold, "-p", self.plans, "-tr", self.trainer])
