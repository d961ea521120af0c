"""Matplotlib figures as inline SVG that takes the page's colours, so that they read on light and dark ground."""

from __future__ import annotations

import html
import io
import itertools
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which colour-blind readers can tell apart; the page's style sheet has a lighter and a darker
# form of each. A colour stands for a label, the same one in all figures of a page; what is no label is drawn in ink,
# with a line style or a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BRIGHT = ("#4da6e0", "#f28a45", "#3cc79a", "#e3a3c8", "#f2b73d", "#9bd4f5")  # the same on dark ground, in images
MARKERS = ("o", "^", "s", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
INK, FAINT, PAPER = "#010203", "#bdbebf", "#fcfdfe"  # stand for the page's own colours
_VARIABLES = {INK: "currentColor", FAINT: "var(--faint)", PAPER: "var(--paper)"}
_VARIABLES |= {colour: f"var(--c{n})" for n, colour in enumerate(COLOURS)}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of labels and sources may hold two $
    "svg.hashsalt": "nnunet_mutual",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    **dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
_serial = itertools.count(1)


def style() -> AbstractContextManager[None]:
    """The look of all plots; make and draw figures within it."""
    return matplotlib.rc_context(_RC)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers: there is no epoch 2.5."""
    return MaxNLocator(nbins=5, integer=True, min_n_ticks=1)


def to_svg(figure: Figure, alternative: str) -> str:
    """Draws a figure as an element for the middle of a page.

    Args:
        figure: made within :func:`style`.
        alternative: the same in words, for those who do not see it.
    """
    FigureCanvasSVG(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Matplotlib's style sheet would hold for the whole page; page.css says the same of svg elements.
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.S)
    # Ids must be unique on a page of many figures.
    prefix = f"p{next(_serial)}-"
    drawn = re.sub(r'\bid="', f'id="{prefix}', drawn)
    drawn = re.sub(r'xlink:href="#', f'href="#{prefix}', drawn)
    drawn = re.sub(r"url\(#", f"url(#{prefix}", drawn)
    for colour, variable in _VARIABLES.items():
        drawn = re.sub(colour, variable, drawn, flags=re.I)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    assert size is not None
    opening = (
        f'<svg viewBox="{size[0][9:-1]}" role="img" aria-label="{html.escape(alternative, quote=True)}" '
        f'style="max-width:{float(size[1]) * 4 / 3:.0f}px">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, drawn, count=1).strip()
