"""The answer of a trial, and its tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnunet_mutual.datasets.coverage import columns
from nnunet_mutual.trial.protocol import Options
from nnunet_mutual.trial.results import ArmComparison, Choice, Outcome, shown


@dataclass(frozen=True)
class Answer:
    """Everything that the page says.

    Attributes:
        options: of the trial.
        words: arm -> what it is.
        outcomes: for each number of labelled cases.
        comparisons: likewise, of all pairs of arms.
        choice: what to take.
        why_open: why nothing is concluded; empty where something is.
        finished: runs.
        planned: runs.
        trained_on: what the arms learn from, a sentence.
        scored_on: who is scored, a sentence.
        otherwise: how a training outside of the trial differs from what was compared; empty where it does not.
    """

    options: Options
    words: Mapping[str, str]
    outcomes: Sequence[Outcome]
    comparisons: Sequence[Sequence[ArmComparison]]
    choice: Choice
    why_open: Sequence[str]
    finished: int
    planned: int
    trained_on: str
    scored_on: str
    otherwise: str = ""

    @property
    def sentence(self) -> str:
        """The answer."""
        if self.choice.arm is None:
            return f"No winner is named: {'; '.join(self.why_open)}."
        return f"Take {self.choice.arm}, because {'; '.join(self.choice.because)}."


def printed(answer: Answer) -> str:
    """Returns tables and answer for the terminal."""
    parts = []
    for outcome, comparisons in zip(answer.outcomes, answer.comparisons, strict=True):
        title = "" if outcome.labelled is None else f"{outcome.labelled} labelled cases\n"
        parts.append(title + columns(_as_text(arms_of(answer, outcome)), indent="", gap="  "))
        if comparisons:
            parts.append(columns(_as_text(pairs_of(answer, comparisons)), indent="", gap="  "))
    return "\n\n".join([*parts, answer.sentence])


def arms_of(answer: Answer, outcome: Outcome) -> list[list[str | None]]:
    """Rows of the table of arms, its head first."""

    def cell(arm: str, metric: str, label: str | None) -> str | None:
        value = outcome.mean(arm, metric, label)
        return None if value is None else f"{value:.3f}"

    single = outcome.labels if len(outcome.labels) > 1 else []
    head: list[str | None] = ["arm", "Dice", "surface Dice", "minutes a run", "GB", "updates", "seeds"]
    rows = [[*head, *single, *(f"surface {label}" for label in single)]]
    for arm in answer.options.arms:
        if arm not in outcome.scores["dice"]:
            rows.append([arm, "not run", *[None] * (len(rows[0]) - 2)])
            continue
        cost = [f"{outcome.minutes[arm]:.1f}", f"{outcome.gigabytes[arm]:.1f}", f"{outcome.updates[arm]:,}"]
        cells = [cell(arm, "dice", None), cell(arm, "surface_dice", None), *cost, str(len(outcome.scores["dice"][arm]))]
        rows.append(
            [arm, *cells, *(cell(arm, metric, label) for metric in ("dice", "surface_dice") for label in single)]
        )
    return rows


def pairs_of(answer: Answer, comparisons: Sequence[ArmComparison]) -> list[list[str | None]]:
    """Rows of the table of comparisons, its head first."""
    concluded = answer.choice.arm is not None
    rows: list[list[str | None]] = [
        [
            "first - second",
            "comparison",
            "Dice",
            "over seeds (t)",
            "over patients (bootstrap)",
            "patients +/-",
            "first is",
        ]
    ]
    for one in comparisons:
        found = one.difference
        better = sum(value > 0 for value in found.by_patient.values())
        worse = sum(value < 0 for value in found.by_patient.values())
        rows.append(
            [
                f"{one.first} - {one.second}",
                f"{'primary' if one.primary else 'further'}, {100 * one.confidence:.3g} %",
                f"{found.over_draws.mean:+.3f}",
                shown(found.over_draws),
                shown(found.over_patients),
                f"{better} / {worse}",
                one.verdict if concluded else "not concluded",
            ]
        )
    return rows


def _as_text(rows: Sequence[Sequence[str | None]]) -> list[list[str]]:
    return [["-" if cell is None else cell for cell in row] for row in rows]
