"""The table of results, made from the evidence files and written between markers in README.md."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from settings import HERE, BenchmarkError, Setting, read_json

from nnunet_mutual.evaluation.differences import Interval, Scores, compare_draws


def heading(titles: Sequence[str]) -> list[str]:
    """Returns the first lines of a table."""
    return [row(titles), "|" + " --- |" * len(titles)]


def row(cells: Sequence[str]) -> str:
    """Returns one of its further lines."""
    return f"| {' | '.join(cells)} |"


def label_means(evidence: dict[str, Any]) -> dict[str, float]:
    """Returns the mean Dice over cases of each label; cases without the label (null) are left out."""
    rows = evidence["dice"].values()
    labels = next(iter(rows))
    return {label: statistics.fmean(row[label] for row in rows if row[label] is not None) for label in labels}


def mean_dice(evidence: dict[str, Any]) -> float:
    """Returns the mean over labels of the mean over cases."""
    return statistics.fmean(label_means(evidence).values())


def precision_means(evidence: dict[str, Any]) -> float:
    """Returns the mean precision over labels of the mean over cases in which the label was predicted."""
    rows = evidence["voxel_precision"].values()
    found = {label: [row[label] for row in rows if row[label] is not None] for label in next(iter(rows))}
    return statistics.fmean(statistics.fmean(values) for values in found.values() if values)


def rows(setting: Setting) -> dict[str, dict[int, dict[str, Any]]]:
    """Returns the evidence that there is, by arm and seed."""
    files = {arm: {s: setting.evidence_file(arm, s) for s in setting.seeds} for arm in setting["arms"]}
    return {arm: {s: read_json(f) for s, f in of_arm.items() if f.is_file()} for arm, of_arm in files.items()}


def render(setting: Setting) -> str:
    """Returns the table of the arms that were run, the others' names, and the protocol's comparisons."""
    found = {arm: evidence for arm, evidence in rows(setting).items() if evidence}
    if not found:
        return f"### {setting['title']}\n\nNot run: nothing has been scored on test patients."
    labels, precise = setting["labels"], bool(setting.protocol.get("precision"))
    seeds = ["draws", "SD over draws"] if setting.labelled else [f"seed {s}" for s in setting.seeds]
    head = ["arm", *labels, "mean", *(["precision"] if precise else []), *seeds]
    head += ["updates of each network", "total updates", "networks deployed", "training min"]
    lines = heading(head)
    means = {}
    for arm, evidence in found.items():
        cells = [f"`{arm}`: {setting['arms'][arm]['words']}"]
        by_label = [label_means(e) for e in evidence.values()]
        cells += [f"{statistics.fmean(m[label] for m in by_label):.3f}" for label in labels]
        means[arm] = {s: mean_dice(e) for s, e in evidence.items()}
        cells.append(f"{statistics.fmean(means[arm].values()):.3f}")
        if precise:
            cells.append(f"{statistics.fmean(precision_means(e) for e in evidence.values()):.3f}")
        cells += of_seeds(setting, means[arm])
        first = next(iter(evidence.values()))
        cells += [str(first[k]) for k in ("updates_of_each_network", "total_updates", "networks_deployed")]
        cells.append(f"{statistics.fmean(sum(e['training_seconds']) / 60 for e in evidence.values()):.1f}")
        lines.append(row(cells))
    absent = [f"`{arm}`" for arm in setting["arms"] if arm not in found]
    left = [f"Not run: {', '.join(absent)}.", ""] if absent else []
    text = "\n".join([f"### {setting['title']}", "", *lines, "", *left, f"Data: {setting['source']}."])
    return text + comparison(setting, means) + paired(setting, found)


def of_seeds(setting: Setting, means: dict[int, float]) -> list[str]:
    """Returns the cells of an arm's seeds: each, or of draws their number and standard deviation."""
    if not setting.labelled:
        return [f"{means[s]:.3f}" if s in means else "not run" for s in setting.seeds]
    spread = f"{statistics.stdev(means.values()):.3f}" if len(means) > 1 else "not run"
    return [str(len(means)), spread]


def paired(setting: Setting, found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Returns the protocol's pairs of arms: differences with both intervals and, of enough draws, the verdict.

    A pair may name a label; the others are compared by the mean over all.

    Args:
        setting: the benchmark.
        found: evidence of the arms that were run, by seed.
    """
    unit = "draws" if setting.labelled else "seeds"
    head = ["first - second", "difference", f"95 % over {unit} (t)", "95 % over patients (bootstrap)"]
    head += ["patients better / worse", unit, *(["verdict"] if setting.labelled else [])]
    lines = heading(head)
    for first, second, *label in setting.protocol.get("pairs", []):
        both = sorted({*found.get(first, ())} & {*found.get(second, ())})
        if both:
            scores = ({s: of_label(found[arm][s]["dice"], *label) for s in both} for arm in (first, second))
            named = f"`{first}` - `{second}`" + "".join(f" ({name})" for name in label)
            lines.append(row([named, *pair(setting, *scores)]))
    return "\n\n" + "\n".join(lines) if len(lines) > 2 else ""


def of_label(dice: Scores, label: str | None = None) -> Scores:
    """Returns the scores of one label alone; None: of all."""
    return dice if label is None else {case: {label: of_case[label]} for case, of_case in dice.items()}


def pair(setting: Setting, first: dict[int, Scores], second: dict[int, Scores]) -> list[str]:
    """Returns the cells of a comparison of two arms with the same seeds."""
    found = compare_draws(first, second, setting.patients)
    better = sum(value > 0 for value in found.by_patient.values())
    worse = sum(value < 0 for value in found.by_patient.values())
    cells = [f"{found.over_draws.mean:+.4f}", words(found.over_draws), words(found.over_patients)]
    draws = list(found.by_draw)
    if not setting.labelled:
        return [*cells, f"{better} / {worse}", ", ".join(map(str, draws))]
    enough = len(draws) >= setting["draws"]["needed"]
    return [
        *cells,
        f"{better} / {worse}",
        str(len(draws)),
        found.verdict if enough else f"open ({setting['draws']['needed']} draws decide)",
    ]


def words(interval: Interval) -> str:
    """Returns both ends."""
    return "not known" if math.isnan(interval.low) else f"{interval.low:+.4f} to {interval.high:+.4f}"


def comparison(setting: Setting, means: dict[str, dict[int, float]]) -> str:
    """Returns the sentence on the protocol's comparison: the seeds that both arms have, or that it was not run."""
    if "compare" not in setting.protocol:
        return ""
    rule = setting["compare"]
    arm, reference = means.get(rule["arm"], {}), means.get(rule["reference"], {})
    both = sorted(set(arm) & set(reference))
    question = f"`{rule['arm']}` within {rule['within']} of `{rule['reference']}`"
    if not both:
        return f"\n\n{question}: not run."
    difference = statistics.fmean(arm[s] for s in both) - statistics.fmean(reference[s] for s in both)
    answer = "yes" if difference >= -rule["within"] else "no"
    return f"\n\n{question}: {answer}, difference of the means {difference:+.4f} (seeds {', '.join(map(str, both))})."


def write(setting: Setting) -> None:
    """Prints the table, and puts it into README.md if it belongs there."""
    text = render(setting)
    print(text)
    if setting.in_readme:
        put(setting.name, text)


def put(name: str, text: str) -> None:
    """Replaces what stands between the markers of a table in README.md."""
    readme = HERE / "README.md"
    begin, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    old = readme.read_text()
    if begin not in old or end not in old:
        raise BenchmarkError(f"{readme} lacks the markers {begin} and {end}; add them where the table belongs")
    before, rest = old.split(begin, 1)
    after = rest.split(end, 1)[1]
    temporary = readme.with_name(f".README.{os.getpid()}")
    temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    os.replace(temporary, readme)
