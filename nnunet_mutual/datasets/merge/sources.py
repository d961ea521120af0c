"""The datasets to merge: their short names, cases, and labels under the names that the merged dataset will use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.cases import Case, Source
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.examination import listing_problems
from nnunet_mutual.datasets.problems import Problem
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError, meant, shorten

BACKGROUND = "background"
IGNORE = "ignore"


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class MergeSource:
    """One dataset to merge.

    Attributes:
        name: 'Dataset011_Liver'.
        short: 'Liver', the prefix of its cases and sources in the merged dataset.
        table: its own annotation table, with its own label names.
        renamed: own label name -> name in the merged dataset.
        training: cases with a label map.
        unlabelled: cases in imagesUn/.
        problems: what the listing of files says.
    """

    name: str
    short: str
    folder: Path
    dataset_json: Mapping[str, Any]
    table: AnnotationTable
    renamed: Mapping[str, str]
    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]
    problems: tuple[Problem, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels under their new names, each once."""
        return tuple(dict.fromkeys(self.renamed[label] for label in self.table.labels))

    def new_key(self, key: str) -> str:
        """Name of a case in the merged dataset."""
        return f"{self.short}_{key}"

    def new_source(self, source: str) -> str:
        """Name of one of its sources in the merged dataset."""
        only = len(self.table.sources) == 1 and source.casefold() == self.short.casefold()
        return self.short if only or not self.table.declared else f"{self.short}_{source}"

    @cached_property
    def meaning(self) -> dict[int, str]:
        """Integer in its label maps -> new label name, background or ignore (plain labels only)."""
        found = {self.table.values[label][0]: self.renamed[label] for label in self.table.labels}
        return {0: BACKGROUND, **found} | ({self.table.ignore: IGNORE} if self.table.ignore is not None else {})

    def case(self, key: str) -> Case:
        """Returns the entry of a training case with new label names (its name and source stay the old ones).

        Raises:
            MutualError: labels that --rename makes one are annotated only in part.
        """
        case = self.table.case(key)
        annotated, incomplete = self._drawn(case, f"case {key}")
        pseudo = self._rename(case.pseudo, f'"pseudo" of case {key}')
        outlined = tuple(replace(one, label=self.renamed[one.label]) for one in case.outlined)
        return Case(key, case.source, annotated, case.patient, pseudo, case.missing, incomplete, outlined)

    def drawn(self, source: str) -> tuple[frozenset[str], frozenset[str]]:
        """What one of its sources annotates, and what it draws in part, under the new names."""
        return self._drawn(self.table.sources[source], f"source {source}")

    def _drawn(self, says: Case | Source, place: str) -> tuple[frozenset[str], frozenset[str]]:
        """Of labels that --rename makes one, all are drawn in part if one is."""
        incomplete = frozenset(self.renamed[name] for name in says.incomplete)
        complete = frozenset(name for name in says.annotated if self.renamed[name] not in incomplete)
        return self._rename(complete, place), incomplete

    def contains(self, source: str) -> dict[str, set[str]]:
        """What its own table says about labels inside others, under the new names."""
        found: dict[str, set[str]] = defaultdict(set)
        for outer, inside in self.table.sources[source].contains.items():
            found[self.renamed[outer]] |= {self.renamed[inner] for inner in inside} - {self.renamed[outer]}
        return {outer: inside for outer, inside in found.items() if inside}

    def _rename(self, names: frozenset[str], place: str) -> frozenset[str]:
        new = {self.renamed[name] for name in names}
        partly = [old for old, name in self.renamed.items() if name in new and old not in names]
        if partly:
            raise MutualError(
                f"{self.name}: --rename makes {partly[0]} and other labels one label {self.renamed[partly[0]]!r}, but "
                f"{place} does not annotate {partly[0]}, so the one label would be incomplete there; give them "
                "different names"
            )
        return frozenset(new)


def load_sources(datasets: Sequence[str], renames: Sequence[str]) -> list[MergeSource]:
    """Reads the tables and lists the files of the datasets to merge.

    Args:
        datasets: IDs or names in nnUNet_raw.
        renames: ``"SRC:old=new"``.

    Raises:
        MutualError: a dataset or label that does not exist, an invalid table, or an unusable new name.
    """
    folders = [locate(dataset, need_raw=True) for dataset in datasets]
    names = [found.name for found in folders]
    for name in names:
        if names.count(name) > 1:
            raise MutualError(f"{name} is given twice; name each dataset once")
    if len(names) < 2:
        raise MutualError("merge needs two datasets or more, and then the name of the new one, such as Dataset111_All")
    short = dict(zip(names, _short_names(names), strict=True))
    texts = defaultdict(list)
    for text in renames:
        dataset, assignment = split_option("--rename", text, names, short)
        texts[dataset].append(assignment)
    sources = []
    for found in folders:
        assert found.raw is not None
        refuse_interrupted(found)
        content = read_dataset_json(found.raw)
        table = _table(found.name, content)
        training, problems = training_cases(found.raw, content)
        unlabelled, more = unlabelled_cases(found.raw, content, ())  # a copy of a labelled image is dropped later
        if table.declared and (wrong := listing_problems(set(table.cases), training, set(unlabelled))):
            raise MutualError(f"{found.name}, {wrong[0].place}: {wrong[0].text}")
        sources.append(
            MergeSource(
                found.name,
                short[found.name],
                found.raw,
                content,
                table,
                _renamed(found.name, table, texts[found.name]),
                training,
                unlabelled,
                tuple(problems + more),
            )
        )
    return sources


def split_option(option: str, text: str, names: Sequence[str], short: Mapping[str, str]) -> tuple[str, str]:
    """Splits 'SRC:rest' and returns the full dataset name, which may be given as ID, name or short name, and the rest.

    Raises:
        MutualError: no such dataset among those to merge.
    """
    word, colon, rest = text.partition(":")
    if not colon or "=" not in rest:
        raise MutualError(f"{option} {text!r} is not understood; write {option} DATASET:label=label")
    return dataset_named(option, word.strip(), names, short), rest


def dataset_named(option: str, word: str, names: Sequence[str], short: Mapping[str, str]) -> str:
    """Returns the full name of one of the datasets to merge, given by ID, name or short name.

    Raises:
        MutualError: no such dataset among those to merge.
    """
    for name in names:
        if word in (name, short[name]) or (word.isdecimal() and int(word) == int(name[7:10])):
            return name
    raise MutualError(
        f"{option} names {word!r}{meant(word, [*short.values(), *names])}, which is none of the datasets to merge: "
        f"{', '.join(names)}"
    )


def _table(dataset: str, content: Mapping[str, Any]) -> AnnotationTable:
    try:
        return AnnotationTable.from_dataset_json(content)
    except MutualError as error:
        raise MutualError(f"{dataset}: {error}") from None


def _short_names(names: Sequence[str]) -> list[str]:
    """Returns 'Liver' for 'Dataset011_Liver', or '011_Liver' for all where cases could get equal names."""
    short = [name[11:] or name[7:10] for name in names]
    folded = [name.casefold() + "_" for name in short]
    clash = any(a.startswith(b) for i, a in enumerate(folded) for j, b in enumerate(folded) if i != j)
    return [name[7:] for name in names] if clash else short


def _renamed(dataset: str, table: AnnotationTable, assignments: Iterable[str]) -> dict[str, str]:
    renamed = {label: label for label in table.labels}
    for text in assignments:
        old, _, new = (part.strip() for part in text.partition("="))
        if old not in renamed:
            raise MutualError(
                f"--rename: {dataset} has no label {old!r}{meant(old, renamed)}; its labels: {', '.join(renamed)}"
            )
        if not new or new in (BACKGROUND, IGNORE):
            raise MutualError(
                f"--rename {dataset}:{text} would make {old} {new or 'nameless'!r}; give it the name of a structure"
            )
        renamed[old] = new
    same = sorted({new for new in renamed.values() if list(renamed.values()).count(new) > 1})
    if same and table.is_regions:
        raise MutualError(
            f"--rename would make several regions of {dataset} one ({shorten(same)}); give every region its own name"
        )
    return renamed
