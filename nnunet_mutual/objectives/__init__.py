"""What networks learn: one file per method, each turning outputs and a batch into named, weighted terms."""

from nnunet_mutual.batches.batch import Batch, Paste, Sight, Views, within
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term, ask_all, collect_terms

__all__ = [
    "Batch",
    "Objective",
    "Output",
    "Paste",
    "Progress",
    "Said",
    "Sight",
    "Step",
    "Term",
    "Views",
    "ask_all",
    "collect_terms",
    "within",
]
