"""A record of every decision about a pseudo label, for readers and for a run that goes on after an interruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nnunet_mutual.batches.decisions import Decision

_SHOWN = 3  # reasons per label in the log


def summarise(decisions: Sequence[Decision]) -> str:
    """Returns a table for the log: per label the accepted and rejected cases and the commonest reasons.

    Reasons are counted by their headline, the rejections first; labels keep the order in which they come.
    """
    if not decisions:
        return "no pseudo label was judged"
    rows = [("label", "accepted", "rejected", "commonest reasons")]
    for label in dict.fromkeys(decision.label for decision in decisions):
        own = [decision for decision in decisions if decision.label == label]
        accepted = sum(decision.accepted for decision in own)
        reasons = Counter((decision.accepted, decision.reason.partition(":")[0]) for decision in own)
        ranked = sorted(reasons.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
        shown = ", ".join(f"{headline} ({count})" for (_, headline), count in ranked[:_SHOWN])
        rows.append((label, str(accepted), str(len(own) - accepted), shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{label:<{widths[0]}}  {accepted:>{widths[1]}}  {rejected:>{widths[2]}}  {shown}"
        for label, accepted, rejected, shown in rows
    )
