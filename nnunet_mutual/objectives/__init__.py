"""What networks learn: one file per method, each turning outputs and a batch into named, weighted terms."""

from nnunet_mutual.objectives.base import (
    Batch,
    Objective,
    Output,
    Paste,
    Progress,
    Sight,
    Term,
    Views,
    collect_terms,
    within,
)

__all__ = ["Batch", "Objective", "Output", "Paste", "Progress", "Sight", "Term", "Views", "collect_terms", "within"]
