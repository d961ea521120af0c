"""The masks of one case become part of its label map, or the sentence that says why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.annotation.cases import Case, Outline
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.case_voxels import inspect_case
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.images import read_label_map, voxel_ml, write_label_map
from nnunet_mutual.disk.writing import require_space
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.filter import millilitres
from nnunet_mutual.pseudo_labels.review.arrivals import read_drawn
from nnunet_mutual.pseudo_labels.review.rules import Rule, put_in, rules_for
from nnunet_mutual.pseudo_labels.review.verdicts import ABSENT, ACCEPT, Verdict


@dataclass(frozen=True)
class CorrectedCase:
    """A case as it will be.

    Attributes:
        case: with the labels that are annotated now.
        voxels: (*spatial) integers of the new label map.
        properties: nnU-Net's, of the old label map, to write the new one with.
        said: what became of which voxels, a sentence each.
    """

    case: Case
    voxels: np.ndarray
    properties: dict[str, Any]
    said: list[str]


def merge_case(
    files: CaseFiles,
    verdicts: Iterable[Verdict],
    table: AnnotationTable,
    reader: BaseReaderWriter,
    *,
    keep_drawn: bool,
    weight: float = 1.0,
) -> CorrectedCase:
    """Puts all accepted masks of a case into its label map, inner labels first.

    Args:
        files: of the case.
        verdicts: those that annotate, of this case.
        table: who annotated what before.
        reader: nnU-Net's.
        keep_drawn: keep the drawing where a mask contradicts it, instead of refusing the mask.
        weight: of accepted masks in trainings; what a reader has corrected counts as drawn.

    Raises:
        MutualError: a mask cannot be used; names it, and what is wrong.
    """
    case = table.case(files.key)
    voxels, properties = read_drawn(reader, files)
    said = []
    volume = voxel_ml(properties)
    for verdict in sorted(verdicts, key=lambda verdict: _number_of_inner(table, verdict.label)):
        absent = verdict.decision == ABSENT
        mask = np.zeros(voxels.shape, bool) if absent else _read_mask(verdict, files, table, reader)
        rules = rules_for(table, case, verdict.label)
        _require_rules(voxels, rules, files.label)
        merged, contradicted = put_in(voxels, mask, rules)
        if contradicted.any() and not keep_drawn:
            raise MutualError(
                f"{verdict.place}: {verdict.file} covers {_counts(voxels[contradicted], table)}, and the "
                f"annotation table does not say that {verdict.label} may be there; erase these voxels from the mask, "
                'declare "contains" or "may_overlap", or repeat with --keep-drawn to leave them as they were drawn'
            )
        _require_presence(verdict, voxels, merged, table)
        said.append(_describe(verdict, table, case, voxels, merged, mask, volume))
        voxels = merged
        own = {verdict.label}
        annotated, incomplete = case.annotated | own, case.incomplete - own
        case = replace(case, annotated=annotated, incomplete=incomplete, pseudo=case.pseudo - own)
        if verdict.decision == ACCEPT and (verdict.tool or weight != 1):
            case = replace(case, outlined=(*case.outlined, Outline(verdict.label, verdict.tool, weight)))
    return CorrectedCase(case, voxels, properties, said)


def merged_aside(
    job: tuple[CaseFiles, Sequence[Verdict]],
    *,
    place: Path | None,
    table: AnnotationTable,
    reader: BaseReaderWriter,
    **options: Any,
) -> CorrectedCase:
    """Merges one case as :func:`merge_case` and writes its label map into a folder, if there is one, not to keep it.

    Raises:
        MutualError: see :func:`merge_case`.
        OSError, RuntimeError: the disk is full or not writable (SimpleITK reports it as RuntimeError).
    """
    files, verdicts = job
    case = merge_case(files, verdicts, table, reader, **options)
    if place is not None:
        place.mkdir(exist_ok=True)
        write_label_map(reader, case.voxels, place / files.label.name, case.properties)
        require_space(place)
    return replace(case, voxels=np.empty(0), properties={})


def _read_mask(verdict: Verdict, files: CaseFiles, table: AnnotationTable, reader: BaseReaderWriter) -> np.ndarray:
    """Returns (*spatial) bool, on the grid of the image for sure."""
    assert verdict.file is not None
    # As a label map of the images of this case, every way in which a file can be wrong is known already.
    finding = inspect_case(CaseFiles(files.key, files.images, verdict.file), None, table, reader)
    errors = [f"{problem.place}: {problem.text}" for problem in finding.problems if problem.severity == ERROR]
    if errors:
        raise MutualError(f"{verdict.place}: {errors[0]}")
    voxels, _ = read_label_map(reader, verdict.file)
    own = sorted(table.values[verdict.label])
    present = set(np.unique(voxels).tolist())
    if not (present <= {0, 1} or present <= {0, *own}):
        raise MutualError(
            f"{verdict.place}: {verdict.file} holds the values {', '.join(map(str, sorted(present)))}; a mask holds 0 "
            f"and 1, or 0 and {' and '.join(map(str, own))} as in dataset.json ({verdict.label})"
        )
    mask = voxels > 0
    if not mask.any():
        raise MutualError(
            f"{verdict.place}: the mask of {verdict.label} in {verdict.case} is empty ({verdict.file}), which says "
            f"nothing; write absent if there is no {verdict.label} in this image, else reject (it stays unknown), or "
            "corrected with a mask of it"
        )
    return mask


def _require_presence(verdict: Verdict, before: np.ndarray, after: np.ndarray, table: AnnotationTable) -> None:
    """Absent means no voxel, everything else at least one: a label is never made absent without that word."""
    own = np.isin(after, table.values[verdict.label])
    if verdict.decision == ABSENT and own.any():
        raise MutualError(
            f"{verdict.place}: {verdict.label} cannot be absent in {verdict.case}, since "
            f"{_counts(before[own], table)} belong to it; write corrected with a mask of it, or reject"
        )
    if verdict.decision != ABSENT and not own.any():
        raise MutualError(
            f"{verdict.place}: nothing of {verdict.file} is left where others were drawn, so {verdict.label} of "
            f"{verdict.case} would have no voxel; correct the mask, or write absent or reject"
        )


def _require_rules(voxels: np.ndarray, rules: Mapping[int, Rule], file: Path) -> None:
    unknown = sorted(set(np.unique(voxels).tolist()) - set(rules))
    if unknown:
        raise MutualError(
            f"{file} holds {', '.join(map(str, unknown))}, which dataset.json does not define; run nnunet_mutual check"
        )


def _number_of_inner(table: AnnotationTable, label: str) -> int:
    if table.is_regions:
        return len(table.values[label])
    return sum(table.ever_contains(label, other) for other in table.labels)


def _describe(
    verdict: Verdict,
    table: AnnotationTable,
    case: Case,
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
    size: float | None,
) -> str:
    own = np.isin(after, table.values[verdict.label])
    number = int(own.sum())
    parts = []
    if number:
        parts.append(f"{number} voxel(s)" if size is None else millilitres(number * size))
    cleared = np.isin(before, table.values[verdict.label]) & ~own
    if cleared.any():
        parts.append(f"{_counts(before[cleared], table)} are cleared")
    # Regions that were drawn stay drawn, whatever the integer.
    replaced = np.zeros(mask.shape, bool) if table.is_regions else own & (before != after) & (before != 0)
    if replaced.any():
        parts.append(f"{_counts(before[replaced], table)} become {verdict.label}")
    kept = mask & ~own
    if kept.any():
        parts.append(f"{_counts(before[kept], table)} stay as drawn")
    added = own & ~mask
    if added.any():
        parts.append(f"{int(added.sum())} voxel(s) outside of the mask belong to it by what else was drawn")
    return f"{case.key}: {verdict.label} ({verdict.decision}), {'; '.join(parts) or 'no voxel'}"


def _counts(values: np.ndarray, table: AnnotationTable) -> str:
    """Says what voxels were drawn as: '12 voxel(s) drawn as liver'."""
    numbers, counts = np.unique(values, return_counts=True)
    return ", ".join(
        f"{count} voxel(s) drawn as {_name(int(number), table)}" for number, count in zip(numbers, counts, strict=True)
    )


def _name(number: int, table: AnnotationTable) -> str:
    if number == table.ignore:
        return "ignore"
    names: Sequence[str] = [name for name, values in table.values.items() if number in values]
    return "+".join(names) or "background"
