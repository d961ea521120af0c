"""Settings of trainings: what they are (classes), where they lie (blocks), and how they are made (reading)."""

from nnunet_mutual.settings.blocks import (
    BLOCK,
    PLANNED,
    block_for,
    common_settings,
    deep_merge,
    differences,
    merged_block,
    planned_trainer,
)
from nnunet_mutual.settings.classes import (
    FROM_ANYWHERE,
    Partners,
    PeersSettings,
    Settings,
    SoftLoss,
    SoftTeacherSettings,
    TeacherSettings,
    TermWeights,
    TwoStreamSettings,
    planned_memory,
    require_not_negative,
)
from nnunet_mutual.settings.reading import groups_of_settings, parse_settings, read_settings

__all__ = [
    "BLOCK",
    "FROM_ANYWHERE",
    "PLANNED",
    "Partners",
    "PeersSettings",
    "Settings",
    "SoftLoss",
    "SoftTeacherSettings",
    "TeacherSettings",
    "TermWeights",
    "TwoStreamSettings",
    "block_for",
    "common_settings",
    "deep_merge",
    "differences",
    "groups_of_settings",
    "merged_block",
    "parse_settings",
    "planned_memory",
    "planned_trainer",
    "read_settings",
    "require_not_negative",
]
