"""What a trainer of your own may import, and will still find in the next release; see docs/extending.md."""

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.batches.streams import Stream
from nnunet_mutual.batches.unlabelled_streams import TwoStreams
from nnunet_mutual.objectives import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.settings import PeersSettings, Settings, TeacherSettings, TermWeights, TwoStreamSettings
from nnunet_mutual.trainers import MeanTeacherTrainer, PartialTrainer

__all__ = [
    "Batch",
    "MeanTeacherTrainer",
    "Objective",
    "Output",
    "PartialTrainer",
    "PeersSettings",
    "Progress",
    "Said",
    "Settings",
    "Step",
    "Stream",
    "TeacherSettings",
    "Term",
    "TermWeights",
    "TwoStreamSettings",
    "TwoStreams",
]
