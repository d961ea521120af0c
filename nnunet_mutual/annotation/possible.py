"""What may truly be at a voxel, given what was drawn there and what the case annotates: the rule on which all hangs."""

from __future__ import annotations

from nnunet_mutual.annotation.table import AnnotationTable


def output_channels(table: AnnotationTable) -> dict[str, int]:
    """Returns the output of a network that stands for each label: its integer, or its place among regions."""
    if table.is_regions:
        return {label: i for i, label in enumerate(table.labels)}
    return {label: table.values[label][0] for label in table.labels}
