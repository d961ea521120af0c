"""Two arms of each of several benchmarks compared, in shares of what each of these leaves to gain."""

from __future__ import annotations

from collections.abc import Sequence

import calibration
import table
from settings import BenchmarkError, Setting

from nnunet_mutual.evaluation.differences import Difference, compare_draws, pool


def render(compared: Sequence[tuple[Setting, str, str]]) -> str:
    """Returns a table: the difference in each benchmark with its gap, and pooled in shares of the gaps.

    Args:
        compared: a benchmark that has passed its gate, an arm of it and the one with which that is compared.

    Raises:
        BenchmarkError: a benchmark has not passed, or lacks runs on test patients.
    """
    found = [compare(*one) for one in compared]
    gaps = [gap_of(setting) for setting, _, _ in compared]
    head = ["benchmark", "first - second", "gap", "difference", "95 % over draws (t)", "95 % over patients (bootstrap)"]
    head += ["draws", "verdict"]
    lines = table.heading(head)
    lines += [
        _row(f"`{setting.name}`", f"`{first}` - `{second}`", f"{gap:.4f}", difference)
        for (setting, first, second), gap, difference in zip(compared, gaps, found, strict=True)
    ]
    return "\n".join([*lines, _row("pooled, in shares of the gap", "", "1", pool(found, gaps))])


def gap_of(setting: Setting) -> float:
    """Returns how much the gate's reference, all labels averaged, has more than the mean teacher on test patients."""
    calibration.chosen(setting)  # says what is missing where the gate is not passed
    rule = setting["calibration"]
    return compare(setting, rule["reference"], rule["arm"]).over_draws.mean


def compare(setting: Setting, first: str, second: str) -> Difference:
    """Compares two arms on the test patients, with all draws that the protocol asks for."""
    if not setting.labelled:
        raise BenchmarkError(f"{setting.name} draws no labelled patients anew; pool benchmarks that do")
    evidence = table.rows(setting)
    for arm in (first, second):
        if arm not in evidence:
            raise BenchmarkError(f"the protocol of {setting.name} has no arm {arm}; it has {', '.join(evidence)}")
    both = sorted({*evidence[first]} & {*evidence[second]})
    if len(both) < setting["draws"]["needed"]:
        raise BenchmarkError(
            f"{setting.name} has {len(both)} draws of {first} and {second}, {setting['draws']['needed']} decide; run: "
            f"python benchmarks/run.py run {setting.name} --arms {first} {second}"
        )
    return compare_draws(*({s: evidence[arm][s]["dice"] for s in both} for arm in (first, second)), setting.patients)


def _row(name: str, arms: str, gap: str, found: Difference) -> str:
    ends = [table.words(interval) for interval in (found.over_draws, found.over_patients)]
    cells = [name, arms, gap, f"{found.over_draws.mean:+.4f}", *ends, str(len(found.by_draw)), found.verdict]
    return table.row(cells)
