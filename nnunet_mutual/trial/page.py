"""The answer of a trial as a page, in the manner of the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_mutual.evaluation.differences import Difference
from nnunet_mutual.report import blocks, plots
from nnunet_mutual.report.blocks import Figure, Notice, Page, Section, Table, Text
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.plots import Frame, Series
from nnunet_mutual.report.scores import ModelDifference
from nnunet_mutual.trial.answer import Answer, arms_of, pairs_of
from nnunet_mutual.trial.power import smallest_difference
from nnunet_mutual.trial.results import LEAST, ArmComparison, Outcome, compare_runs, shown

PAGE = "trial.html"
_LONGER = "train longer, with more epochs in the plans or a larger --budget, and in a new folder."


def write_page(path: Path, answer: Answer, *, with_names: bool = False) -> list[Path]:
    """Writes the page, and tidy tables beside it.

    Args:
        path: of the page.
        answer: what it says.
        with_names: show names of cases in the tables instead of numbers.
    """
    options, last = answer.options, answer.outcomes[-1]
    sections = [_section(answer, n) for n in reversed(range(len(answer.outcomes)))]
    if len(answer.outcomes) > 1:
        sections.insert(0, _curve(answer))
    page = Page(
        title=f"Which trainer pays on {options.dataset}, {options.configuration}",
        kind="trial",
        facts=[
            ("take", answer.choice.arm or "no winner"),
            ("runs finished", f"{answer.finished} of {answer.planned}"),
            ("scored patients", str(len({*last.patients.values()}))),
            ("seeds", str(options.seeds)),
        ],
        findings=_notices(answer),
        questions=(),
        sections=[*sections, _protocol(answer)],
        footer=[
            f"Made by nnunet_mutual {version('nnunet_mutual')}. Not a medical device; for research.",
            "The tables beside this page name cases." if with_names else "Cases are numbered in the tables beside it.",
        ],
        lead=answer.sentence,
        labels=last.labels,
    )
    return blocks.write(path, blocks.render(page), _tidy(answer, with_names))


def _notices(answer: Answer) -> list[Notice]:
    found = [Notice("alarm", f"{text[0].upper()}{text[1:]}.") for text in answer.why_open]
    if answer.otherwise:
        found.append(Notice("note", answer.otherwise))
    rows = [
        row for runs in answer.outcomes[-1].scores["dice"].values() for one in runs.values() for row in one.values()
    ]
    if unscored := [label for label in (rows[0] if rows else ()) if label not in answer.outcomes[-1].labels]:
        found.append(Notice("note", f"No scored case draws {', '.join(unscored)}, so nothing is said about that."))
    for outcome, comparisons in zip(answer.outcomes, answer.comparisons, strict=True):
        for label, runs in outcome.not_learnt().items():
            which = ", ".join(f"{arm} seed {seed}" for arm, seed in runs)
            found.append(Notice("alarm", f"{label} has not been learnt (Dice below {LEAST:g}): {which}.", do=_LONGER))
        for one in comparisons:
            if (
                answer.choice.arm is not None
                and one.primary
                and min(len(one.difference.by_draw), len(one.difference.by_patient)) > 1
            ):
                found.append(Notice("note", _could_show(answer, outcome, one.difference)))
    return found


def _could_show(answer: Answer, outcome: Outcome, found: Difference) -> str:
    spreads = {
        "seed_sd": float(np.std(list(found.by_draw.values()), ddof=1)),
        "patient_sd": float(np.std(list(found.by_patient.values()), ddof=1)),
    }
    least = smallest_difference(len(found.by_patient), len(found.by_draw), **spreads)
    of = "" if outcome.labelled is None else f" with {outcome.labelled} labelled cases"
    if least > 1:
        return (
            f"The primary comparison{of} can show no difference at all, since its seeds vary so much: take more seeds."
        )
    return (
        f"The primary comparison{of} shows differences of {least:.3f} Dice or more with a power of 80 %, by the spread "
        f"that was seen over {len(found.by_draw)} seeds and {len(found.by_patient)} patients; smaller ones are level "
        "here whether they are there or not."
    )


def _section(answer: Answer, n: int) -> Section:
    outcome, comparisons = answer.outcomes[n], answer.comparisons[n]
    of = "" if outcome.labelled is None else f", {outcome.labelled} labelled cases"
    section = Section(f"arms{outcome.labelled or ''}", f"Arms{of}")
    head, *rows = arms_of(answer, outcome)
    section.blocks.append(
        Table(
            "Each arm: mean over cases, then labels, then seeds, of the single network that it deploys, from the last "
            "checkpoint.",
            [cell or "" for cell in head],
            rows,
            "differences that are large against the range of the seeds in the figure below.",
        )
    )
    arms = list(outcome.scores["dice"])
    means = pd.DataFrame(
        [(arm, seed, outcome.of_run(arm, seed)) for arm in arms for seed in outcome.scores["dice"][arm]],
        columns=["arm", "seed", "dice"],
    )
    if means.dice.notna().any():
        section.blocks.append(
            Figure(
                "Each run: a row per arm, a marker per seed; the bar is the mean of the seeds.",
                "arms whose seeds overlap: another seed may turn their order around.",
                [plots.arms_plot(means, arms)],
            )
        )
    if not comparisons:
        section.blocks.append(Text("No two arms have runs of the same seed yet, so nothing is compared."))
        return section
    head, *rows = pairs_of(answer, comparisons)
    shows = (
        "Differences of mean Dice, first - second. One of them is the primary comparison, with 95 % intervals; those "
        "of the others are wider (Bonferroni). 'Better' and 'worse' need both intervals on one side of 0: over seeds "
        "says what other seeds (and draws) would have changed, over patients what other patients would have."
    )
    look = "intervals that hold 0: nothing was shown, which is not the same as being equal."
    section.blocks += [
        Figure(
            "The differences of the table below, each with the wider one of its two intervals.",
            "intervals that hold 0.",
            [plots.differences_plot([_plotted(one) for one in comparisons], "the other arm")],
        ),
        Table(shows, [cell or "" for cell in head], rows, look),
        _by_label(comparisons),
    ]
    return section


def _plotted(one: ArmComparison) -> ModelDifference:
    by_patient = np.array(list(one.difference.by_patient.values()))
    over, mean = one.difference.over_patients, one.difference.over_draws.mean
    low = max(-1.0, min(over.low, one.difference.over_draws.low))
    high = min(1.0, max(over.high, one.difference.over_draws.high))
    known = over.low == over.low and one.difference.over_draws.low == one.difference.over_draws.low
    return ModelDifference(
        f"{one.first}\n- {one.second}",
        mean,
        0.0,
        len(by_patient),
        low if known else None,
        high if known else None,
        int((by_patient > 0).sum()),
        int((by_patient < 0).sum()),
    )


def _by_label(comparisons: Sequence[ArmComparison]) -> Table:
    rows: list[list[str | None]] = [
        [
            label,
            f"{one.first} - {one.second}",
            f"{found.over_draws.mean:+.3f}",
            shown(found.over_draws),
            shown(found.over_patients),
        ]
        for one in comparisons
        for label, found in one.by_label.items()
    ]
    return Table(
        "The same for each label, with 95 % intervals: many and not corrected for it, so descriptive, without verdict.",
        ["label", "first - second", "difference", "95 % over seeds", "95 % over patients"],
        rows,
        "labels that differ the other way than the mean.",
    )


def _curve(answer: Answer) -> Section:
    """The learning curve, and what a further labelled case is worth."""
    section = Section("curve", "Learning curve")
    series = []
    for arm in answer.options.arms:
        points = [(o.labelled or 0, o.mean(arm)) for o in answer.outcomes if arm in o.scores["dice"]]
        kept = [(x, y) for x, y in points if y is not None]
        series.append(Series(arm, np.array([x for x, _ in kept]), np.array([y for _, y in kept], float)))
    section.blocks.append(
        Figure(
            "Mean Dice over the number of labelled cases; every seed has a draw of its own.",
            "where the curves become flat, and whether they meet.",
            plots.line_plots("mean Dice", series, frame=Frame(axis="labelled cases"), limits=plots.UNIT),
        )
    )
    rows: list[list[str | None]] = []
    for before, after in zip(answer.outcomes, answer.outcomes[1:], strict=False):
        for arm in answer.options.arms:
            runs = [outcome.scores["dice"].get(arm, {}) for outcome in (after, before)]
            if not {*runs[0]} & {*runs[1]} or before.labels != after.labels:
                continue
            found = compare_runs(runs, after, after.labels)
            many = (after.labelled or 0) - (before.labelled or 0)
            rows.append(
                [
                    arm,
                    f"{before.labelled} to {after.labelled}",
                    f"{found.over_draws.mean / many:+.4f}",
                    f"{found.over_draws.mean:+.3f}",
                    shown(found.over_draws),
                    shown(found.over_patients),
                ]
            )
    if rows:
        head = [
            "arm",
            "labelled cases",
            "Dice for each further case",
            "all of them",
            "95 % over draws",
            "95 % over patients",
        ]
        shows = "What further labelled cases are worth: the gain in mean Dice, by case and together."
        section.blocks.append(Table(shows, head, rows, "arms that gain less: they need fewer labels."))
    return section


def _protocol(answer: Answer) -> Section:
    options = answer.options
    hidden = [f"--keep {' '.join(options.keep)}"] * bool(options.keep)
    hidden += [f"--labelled {' '.join(map(str, options.labelled))}"] * bool(options.labelled)
    hidden += [f"--missing {' '.join(options.missing)}"] * bool(options.missing)
    rows: list[list[str | None]] = [[arm, said] for arm, said in answer.words.items()]
    rows += [
        ["trained on", answer.trained_on],
        ["scored on", answer.scored_on],
        ["hidden from the trainings", "; ".join(hidden) or "nothing"],
        ["the same in all arms", f"plans {options.plans}, {options.configuration}, preprocessed data, {options.equal}"],
        ["deployed", "one network, last checkpoint, nnU-Net's sliding window with mirroring"],
    ]
    section = Section("protocol", "How it was done", [Table("Fixed before the results.", ["", ""], rows)])
    section.blocks.append(
        Text(
            "The primary comparison is of the last arm with the one before it. From the simplest arm to the most "
            "elaborate, each is compared with the one taken so far, and taken in its place where it is better, or "
            "level in at least 10 % fewer minutes."
        )
    )
    return section


def _tidy(answer: Answer, with_names: bool) -> dict[str, pd.DataFrame]:
    names = Identities({case for outcome in answer.outcomes for case in outcome.patients}, shown=with_names)
    rows = [
        (
            outcome.labelled,
            arm,
            seed,
            names.case(case),
            label,
            value,
            outcome.scores["surface_dice"][arm][seed][case][label],
        )
        for outcome in answer.outcomes
        for arm, runs in outcome.scores["dice"].items()
        for seed, scores in runs.items()
        for case, row in scores.items()
        for label, value in row.items()
    ]
    pairs = [
        (
            outcome.labelled,
            one.first,
            one.second,
            label,
            one.confidence if label == "mean" else 0.95,
            found.over_draws.mean,
            *(end for over in (found.over_draws, found.over_patients) for end in (over.low, over.high)),
        )
        for outcome, comparisons in zip(answer.outcomes, answer.comparisons, strict=True)
        for one in comparisons
        for label, found in [("mean", one.difference), *one.by_label.items()]
    ]
    ends = ["seeds_low", "seeds_high", "patients_low", "patients_high"]
    return {
        "dice": pd.DataFrame(rows, columns=["labelled", "arm", "seed", "case", "label", "dice", "surface_dice"]),
        "differences": pd.DataFrame(
            pairs, columns=["labelled", "first", "second", "label", "confidence", "difference", *ends]
        ),
    }
