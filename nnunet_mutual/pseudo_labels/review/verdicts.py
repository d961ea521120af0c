"""The table that a reader fills in, read back and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.sheets import read_sheet
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.names import inside
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.errors import MutualError, meant, shown, typed

TABLE = "review.csv"
MANIFEST = "review.json"
COLUMNS = ("case", "label", "decision", "corrected_file", "comment")
ACCEPT, CORRECTED, ABSENT, REJECT = "accept", "corrected", "absent", "reject"
DECISIONS = (ACCEPT, CORRECTED, ABSENT, REJECT)


@dataclass(frozen=True)
class Verdict:
    """What a reader says about a pseudo label.

    Attributes:
        case: the case.
        label: a label that the case does not annotate.
        decision: one of ``DECISIONS``, or empty.
        file: the mask to use; None if there is none.
        tool: who outlined it, if that was another tool than a network of ours.
        place: line of the table, for sentences.
    """

    case: str
    label: str
    decision: str
    file: Path | None
    place: str
    tool: str = ""

    @property
    def annotates(self) -> bool:
        """Whether the label becomes a true one in the case: with a mask, or without a voxel if it is absent."""
        return self.decision in (ACCEPT, CORRECTED, ABSENT)


@dataclass(frozen=True)
class Manifest:
    """What `review` has written: the dataset, and file and hash of the candidate of each (case, label).

    Attributes:
        dataset: full name.
        training: that made the pseudo labels; None of masks of other tools.
        candidates: of each (case, label), file and hash of the mask.
        tools: who outlined it, where that was another tool.
    """

    dataset: str
    training: NamedTraining | None
    candidates: Mapping[tuple[str, str], tuple[str, str]]
    tools: Mapping[tuple[str, str], str]

    @cached_property
    def cases(self) -> frozenset[str]:
        """The cases under review."""
        return frozenset(case for case, _ in self.candidates)


def read_manifest(table: Path) -> Manifest:
    """Reads what lies beside the table.

    Raises:
        MutualError: it is missing or damaged.
    """
    if not table.is_file():
        own = table / TABLE
        raise MutualError(
            f"{table} is a folder, give the table in it: {typed(own)}"
            if own.is_file()
            else f"{table} is no file; give the table that nnunet_mutual review has written and you have filled"
        )
    file = table.with_name(MANIFEST)
    if not file.is_file():
        raise MutualError(
            f"{file} does not exist; leave the table in the folder that nnunet_mutual review has written, with "
            "all that is in it"
        )
    content = read_object(file)
    try:
        candidates = {(e["case"], e["label"]): (str(e["file"]), str(e["sha256"])) for e in content["candidates"]}
        tools = {(e["case"], e["label"]): str(e["tool"]) for e in content["candidates"] if "tool" in e}
        dataset = str(content["dataset"])
        training = None if "masks" in content else NamedTraining(**content["training"])
        if training is not None and (
            training.dataset != dataset or not all(isinstance(word, str) for word in astuple(training))
        ):
            raise TypeError
        return Manifest(dataset, training, candidates, tools)
    except (KeyError, TypeError):
        raise MutualError(f"{file} is damaged; run nnunet_mutual review again") from None


def read_verdicts(table: Path, manifest: Manifest, annotations: AnnotationTable) -> list[Verdict]:
    """Reads the table; everything in it is verified but the voxels.

    Args:
        table: the filled ``review.csv``.
        manifest: of the same folder.
        annotations: of the raw dataset.

    Raises:
        MutualError: names the line, what it holds, and what was expected.
    """
    sheet = read_sheet(table, COLUMNS)
    for name in COLUMNS[:3]:
        if name not in sheet.header:
            raise MutualError(f"{table} has no column {name!r}; expected {','.join(COLUMNS)}")
    found: dict[tuple[str, str], Verdict] = {}
    for number, row in sheet.rows:
        verdict = _verdict(row, f"{table}, line {number}", table.parent, manifest, annotations)
        if (verdict.case, verdict.label) in found:
            raise MutualError(f"{verdict.place} lists {verdict.label} of {verdict.case} a second time; keep one line")
        found[verdict.case, verdict.label] = verdict
    return list(found.values())


def _verdict(
    row: Mapping[str, str], place: str, folder: Path, manifest: Manifest, annotations: AnnotationTable
) -> Verdict:
    case, label, decision = row["case"], row["label"], row["decision"].lower()
    if case not in manifest.cases:
        known = meant(case, sorted(manifest.cases))
        raise MutualError(f"{place} names the unknown case {shown(case)}{known}; the review does not have it")
    if label not in annotations.labels:
        raise MutualError(
            f"{place} names the unknown label {shown(label)}{meant(label, annotations.labels)}; dataset.json has: "
            f"{', '.join(annotations.labels)}"
        )
    if (case, label) not in manifest.candidates:
        reviewed = ", ".join(name for key, name in manifest.candidates if key == case)
        raise MutualError(f"{place}: {label} of {case} is not in this review, which has {reviewed} of it")
    if decision not in ("", *DECISIONS):
        raise MutualError(
            f"{place} has the decision {shown(row['decision'])}{meant(decision, DECISIONS)}; expected "
            f"{', '.join(DECISIONS)}, or nothing"
        )
    corrected = row.get("corrected_file", "")
    if corrected and decision != CORRECTED:
        raise MutualError(
            f"{place} names a corrected file, but the decision is {decision or 'empty'!r}; write corrected, or "
            "remove the file name"
        )
    if decision in ("", REJECT):
        return Verdict(case, label, decision, None, place)
    if label in annotations.case(case).annotated:
        raise MutualError(
            f"{place}: {label} is already annotated in {case}, perhaps by an accept of this table; if its drawing is "
            "wrong, correct labelsTr by hand, else remove the decision"
        )
    if decision == ABSENT:
        return Verdict(case, label, decision, None, place)
    tool = manifest.tools.get((case, label), "")
    if decision == ACCEPT:
        return Verdict(case, label, decision, _candidate(folder, *manifest.candidates[case, label], place), place, tool)
    if not corrected:
        raise MutualError(f"{place} is corrected, but names no corrected_file; give the path of your mask")
    return Verdict(case, label, decision, _corrected(folder, corrected, place), place)


def _corrected(folder: Path, path: str, place: str) -> Path:
    try:
        file = folder / Path(path).expanduser()
        if file.is_file():
            return file
    except (OSError, RuntimeError):  # too long a name; the home of an unknown user
        file = Path(shown(path))
    raise MutualError(
        f"{place}: the corrected file {file} does not exist; give its path as seen from {folder}, or the whole path"
    )


def _candidate(folder: Path, name: str, sha256: str, place: str) -> Path:
    file = inside(folder, name, f"file of {folder / MANIFEST}", fix="run nnunet_mutual review again")
    if not file.is_file():
        raise MutualError(f"{place}: {file} does not exist; put it back, or run nnunet_mutual review again")
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise MutualError(
            f"{place}: {file} was changed after the review was made; to use it as it is now, write corrected and "
            f"{name} as corrected_file"
        )
    return file
