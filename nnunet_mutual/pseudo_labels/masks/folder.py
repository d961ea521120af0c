"""A folder of masks that another tool has written, in one of the layouts that tools write.

Label maps ``CASE.nii.gz``, nnU-Net's probabilities ``CASE.npz``, or a folder ``CASE`` with a mask of each organ, as
TotalSegmentator writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.volumes import Volume
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.soft_folder import read_soft
from nnunet_mutual.pseudo_labels.masks.grid import read_on_grid
from nnunet_mutual.pseudo_labels.masks.names import Meaning, meaning_of, require_known, tool_of, values_of

_PROBABILITIES = ".npz"


@dataclass(frozen=True)
class MaskFolder:
    """What one tool says.

    Attributes:
        folder: where it lies.
        tool: who wrote it.
        places: of each case, a label map, its probabilities, or a folder of masks.
        values: integers of the names in label maps, in the order of its outputs.
        meaning: which names make each of our labels.
        endings: of masks.
    """

    folder: Path
    tool: str
    places: Mapping[str, Path]
    values: Mapping[str, tuple[int, ...]]
    meaning: Meaning
    endings: Sequence[str]

    def files(self, key: str) -> list[Path]:
        """Returns the files that say something about a case."""
        place = self.places[key]
        return sorted(self._organs(place).values()) if place.is_dir() else [place]

    def read(
        self, key: str, labels: Iterable[str], image: Volume, table: AnnotationTable, reader: BaseReaderWriter
    ) -> dict[str, np.ndarray]:
        """Returns the probability of each of some labels at each voxel of an image, (*spatial) float32.

        Args:
            key: the case.
            labels: to read; those of which the tool says nothing are left out.
            image: of the case.
            table: which labels may share a voxel.
            reader: nnU-Net's, of the dataset.

        Raises:
            MutualError: names the case and the file.
        """
        place, wanted = self.places[key], [label for label in labels if label in self.meaning]
        if place.is_dir():
            found = self._of_organs(key, wanted, image, reader)
        elif place.suffix == _PROBABILITIES:
            found = self._of_probabilities(key, wanted, image)
        else:
            found = self._of_label_map(key, wanted, image, reader)
        _require_apart(found, table, f"case {key}: {place}")
        return found

    def _organs(self, place: Path) -> dict[str, Path]:
        found = {}
        for file in sorted(place.iterdir()):
            ending = next((ending for ending in self.endings if file.name.endswith(ending)), None)
            if ending is not None and not file.name.startswith("."):
                found[file.name.removesuffix(ending)] = file
        return found

    def _of_organs(
        self, key: str, wanted: Sequence[str], image: Volume, reader: BaseReaderWriter
    ) -> dict[str, np.ndarray]:
        files, found = self._organs(self.places[key]), {}
        for label in wanted:
            names = self.meaning[label]
            absent = [name for name in names if name not in files]
            if len(absent) == len(names):
                continue
            if absent:
                raise MutualError(
                    f"case {key}: {self.places[key]} has no {absent[0]}, which {label} consists of, too; put its mask "
                    f"there, or leave it out with --map {absent[0]}="
                )
            masks = [read_on_grid(files[name], image, reader, key) for name in names]
            for name, mask in zip(names, masks, strict=True):
                if mask.max() > 1:
                    raise MutualError(
                        f"case {key}: {files[name]} holds the value {mask.max()}; the mask of one organ holds 0 and 1"
                    )
            found[label] = np.logical_or.reduce([mask > 0 for mask in masks]).astype(np.float32)
        return found

    def _of_label_map(
        self, key: str, wanted: Sequence[str], image: Volume, reader: BaseReaderWriter
    ) -> dict[str, np.ndarray]:
        voxels = read_on_grid(self.places[key], image, reader, key)
        known = {0}.union(*self.values.values())
        strange = sorted(set(np.unique(voxels).tolist()) - known)
        if strange:
            raise MutualError(
                f"case {key}: {self.places[key]} holds the value {strange[0]}, which neither a dataset.json beside it "
                f"nor --map explains; add --map {strange[0]}=LABEL, or {strange[0]}= to leave it out"
            )
        return {
            label: np.isin(voxels, [v for name in self.meaning[label] for v in self.values[name]]).astype(np.float32)
            for label in wanted
        }

    def _of_probabilities(self, key: str, wanted: Sequence[str], image: Volume) -> dict[str, np.ndarray]:
        file, names, shape = self.places[key], list(self.values), image.voxels.shape[1:]
        regions = any(len(values) > 1 for values in self.values.values())
        try:
            said = read_soft(file, len(names) + (not regions))
        except MutualError as error:
            raise MutualError(f"case {key}: {error}") from None
        if said.shape[1:] != shape:
            raise MutualError(
                f"case {key}: {file} holds probabilities of the shape {said.shape[1:]}, its image has {shape}; predict "
                "this image anew, with --save_probabilities"
            )
        order = names if regions else ["", *sorted(names, key=lambda name: self.values[name])]
        channels = {label: [order.index(name) for name in self.meaning[label]] for label in wanted}
        return {
            label: (said[own].max(0) if regions else said[own].sum(0)).clip(0, 1) for label, own in channels.items()
        }


def open_folders(
    given: Sequence[str],
    tools: Sequence[str],
    said: Mapping[str, str],
    table: AnnotationTable,
    keys: Sequence[str],
    endings: Sequence[str],
) -> list[MaskFolder]:
    """Opens the folders that ``--from`` names.

    Args:
        given: the folders.
        tools: who wrote them, in their order; may be fewer.
        said: what names mean, from :func:`~nnunet_mutual.pseudo_labels.masks.names.read_map`.
        table: the labels.
        keys: training cases.
        endings: of masks, that of the dataset first.

    Raises:
        MutualError: a folder is missing, has no mask of any case, or its names mean nothing.
    """
    if len(tools) > len(given):
        raise MutualError(
            f"--tool is given {len(tools)} times and --from {len(given)} time(s); give one for each folder"
        )
    named = [*tools, *[None] * (len(given) - len(tools))]
    found = [_find(Path(folder), tool, said, keys, endings) for folder, tool in zip(given, named, strict=True)]
    names = [_names(one) for one in found]
    require_known(said, (name for own in names for name in own))
    return [
        replace(one, meaning=meaning_of(one.folder, own, said, table.labels))
        for one, own in zip(found, names, strict=True)
    ]


def _find(
    folder: Path, tool: str | None, said: Mapping[str, str], keys: Sequence[str], endings: Sequence[str]
) -> MaskFolder:
    if not folder.is_dir():
        raise MutualError(f"--from {folder} is no folder; give the folder into which the tool has written its masks")
    places = {}
    for key in keys:
        ways = (folder / key, *(folder / f"{key}{ending}" for ending in (_PROBABILITIES, *endings)))
        place = next((way for way in ways if (way.is_dir() if way == ways[0] else way.is_file())), None)
        if place is not None:
            places[key] = place
    if not places:
        there = shorten(sorted(path.name for path in folder.iterdir()), 3) or "nothing"
        raise MutualError(
            f"--from {folder} has no mask of any training case; expected {keys[0]}{endings[0]}, or a folder {keys[0]} "
            f"with a mask of each organ, and found {there}"
        )
    values = values_of(folder) or {name: (int(name),) for name in said if name.isdecimal()}
    return MaskFolder(folder, tool_of(folder, tool), places, values, {}, endings)


def _names(masks: MaskFolder) -> list[str]:
    """The tool's names: of the masks of organs, and of values of label maps."""
    folders = [place for place in masks.places.values() if place.is_dir()]
    organs = {name for place in folders for name in masks._organs(place)}
    values = masks.values if len(folders) < len(masks.places) else ()
    return list(dict.fromkeys([*values, *sorted(organs)]))  # which may have the same names


def _require_apart(found: Mapping[str, np.ndarray], table: AnnotationTable, place: str) -> None:
    """Verifies that labels that exclude each other do not claim the same voxel."""
    present = {label: p > 0.5 for label, p in found.items()}
    for i, a in enumerate(present):
        for b in list(present)[i + 1 :]:
            number = int((present[a] & present[b]).sum()) if table.exclusive(a, b) else 0
            if number:
                raise MutualError(
                    f"{place}: {number} voxel(s) are claimed by {a} and by {b}; erase them from one, or declare "
                    '"contains" or "may_overlap" in the annotation table'
                )
