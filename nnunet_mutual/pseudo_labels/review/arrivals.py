"""Images of imagesUn that a reader has drawn in: they become training cases, with their place in table and folds."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import VERSION, AnnotationTable
from nnunet_mutual.datasets.raw import UNLABELLED, CaseFiles
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.images import read_images, read_label_map, sidecar
from nnunet_mutual.disk.swap import Swap, link_or_copy
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
    nothing = {
        key: Case(key, case.source, frozenset(), case.patient, missing=case.missing) for key, case in listed.items()
    }
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


def require_sources(content: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Verifies that the source of images is known: it says what a drawn area includes.

    Args:
        content: of dataset.json, with a table.
        keys: images.

    Raises:
        MutualError: there are several sources, and the table does not list one of the images.
    """
    sources, cases = (content[BLOCK][entry] for entry in ("sources", "cases"))
    unknown = [key for key in keys if key not in cases]
    if unknown and len(sources) > 1:
        raise MutualError(
            f"the table of dataset.json does not say of which source {shorten(unknown)} of imagesUn is (there are "
            f"{', '.join(sources)}); list the image there with its source and no label, with nnunet_mutual annotate "
            "--force, then nnunet_mutual sync, and repeat"
        )


def require_other_names(raw: Path, images: Iterable[str], training: Container[str]) -> None:
    """Verifies that no image of imagesUn has the name of a training case: what is said of one would be of either.

    Args:
        raw: the dataset.
        images: cases of imagesUn.
        training: training cases.

    Raises:
        MutualError: one has.
    """
    if both := [key for key in images if key in training]:
        raise MutualError(
            f"{raw / UNLABELLED}: {shorten(both)} has the name of a training case; remove the image there if it is the "
            "same one, else rename it"
        )


def require_no_drawing(arrived: Iterable[CaseFiles], label: Callable[[str], Path]) -> None:
    """Verifies that no label map waits for an image of imagesUn, which a new one would replace.

    Args:
        arrived: the images.
        label: case -> where its label map will be.

    Raises:
        MutualError: there is one.
    """
    there = [label(files.key) for files in arrived if label(files.key).exists()]
    if there:
        raise MutualError(
            f"{there[0]} is there already, but its image lies in imagesUn ({len(there)} such case(s)), so a mask would "
            "replace what was drawn; move the image to imagesTr to use that drawing, or the label map away, and repeat"
        )


def swaps_of_images(arrived: Iterable[CaseFiles], raw: Path, scratch: Path) -> list[Swap]:
    """Moves images, or the links that they are, to imagesTr, without a second copy if possible.

    Args:
        arrived: their cases, whose new label maps are in ``scratch / "labelsTr"``.
        raw: the dataset.
        scratch: a folder on the same disk.
    """
    swaps = []
    for files in arrived:
        label = scratch / "labelsTr" / files.label.name
        beside = sidecar(label, is_label=True)
        swaps += [Swap(beside, raw / "labelsTr" / beside.name)] if beside else []
        for image in _images(files):
            new = scratch / "imagesTr" / image.name
            new.parent.mkdir(exist_ok=True)
            link_or_copy(image, new)
            swaps.append(Swap(new, raw / "imagesTr" / image.name))
    if (raw / UNLABELLED).resolve() == raw.resolve() / UNLABELLED:  # of another place, see leave_unlabelled
        swaps += [Swap(None, image) for files in arrived for image in _images(files)]
    return swaps


def swaps_of_folds(
    preprocessed: Path | None, table: AnnotationTable, arrived: Iterable[CaseFiles], scratch: Mapping[Path, Path]
) -> list[Swap]:
    """Adds new cases to the training cases of every fold that does not validate their patient.

    Args:
        preprocessed: the dataset; where it has no splits_final.json, or is not at hand, nothing is done.
        table: with the new cases.
        arrived: these.
        scratch: of each root.
    """
    file = None if preprocessed is None else preprocessed / "splits_final.json"
    new = [table.case(files.key) for files in arrived]
    if preprocessed is None or file is None or not new or not file.is_file():
        return []
    folds = read_splits(file)
    for fold in folds:
        validated = {table.cases[key].patient for key in fold["val"] if key in table.cases} - {None}
        listed = {*fold["train"], *fold["val"]}
        fold["train"] += [case.key for case in new if case.key not in listed and case.patient not in validated]
    write_json(scratch[preprocessed] / file.name, folds)
    return [Swap(scratch[preprocessed] / file.name, file)]


def leave_unlabelled(arrived: Iterable[CaseFiles]) -> None:
    """Removes from an imagesUn that is a link to another place what is in imagesTr by now."""
    for image in (image for files in arrived for image in _images(files)):
        try:
            image.unlink(missing_ok=True)
        except OSError as error:
            print(f"WARNING: {image} could not be removed ({error.strerror}); it is in imagesTr now, so remove it")


def _images(files: CaseFiles) -> list[Path]:
    """The images of a case, and the file that says the spacing of tif images."""
    images = list(files.images.values())
    beside = sidecar(images[0], is_label=False)
    return [*images, *([beside] if beside else [])]
