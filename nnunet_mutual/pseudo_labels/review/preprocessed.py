"""Where a case lies preprocessed, and how it is made anew: through nnU-Net's own preprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.files import read_json
from nnunet_mutual.disk.host_files import require_safe_names
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.by_group import GroupPreprocessor
from nnunet_mutual.preprocessing.unlabelled import ENDINGS


@dataclass(frozen=True)
class Data:
    """One folder of preprocessed cases and the plans that made it."""

    folder: Path
    plans: PlansManager
    configuration: str

    def holds(self, key: str) -> bool:
        """Whether a case is there.

        Raises:
            MutualError: it is there in a format that nnU-Net no longer writes.
        """
        if any((self.folder / (key + ending)).exists() for ending in (".npz", ".npy")):
            raise MutualError(
                f"{self.folder} was preprocessed by an older nnU-Net; preprocess it again: nnUNetv2_preprocess -d "
                f"{int(self.folder.parent.name[7:10])} -plans_name {self.plans.plans_name} -c {self.configuration}"
            )
        return (self.folder / (key + ENDINGS[0])).exists()

    def make(self, files: CaseFiles, label: Path, dataset_json: Mapping[str, Any], folder: Path) -> list[Path]:
        """Preprocesses a case into another folder.

        Args:
            files: whose images.
            label: its new label map.
            dataset_json: the new one.
            folder: an existing one.

        Returns:
            The files, named as in ``self.folder``.
        """
        configuration = self.plans.get_configuration(self.configuration)
        kind = GroupPreprocessor if PLANS_KEY in self.plans.plans else configuration.preprocessor_class
        images = [str(path) for path in files.images.values()]
        target = folder / files.key
        kind(verbose=False).run_case_save(
            str(target), images, str(label), self.plans, configuration, dict(dataset_json)
        )
        return [folder / (files.key + ending) for ending in ENDINGS]


def data_of(preprocessed: Path) -> list[Data]:
    """Returns the folders of preprocessed data of all plans of a dataset; configurations may share one."""
    found: dict[Path, Data] = {}
    for file in sorted(preprocessed.glob("*.json")):
        plans = read_json(file)
        if not isinstance(plans, dict) or not {"plans_name", "configurations"} <= set(plans):
            continue
        require_safe_names(plans, str(file))
        manager = PlansManager(plans)
        for name in manager.available_configurations:
            folder = preprocessed / manager.get_configuration(name).data_identifier
            if folder.is_dir():
                found.setdefault(folder, Data(folder, manager, name))
    return list(found.values())
