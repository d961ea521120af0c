"""What to do with a dataset next: plan it, preprocess its unlabelled images, or train, and with which trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mutual.annotation.fitting import fitting_trainers
from nnunet_mutual.annotation.group_notes import grouped_otherwise
from nnunet_mutual.annotation.modality_groups import PLANS_KEY, declared_groups, same_groups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import cases_with_maps, images_of, read_dataset_json, training_cases
from nnunet_mutual.datasets.splits import first_fold
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.label_maps import TRUTH, outdated
from nnunet_mutual.disk.locate import DatasetFolders, locate, plans_in
from nnunet_mutual.disk.trainings import plans_option, train_command
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import merged_block, planned_trainer


@dataclass(frozen=True)
class Contents:
    """What there is to learn from, which decides about trainers and the next step.

    Attributes:
        table: the annotation table.
        cases: training cases.
        unlabelled: whether imagesUn holds images.
    """

    table: AnnotationTable
    cases: Sequence[str]
    unlabelled: bool

    @property
    def partial(self) -> bool:
        """Whether there are cases that draw some of the labels only, or some of a label."""
        everything = frozenset(self.table.labels)
        return any(case.drawn and case.annotated != everything for case in map(self.table.case, self.cases))

    @property
    def leaves_out(self) -> bool:
        """Whether there are cases that draw some of the labels and nothing of another one."""
        everything = frozenset(self.table.labels)
        return any(case.drawn and case.drawn != everything for case in map(self.table.case, self.cases))

    @classmethod
    def of_planned(cls, folders: DatasetFolders) -> Contents:
        """Looks at a planned dataset, whose raw folder may be on another machine."""
        assert folders.preprocessed is not None
        content = read_dataset_json(folders.preprocessed)
        table = AnnotationTable.from_dataset_json(content)
        cases = cases_with_maps(folders.preprocessed / TRUTH, content["file_ending"], table)
        if not cases and folders.raw is not None:  # planned, and not preprocessed yet
            cases = list(training_cases(folders.raw, content)[0])
        raw = folders.raw is not None and bool(images_of(folders.raw / "imagesUn", content["file_ending"])[0])
        done = any((folders.preprocessed / "unlabelled").glob("*/*.pkl"))
        return cls(table, cases, raw or done)


@dataclass(frozen=True)
class _Plan:
    """A configuration whose data are preprocessed."""

    plans: str
    configuration: str
    identifier: str
    trainer: str | None  # for which a planner made it


def next_command(folders: DatasetFolders, contents: Contents, suggested: str, plans: str = "nnUNetPlans") -> str:
    """Returns the command that comes after a check without errors.

    Args:
        folders: of the dataset.
        contents: what it holds.
        suggested: configuration to plan.
        plans: name of the plans to go on with, if their data are there.
    """
    groups, number = declared_groups(contents.table), folders.number
    by_group = bool(groups)
    found = next(_planned(folders.preprocessed, groups, plans), None) if folders.preprocessed is not None else None
    if found is None:
        return f"nnunet_mutual plan_and_preprocess -d {number} -c {suggested}"
    assert folders.preprocessed is not None
    if contents.unlabelled and not any((folders.preprocessed / "unlabelled" / found.identifier).glob("*.pkl")):
        chosen = f"-d {number} -c {found.configuration}{plans_option(found.plans)}"
        return f"nnunet_mutual preprocess_unlabelled {chosen}"
    if unprepared(folders, contents.cases, found.identifier, by_group=by_group):
        return f"nnunet_mutual plan_and_preprocess -d {number} -c {found.configuration} --as-planned {found.plans}"
    accepting = None if found.trainer is None else [found.trainer]
    trainer, _ = fitting_trainers(
        contents.table, contents.cases, contents.unlabelled, by_group=by_group, accepting=accepting
    )[0]
    fold = first_fold(folders.preprocessed, contents.table, contents.cases)
    return train_command(number, found.configuration, trainer, plans=found.plans, fold=fold)


def unprepared(folders: DatasetFolders, cases: Sequence[str], identifier: str, *, by_group: bool = False) -> list[str]:
    """Returns the training cases that came, or were drawn anew, after preprocessing: no training would use that.

    Args:
        folders: of a planned dataset.
        cases: training cases.
        identifier: nnU-Net's name for the folder of preprocessed cases.
        by_group: whether cases that lack channels may have been left out.
    """
    assert folders.preprocessed is not None
    data = folders.preprocessed / identifier
    there = {path.stem for path in data.glob("*.pkl")}
    content = read_dataset_json(folders.preprocessed)
    stale = {*outdated(data, there, content["file_ending"])}
    if by_group:
        stale.update(grouped_otherwise(data, AnnotationTable.from_dataset_json(content), there & {*cases}))
    return [key for key in cases if key in stale or not (by_group or key in there)]


def say_next(dataset: str | int, plans: str) -> None:
    """Prints the next command for a planned dataset.

    Args:
        dataset: ID or name.
        plans: name of the plans to go on with, if their data are there.
    """
    folders = locate(dataset, need_preprocessed=True)
    print(f"Next: {next_command(folders, Contents.of_planned(folders), '3d_fullres', plans)}")


def _planned(preprocessed: Path, groups: Mapping[str, Sequence[str]], first: str) -> Iterator[_Plan]:
    """Yields the configurations whose data are there, those of the plans ``first`` and 3d_fullres at the beginning."""
    for plans_name in sorted(plans_in(preprocessed), key=lambda name: name != first):
        try:
            plans = read_plans(preprocessed / f"{plans_name}.json")
        except MutualError:
            continue  # the training that would read it says what is wrong
        if not same_groups(plans.get(PLANS_KEY, {}), groups):
            continue
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # imports torch, which takes seconds

        manager = PlansManager(plans)
        own = [name for name, entry in plans["configurations"].items() if "inherits_from" not in entry]
        for name in sorted(own, key=lambda name: (name != "3d_fullres", name == "2d")):
            identifier = manager.get_configuration(name).data_identifier
            if not any((preprocessed / identifier).glob("*.pkl")):
                continue
            try:
                trainer = planned_trainer(merged_block(plans, name))
            except MutualError:
                continue
            yield _Plan(plans_name, name, identifier, trainer)
