"""Which pseudo labels a reader should look at, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_mutual.batches.decisions import ALONE, Decision
from nnunet_mutual.pseudo_labels.filter import FilterSettings

NEAR = 2 / 3  # of the way from what is usual to a threshold


@dataclass(frozen=True)
class Doubt:
    """How doubtful a pseudo label is.

    Attributes:
        score: 0 as usual as can be, 1 at a threshold of the filter, more beyond it.
        reason: for a reader without the code.
        doubtful: rejected, near a threshold, or not judged.
    """

    score: float
    reason: str
    doubtful: bool


def doubt_of(decision: Decision, settings: FilterSettings) -> Doubt:
    r"""Measures doubt on the filter's own scales.

    .. math:: d = \max\left( \frac{1 - a}{1 - a_{min}}, \frac{|z|}{z_{max}} \right)

    where a is the agreement of independent predictions and z the distance from the usual volume. Doubtful is what was
    rejected, what has d >= 2/3, and what was found although no true volumes were there to judge it by.

    Args:
        decision: about a label of a case.
        settings: the filter that made it.
    """
    measures = {"agreement": 0.0, "volume": 0.0}
    if decision.agreement is not None:
        measures["agreement"] = (1 - decision.agreement) / max(1 - settings.min_agreement, 1e-6)
    if decision.z is not None:
        measures["volume"] = abs(decision.z) / settings.max_z
    score = max(measures.values())
    if not decision.accepted:
        said = decision.reason if decision.verdict == ALONE else f"rejected, {decision.reason}"
        return Doubt(max(score, 1.0), said, True)
    near = []
    if measures["agreement"] >= NEAR:
        near.append(f"agreement {decision.agreement:.3g} is near its limit of {settings.min_agreement:g}")
    if measures["volume"] >= NEAR:
        near.append(f"the volume is near its limit (z = {decision.z:.2f}, limit {settings.max_z:g})")
    text = f"accepted, but {' and '.join(near)}; {decision.reason}" if near else f"accepted, {decision.reason}"
    absent = decision.volume_ml == 0 and settings.label  # then the filter has judged that it may be absent
    if decision.z is None and not absent:
        return Doubt(max(score, NEAR), text, True)
    return Doubt(score, text, bool(near))


def by_doubt(decisions: list[Decision], settings: FilterSettings) -> list[tuple[Decision, Doubt]]:
    """Orders decisions for a reader: rejected ones first, each kind from the most to the least doubtful."""
    judged = [(decision, doubt_of(decision, settings)) for decision in decisions]
    return sorted(judged, key=lambda pair: (pair[0].accepted, -pair[1].score, pair[0].case, pair[0].label))
