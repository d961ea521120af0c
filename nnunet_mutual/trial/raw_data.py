"""A raw dataset of a trial, listed, and who of it is trained on and who is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class RawData:
    """A raw dataset, listed and without errors.

    Attributes:
        name: of the dataset.
        content: of its dataset.json.
        table: its annotation table.
        training: its training cases.
        unlabelled: its images without labels.
    """

    name: str
    content: Mapping[str, Any]
    table: AnnotationTable
    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]

    @classmethod
    def read(cls, folders: DatasetFolders) -> RawData:
        """Lists a raw dataset.

        Raises:
            MutualError: it has errors, or an accept was interrupted in it.
        """
        assert folders.raw is not None
        refuse_interrupted(folders)
        content = read_dataset_json(folders.raw)
        table = AnnotationTable.from_dataset_json(content)
        training, problems = training_cases(folders.raw, content)
        unlabelled, more = unlabelled_cases(folders.raw, content, training)
        table.require(training)
        errors = [problem for problem in problems + more if problem.severity == ERROR]
        if errors:
            raise MutualError(
                f"{folders.name}/{errors[0].place}: {errors[0].text} (nnunet_mutual check {folders.name} lists all)"
            )
        return cls(folders.name, content, table, training, unlabelled)

    def patients(self, keys: Sequence[str]) -> dict[str, str]:
        """Returns case -> patient; a case without one is its own."""
        return {key: self.table.patients.get(key, key) for key in keys}

    def unscored_in_part(self) -> str:
        """Says which labels are drawn in part, and so have no Dice there; else nothing."""
        cases = [self.table.case(key) for key in self.training]
        numbers = {label: sum(label in case.incomplete for case in cases) for label in self.table.labels}
        said = ", ".join(f"{label} in {number} of them" for label, number in numbers.items() if number)
        return f"; drawn in part, so not scored there: {said}" if said else ""


@dataclass(frozen=True)
class Division:
    """Which cases are trained on, which are scored.

    Attributes:
        training: cases that arms may learn from.
        unlabelled: images without labels that they may see.
        scored: cases that they are scored on.
        source: the dataset of the scored cases.
    """

    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]
    scored: Mapping[str, CaseFiles]
    source: RawData
