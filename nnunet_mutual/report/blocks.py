"""What a page is made of, and the page itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_mutual.disk.files import csv_text
from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError
from nnunet_mutual.report.svg import COLOURS

TABLES = ("dice", "curves", "coverage", "findings", "paired", "pseudo_labels", "differences")
GENERATOR = "nnunet_mutual report"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Missing:
    """What the page cannot show, and the command that makes it (None: nothing does)."""

    text: str
    command: str | None = None
    kind: str = "missing"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its name.

    Attributes:
        shows: what it is.
        head: of the columns.
        rows: cells as text; ``None`` is a cell without value.
        look: what to look for; empty for plain facts.
    """

    shows: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    look: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """Pictures with one caption.

    Attributes:
        shows: what it is.
        look: what to look for.
        pictures: elements with a text alternative of their own.
        captions: of single pictures, or none.
        size: "wide", "small" or "images": how many fit side by side.
    """

    shows: str
    look: str
    pictures: Sequence[str]
    captions: Sequence[str] = ()
    size: str = "wide"
    kind: str = "figure"


Block = Text | Missing | Table | Figure


@dataclass
class Section:
    """A part of the page."""

    ident: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Notice:
    """Something to know before anything else.

    Attributes:
        level: "alarm" (do not use the model before it is answered), "warning" (the training's log said so) or "note".
        text: what was found.
        when: it was said.
        do: what to do about it.
    """

    level: str
    text: str
    when: str = ""
    do: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: what it is about.
        kind: "training" or "benchmark".
        facts: name and value of what matters most.
        findings: what to look at first.
        questions: that a reader should answer, each with the ident of the section that helps.
        sections: the rest.
        footer: remarks at the end.
        lead: what was trained, a sentence.
        next: what to do next, a sentence or a command.
        labels: in the order of their colours, which are the same in all figures and tables.
    """

    title: str
    kind: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[Notice]
    questions: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: Sequence[str]
    lead: str = ""
    next: str = ""
    labels: Sequence[str] = ()


def short(value: float) -> str:
    """Returns a number with three digits, never as a power of ten."""
    return f"{float(f'{value:.3g}'):,.10g}"


def render(page: Page) -> str:
    """Returns the page as HTML that loads nothing and runs nothing."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    colours = {label: n % len(COLOURS) for n, label in enumerate(page.labels)}
    return environment.get_template("page.html").render(page=page, generator=GENERATOR, colours=colours)


def choose_output(output: str | None, default: Path) -> Path:
    """Returns where the page goes.

    Raises:
        MutualError: that would replace something that is no page of this command, or is no HTML file.
    """
    path = Path(output) if output is not None else default
    if path.suffix.lower() not in (".html", ".htm"):
        raise MutualError(f"{path} is no name of a page; give -o a file that ends in .html")
    if path.is_dir() or (path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise MutualError(f"{path} exists and was not written by this command; give another file with -o")
    if not path.parent.is_dir():
        raise MutualError(f"{path.parent} is no folder; create it, or give another file with -o")
    tables = [file for name in TABLES if (file := path.with_name(f"{path.stem}_{name}.csv")).exists()]
    if tables and not path.exists():
        raise MutualError(
            f"{tables[0]} exists without its page and may be yours; remove it, or give another file with -o"
        )
    return path


def write(path: Path, page: str, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Writes a page and tidy tables beside it: all are whole before the first of them, the page, gets its name.

    Tables of an earlier page of this name that the new one lacks are removed.

    Returns:
        The files, the page first.

    Raises:
        MutualError: the folder cannot be written.
    """
    contents = {
        path.with_name(f"{path.stem}_{name}.csv"): csv_text(
            [list(table.columns), *([_cell(v) for v in row] for row in table.itertuples(index=False))]
        )
        for name, table in tables.items()
    }
    try:
        with ExitStack() as stack:  # which names first what comes last
            for file, text in [*contents.items(), (path, page)]:
                stack.enter_context(written(file)).write_text(text, encoding="utf-8", newline="")
        for name in set(TABLES) - set(tables):
            path.with_name(f"{path.stem}_{name}.csv").unlink(missing_ok=True)
    except OSError as error:
        raise MutualError(
            f"{path} could not be written ({error.strerror or error}); give another file with -o, or free space"
        ) from None
    return [path, *contents]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value
