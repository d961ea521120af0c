"""What opinions on the labels that a case does not annotate become: decided voxels, candidates, and a verdict of each.

Opinions are of networks or masks of other tools; all are judged alike, under the annotation table's rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.possible import hypotheses, left_open, output_channels
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.evaluation.masks import dice
from nnunet_mutual.pseudo_labels.filter import (
    FilterSettings,
    decide_regions,
    decide_voxels,
    judge_label,
    keep_main_component,
    likeliest_regions,
)

Volumes = dict[str, list[float]]


@dataclass(frozen=True)
class Prediction:
    """What networks, or other tools, say about a case.

    Attributes:
        probability: by output of the network, (*spatial) float, mean over those who know the label; of others nothing.
        agreements: of each label asked about, the smallest Dice between two opinions; None if there is only one.
        networks: who was asked about a label: networks by number, tools by name.
        conflict: (*spatial) bool, where two labels are likely that exclude each other; None for regions.
    """

    probability: Mapping[int, np.ndarray] | np.ndarray
    agreements: Mapping[str, float | None]
    networks: Mapping[str, Sequence[int | str]]
    conflict: np.ndarray | None


def agreement(masks: Sequence[np.ndarray]) -> float | None:
    """Returns the smallest Dice between two opinions (*spatial) bool on a label; None if there is only one."""
    return min((dice(a, b, empty=1.0) for a, b in itertools.combinations(masks, 2)), default=None)


def volumes_of(drawn: np.ndarray, labels: Iterable[str], table: AnnotationTable, voxel_ml: float) -> dict[str, float]:
    """Returns the volumes of labels in millilitres, zeros included.

    Args:
        drawn: (*spatial) integers of a label map.
        labels: of the table.
        table: their integers.
        voxel_ml: volume of a voxel in millilitres.
    """
    values, counts = np.unique(drawn, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return {label: sum(found.get(value, 0) for value in table.values[label]) * voxel_ml for label in labels}


class Judge:
    """Turns opinions into pseudo labels of single cases.

    Args:
        table: who drew what.
        settings: of the filter.
        trusts_one: whether a label may be accepted of which there is only one opinion.
    """

    def __init__(self, table: AnnotationTable, settings: FilterSettings, *, trusts_one: bool = True):
        self.table = table
        self.settings = settings
        self.trusts_one = trusts_one
        self.codes = PseudoCodes.from_table(table)
        self.channel = output_channels(table)
        self.true_volumes: Volumes = {}

    def judge(
        self,
        case: Case,
        found: Prediction,
        drawn: np.ndarray,
        voxel_ml: float,
        said: Callable[[float], str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[Decision]]:
        """Makes the pseudo labels of a case.

        Args:
            case: who it is and what it annotates.
            found: the opinions, on labels that the case does not annotate.
            drawn: (*spatial) integers of the label map, on the grid of the opinions.
            voxel_ml: volume of a voxel in millilitres.
            said: how a volume is written where that is none in millilitres, since the image says no size.

        Returns:
            (*spatial) int16 codes of drawn and decided values; (*spatial) int16 candidates, the likelier value of every
            open voxel, sure or not and accepted or not, -1 elsewhere; and a decision for each label asked about.
        """
        names = list(found.agreements)
        decided = self._decide_main(case, names, found, drawn, self.settings)
        candidates = self._decide_main(case, names, found, drawn, None)
        chosen = decided != UNDECIDED
        share = float(chosen.sum()) / max(1, int((chosen | self._is_open(case, names, drawn)).sum()))
        decisions = []
        rejected, withheld = (np.zeros(drawn.shape, bool) for _ in range(2))
        for name in names:
            inside = np.isin(decided, self.table.values[name])
            volume = float((inside | self._is_certain(case, name, drawn)).sum()) * voxel_ml
            verdict = judge_label(
                volume_ml=volume,
                agreement=found.agreements[name],
                true_volumes_ml=self.true_volumes.get(name, []),
                settings=self.settings,
                said=said,
                trusts_one=self.trusts_one,
            )
            if not verdict.accepted and not self.table.is_regions:
                rejected |= inside
            elif not verdict.accepted and name in case.incomplete:
                withheld |= inside & ~np.isin(drawn, self.table.values[name])
            decision = Decision(
                case=case.key,
                source=case.source,
                label=name,
                accepted=verdict.accepted,
                reason=verdict.reason,
                volume_ml=volume if said is None or not volume else None,
                agreement=found.agreements[name],
                z=verdict.z,
                decided_share=share,
                networks="+".join(map(str, found.networks[name])),
            )
            decisions.append(decision)
        if rejected.any():  # "none of the accepted labels" may still be certain there
            accepted = [decision.label for decision in decisions if decision.accepted]
            none = self._decide(case, accepted, found, drawn, self.settings) == drawn
            decided[rejected] = np.where(none, drawn, UNDECIDED)[rejected]
        decided[withheld] = UNDECIDED  # the region would be read off the integer, as from a drawn one
        return self.codes.encode(drawn, decided), candidates, decisions

    def _decide_main(
        self, case: Case, names: Sequence[str], found: Prediction, drawn: np.ndarray, settings: FilterSettings | None
    ) -> np.ndarray:
        decided = self._decide(case, names, found, drawn, settings)
        for name in names:
            if name in self.table.singles:
                decided = self._keep_main(case, name, decided, drawn)
        return decided

    def _decide(
        self, case: Case, names: Sequence[str], found: Prediction, drawn: np.ndarray, settings: FilterSettings | None
    ) -> np.ndarray:
        """Decides what is sure by the settings; without any, for a reader, whatever is likelier."""
        if self.table.is_regions:
            asked = self._asked(case, names)
            probability = {self.channel[name]: found.probability[self.channel[name]] for name in names}
            if settings is None:
                return likeliest_regions(probability, drawn, *asked)
            return decide_regions(probability, drawn, *asked, settings)
        settings = settings or replace(self.settings, voxel=False)
        return decide_voxels(found.probability, drawn, self._open_values(case, names), found.conflict, settings)

    def _open_values(self, case: Case, names: Sequence[str]) -> dict[int, tuple[int, ...]]:
        """Per drawn value, the unannotated values that it leaves open."""
        values = {name: self.table.values[name][0] for name in names}
        return {
            drawn: tuple(value for name, value in values.items() if name in labels)
            for drawn, labels in left_open(self.table, case).items()
        }

    def _hypotheses(self, case: Case) -> tuple[dict[int, tuple[int, ...]], np.ndarray]:
        """Per drawn integer, those that agree with it on every annotated region; and which regions each is in."""
        same = hypotheses(self.table, case)
        membership = np.zeros((max(same) + 1, len(self.table.labels)), bool)
        for label in self.table.labels:
            membership[list(self.table.values[label]), self.channel[label]] = True
        return {y: tuple(sorted(integers)) for y, integers in sorted(same.items())}, membership

    def _asked(self, case: Case, names: Sequence[str]) -> tuple[dict[int, tuple[int, ...]], np.ndarray]:
        """The same of the regions asked about: of integers alike in these, the drawn one or that of fewest others."""
        same, membership = self._hypotheses(case)
        number, asked = membership.sum(1), membership.copy()
        asked[:, [channel for name, channel in self.channel.items() if name not in names]] = False
        return {y: tuple(sorted(integers, key=lambda z: (number[z], z))) for y, integers in same.items()}, asked

    def _is_certain(self, case: Case, name: str, drawn: np.ndarray) -> np.ndarray:
        """Where what was drawn leaves no doubt that a label is there, as a drawn core for the whole around it."""
        values = set(self.table.values[name])
        if not self.table.is_regions:
            own = [y for y, inner in left_open(self.table, case).items() if y in values and not inner]
            return np.isin(drawn, own)
        return np.isin(drawn, [y for y, integers in self._hypotheses(case)[0].items() if values.issuperset(integers)])

    def _keep_main(self, case: Case, name: str, decided: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        values, certain = self.table.values[name], self._is_certain(case, name, drawn)
        whole = np.where(certain, values[0], decided)  # pieces that a drawn part connects are one
        return np.where(certain, decided, keep_main_component(whole, [values], self.settings))

    def _is_open(self, case: Case, names: Sequence[str], drawn: np.ndarray) -> np.ndarray:
        """Where what was drawn leaves a choice."""
        if self.table.is_regions:
            choice = [y for y, integers in self._hypotheses(case)[0].items() if len(integers) > 1]
        else:
            choice = [y for y, values in self._open_values(case, names).items() if values]
        return np.isin(drawn, choice)
