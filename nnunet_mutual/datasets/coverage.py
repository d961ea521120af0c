"""The coverage matrix: which source annotates which label in how many cases, and in how many it is there to be seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable

_WIDTH = 110


@dataclass(frozen=True)
class Cell:
    """One label in one source.

    Attributes:
        annotated: cases in which somebody looked for the label.
        present: cases with voxels of the label among the annotated ones; None if the label maps were not read.
        outside: cases with voxels of the label although it is neither drawn nor a pseudo label there.
        pseudo: cases in which it is a pseudo label, whose voxels say nothing.
        incomplete: further cases, in which it is drawn in part.
    """

    label: str
    source: str
    annotated: int
    present: int | None = None
    outside: int = 0
    pseudo: int = 0
    incomplete: int = 0


def coverage(
    table: AnnotationTable, cases: Sequence[Case], present: Mapping[str, Iterable[str]] | None = None
) -> list[Cell]:
    """Counts cases for each label and source.

    Args:
        table: the annotation table.
        cases: the training cases.
        present: labels that have voxels, by case; None if the label maps were not read.
    """
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # by what is counted: of (label, source)
    for case in cases:
        seen = frozenset[str]() if present is None else frozenset(present.get(case.key, ()))
        for what, labels in (
            ("annotated", case.annotated),
            ("pseudo", case.pseudo),
            ("incomplete", case.incomplete),
            ("present", seen & case.annotated),
            ("outside", seen - case.drawn - case.pseudo),
        ):
            counts[what].update((label, case.source) for label in labels)
    places = [(label, source) for label in table.labels for source in table.sources]
    if present is None:
        return [
            Cell(*p, counts["annotated"][p], pseudo=counts["pseudo"][p], incomplete=counts["incomplete"][p])
            for p in places
        ]
    order = ("annotated", "present", "outside", "pseudo", "incomplete")
    return [Cell(*p, *(counts[what][p] for what in order)) for p in places]


def format_coverage(table: AnnotationTable, cases: Sequence[Case], cells: Sequence[Cell]) -> str:
    """Returns the matrix as text: labels in rows, sources in columns, long source names as numbers with a legend."""
    size = Counter(case.source for case in cases)
    sources = [name for name in table.sources if size[name]]
    by_place = {(cell.label, cell.source): cell for cell in cells}
    rows = []
    for label in table.labels:
        row = [by_place[label, source] for source in sources]
        rows.append([label, *map(_text, row), _text(_total(label, row))])
    read = any(cell.present is not None for cell in cells)
    header = ["label", *sources, "all"]
    legend = ""
    if _width([header, *rows]) > _WIDTH:
        header = ["label", *(f"[{number}]" for number in range(1, len(sources) + 1)), "all"]
        legend = "\n" + "\n".join(
            f"  [{number}] {name}: {_cases(size[name])}" for number, name in enumerate(sources, 1)
        )
    sizes = ["cases", *(str(size[name]) for name in sources), str(len(cases))]
    what = "cases annotated / of these with voxels of the label" if read else "cases annotated"
    outside = (
        "; !n: n cases have voxels although the label is not annotated" if any(cell.outside for cell in cells) else ""
    )
    if any(cell.incomplete for cell in cells):
        outside += "; (n): drawn in part in n more cases, where what is not drawn is unknown"
    if any(cell.pseudo for cell in cells):
        outside += "; ~n: a pseudo label in n cases, unknown until it is accepted or filtered"
    return f"{what} (-: not annotated{outside})\n" + columns([header, sizes, *rows]) + legend


def fully_drawn(name: str, cases: int, present: Mapping[str, int]) -> str:
    """Says what a dataset without a table claims, with the numbers by which its owner sees whether that is true.

    Args:
        name: of the dataset.
        cases: how many it has.
        present: in how many of them each label has voxels.
    """
    text = f"{name} has no table: every case counts as fully drawn"
    some = [f"{label} has voxels in {number} of {cases} cases" for label, number in present.items() if number < cases]
    if not some:
        return text
    return (
        f"WARNING: {text}; {', '.join(some)}; where it was not drawn in the others, trainings learn that it is "
        "absent there, so make a table (.xlsx or CSV: a line for each case, the column case, one for each label with "
        f"yes or no) and say who drew what: nnunet_mutual annotate {name} TABLE.csv"
    )


def columns(rows: Sequence[Sequence[str]], *, indent: str = "  ", gap: str = "   ") -> str:
    """Aligns cells: the first column left, the others right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(indent + gap.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _width(rows: Sequence[Sequence[str]]) -> int:
    return max(map(len, columns(rows).split("\n")))


def _total(label: str, row: Sequence[Cell]) -> Cell:
    read = any(cell.present is not None for cell in row)
    return Cell(
        label,
        "all",
        sum(cell.annotated for cell in row),
        sum(cell.present or 0 for cell in row) if read else None,
        sum(cell.outside for cell in row),
        sum(cell.pseudo for cell in row),
        sum(cell.incomplete for cell in row),
    )


def _text(cell: Cell) -> str:
    marks = {"({})": cell.incomplete, "!{}": cell.outside, "~{}": cell.pseudo}
    outside = "".join(f" {mark.format(number)}" for mark, number in marks.items() if number)
    if not cell.annotated:
        return "-" + outside
    return (str(cell.annotated) if cell.present is None else f"{cell.annotated}/{cell.present}") + outside


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"
