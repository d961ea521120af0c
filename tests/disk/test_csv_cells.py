"""CSV files are opened in spreadsheets: text is no formula there, numbers stay numbers, what we read is what was."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fresh import killed

import nnunet_mutual
from nnunet_mutual.batches.decisions import Decision, read_decisions, write_decisions
from nnunet_mutual.datasets.sheets import read_sheet
from nnunet_mutual.disk.files import csv_text, plain_cell, write_csv
from nnunet_mutual.report import blocks

FORMULAS = ["=1+1", "+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "'=1", "''-x", "＝1", "-", "-x_01"]
PLAIN: list[Any] = ["liver", "a-b", "x=1", "'quoted", "", "-2.1", "+3", "-1e-05", -2.1, 3, -0.0, "0+2", "nan"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_text_is_no_formula_and_is_read_as_it_was(cell: str) -> None:
    written = next(csv.reader(io.StringIO(csv_text([[cell]]), newline="")))[0]
    assert written[0] == "'" and plain_cell(written) == cell


@pytest.mark.parametrize("cell", PLAIN)
def test_all_else_is_as_it_was(cell: Any) -> None:
    written = next(csv.reader(io.StringIO(csv_text([[cell, "end"]]), newline="")))[0]
    assert written == str(cell) and plain_cell(written) == written


@pytest.mark.parametrize("cell", ["liver;=1+1", "liver;\t@x", "a\t-x", "a\n=1", "\t=1", "a;'=1"])
def test_no_part_of_a_text_becomes_a_cell_where_others_separate_cells(cell: str) -> None:
    for delimiter in ",;\t":
        rows = list(csv.reader(io.StringIO(csv_text([["case", cell, 3]]), newline=""), delimiter=delimiter))
        assert not any(re.match(r"\s*[=+\-@]", part) for row in rows for part in row)
    assert plain_cell(next(csv.reader(io.StringIO(csv_text([[cell]]), newline="")))[0]) == cell


def test_whatever_is_no_number_is_text() -> None:
    assert csv_text([[Path("=1+1"), np.str_("@x"), None, True, np.float32(-0.5)]]) == "'=1+1,'@x,,True,-0.5\r\n"


def test_every_table_is_written_in_one_place() -> None:
    package = Path(nnunet_mutual.__file__).parent
    writing = re.compile(r"csv\.(?:writer|DictWriter)|\bto_csv\b")
    found = [str(path.relative_to(package)) for path in package.rglob("*.py") if writing.search(path.read_text())]
    assert found == ["disk/files.py"]


def test_tables_and_decisions_come_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "review.csv", [("case", "label", "decision"), ("=1+1", "-x", "accept")])
    assert read_sheet(tmp_path / "review.csv").rows == [(2, {"case": "=1+1", "label": "-x", "decision": "accept"})]
    decision = Decision("@case", "=site", "-liver", True, "+reason: all", 1.5, None, -2.1, 0.5, "0+1")
    write_decisions(tmp_path / "decisions.csv", [decision])
    assert read_decisions(tmp_path / "decisions.csv") == [decision]
    assert ",'=site,'-liver,yes,'+reason: all,1.5,,-2.1,0.5,0+1" in (tmp_path / "decisions.csv").read_text()


def test_tables_of_a_report_hold_no_formula(tmp_path: Path) -> None:
    table = pd.DataFrame({"case": ["=1+1"], "dice": [-0.25]})
    blocks.write(tmp_path / "report.html", f"<html>{blocks.GENERATOR}", {"dice": table})
    assert (tmp_path / "report_dice.csv").read_text().splitlines() == ["case,dice", "'=1+1,-0.25"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_report_that_was_killed_is_repeated(tmp_path: Path, renames: int) -> None:
    page, table = tmp_path / "report.html", pd.DataFrame({"case": ["a"]})

    def write() -> None:
        path = blocks.choose_output(str(page), page)
        blocks.write(path, f"<html>{blocks.GENERATOR}", {"dice": table, "curves": table})

    killed(write, renames)
    write()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["report.html", "report_curves.csv", "report_dice.csv"]
