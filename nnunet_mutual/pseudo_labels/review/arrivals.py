"""Images of imagesUn that a reader has drawn in: they become training cases, with their place in table and folds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.annotation.table import VERSION, AnnotationTable, Case
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.images import read_images, read_label_map
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.settings import BLOCK


def with_unlabelled(table: AnnotationTable, keys: Iterable[str]) -> AnnotationTable:
    """Returns the table with images of imagesUn as cases that annotate nothing, whatever their source annotates.

    Args:
        table: of the dataset, as :func:`declared` makes it.
        keys: the images; one that the table does not list gets the first source.
    """
    first = next(iter(table.sources))
    listed = {key: table.cases.get(key, Case(key, first, frozenset())) for key in keys}
    nothing = {key: replace(case, annotated=frozenset(), pseudo=frozenset()) for key, case in listed.items()}
    return replace(table, cases={**table.cases, **nothing})


def read_drawn(reader: BaseReaderWriter, files: CaseFiles) -> tuple[NDArray[Any], dict[str, Any]]:
    """Returns what was drawn in a case, (Z, Y, X) int32 and nnU-Net's properties; 0 in an image of imagesUn."""
    if not files.unlabelled:
        return read_label_map(reader, files.label)
    image, properties = read_images(reader, [next(iter(files.images.values()))])
    return np.zeros(image.shape[1:], np.int32), properties


def declared(content: Mapping[str, Any], training: Iterable[str]) -> dict[str, Any]:
    """Returns dataset.json with a table, in which every training case is fully drawn if there was none."""
    table = AnnotationTable.from_dataset_json(content)
    if table.declared:
        return dict(content)
    (name, source), *_ = table.sources.items()
    sources = {name: {"annotated": [label for label in table.labels if label in source.annotated]}}
    cases = {key: {"source": name} for key in training}
    return {**content, BLOCK: {"version": VERSION, "sources": sources, "cases": cases}}


def require_sources(table: AnnotationTable, keys: Iterable[str]) -> None:
    """Verifies that the source of images is known: it says what a drawn area includes.

    Raises:
        MutualError: there are several sources, and the table does not list one of the images.
    """
    unknown = [key for key in keys if key not in table.cases]
    if unknown and len(table.sources) > 1:
        raise MutualError(
            f"the table of dataset.json does not say of which source {shorten(unknown)} of imagesUn is; it has "
            f"{', '.join(table.sources)}: add the image to the table with its source and no label, with nnunet_mutual "
            "annotate --force (then nnunet_mutual sync), and repeat"
        )


def in_training(splits_file: Path, table: AnnotationTable, keys: Iterable[str]) -> list[dict[str, list[str]]]:
    """Returns the folds with new cases among the training cases, where their patient is not validated.

    Args:
        splits_file: an existing splits_final.json.
        table: with the new cases.
        keys: of these.
    """
    folds = read_splits(splits_file)
    for fold in folds:
        validated = {table.cases[key].patient for key in fold["val"] if key in table.cases} - {None}
        fold["train"] = [*fold["train"], *(key for key in keys if table.cases[key].patient not in validated)]
    return folds


def linked(image: Path, folder: Path) -> Path:
    """Puts an image, or the link that it is, into another folder as well, without a second copy if possible."""
    folder.mkdir(exist_ok=True)
    target = folder / image.name
    try:
        os.link(image, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(image, target, follow_symlinks=False)
    return target
