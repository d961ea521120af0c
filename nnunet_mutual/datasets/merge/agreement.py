"""What the datasets to merge must agree on before any image is read: labels, channels, file endings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mutual.datasets.case_headers import PLACED
from nnunet_mutual.datasets.merge.sources import BACKGROUND, IGNORE, MergeSource
from nnunet_mutual.errors import MutualError, shorten, spelling_key, typed

_ALIKE = 0.85  # of difflib: tumor and tumour are 0.91 alike, left and right parotid 0.73
NIFTI = (".nii.gz", ".nii")
REORIENT = "NibabelIOWithReorient"  # nnU-Net's reader that turns all NIfTI images into one orientation


@dataclass(frozen=True)
class Target:
    """What the merged dataset.json says about labels and files.

    Attributes:
        labels: as dataset.json writes them: name -> integer, or list of integers for a region; background first and
            ignore last.
        channels: names in the order of their numbers.
        ending: of all files.
        more: further keys that nnU-Net reads.
    """

    labels: Mapping[str, Any]
    channels: tuple[str, ...]
    ending: str
    more: Mapping[str, Any]

    @property
    def foreground(self) -> tuple[str, ...]:
        """Label names without background and ignore."""
        return tuple(name for name in self.labels if name not in (BACKGROUND, IGNORE))

    @property
    def is_regions(self) -> bool:
        """Whether labels are regions."""
        return "regions_class_order" in self.more


def agree(sources: Sequence[MergeSource], ending: str | None, *, reorient: bool) -> Target:
    """Unites the labels and compares channels and endings.

    Args:
        sources: the datasets.
        ending: file ending asked for; None takes that of the first dataset.
        reorient: nnU-Net shall turn all images into one orientation when it reads them.

    Raises:
        MutualError: what does not fit together, and how to mend it.
    """
    more: dict[str, Any] = {}
    if any(source.table.is_regions for source in sources):
        labels = _equal_regions(sources)
        more["regions_class_order"] = sources[0].dataset_json["regions_class_order"]
    else:
        _refuse_two_spellings(sources)
        names = dict.fromkeys(label for source in sources for label in source.labels)
        labels = {BACKGROUND: 0, **{name: number for number, name in enumerate(names, 1)}}
    if any(source.table.ignore is not None for source in sources):
        values = [number for value in labels.values() for number in (value if isinstance(value, list) else [value])]
        labels[IGNORE] = max(values) + 1
    _same_channels(sources)
    own = sources[0].dataset_json["file_ending"]
    chosen = ending or (".nii.gz" if reorient and own not in NIFTI else own)
    _require_convertible(sources, chosen, reorient=reorient)
    return Target(labels, sources[0].table.channels, chosen, more)


def similar_labels(sources: Sequence[MergeSource]) -> list[str]:
    """Returns notes about names that may mean the same structure, such as tumor and tumour."""
    notes = []
    for i, first in enumerate(sources):
        for second in sources[i + 1 :]:
            for a in sorted(set(first.labels) - set(second.labels)):
                for b in sorted(set(second.labels) - set(first.labels)):
                    if difflib.SequenceMatcher(None, spelling_key(a), spelling_key(b)).ratio() >= _ALIKE:
                        notes.append(
                            f"{a} of {first.short} and {b} of {second.short} stay two labels; if they are the same "
                            f"structure, merge again with --rename {typed(f'{second.short}:{b}={a}')}"
                        )
    return notes


def canonical_channel(name: str, channels: Sequence[str]) -> str:
    """Returns the name that the merged dataset uses for a channel of a source (CT and ct are one to nnU-Net)."""
    return next(known for known in channels if known.casefold() == name.casefold())


def _equal_regions(sources: Sequence[MergeSource]) -> dict[str, Any]:
    found = []
    for source in sources:
        own = source.dataset_json["labels"]
        # regions stay as they are: their order is that of the outputs, and their integers say how they nest
        found.append({source.renamed.get(name, name): value for name, value in own.items() if name != IGNORE})
    for source, labels in zip(sources[1:], found[1:], strict=True):
        first, other = list(found[0].items()), list(labels.items())
        order = [s.dataset_json.get("regions_class_order") for s in (sources[0], source)]
        if first != other or order[0] != order[1]:
            raise MutualError(
                f"{source.name} has the labels {labels} (regions_class_order {order[1]}), {sources[0].name} has "
                f"{found[0]} ({order[0]}); datasets of regions are merged only with equal label maps, so bring one of "
                "them into the form of the other first"
            )
    if sources[0].dataset_json.get("regions_class_order") is None:
        raise MutualError(f'{sources[0].name} has regions but no "regions_class_order"; add it to its dataset.json')
    return found[0]


def _refuse_two_spellings(sources: Sequence[MergeSource]) -> None:
    seen: dict[str, tuple[str, MergeSource]] = {}
    for source in sources:
        for label in source.labels:
            other, first = seen.setdefault(spelling_key(label), (label, source))
            if other != label and first is not source:
                raise MutualError(
                    f"{first.name} calls a label {other!r}, {source.name} calls one {label!r}; if they are the same "
                    f'structure, add --rename "{source.short}:{label}={other}", else rename one to something clearly '
                    "different"
                )


def _same_channels(sources: Sequence[MergeSource]) -> None:
    expected = [name.casefold() for name in sources[0].table.channels]
    if len(set(expected)) < len(expected):
        raise MutualError(f'{sources[0].name} has two channels of one name in "channel_names"; give each its own')
    for source in sources[1:]:
        found = [name.casefold() for name in source.table.channels]
        if found == expected:
            continue
        here, there = ", ".join(source.table.channels), ", ".join(sources[0].table.channels)
        if sorted(found) == sorted(expected):
            raise MutualError(
                f"{source.name} has the channels in the order {here}, {sources[0].name} in the order {there}; rename "
                f"the image files of one (_0000, _0001, ...) and correct its channel_names"
            )
        if len(found) != len(expected):
            raise MutualError(
                f"{source.name} has {len(found)} channel(s) ({here}), {sources[0].name} has {len(expected)} ({there}); "
                "give every case the same channels, a channel that was not acquired as an image of zeros that the "
                'annotation table lists under "missing"'
            )
        raise MutualError(
            f"{source.name} has the channel(s) {here}, {sources[0].name} has {there}; if they are the same kind of "
            f'image, write the same names into "channel_names" of {source.folder / "dataset.json"}, else these '
            "datasets cannot be merged"
        )


def _require_convertible(sources: Sequence[MergeSource], ending: str, *, reorient: bool) -> None:
    if reorient and ending not in NIFTI:
        raise MutualError(f"--reorient works with .nii.gz and .nii only, not with {ending}; add --ending .nii.gz")
    for source in sources:
        own = source.dataset_json["file_ending"]
        if own != ending and not ({own, ending} <= {*PLACED}):
            raise MutualError(
                f"{source.name} has files ending in {own}, the merged dataset would have {ending}; these two cannot be "
                f"converted without loss, choose another --ending (convertible: {shorten(PLACED, 9)}) or convert "
                f"{source.name} first"
            )
