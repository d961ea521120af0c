"""nnU-Net trainers of this package, imported as ``nnunet_mutual.trainers``.

``__all__`` is a literal list: it is what ``-tr`` can name.
"""

from __future__ import annotations

from nnunet_mutual.trainers.mean_teacher import MeanTeacherTrainer
from nnunet_mutual.trainers.mutual_correlation import MutualCorrelationTrainer
from nnunet_mutual.trainers.mutual_cross_modal import MutualCrossModalTrainer
from nnunet_mutual.trainers.mutual_partial import MutualPartialTrainer
from nnunet_mutual.trainers.mutual_prototype import MutualPrototypeTrainer
from nnunet_mutual.trainers.partial import PartialTrainer
from nnunet_mutual.trainers.rectified import RectifiedPredictor
from nnunet_mutual.trainers.soft_label import SoftLabelTrainer
from nnunet_mutual.trainers.taught_partial import TaughtPartialTrainer

__all__ = [
    "MeanTeacherTrainer",
    "MutualCorrelationTrainer",
    "MutualCrossModalTrainer",
    "MutualPartialTrainer",
    "MutualPrototypeTrainer",
    "PartialTrainer",
    "RectifiedPredictor",
    "SoftLabelTrainer",
    "TaughtPartialTrainer",
]
