"""Everything that a page about a training is made of, and the tidy tables of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.errors import MutualError
from nnunet_mutual.report.data import coverage_table, decisions_of
from nnunet_mutual.report.findings import Notice, findings
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.logs import read_alarms, read_curves
from nnunet_mutual.report.scores import first_network, paired, read_other, read_scores, validations
from nnunet_mutual.report.training import Training


@dataclass(frozen=True)
class Collected:
    """What is known about a training.

    Attributes:
        training: where it lies and what it was told.
        names: what its cases are called.
        validated: folders of whole predicted validation cases, by network.
        scores: of these.
        other: name and scores of a second model, if one was asked for.
        curves: all that was measured once per epoch.
        coverage: who drew what.
        decisions: about pseudo labels.
        findings: what to look at first.
    """

    training: Training
    names: Identities
    validated: Mapping[str, Path]
    scores: pd.DataFrame
    other: tuple[str, pd.DataFrame] | None
    curves: pd.DataFrame
    coverage: pd.DataFrame
    decisions: Sequence[Decision]
    findings: Sequence[Notice]

    @property
    def alarms(self) -> list[Notice]:
        """What forbids to use the model before it is answered."""
        return [finding for finding in self.findings if finding.level == "alarm"]

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return int(self.curves.epoch.max()) + 1 if len(self.curves) else 0


def collect(training: Training, compare: str | None, *, with_names: bool) -> Collected:
    """Reads what a training left behind.

    Args:
        training: the training.
        compare: folder of a second model.
        with_names: whether cases keep their names.

    Raises:
        MutualError: the second model has no validation of the same cases, or a file is damaged.
    """
    table, split = training.table, training.split
    validated = validations(training.folder, table.modality_groups)
    scores = read_scores(validated, table)
    other = None if compare is None else read_other(Path(compare), training.fold, table)
    if other is not None and (scores.empty or paired(scores, other[1]).empty):
        raise MutualError(f"{compare} has no case in common with the validation of {training.folder}; compare another")
    names = Identities.of(
        table, {*split.training, *split.validation, *training.unlabelled, *scores.case}, shown=with_names
    )
    curves, decisions = read_curves(training.folder, table.labels), decisions_of(training)
    return Collected(
        training=training,
        names=names,
        validated=validated,
        scores=scores,
        other=other,
        curves=curves,
        coverage=coverage_table(training),
        decisions=decisions,
        findings=findings(training, read_alarms(training.folder), scores, curves, decisions, names),
    )


def tidy(found: Collected) -> dict[str, pd.DataFrame]:
    """Returns the tables that go beside the page, by name; cases are called as on the page."""
    tables: dict[str, pd.DataFrame] = {
        "dice": _named(found.scores, found.names),
        "curves": found.curves,
        "coverage": found.coverage,
        "findings": pd.DataFrame([asdict(one) for one in found.findings], columns=["level", "text", "when", "do"]),
    }
    if found.other is not None:
        both = _named(paired(first_network(found.scores), found.other[1]), found.names)
        tables["paired"] = both[["case", "source", "label", "dice", "dice_other"]]
    if found.decisions:
        entries: list[dict[str, Any]] = [asdict(one) for one in found.decisions]
        tables["pseudo_labels"] = _named(pd.DataFrame(entries), found.names)
    return tables


def _named(rows: pd.DataFrame, names: Identities) -> pd.DataFrame:
    return rows.assign(case=[names.case(key) for key in rows.case])
