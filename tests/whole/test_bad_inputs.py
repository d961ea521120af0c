"""At least 200 bad inputs: one sentence each, with the file and the fix, and nothing changed; the outcome is a table.

``python tests/whole/test_bad_inputs.py [WORD ...]`` runs the rows whose kind or name holds a word and prints what is
wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from bad_inputs import (
    arguments,
    checkpoints,
    disks,
    images,
    json_files,
    masks,
    names,
    settings,
    states,
    suggestions,
    tables,
    trials,
)
from bad_inputs.rows import Row
from bad_inputs.run import ROOTS, outcome

KINDS = (arguments, settings, json_files, tables, images, checkpoints, names, states, suggestions, disks, trials, masks)
ROWS = [(module.KIND, row) for module in KINDS for row in module.ROWS]
TABLE = Path(__file__).with_name("bad_inputs.md")


def run_rows(folder: Path, rows: list[tuple[str, Row]]) -> list[tuple[str, Row, str, list[str]]]:
    """Returns kind, row, sentence and faults of each."""
    from bad_inputs.world import make_world

    world = folder / "world"
    world.mkdir()
    for name in ROOTS:
        os.environ[name] = str(world / name)
    make_world(world)
    return [(kind, row, *outcome(row, world)) for kind, row in rows]


def as_table(found: list[tuple[str, Row, str, list[str]]]) -> str:
    """Returns the outcome as Markdown."""
    lines = [
        f"# {len(found)} bad inputs and what the command line says",
        "",
        "Written by tests/whole/test_bad_inputs.py.",
    ]
    last = ""
    for kind, row, sentence, faults in found:
        if kind != last:
            lines += ["", f"## {kind}", "", "| input | sentence |", "|---|---|"]
            last = kind
        said = _cell(sentence) if not faults else f"**{_cell('; '.join(faults))}**: {_cell(sentence)}"
        lines.append(f"| {_cell(row.name)} | {said} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    flat = " ".join(text.split())
    return (flat if len(flat) <= 400 else f"{flat[:397]}...").replace("|", "\\|")


@pytest.mark.slow
def test_every_bad_input_gets_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ROOTS:
        monkeypatch.setenv(name, "")
    assert len(ROWS) >= 200
    found = run_rows(tmp_path, ROWS)
    TABLE.write_text(as_table(found), encoding="utf-8")
    assert not {f"{kind}: {row.name}": faults for kind, row, _, faults in found if faults}


def test_names_of_rows_are_unique() -> None:
    assert len({(kind, row.name) for kind, row in ROWS}) == len(ROWS)


if __name__ == "__main__":
    import tempfile

    words = sys.argv[1:]
    chosen = [(kind, row) for kind, row in ROWS if not words or any(word in f"{kind}: {row.name}" for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_rows(Path(scratch), chosen)
    for kind, row, sentence, faults in outcomes:
        if faults:
            print(f"{kind}: {row.name}\n    {faults}\n    {sentence[-1500:]}")
    bad = sum(bool(faults) for *_, faults in outcomes)
    print(f"{len(outcomes)} rows, {bad} with faults")
    if not words:
        TABLE.write_text(as_table(outcomes), encoding="utf-8")
    sys.exit(bool(bad))
