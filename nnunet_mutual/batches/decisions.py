"""What was decided about each label of each case, as a table that is read back."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import plain_cell, write_csv
from nnunet_mutual.errors import MutualError

ALONE = "no second opinion"  # the headline of a reason
_FIX = "correct it there, or delete the file and make the pseudo labels again"


@dataclass(frozen=True)
class Decision:
    """What became of one label of one case.

    Attributes:
        case: the case.
        source: its source in dataset.json.
        label: a label that is not annotated in the case.
        accepted: whether its pseudo label is used.
        reason: ``headline: details``, as :func:`~nnunet_mutual.pseudo_labels.filter.judge_label` words it.
        volume_ml: volume of the pseudo label in millilitres; None if there is one, but its image says no size.
        agreement: Dice between independent predictions; None if there was only one.
        z: distance from the usual volume in standard deviations of log volumes; None if not measured.
        decided_share: share of the voxels open to the label that were decided, 0 to 1; None if none was open.
        networks: the networks that were averaged, such as "0+2", or the tools whose masks were, by name.
    """

    case: str
    source: str
    label: str
    accepted: bool
    reason: str
    volume_ml: float | None
    agreement: float | None
    z: float | None
    decided_share: float | None
    networks: str

    @property
    def verdict(self) -> str:
        """What became of it, in a word or two: only a second opinion, or a reader, can accept what one tool says."""
        if self.accepted:
            return "accepted"
        return ALONE if self.reason.startswith(ALONE) else "rejected"


_COLUMNS = tuple(field.name for field in fields(Decision))
_NUMBERS = ("volume_ml", "agreement", "z", "decided_share")  # each may be missing


def tools_of(decisions: Iterable[Decision]) -> list[str]:
    """Returns the tools whose masks were judged, each once; none where networks were asked."""
    named = (decision.networks for decision in decisions)
    return list(dict.fromkeys(name for name in named if name.replace("+", "") and not name.replace("+", "").isdigit()))


def write_decisions(file: Path, decisions: Iterable[Decision]) -> None:
    """Writes decisions as CSV: under a temporary name first, so that the file is always a whole one.

    Args:
        file: is replaced.
        decisions: one row each, in this order; numbers get four significant digits, None an empty cell.

    Raises:
        MutualError: the folder cannot be written; an old file is then untouched.
    """
    rows = [[_cell(value) for value in astuple(decision)] for decision in decisions]
    try:
        write_csv(file, [_COLUMNS, *rows])
    except OSError as error:
        raise MutualError(
            f"{file} could not be written ({error.strerror or error}); free space or get write permission, then repeat"
        ) from None


def read_decisions(file: Path) -> list[Decision]:
    """Reads what :func:`write_decisions` wrote.

    Raises:
        MutualError: the file is missing or damaged; names the line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                return _decisions(reader, file)
            except csv.Error as error:
                raise MutualError(f"{file}, line {reader.line_num}: {error}; {_FIX}") from None
    except UnicodeDecodeError:
        raise MutualError(f"{file} is not UTF-8 text; delete it and make the pseudo labels again") from None
    except OSError as error:
        raise MutualError(
            f"{file} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _cell(value: str | bool | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    text = f"{value:.4g}"
    return f"{float(text):.0f}" if "e+" in text else text  # 12340, not 1.234e+04: clinicians read it


def _decisions(reader: Any, file: Path) -> list[Decision]:
    header: list[str] = next(reader, [])
    if tuple(header) != _COLUMNS:
        raise MutualError(
            f"{file}, line 1: the columns are {','.join(header) or 'none'}, expected {','.join(_COLUMNS)}; {_FIX}"
        )
    found: dict[tuple[str, str], Decision] = {}
    for row in reader:
        place = f"{file}, line {reader.line_num}"
        decision = _decision([plain_cell(cell) for cell in row], place)
        if found.setdefault((decision.case, decision.label), decision) is not decision:
            raise MutualError(f"{place}: {decision.label} of {decision.case} is there a second time; {_FIX}")
    return list(found.values())


def _decision(row: Sequence[str], place: str) -> Decision:
    if len(row) != len(_COLUMNS):
        raise MutualError(f"{place}: {len(row)} cells, expected {len(_COLUMNS)}; {_FIX}")
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    if values["accepted"] not in ("yes", "no"):
        raise MutualError(f'{place}: "accepted" is {values["accepted"]!r}, expected yes or no; {_FIX}')
    values["accepted"] = values["accepted"] == "yes"
    for name in _NUMBERS:
        values[name] = _number(values[name], name, place) if values[name] else None
    return Decision(**values)


def _number(text: str, name: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise MutualError(f'{place}: "{name}" is {text!r}, expected a number; {_FIX}')
    return number
