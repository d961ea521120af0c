"""The ``"mutual"`` block of a configuration in the plans file, in which settings lie.

nnU-Net is configured through plans, so is this package. A configuration that ``inherits_from`` another one inherits its
block key by key (nnU-Net itself merges configurations shallowly, which would drop the base configuration's settings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.settings.classes import Settings

BLOCK = "mutual"
IN_PLANS = "of the plans file"
PLANNED = "planned"  # in a block: what a planner chose for one trainer, which others leave aside
UNSET = "not set"


def merged_block(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns the block of a configuration, merged deeply along ``inherits_from``.

    Args:
        plans: the content of a plans file.
        configuration: name of the configuration.

    Raises:
        MutualError: unknown configuration, or a circle of ``inherits_from``.
    """
    chain: list[Mapping[str, Any]] = []
    name: str | None = configuration
    seen: list[str] = []
    while name is not None:
        if name in seen:
            raise MutualError(
                f'"inherits_from" of the plans file goes in a circle: {" -> ".join([*seen, name])}; remove one of them'
            )
        if name not in plans["configurations"]:
            known = tuple(plans["configurations"])
            raise MutualError(
                f"the plans file has no configuration {name!r}{meant(name, known)}; it has: {', '.join(known)}"
            )
        seen.append(name)
        entry = plans["configurations"][name]
        block = entry.get(BLOCK, {})
        if not isinstance(block, Mapping):
            raise MutualError(
                f'"{BLOCK}" of configuration {name!r} of the plans file must be an object {{setting: value}}, '
                f"found {block!r}; correct or remove it"
            )
        chain.append(block)
        name = entry.get("inherits_from")
    merged: dict[str, Any] = {}
    for block in reversed(chain):
        merged = deep_merge(merged, block)
    return merged


def block_for(trainer: type, block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block as one trainer reads it: with what a planner chose for it, which other entries override.

    Args:
        trainer: a class; what was planned for one of its base classes is meant for it, too.
        block: as of :func:`merged_block`.
    """
    own = {key: value for key, value in block.items() if key != PLANNED}
    meant_for = planned_trainer(block) in [cls.__name__ for cls in trainer.__mro__]
    return deep_merge(block[PLANNED]["settings"], own) if meant_for else own


def common_settings(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a block every trainer knows, as :class:`Settings`."""
    names = {field.name for field in fields(Settings)}
    return {key: value for key, value in block.items() if key in names}


def planned_trainer(block: Mapping[str, Any]) -> str | None:
    """Returns the name of the trainer for which a planner chose settings, None where none did.

    Args:
        block: as of :func:`merged_block`.

    Raises:
        MutualError: what is there was not written by a planner.
    """
    if PLANNED not in block:
        return None
    planned = block[PLANNED]
    name = planned.get("trainer") if isinstance(planned, Mapping) else None
    if isinstance(name, str) and isinstance(planned.get("settings"), Mapping):
        return name
    raise MutualError(
        f'"{BLOCK}.{PLANNED}" {IN_PLANS} must be an object with "trainer" and "settings", as planners write it, '
        f"found {planned!r}; remove it, or plan again"
    )


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with the entries of ``override`` put in, object by object."""
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = deep_merge(result[key], value) if both else value
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the settings that differ, as ``name: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = (values.get(key, UNSET) for values in (old, new))
        if isinstance(before, Mapping) and after is UNSET:
            after = {}
        if isinstance(after, Mapping) and before is UNSET:
            before = {}
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines
