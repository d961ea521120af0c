"""What stops planning and preprocessing before the long work begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.examination import Examination
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.split_problems import splits_problems
from nnunet_mutual.disk.files import read_json
from nnunet_mutual.disk.host_files import read_fingerprint
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.planning.stock_options import DEFAULT_CONFIGURATIONS, StockOptions
from nnunet_mutual.planning.stock_steps import stock_step
from nnunet_mutual.preprocessing.fingerprint import FILE, counts_ignored

SPLITS = "splits_final.json"
_STOCK = (*DEFAULT_CONFIGURATIONS, "3d_cascade_fullres")  # nnU-Net leaves out those that a dataset does not need


def refuse_unknown(configurations: Sequence[str], preprocessed: Path) -> None:
    """A misspelt configuration would be left out in silence after hours of work."""
    known = list(_STOCK)
    for path in preprocessed.glob("*.json"):
        if path.name == FILE:
            continue
        try:
            content = read_json(path)
        except MutualError as error:
            said = str(error).rpartition("; ")[0] or str(error)
            raise MutualError(f"{said}; correct it, or delete it, then what planning writes is written anew") from None
        planned = content.get("configurations") if isinstance(content, dict) else None
        known += planned if isinstance(planned, Mapping) else []
    for name in configurations:
        if name not in known:
            raise MutualError(
                f"no configuration is called {name!r}{meant(name, known)}; known are: {', '.join(dict.fromkeys(known))}"
            )


def refuse_old_fingerprint(preprocessed: Path, number: int, dataset_json: Mapping[str, Any], clean: bool) -> None:
    """Stops where the fingerprint is of other cases, or counts ignored voxels."""
    path = preprocessed / FILE
    if clean or not path.is_file():
        return
    found = read_fingerprint(path, "add --clean to make it anew")
    if counts_ignored(found, dataset_json):
        raise MutualError(
            f"{path} was made by nnU-Net, which counts ignored voxels as foreground; add --clean to make it anew"
        )
    old = len(found.get("spacings", ()))
    if old != number:
        raise MutualError(
            f"{path} was made from {old} training case(s), now there are {number}; add --clean to make it anew"
        )


def refuse_other_data(
    path: Path, folders: DatasetFolders, stock: StockOptions, planner: Callable[[int], Any], clean: bool
) -> None:
    """Stops before plans are replaced by others for data of the same name."""
    spacing = stock.spacing
    if spacing is None and path.is_file() and not clean and path.with_name(FILE).is_file():
        with stock_step("planning", folders):
            spacing = planner(folders.number).determine_fullres_target_spacing()
    stock.verify_replaced(path, spacing)


def refuse_wrong_splits(
    folders: DatasetFolders, preprocessed: Path, table: AnnotationTable, training: Mapping[str, CaseFiles]
) -> None:
    """Stops where folds that are there contradict each other or the dataset."""
    assert folders.raw is not None
    paths = [path for path in (folders.raw / SPLITS, preprocessed / SPLITS) if path.is_file()]
    contents = [read_json(path) for path in paths]
    if len(paths) == 2 and contents[0] != contents[1]:
        raise MutualError(f"{paths[0]} and {paths[1]} differ; delete the one that you do not want to train with")
    if paths:
        errors = [one for one in splits_problems(table, contents[0], list(training), SPLITS) if one.severity == ERROR]
        if errors:
            raise MutualError(
                f"{paths[0]}: {errors[0].place}: {errors[0].text}; or delete the file, then new folds are made"
            )


def refuse_errors(found: Examination, folders: DatasetFolders, configurations: Sequence[str], verify: bool) -> None:
    """Stops where nnU-Net would stop much later, or train on something wrong."""
    if verify:
        print("--verify_dataset_integrity: the check that runs first covers it (with --no-check nnU-Net's own runs)")
    if found.errors:
        raise MutualError(
            f"{folders.name} has {len(found.errors)} error(s), the first is {found.errors[0].place}: "
            f"{found.errors[0].text}; correct them (nnunet_mutual check {folders.name} lists them all) and repeat; "
            "--no-check plans all the same"
        )
    warnings = len(found.problems)
    if warnings:
        print(f"{warnings} thing(s) to look at, which may be right: nnunet_mutual check {folders.name}")
    if found.is_2d and not set(configurations) - set(DEFAULT_CONFIGURATIONS[1:]):
        raise MutualError(
            f"all images of {folders.name} are 2d, so there is no {' or '.join(configurations)}; repeat with -c 2d"
        )
