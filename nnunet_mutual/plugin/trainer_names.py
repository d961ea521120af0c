"""Which trainers nnU-Net would find, told from source files: its own search imports all of them, which takes long."""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.find import SHIM, VARIABLE, is_built_on_ours, nnunet_folder, public_names, resolve

# Modules that may answer names which their source does not hold.
_MAKES_NAMES = re.compile(r"def __getattr__|import \*|globals\(\)|sys\.modules|\bexec\(")
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


@functools.cache
def find_trainer(name: str) -> Any:
    """Returns the class of a trainer: of this package, or as nnU-Net finds it, which takes seconds.

    Raises:
        MutualError: nnU-Net does not find it.
    """
    if name in public_names("trainers"):
        return resolve("trainers", name)
    found = TrainerNames.of(os.environ.get(VARIABLE)).find(name)
    if found is None:
        raise MutualError(f"nnU-Net finds no trainer {name}; name its folder in {VARIABLE}")
    return found


def find_own(name: str) -> Any:
    """Returns the same of a trainer of this package, or of somebody's own one that is built on them.

    Raises:
        MutualError: nnU-Net does not find it, or it is another one.
    """
    found = find_trainer(name)
    if not is_built_on_ours(found):
        raise MutualError(f"{name} is no trainer of this package and built on none; use nnU-Net's own commands for it")
    return found


@dataclass
class TrainerNames:
    """Names in the modules that nnU-Net searches for trainers.

    Attributes:
        words: all words of their sources, so re-exported and assigned names, too.
        classes: those that are defined there.
        certain: whether no module can hold a name that is none of the words.
    """

    words: set[str] = field(default_factory=set)
    classes: list[str] = field(default_factory=list)
    certain: bool = True

    @classmethod
    def of(cls, variable: str | None) -> TrainerNames:
        """Reads nnU-Net's own folder of trainers, and those that its variable names.

        Args:
            variable: value of nnUNet_extTrainer, None if it is not set.
        """
        found = cls()
        folders = [nnunet_folder() / "training" / "nnUNetTrainer"]
        folders += [Path(entry) for entry in (variable or "").split(os.pathsep) if entry.strip()]
        for folder in folders:
            for module in _modules(folder):
                found._add(module)
        return found

    def may_hold(self, name: str) -> bool:
        """Whether nnU-Net's search may find a class of this name."""
        return name in self.words or not self.certain

    def find(self, name: str) -> Any:
        """Returns the class that nnU-Net's search finds under this name, which takes seconds; None if there is none."""
        if not self.may_hold(name):
            return None
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        with contextlib.suppress(RuntimeError):
            return recursive_find_trainer_class_by_name(name)
        return None

    def _add(self, module: Path) -> None:
        if module.name == SHIM.name:  # it answers the names of this package alone
            return
        try:
            source = module.read_text(encoding="utf-8") if module.suffix == ".py" else None
        except (OSError, UnicodeDecodeError):
            source = None
        if source is None or _MAKES_NAMES.search(source):
            self.certain = False
        self.words.update(re.findall(r"\w+", source or ""))
        self.classes += _CLASS.findall(source or "")


def _modules(folder: Path) -> Iterator[Path]:
    """Yields the files that nnU-Net would import, sub-packages included."""
    for module in pkgutil.iter_modules([str(folder)]):
        if module.ispkg:
            yield from _modules(folder / module.name)
        else:
            source = folder / f"{module.name}.py"
            yield source if source.is_file() else folder / f"{module.name}.compiled"
