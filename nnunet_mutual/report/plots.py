"""The plots of a report, each small enough for a phone; wider screens show several side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from tqdm import tqdm

from nnunet_mutual.report.scores import ModelDifference
from nnunet_mutual.report.svg import (
    COLOURS,
    FAINT,
    INK,
    LINES,
    MARKERS,
    PAPER,
    new_figure,
    style,
    to_svg,
    whole_numbers,
)

WIDTH = 4.3  # inches
MOST_SERIES = len(COLOURS)
MOST_POINTS = 250
LABELS_PER_PLOT = 8


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: as in the legend.
        x: (n,) epochs.
        y: (n,) values.
    """

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Frame:
    """What all plots over epochs of a training share.

    Attributes:
        last: last epoch; 0 leaves the axis to the curves.
        borders: epochs before which a new stage begins.
        labels: in the order of their colours; curves of anything else are drawn in ink.
        axis: what the curves run over.
    """

    last: int = 0
    borders: Sequence[int] = ()
    labels: Sequence[str] = ()
    axis: str = "epoch"


EMPTY = Frame()
UNIT = (-0.02, 1.02)  # the axis of a Dice, or of another share


def colour_of(n: int) -> str:
    """Returns the colour of the n-th label, in all figures of a page."""
    return COLOURS[n % len(COLOURS)]


def series_of(curves: pd.DataFrame, kind: str) -> list[Series]:
    """Returns the curves of a kind, in the order in which they begin."""
    chosen = curves[curves.kind == kind].dropna(subset=["value"])
    return [
        Series(str(name), rows.epoch.to_numpy(), rows.value.to_numpy(float))
        for name, rows in chosen.groupby("name", sort=False)
    ]


def line_plots(
    title: str,
    series: Sequence[Series],
    *,
    frame: Frame = EMPTY,
    limits: tuple[float, float] | None = None,
    smooth: bool = False,
    weights: Sequence[Series] = (),
) -> list[str]:
    """Draws curves over epochs, as many in one plot as can be told apart.

    Args:
        title: what is measured.
        series: the curves.
        frame: what all plots over epochs share.
        limits: of the vertical axis.
        smooth: draw a moving mean over the faint curve.
        weights: of a loss term over epochs, drawn in a strip below unless it never changes.
    """
    chunks = [series[i : i + MOST_SERIES] for i in range(0, len(series), MOST_SERIES)]
    return [_lines(title, chunk, frame, limits, smooth, weights) for chunk in chunks]


def _lines(
    title: str,
    series: Sequence[Series],
    frame: Frame,
    limits: tuple[float, float] | None,
    smooth: bool,
    weights: Sequence[Series],
) -> str:
    strip = next((w for w in weights if len(w.y) and np.ptp(w.y) > 0), None)
    constant = next((w.y[0] for w in weights if len(w.y)), None) if strip is None else None
    with style():
        columns = 2 if max(len(one.name) for one in series) <= 20 else 1
        legend = 0.19 * -(-len(series) // columns) if len(series) > 1 else 0
        figure = new_figure(WIDTH, 2.5 + (0.55 if strip else 0) + legend)
        axes = figure.subplots(2 if strip else 1, 1, sharex=True, squeeze=False, height_ratios=[4, 1] if strip else [1])
        top, bottom = axes[0, 0], axes[-1, 0]
        top.set_title(title + ("" if constant is None else f"  (weight {constant:g})"), loc="left")
        for one, (colour, line) in zip(series, _looks(series, frame.labels), strict=True):
            _curve(top, one, smooth, colour, line)
        if limits is not None:
            top.set_ylim(*limits)
        if strip is not None:
            _curve(bottom, Series("_no legend", strip.x, strip.y), False)
            bottom.set_ylabel("weight", fontsize=8.5)
            bottom.set_ylim(min(0, strip.y.min()), strip.y.max() * 1.15)
            bottom.locator_params(axis="y", nbins=2)
        for mark in frame.borders:
            for ax in axes[:, 0]:
                ax.axvline(mark - 0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        if frame.last:
            bottom.set_xlim(-0.03 * frame.last, 1.03 * frame.last)
        bottom.xaxis.set_major_locator(whole_numbers())
        bottom.set_xlabel(frame.axis)
        if legend:
            figure.legend(loc="outside lower left", ncols=columns, handlelength=2.6, borderpad=0)
        return to_svg(figure, f"{title}. " + " ".join(_in_words(one, frame.axis) for one in series))


def _looks(series: Sequence[Series], labels: Sequence[str]) -> list[tuple[str, int]]:
    """Returns colour and number of the line style of each curve: the colour of the label in its name, or else ink."""
    looks: list[tuple[str, int]] = []
    for one in series:
        label = next((name for name in (one.name, one.name.partition(", ")[0]) if name in labels), None)
        if label is not None:
            n = labels.index(label)
            colour, line = colour_of(n), n // len(COLOURS)
        else:
            colour, line = INK, 0
        while (colour, line) in looks:
            line += 1
        looks.append((colour, line))
    return looks


def _curve(ax: Axes, one: Series, smooth: bool, colour: str = INK, line: int = 0) -> None:
    x, y = thin(one.x, one.y)
    look: dict[str, Any] = {"color": colour, "linestyle": LINES[line % len(LINES)], "label": one.name}
    if len(x) < 3:
        look["marker"] = MARKERS[line % len(MARKERS)]
    if smooth and len(x) >= 12:
        ax.plot(x, y, color=colour, alpha=0.3, linewidth=0.9)
        y = pd.Series(y).rolling(max(3, len(y) // 15), center=True, min_periods=1).mean().to_numpy()
    ax.plot(x, y, **look)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means of neighbouring points, at most 250, of (n,) each: more cannot be seen, and make a large page."""
    size = -(-len(x) // MOST_POINTS)
    if size <= 1:
        return x, y
    groups = np.arange(len(x)) // size
    count = np.bincount(groups)
    return np.bincount(groups, x) / count, np.bincount(groups, y) / count


def _in_words(one: Series, axis: str) -> str:
    if not len(one.y):
        return f"{one.name}: no value."
    best = f"lowest {one.y.min():.3g}, highest {one.y.max():.3g}"
    return f"{one.name}: {one.y[0]:.3g} at {axis} {one.x[0]}, {one.y[-1]:.3g} at {axis} {one.x[-1]} ({best})."


_PARTS = re.compile(r"(?:network|group) \d+")


def families(series: Sequence[Series], labels: Sequence[str]) -> dict[str, list[Series]]:
    """Groups curves whose names differ only in a label, a network or a group: 'mu of liver' and 'mu of spleen'."""
    names = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)|{_PARTS.pattern}") if names else _PARTS
    found: dict[str, list[Series]] = {}
    for one in series:
        parts = pattern.findall(one.name)
        family = pattern.sub("…", one.name)
        found.setdefault(family, []).append(Series(", ".join(parts) or one.name, one.x, one.y))
    return found


def score_plots(title: str, scores: pd.DataFrame, labels: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Draws the Dice of every case: a row per label in its colour, a marker per source."""
    firsts = range(0, len(labels), LABELS_PER_PLOT)
    shown = tqdm(firsts, desc="drawing", unit="plot", file=sys.stderr, leave=False, disable=len(firsts) < 2)
    return [_scores(title, scores, labels, first, sources) for first in shown]


def _scores(title: str, scores: pd.DataFrame, known: Sequence[str], first: int, sources: Sequence[str]) -> str:
    labels = known[first : first + LABELS_PER_PLOT]
    shown = [source for source in sources if (scores.source == source).any()]
    words = []
    with style():
        figure = new_figure(WIDTH, 1.0 + 0.52 * len(labels) + 0.2 * ((len(shown) + 1) // 2))
        ax = figure.subplots()
        for row, label in enumerate(labels):
            of_label = scores[(scores.label == label) & scores.dice.notna()]
            for n, source in enumerate(shown):
                values = _apart(of_label.dice[of_label.source == source].to_numpy(float), len(of_label))
                level = row + (n - (len(shown) - 1) / 2) * min(0.22, 0.7 / max(1, len(shown)))
                look: dict[str, Any] = {"marker": MARKERS[n % len(MARKERS)], "linewidths": 0}
                colour = colour_of(first + row)
                ax.scatter(values, np.full(len(values), level), s=26, zorder=3, alpha=0.75, color=colour, **look)
                if not row:
                    ax.scatter([], [], s=26, color=INK, label=source, **look)
            if len(of_label):
                median = float(of_label.dice.median())
                ax.plot([median, median], [row - 0.4, row + 0.4], color=INK, linewidth=1.6)
                words.append(f"{label}: median {median:.2f}, lowest {of_label.dice.min():.2f}, n = {len(of_label)}.")
            else:
                words.append(f"{label}: no case.")
        counts = [int(scores[scores.label == label].dice.notna().sum()) for label in labels]
        ax.set_yticks(range(len(labels)), [f"{name}\nn = {n}" for name, n in zip(labels, counts, strict=True)])
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.set_xlim(*UNIT)
        ax.set_xlabel("Dice (1: same as the drawing)")
        ax.set_title(title, loc="left")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        if len(shown) > 1:
            figure.legend(loc="outside lower left", ncols=2, borderpad=0)
        return to_svg(figure, f"{title}, Dice of each case. " + " ".join(words))


def _apart(values: np.ndarray, number: int) -> np.ndarray:
    """Sorts the points (n,) of a row; of more than 250 in the row, those that would cover each other are one."""
    return np.sort(values) if number <= MOST_POINTS else np.unique(np.round(values * MOST_POINTS) / MOST_POINTS)


def paired_plot(n: int, first: np.ndarray, second: np.ndarray, difference: ModelDifference) -> str:
    """Draws the same cases under two models: a line per case from the other model (left) to this one (right).

    Args:
        n: number of the label, for its colour.
        first: (cases,) Dice of this model.
        second: (cases,) Dice of the other one.
        difference: of the two.
    """
    label = difference.label
    with style():
        figure = new_figure(2.1, 2.4)
        ax = figure.subplots()
        for here, there in zip(first, second, strict=True):
            look: dict[str, Any] = {"color": colour_of(n), "linestyle": "-" if here >= there else "--"}
            ax.plot([0, 1], [there, here], marker="o", markersize=3.5, linewidth=1.1, alpha=0.75, **look)
        if difference.n > 1:
            ax.plot([0, 1], [difference.second, difference.first], color=INK, linewidth=2.6)
        ax.set_ylim(*UNIT)
        ax.set_xticks([0, 1], ["other", "this"])
        ax.set_xlim(-0.2, 1.2)
        ax.set_title(f"{label}, n = {difference.n}", loc="left")
        ax.set_ylabel("Dice")
        words = f"mean {difference.second:.3f} of the other model, {difference.first:.3f} of this one"
        return to_svg(
            figure,
            f"{label}, {difference.n} cases: {words}; better in {difference.better}, worse in {difference.worse}.",
        )


def arms_plot(means: pd.DataFrame, arms: Sequence[str]) -> str:
    """Draws the mean Dice of each seed (columns arm, seed, dice), a row per arm, with the mean over seeds."""
    words = []
    with style():
        figure = new_figure(WIDTH * 1.2, 1.0 + 0.36 * len(arms))
        ax = figure.subplots()
        seeds = sorted(means.seed.unique())
        for row, arm in enumerate(arms):
            values = means[means.arm == arm]
            for n, seed in enumerate(seeds):
                own = values.dice[values.seed == seed]
                nth = n % len(COLOURS)
                ax.scatter(
                    own, [row] * len(own), s=34, color=COLOURS[nth], marker=MARKERS[nth], label=f"seed {seed}", zorder=3
                )
            mean = float(values.dice.mean())
            ax.plot([mean, mean], [row - 0.35, row + 0.35], color=INK, linewidth=1.6)
            words.append(f"{arm}: {mean:.3f}, {len(values)} seed(s).")
        _rows(ax, arms)
        ax.set_xlim(*UNIT)
        ax.set_xlabel("mean Dice over labels and cases")
        handles, names = ax.get_legend_handles_labels()
        unique = dict(zip(names, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside lower left", ncols=3, borderpad=0)
        return to_svg(figure, "Mean Dice by arm. " + " ".join(words))


def differences_plot(differences: Sequence[ModelDifference], reference: str) -> str:
    """Draws the mean paired difference of each arm from a reference, with its interval."""
    words = []
    with style():
        figure = new_figure(WIDTH * 1.2, 0.9 + 0.36 * len(differences))
        ax = figure.subplots()
        ax.axvline(0, color=INK, linewidth=1)
        for row, one in enumerate(differences):
            if one.low is not None and one.high is not None:
                ax.plot([one.low, one.high], [row, row], color=COLOURS[0], linewidth=2.4)
                words.append(f"{one.label}: {one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f}).")
            else:
                words.append(f"{one.label}: {one.mean:+.3f}.")
            ax.plot(one.mean, row, marker="o", color=COLOURS[0], markeredgecolor=PAPER, markersize=7)
        _rows(ax, [one.label for one in differences])
        ax.set_xlabel(f"Dice, difference from {reference}")
        return to_svg(figure, f"Difference of each arm from {reference}. " + " ".join(words))


def decisions_plot(counts: pd.DataFrame, labels: Sequence[str]) -> str:
    """Draws accepted and rejected pseudo labels (columns label, accepted, rejected), in the colours of the labels."""
    with style():
        figure = new_figure(WIDTH, 1.05 + 0.34 * len(counts))
        ax = figure.subplots()
        rows = range(len(counts))
        colours = [colour_of(list(labels).index(label)) if label in labels else INK for label in counts.label]
        ax.barh(rows, counts.accepted, color=colours, height=0.62)
        ax.barh(
            rows,
            counts.rejected,
            left=counts.accepted,
            color=FAINT,
            height=0.62,
            hatch="///",
            edgecolor=INK,
        )
        _rows(ax, list(counts.label))
        ax.xaxis.set_major_locator(whole_numbers())
        ax.set_xlabel("training cases that do not annotate the label")
        handles = [
            Patch(facecolor=INK, label="accepted"),
            Patch(facecolor=FAINT, edgecolor=INK, hatch="///", label="rejected"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, borderpad=0)
        said = (f"{row.label}: {row.accepted} accepted, {row.rejected} rejected." for row in counts.itertuples())
        return to_svg(figure, "Pseudo labels. " + " ".join(said))


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
