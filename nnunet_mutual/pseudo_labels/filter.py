"""Which predictions become pseudo labels: by voxel, by connected component, and by (case, label).

Whatever is not sure stays unknown; it never becomes background. The filter of the paper is not public: all three levels
and their thresholds are [E].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from nnunet_mutual.annotation.codes import UNDECIDED
from nnunet_mutual.batches.decisions import ALONE
from nnunet_mutual.errors import MutualError, telling

Outputs = Mapping[int, np.ndarray] | np.ndarray  # by output of the network, (*spatial)

LEAST = 1e-6  # probability, before a logarithm
_MIN_CASES = 3  # truly labelled cases with a label, fewer say nothing about its usual volume
_MIN_SPREAD = 0.2  # of log volumes: a few cases of almost equal volume must not make every other one an outlier


@dataclass(frozen=True)
class FilterSettings:
    """Switches and thresholds of the filter.

    Attributes:
        voxel: leave voxels of medium probability undecided; if off, the likelier choice is taken everywhere.
        component: remove small pieces of labels that are declared ``single``.
        label: judge each label of each case by agreement and volume.
        low: a label of at most this probability is absent.
        high: a label of at least this probability is present.
        min_component: smallest piece of a ``single`` label that stays, as a fraction of its largest piece.
        min_agreement: smallest Dice between independent predictions of one label.
        max_z: largest distance from the usual volume, in standard deviations of log volumes.
    """

    voxel: bool = True
    component: bool = True
    label: bool = True
    low: float = 0.3
    high: float = 0.7
    min_component: float = 0.1
    min_agreement: float = 0.7
    max_z: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise MutualError(
                'settings "pseudo_labels.low" and "pseudo_labels.high" must be probabilities, low below high, '
                f"found {self.low} and {self.high}"
            )
        for name in ("min_component", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise MutualError(f'setting "pseudo_labels.{name}" must be from 0 to 1, found {getattr(self, name)}')
        if not 0 < self.max_z < math.inf:
            raise MutualError(f'setting "pseudo_labels.max_z" must be positive, found {self.max_z}')


@dataclass(frozen=True)
class Judgement:
    """Whether a pseudo label of a case is used.

    Attributes:
        accepted: used, or treated as not annotated in this case.
        reason: ``headline: details``, for a reader without the code.
        z: distance of its volume from the usual one in standard deviations of log volumes; None if not measured.
    """

    accepted: bool
    reason: str
    z: float | None = None


def decide_voxels(
    probability: Outputs,
    drawn: np.ndarray,
    open_labels: Mapping[int, Sequence[int]],
    conflict: np.ndarray | None,
    settings: FilterSettings,
) -> np.ndarray:
    r"""Level 1 for plain labels: chooses at each voxel among what its drawn value leaves open.

    .. math::
        u^* = \operatorname{argmax}_{u \in U(y_v)} p_u(v), \qquad
        z_v = \begin{cases} u^* & p_{u^*}(v) \ge h \\ y_v & p_{u^*}(v) \le l \\ -1 & \text{otherwise} \end{cases}

    where :math:`y_v` is the drawn value (0: nothing drawn), :math:`U(y_v)` the unannotated labels it leaves open, and
    l, h the thresholds. With ``settings.voxel`` off, :math:`z_v = u^*` where :math:`p_{u^*} > 1 - p_{u^*}`, else
    :math:`y_v`.

    Args:
        probability: (C, *spatial) float, row = label value: mean over the networks that were trained on the label.
        drawn: (*spatial) integers.
        open_labels: per drawn value, the label values it leaves open; a value that is not listed leaves nothing open.
        conflict: (*spatial) bool, networks contradict each other; such a voxel is undecided while ``voxel`` is on.
        settings: thresholds l (``low``) and h (``high``).

    Returns:
        (*spatial) int16: the decided value, -1 where undecided or where nothing is open. The first of equally likely
        labels wins; a probability that is not a number decides nothing.

    Source: argmax within the open labels [I], thresholds [E], methods after arXiv 2407.12611.
    Fails when: of two open labels one lies in the other (a tumour in a liver) and the networks of the outer one were
        trained to include the inner: the outer one may win inside the inner. Give such voxels as ``conflict``.
    """
    decided = np.full(drawn.shape, UNDECIDED, np.int16)
    for y, candidates in open_labels.items():
        inside = drawn == y
        if not candidates or not inside.any():
            continue
        best = np.full(int(inside.sum()), -np.inf, np.float32)
        choice = np.full(best.shape, UNDECIDED, np.int16)
        for u in candidates:
            p = probability[u][inside].astype(np.float32)  # a processor compares float16 slowly
            choice[p > best] = u
            np.maximum(best, p, out=best)  # keeps a NaN, which then is neither present nor absent
        present, absent = _sure(best, settings)
        choice[absent] = y
        choice[~(present | absent)] = UNDECIDED
        decided[inside] = choice
    if conflict is not None and settings.voxel:
        decided[conflict] = UNDECIDED
    return decided


def decide_regions(
    probability: Outputs,
    drawn: np.ndarray,
    hypotheses: Mapping[int, Sequence[int]],
    membership: np.ndarray,
    settings: FilterSettings,
) -> np.ndarray:
    r"""Level 1 for regions: chooses the integer of the label map whose regions the networks are sure of.

    .. math::
        z_v = z \in H(y_v) \;\text{ if for all } r \in \Delta: \;
        \begin{cases} p_r(v) \ge h & z \in r \\ p_r(v) \le l & z \notin r \end{cases}

    where :math:`H(y)` are the integers that agree with y on every annotated region of the case and :math:`\Delta` the
    regions on which they differ; if no integer fits, the voxel is undecided. With ``settings.voxel`` off both
    thresholds are 0.5.

    Args:
        probability: (R, *spatial) sigmoid: mean over the networks that were trained on the region; NaN, not 0, for an
            unannotated region that none was trained on, since 0 would mean that it is absent.
        drawn: (*spatial) integers.
        hypotheses: per drawn integer y, :math:`H(y)`; a value that is not listed leaves nothing open.
        membership: (values, R) bool, row = integer of the label map, column = region.
        settings: thresholds l (``low``) and h (``high``).

    Returns:
        (*spatial) int16: the decided integer, -1 where undecided or where nothing is open. Integers that lie in the
        same regions are one for the networks: the drawn one stands for them if it is among them, else the first.

    Source: [E], methods after arXiv 2407.12611.
    Fails when: a region was learnt by other networks than the region around it, and their thresholds are crossed at
        different places: such voxels fit no integer and stay undecided.
    """
    decided = np.full(drawn.shape, UNDECIDED, np.int16)
    for inside, patterns, differing in _choices(drawn, hypotheses, membership):
        sure = {r: _sure(probability[r][inside].astype(np.float32), settings) for r in differing}
        choice = np.full(int(inside.sum()), UNDECIDED, np.int16)
        for pattern, z in patterns.items():
            choice[np.logical_and.reduce([sure[r][0 if pattern[r] else 1] for r in differing])] = z
        decided[inside] = choice
    return decided


def likeliest_regions(
    probability: Outputs, drawn: np.ndarray, hypotheses: Mapping[int, Sequence[int]], membership: np.ndarray
) -> np.ndarray:
    r"""Chooses the integer that fits all regions best, sure or not, for a reader who looks at all of it.

    .. math:: z_v = \arg\max_{z \in H(y_v)} \prod_{r \in \Delta} p_r(v)^{[z \in r]} (1 - p_r(v))^{[z \notin r]}

    Args:
        probability: as of :func:`decide_regions`.
        drawn: likewise.
        hypotheses: likewise.
        membership: likewise.

    Returns:
        (*spatial) int16: the integer, -1 where nothing is open.
    """
    decided = np.full(drawn.shape, UNDECIDED, np.int16)
    for inside, patterns, differing in _choices(drawn, hypotheses, membership):
        p = {r: np.clip(probability[r][inside].astype(np.float32), LEAST, 1 - LEAST) for r in differing}
        fit = [sum(np.log(p[r] if pattern[r] else 1 - p[r]) for r in differing) for pattern in patterns]
        decided[inside] = np.array([*patterns.values()], np.int16)[np.argmax(fit, 0)]
    return decided


def _choices(
    drawn: np.ndarray, hypotheses: Mapping[int, Sequence[int]], membership: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[tuple[bool, ...], int], list[int]]]:
    """Yields where an integer was drawn, which may be there, by their regions, and in which of these they differ."""
    for y, integers in hypotheses.items():
        patterns: dict[tuple[bool, ...], int] = {}
        for z in sorted(integers, key=lambda z: z != y):
            patterns.setdefault(tuple(membership[z].tolist()), z)
        inside = drawn == y
        if len(patterns) > 1 and inside.any():
            yield inside, patterns, [r for r, column in enumerate(zip(*patterns, strict=True)) if len(set(column)) > 1]


def keep_main_component(
    decided: np.ndarray,
    values: Iterable[int | Sequence[int]],
    settings: FilterSettings,
) -> np.ndarray:
    """Level 2: small pieces of labels of which a body has one become undecided.

    A piece stays if it has at least ``settings.min_component`` times the voxels of the largest piece of its label.
    Voxels connect over faces, edges and corners.

    Args:
        decided: (*spatial) integers, -1 where undecided; not changed.
        values: labels that are declared ``single`` and not annotated in the case, each by its value, or by all its
            values if it is a region. Never lesions: small ones would vanish.
        settings: with ``component`` off nothing is removed.

    Returns:
        A filtered copy of ``decided``.

    Source: [E], methods after arXiv 2407.12611.
    Fails when: the largest piece is the wrong one, or the image cuts an organ into pieces (a horseshoe-shaped organ at
        the border) of very different size.
    """
    filtered = decided.copy()
    structure = np.ones((3,) * decided.ndim, bool)
    for value in values if settings.component else ():
        present = decided == value if isinstance(value, (int, np.integer)) else np.isin(decided, list(value))
        box = ndimage.find_objects(present.astype(np.uint8))
        if not box:
            continue
        pieces, _ = ndimage.label(present[box[0]], structure)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        small = sizes < settings.min_component * sizes.max()
        small[0] = False
        filtered[box[0]][small[pieces]] = UNDECIDED
    return filtered


def judge_label(
    *,
    volume_ml: float,
    agreement: float | None,
    true_volumes_ml: Sequence[float],
    settings: FilterSettings,
    said: Callable[[float], str] | None = None,
    trusts_one: bool = True,
) -> Judgement:
    r"""Level 3: whether a label of a case is used at all; if not, it counts as not annotated in this case.

    .. math:: z = \frac{\log V - \operatorname{mean} \log V_i}{\max(\operatorname{sd} \log V_i, 0.2)}

    where :math:`V_i` are the volumes of truly labelled cases that have the label, at least 3; sd divides by n - 1.
    Rejected: an agreement below ``min_agreement``, :math:`|z|` above ``max_z``, or nothing found although every truly
    labelled case has the label: a network that has not learnt it must not teach its absence.

    Args:
        volume_ml: volume of the pseudo label in millilitres.
        agreement: Dice between independent predictions, None if there was only one.
        true_volumes_ml: volumes in truly labelled training cases, 0 where the label is absent.
        settings: thresholds; with ``label`` off everything is accepted.
        said: how a volume is written where it is not one in millilitres, since the image says no size.
        trusts_one: whether a label may be accepted without an agreement; if not, a reader must accept it.

    Source: [E], methods after arXiv 2407.12611.
    Fails when: the image shows a part of the organ only, or the truly labelled cases are of another population
        (children, resections): right predictions are then rejected.
    """
    if not settings.label and (trusts_one or agreement is not None):
        return Judgement(True, "not judged: pseudo_labels.label is off")
    verdict = _judge_volume(volume_ml, true_volumes_ml, settings.max_z, said or millilitres)
    if agreement is None:
        if trusts_one or not verdict.accepted:
            return verdict
        return Judgement(False, f"{ALONE}: only a reader can accept it; {verdict.reason}", verdict.z)
    if not agreement >= settings.min_agreement:
        found = telling(agreement, settings.min_agreement, digits=3)
        reason = f"predictions disagree: their Dice is {found}, at least {settings.min_agreement:g} is needed"
        return Judgement(False, reason, verdict.z)
    return replace(verdict, reason=f"{verdict.reason}; independent predictions agree with Dice {agreement:.3g}")


def _judge_volume(
    volume: float, true_volumes: Sequence[float], max_z: float, said: Callable[[float], str]
) -> Judgement:
    present = [other for other in true_volumes if other > 0]
    lacking = len(true_volumes) - len(present)
    if volume == 0 and lacking:
        return Judgement(
            True, f"absent: nothing was found, as in {lacking} of {len(true_volumes)} truly labelled cases"
        )
    if volume == 0:
        others = f"all {len(present)} truly labelled cases have it" if present else "no truly labelled case tells why"
        return Judgement(False, f"missing: nothing was found, but {others}")
    if len(present) < _MIN_CASES:
        return Judgement(
            True,
            f"volume not judged: {said(volume)}, but only {len(present)} truly labelled case(s) have the label, "
            f"at least {_MIN_CASES} are needed",
        )
    logs = np.log(present)
    z = float((math.log(volume) - logs.mean()) / max(logs.std(ddof=1), _MIN_SPREAD))
    usual = f"{said(math.exp(logs.mean()))} in {len(present)} truly labelled cases"
    if not abs(z) <= max_z:
        headline = "too small" if z < 0 else "too large"
        return Judgement(
            False,
            f"{headline}: {said(volume)}, usual {usual} (z = {telling(z, max_z, -max_z, digits=3)}, limit {max_z:g})",
            z,
        )
    return Judgement(True, f"plausible: {said(volume)}, usual {usual} (z = {z:.2f})", z)


def _sure(p: np.ndarray, settings: FilterSettings) -> tuple[np.ndarray, np.ndarray]:
    """Where something is present and where it is absent for sure."""
    return (p >= settings.high, p <= settings.low) if settings.voxel else (p > 0.5, p <= 0.5)


def millilitres(volume: float) -> str:
    """Returns a volume as text, of three digits, never in powers of ten."""
    return f"{volume:.0f} ml" if volume >= 100 else f"{volume:.3g} ml"
