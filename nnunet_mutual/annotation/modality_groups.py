"""Modality groups: which channels each network of a training sees, and where they lie in its preprocessed data.

Stock preprocessing crops to and normalises within the union of what all channels show, so that a modality would look
different where it comes alone. Here every group is normalised by itself, as the stock model of that group will do it.
The preprocessed data hold the channels of the first group, then those of the second one, and so on; a channel that
belongs to two groups is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.schema import group_name
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError, meant

PLANS_KEY = "modality_groups"  # of plans whose data were preprocessed by group


@dataclass(frozen=True)
class ModalityGroups:
    """The groups of a dataset.

    Attributes:
        channels: of each group, numbers of dataset.json's channels, in their order.
        all_channels: names of all channels of dataset.json.
    """

    channels: Mapping[str, tuple[int, ...]]
    all_channels: tuple[str, ...]

    @classmethod
    def of(cls, table: AnnotationTable) -> ModalityGroups:
        """Returns the groups that a table declares.

        Raises:
            MutualError: it declares fewer than two, or two with the same channels.
        """
        declared = table.modality_groups
        if len(declared) < 2:
            raise MutualError(
                f"dataset.json declares {len(declared) or 'no'} modality group(s), two are needed; declare them, for "
                f"example: nnunet_mutual plan -d DATASET --groups {_example(table.channels)}"
            )
        number = {channel: number for number, channel in enumerate(table.channels)}
        channels = {name: tuple(number[channel] for channel in of) for name, of in declared_groups(table).items()}
        by_channels: dict[tuple[int, ...], str] = {}
        for name, numbers in channels.items():
            if numbers in by_channels:
                raise MutualError(
                    f"the modality groups {by_channels[numbers]} and {name} have the same channels; remove one"
                )
            by_channels[numbers] = name
        return cls(channels, table.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of dataset.json, which is the order of the networks."""
        return tuple(self.channels)

    @property
    def stored(self) -> dict[str, slice]:
        """Where the channels of each group lie in the preprocessed data."""
        found, first = {}, 0
        for name, numbers in self.channels.items():
            found[name] = slice(first, first + len(numbers))
            first += len(numbers)
        return found

    def available(self, case: Case) -> list[bool]:
        """Whether a case has all channels of each group."""
        there = [channel not in case.missing for channel in self.all_channels]
        return [all(there[number] for number in numbers) for numbers in self.channels.values()]

    def described(self) -> dict[str, list[str]]:
        """Returns the groups with names of channels, as plans and dataset.json hold them."""
        return {name: [self.all_channels[n] for n in numbers] for name, numbers in self.channels.items()}


def declared_groups(table: AnnotationTable) -> dict[str, list[str]]:
    """Returns the channels of each group that a table declares, in the order of dataset.json; none if it does not."""
    return {name: [c for c in table.channels if c in members] for name, members in table.modality_groups.items()}


def parse_modality_groups(entries: Sequence[str], channels: Sequence[str]) -> dict[str, list[str]]:
    """Reads ``NAME=CHANNEL,CHANNEL`` entries.

    Args:
        entries: of the command line.
        channels: of dataset.json.

    Raises:
        MutualError: an entry of another form, an unknown channel, or a name that is given twice or unfit for a folder.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        members = [channel.strip() for channel in text.split(",")]
        if not equals or not all(members):
            raise MutualError(f"--groups {entry!r} is not of the form NAME=CHANNEL,CHANNEL, such as T1=T1")
        if group_name(name) in found:
            raise MutualError(f"the group {name} is given twice; choose another name for one of them")
        for channel in members:
            if channel not in channels:
                known = f"{meant(channel, channels)}; known: {', '.join(channels)}"
                raise MutualError(f"group {name}: unknown channel {channel!r}{known}")
        found[name] = [channel for channel in channels if channel in members]
    return found


def require_preprocessed_by_group(plans: Mapping[str, Any], groups: ModalityGroups, number: int) -> None:
    """Verifies that plans are of data that were preprocessed by these groups.

    Raises:
        MutualError: with the command that mends it.
    """
    command = f"nnunet_mutual plan_and_preprocess -d {number}"
    found = plans.get(PLANS_KEY)
    if found is None:
        raise MutualError(
            f"the data of the plans {plans['plans_name']} were not preprocessed by modality group; run {command} and "
            "train with the plans that it names"
        )
    if not same_groups(found, groups.described()):
        raise MutualError(
            f"the data of the plans {plans['plans_name']} were preprocessed for other modality groups "
            f"({in_words(found)}) than dataset.json declares ({in_words(groups.described())}); run {command}"
        )


def same_groups(found: Any, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether plans hold these groups, in this order: it says where channels lie, and whose network is which."""
    return isinstance(found, Mapping) and [*found.items()] == [*groups.items()]


def in_words(groups: Mapping[str, Sequence[str]]) -> str:
    """Writes groups as ``--groups`` takes them."""
    return " ".join(f"{name}={','.join(channels)}" for name, channels in groups.items())


def _example(channels: Sequence[str]) -> str:
    names = ["".join(c for c in channel if c.isalnum()) or f"channel{n}" for n, channel in enumerate(channels)]
    single = [f"{name}={channel}" for name, channel in zip(names, channels, strict=True)]
    return " ".join(single if len(single) > 1 else [*single, "OTHER=CHANNEL"])
