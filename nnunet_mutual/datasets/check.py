"""The command ``check``: the coverage matrix of a dataset, and every problem that would spoil a training."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from nnunet_mutual.datasets.coverage import format_coverage, fully_drawn
from nnunet_mutual.datasets.examination import Examination, examine
from nnunet_mutual.datasets.next_step import Contents, next_command
from nnunet_mutual.datasets.problems import ERROR, WARNING
from nnunet_mutual.disk.locate import DatasetFolders, locate


def check(dataset: str | int, *, as_json: bool = False, headers_only: bool = False) -> int:
    """Prints who annotated what, and every problem found in the files and in the table.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        as_json: print one JSON object instead of text.
        headers_only: read no voxel.

    Returns:
        0, or 2 if there is an error (warnings alone give 0).

    Raises:
        MutualError: the dataset cannot be examined at all.
    """
    folders = locate(dataset, need_raw=True)
    result = examine(folders, headers_only=headers_only)
    failed = bool(result.errors)
    if as_json:
        print(json.dumps(_as_object(folders, result, failed), indent=2))
    else:
        _print(folders, result, failed)
    return 2 if failed else 0


def _print(folders: DatasetFolders, result: Examination, failed: bool) -> None:
    images = f", {result.unlabelled} unlabelled image(s) in imagesUn" if result.unlabelled else ""
    print(f"{folders.name} ({folders.raw}): {result.n_files} training cases{images}")
    if not result.table.declared:
        present = {cell.label: cell.present or 0 for cell in result.cells if result.read}
        print(fully_drawn(folders.name, len(result.cases), present))
    print()
    print(format_coverage(result.table, result.cases, result.cells))
    print()
    for severity, title in (
        (ERROR, "Errors (training would be wrong or impossible)"),
        (WARNING, "Please look at (may be right)"),
    ):
        chosen = [problem for problem in result.problems if problem.severity == severity]
        if chosen:
            print(f"{title}: {len(chosen)}")
            print("\n".join(f"  {problem.place}: {problem.text}" for problem in chosen))
            print()
    if not result.read:
        print("Only headers were read: whether files are whole, and which labels have voxels, is not known.")
    if failed:
        print(f"Correct the errors, then repeat  nnunet_mutual check {folders.name}")
    else:
        contents = Contents(result.table, [case.key for case in result.cases], bool(result.unlabelled))
        following = next_command(folders, contents, result.configuration)
        some = any(cell.present is not None and cell.present < len(result.cases) for cell in result.cells)
        if some and not result.table.declared:
            annotate = f"nnunet_mutual annotate {folders.name} TABLE.csv"
            print(f"No errors. Next, unless every label was drawn wherever it is:  {annotate}")
            print(f"Else:  {following}")
        else:
            print(f"No errors. Next:  {following}")


def _as_object(folders: DatasetFolders, result: Examination, failed: bool) -> dict[str, Any]:
    members = Counter(case.source for case in result.cases)
    return {
        "dataset": folders.name,
        "raw": str(folders.raw),
        "declared": result.table.declared,
        "training_cases": result.n_files,
        "unlabelled_images": result.unlabelled,
        "sources": {name: members[name] for name in result.table.sources},
        "coverage": [asdict(cell) for cell in result.cells],
        "problems": [asdict(problem) for problem in result.problems],
        "ok": not failed,
    }
