"""Forms of learning from unlabelled images that were only tried: trainers of arms, not part of the package."""

from __future__ import annotations

from forms.agreeing import AgreeingCorrelationTrainer

__all__ = ["AgreeingCorrelationTrainer"]
