"""Options of nnU-Net's own planning command that ``nnunet_mutual plan_and_preprocess`` passes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_mutual.disk.host_files import entry_of, read_plans
from nnunet_mutual.errors import MutualError

PREPROCESSOR = "DefaultPreprocessor"
DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


@dataclass(frozen=True)
class StockOptions:
    """Options that have nnU-Net's names on the command line, and nnU-Net's defaults.

    Attributes:
        spacing: of the voxels of 3d_fullres in mm, in the order in which nnU-Net reads axes (slices first).
        plans_name: of the plans file.
        preprocessor: class of nnU-Net.
        fingerprint_processes: for the dataset's fingerprint; None: as for preprocessing.
        preprocess: whether to go on after planning.
    """

    spacing: Sequence[float] | None = None
    plans_name: str | None = None
    preprocessor: str = PREPROCESSOR
    fingerprint_processes: int | None = None
    preprocess: bool = True

    @property
    def other_data(self) -> bool:
        """Whether the data differ from those of the same planner without these options."""
        return self.spacing is not None or self.preprocessor != PREPROCESSOR

    def verify(self, *, by_group: bool) -> None:
        """Refuses what nnU-Net would find out late, or never.

        Args:
            by_group: whether data are preprocessed by modality group.

        Raises:
            MutualError: no such preprocessor, a name that nothing finds, or not three numbers.
        """
        if self.plans_name is not None and not re.fullmatch(r"(?!.*__)[\w-]*Plans[\w-]*", self.plans_name, re.ASCII):
            raise MutualError(
                f"-overwrite_plans_name {self.plans_name}: give letters, digits, '-' and single '_' with 'Plans' among "
                "them, such as nnUNetPlans_2mm"
            )
        if self.preprocessor != PREPROCESSOR and by_group:
            raise MutualError("modality groups are preprocessed in a way of their own; leave -preprocessor_name out")
        folder = Path(next(iter(nnunetv2.__path__))) / "preprocessing"
        if recursive_find_python_class(str(folder), self.preprocessor, "nnunetv2.preprocessing") is None:
            raise MutualError(f"nnU-Net has no preprocessor called {self.preprocessor!r}; its own is {PREPROCESSOR}")
        if self.spacing is not None and len(self.spacing) != 3:
            raise MutualError(
                f"-overwrite_target_spacing takes three numbers in mm (slices, rows, columns), got {len(self.spacing)}"
            )

    def verify_replaced(self, path: Path, spacing: Sequence[float] | None) -> None:
        """Refuses to write plans over others whose data differ, since both would have one name.

        Args:
            path: of the plans file that will be written.
            spacing: that will be planned for 3d_fullres in mm; None where that is not known yet.

        Raises:
            MutualError: the plans that are there have another spacing or preprocessor, or lack them.
        """
        if path.is_file() and self._differs(read_plans(path), path, spacing):
            raise MutualError(
                f"{path} was planned with another spacing or preprocessor, and its data would be replaced; add "
                f"-overwrite_plans_name {path.stem}Other, to keep both, or delete {path.name}, to replace them"
            )

    def _differs(self, plans: dict[str, Any], path: Path, spacing: Sequence[float] | None) -> bool:
        known = plans["configurations"].get("3d_fullres")
        if known is None:
            return self.other_data
        place = f'"configurations.3d_fullres" in {path}'
        if entry_of(known, "preprocessor_name", place) != self.preprocessor:
            return True
        there = [entry_of(known, "spacing", place)[axis] for axis in entry_of(plans, "transpose_backward", path)]
        return spacing is not None and not np.allclose(spacing, there)
