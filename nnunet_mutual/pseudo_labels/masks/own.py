"""A network of ours as the second opinion on the masks of another tool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.soft_folder import SoftFolder
from nnunet_mutual.pseudo_labels.masks.folder import MaskFolder, open_folders
from nnunet_mutual.pseudo_labels.soft_prediction import predict_softly


@dataclass(frozen=True)
class OwnNetwork:
    """The deployed network of a training.

    Attributes:
        training: of which.
        checkpoint: of the training.
        device: "cuda", "cpu" or "mps".
    """

    training: NamedTraining
    checkpoint: str
    device: str

    def opinion(
        self,
        cases: Mapping[str, CaseFiles],
        content: Mapping[str, Any],
        table: AnnotationTable,
        tools: Sequence[str],
        labels: Collection[str],
    ) -> MaskFolder:
        """Predicts cases into the folder of the fold; what is there already is kept.

        Args:
            cases: raw images that tools have outlined.
            content: of the raw dataset.json.
            table: its annotation table.
            tools: who outlined them.
            labels: that the tools know.

        Raises:
            MutualError: the network cannot be asked, or knows none of these labels.
        """
        fold, one = self.training.find_checkpoint(self.checkpoint).parent, self.training
        taught = AnnotationTable.from_dataset_json(read_dataset_json(fold.parent))
        known = [label for label in taught.labels if label in labels and _annotated(taught, label)]
        if not known:
            raise MutualError(
                f"{one.trainer} has learnt none of the labels that the masks are of ({', '.join(labels)}), so it is no "
                "second opinion; leave the training out, or name another one"
            )
        by = {outline.by for case in taught.cases.values() for outline in case.outlined if outline.label in known}
        for tool in dict.fromkeys(tool for tool in tools if any(tool in name for name in by)):
            print(f"WARNING: {one.trainer} learnt from outlines of {tool}, so that it agrees with them says little")
        soft = SoftFolder(fold / f"opinion_{Path(self.checkpoint).stem.removeprefix('checkpoint_')}")
        predict_softly(one, self.checkpoint, self.device, cases, content, soft, anew=True)
        name = f"{one.trainer} {one.configuration} fold {one.fold}"
        (found,) = open_folders([str(soft.folder)], [name], {}, table, list(cases), [content["file_ending"]])
        return replace(found, meaning={label: names for label, names in found.meaning.items() if label in known})


def _annotated(table: AnnotationTable, label: str) -> bool:
    return not table.declared or any(label in case.annotated for case in table.cases.values())
