"""A record of every decision about a pseudo label, for readers and for a run that goes on after an interruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nnunet_mutual.batches.decisions import ALONE, Decision
from nnunet_mutual.datasets.coverage import columns

_SHOWN = 3  # reasons per label in the log


def summarise(decisions: Sequence[Decision]) -> str:
    """Returns a table for the log: per label the cases of each verdict and the commonest reasons.

    Reasons are counted by their headline, those of accepted ones last; labels keep the order in which they come. What
    only a reader can accept has a column where there is any.
    """
    if not decisions:
        return "no pseudo label was judged"
    alone = any(decision.verdict == ALONE for decision in decisions)
    verdicts = ["accepted", "rejected", *[ALONE] * alone]
    rows, shown = [["label", *verdicts]], ["commonest reasons"]
    for label in dict.fromkeys(decision.label for decision in decisions):
        own = [decision for decision in decisions if decision.label == label]
        counts = Counter(decision.verdict for decision in own)
        reasons = Counter((decision.accepted, decision.reason.partition(":")[0]) for decision in own)
        ranked = sorted(reasons.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
        rows.append([label, *(str(counts[verdict]) for verdict in verdicts)])
        shown.append(", ".join(f"{headline} ({count})" for (_, headline), count in ranked[:_SHOWN]))
    aligned = columns(rows, indent="", gap="  ").split("\n")
    return "\n".join(f"{row}  {why}" for row, why in zip(aligned, shown, strict=True))
