"""Networks that each see other modalities of the same images learn from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.area_similarity import Contrast, area_similarity_contrast
from nnunet_mutual.losses.consistency import probabilities, squared_difference
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.modules.queue import MapQueue
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import ramp
from nnunet_mutual.objectives.sampling import gathered
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.settings import TermWeights

POOL = 4  # voxels along each axis that the contrasted maps average
AS_GOOD = 0.01  # Dice; networks that differ by less teach each other


@dataclass(frozen=True)
class CrossModalLoss(TermWeights):
    """Weights of the terms, next to the supervised loss of weight 1.

    Attributes:
        contrast: area-similarity contrast (ASC).
        consistency: squared difference of the predictions.
        relearning: re-learning from soft labels (PReL).
    """

    contrast: float = 0.4
    consistency: float = 0.2
    relearning: float = 1.0


@dataclass(frozen=True)
class CrossModalCourse:
    """How the training proceeds, and the form of the contrast.

    Attributes:
        area: share of the contrast in re-learning.
        ramp_end: share of the training during which the consistency rises.
        relearn_from: share of the training after which worse networks re-learn from better ones.
        all_from: share after which all re-learn from each other.
        form: of the contrast.
        queue: maps that are kept as opposites, 0 for none.
    """

    area: float
    ramp_end: float
    relearn_from: float
    all_from: float
    form: Contrast
    queue: int


@dataclass(frozen=True)
class CrossModalStep(Step):
    """One step.

    Attributes:
        phase: 0 before re-learning, 1 while worse networks re-learn from better ones, 2 when all do.
        said: probabilities (unlabelled, C, *spatial) of each network, without a graph; none without unlabelled samples.
        soft: soft labels of each student, and where they count.
    """

    phase: int
    said: list[Tensor]
    soft: dict[int, tuple[Tensor, Tensor]]


class CrossModalObjective(Objective[CrossModalStep]):
    """Contrastive mutual learning, then pseudo-label re-learning (PReL), of networks with an input each.

    Unlabelled samples tie the networks: what two of them say of an organ overlaps in the same image and less in others,
    and is the same voxel by voxel. Later, worse networks re-learn from soft labels of better ones.

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        networks: how many.
        loss: weights of the terms.
        course: of the training.
        teacher: gives probabilities (B, C, *spatial) of one network's moving average for images (B, M, *spatial).
        standing: (P, K) Dice of each network and label so far, NaN where nothing is known; on the host.

    Source: Zhang et al., Med. Image Anal. 83, 102656 (2023). Averaged maps per class, the queue, and teachers chosen by
        validation are [E].
    """

    term_names = ("supervised", "contrast", "consistency", "relearning")
    partner_levels = (0,)

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        *,
        networks: int,
        loss: CrossModalLoss,
        course: CrossModalCourse,
        teacher: Callable[[int, Tensor], Tensor],
        standing: Callable[[], Sequence[Sequence[float]]],
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.loss = loss
        self.course = course
        self.teacher = teacher
        self.standing = standing
        self.networks = networks
        self.pairs = networks * (networks - 1) // 2
        self.regions = knowledge.table.is_regions
        self.classes = len(knowledge.table.labels)
        self.queue: MapQueue | None = None
        self._waiting: dict[str, Any] | None = None  # of a queue whose size is not known yet
        self._numbers = torch.zeros(2, device=knowledge.device)  # units with an opposite, steps

    # Once per step

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> dict[int, tuple[Tensor, Tensor]]:
        """Asks teachers for soft labels of unlabelled samples, of each student that re-learns now."""
        phase = self._phase(progress)
        if batch.views is None or not phase or self.loss.relearning == 0:
            return {}
        return self._ask_teachers(batch, everybody=phase > 1)

    @torch.no_grad()
    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> CrossModalStep:
        """Notes what all networks say of unlabelled samples."""
        found = [] if batch.views is None else [self._probabilities(output, batch) for output in outputs]
        if found and self.queue is None and self.course.queue:
            voxels = self._maps(found[0], batch).shape[2]
            self.queue = MapQueue(self.classes, self.course.queue, voxels, self.knowledge.device)
            if self._waiting is not None:
                self.queue.load_state_dict(self._waiting)
        return CrossModalStep(batch, progress, self._phase(progress), found, said[self])

    def _phase(self, progress: Progress) -> int:
        done = progress.fraction
        return int(done >= self.course.relearn_from) + int(done >= self.course.all_from)

    def _ask_teachers(self, batch: Batch, *, everybody: bool) -> dict[int, tuple[Tensor, Tensor]]:
        assert batch.views is not None
        soft = {}
        number = batch.views.unlabelled
        inside = batch.views.inside[:number]
        chosen = teachers_of(self.standing(), everybody=everybody, per_label=self.regions)
        asked = {teacher for teachers in chosen for teacher in teachers if teacher is not None}
        said = {teacher: self.teacher(teacher, batch.data[:number]) for teacher in sorted(asked)}
        for student, teachers in enumerate(chosen):
            targets, counted = [], []
            for label, teacher in enumerate(teachers):
                if teacher is None:  # of a region that this network knows best
                    targets.append(torch.zeros_like(inside, dtype=torch.float32))
                    counted.append(torch.zeros_like(inside))
                    continue
                targets.append(said[teacher][:, label : label + 1] if self.regions else said[teacher])
                counted.append(inside & _per_sample(self._both(batch, student, teacher), inside))
            if any(teacher is not None for teacher in teachers):
                soft[student] = torch.cat(targets, 1), torch.cat(counted, 1)
        return soft

    def _probabilities(self, output: Output, batch: Batch) -> Tensor:
        """(unlabelled, C, *spatial), highest resolution."""
        assert batch.views is not None
        return probabilities(output.levels[0][: batch.views.unlabelled], regions=self.regions)

    def _maps(self, p: Tensor, batch: Batch) -> Tensor:
        assert batch.views is not None
        return organ_maps(p, batch.views.inside[: len(p)], regions=self.regions)

    def _both(self, batch: Batch, a: int, b: int) -> Tensor:
        """(unlabelled,) bool, the samples that two networks see."""
        assert batch.views is not None
        number = batch.views.unlabelled
        if batch.sight is None:
            return torch.ones(number, dtype=torch.bool, device=batch.data.device)
        return batch.sight.device[:number, a] & batch.sight.device[:number, b]

    # Per network

    def terms(self, peer: int, outputs: Sequence[Output], step: CrossModalStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels, weights, batch = outputs[peer].levels, self.loss, step.batch
        nothing = Term(levels[0].flatten()[0] * 0, 0.0)
        found = dict.fromkeys(self.term_names, nothing)
        found["supervised"] = Term(self.supervised.labelled(levels, batch, peer))
        if batch.views is None:
            return found
        mine = self._probabilities(outputs[peer], batch)
        if not step.phase and weights.contrast > 0:
            found["contrast"] = Term(self._contrast(peer, mine, step), weights.contrast)
        if not step.phase and weights.consistency > 0:
            rise = ramp(step.progress, 0.0, self.course.ramp_end)
            found["consistency"] = Term(self._consistency(peer, mine, step), weights.consistency * rise)
        if peer in step.soft:
            relearning = self._relearning(levels[0], mine, batch, *step.soft[peer])
            found["relearning"] = Term(relearning, weights.relearning)
        return found

    def _contrast(self, peer: int, mine: Tensor, step: CrossModalStep) -> Tensor:
        batch, parts = step.batch, []
        maps = self._maps(mine, batch)
        for other in self._others(peer):
            theirs = self._maps(step.said[other], batch)
            loss, active = self._similarity(maps, theirs, self._both(batch, peer, other))
            self._numbers += torch.stack([active, torch.ones_like(active)])
            parts.append(loss)
        return torch.stack(parts).sum() / self.pairs

    def _similarity(self, mine: Tensor, theirs: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self.queue is None:
            return area_similarity_contrast(mine, theirs, present, form=self.course.form)
        maps, filled = self.queue.maps.float(), self.queue.filled
        return area_similarity_contrast(mine, theirs, present, maps, filled, form=self.course.form)

    def _consistency(self, peer: int, mine: Tensor, step: CrossModalStep) -> Tensor:
        batch = step.batch
        assert batch.views is not None
        inside = batch.views.inside[: len(mine)]
        parts = [
            squared_difference(mine, step.said[other], inside & _per_sample(self._both(batch, peer, other), inside))
            for other in self._others(peer)
        ]
        return torch.stack(parts).sum() / self.pairs

    def _others(self, peer: int) -> list[int]:
        return [n for n in range(self.networks) if n != peer]

    def _relearning(self, logits: Tensor, mine: Tensor, batch: Batch, target: Tensor, counted: Tensor) -> Tensor:
        loss = soft_label_loss(logits[: len(target)], target, counted, regions=self.regions, squared=True)
        if self.course.area == 0:
            return loss
        taught = self._maps(target, batch)
        contrast, _ = self._similarity(self._maps(mine, batch), taught, counted.flatten(1).any(1))
        return self.course.area * contrast + (1 - self.course.area) * loss

    def update(self, outputs: Sequence[Output], step: CrossModalStep) -> None:
        """Remembers what the networks agreed on."""
        batch = step.batch
        if self.queue is None or not step.said or batch.views is None:
            return
        maps = torch.stack([self._maps(said, batch) for said in step.said])
        number = batch.views.unlabelled
        see = maps.new_ones(number, self.networks) if batch.sight is None else batch.sight.device[:number].float()
        consensus = torch.einsum("pbkv,bp->bkv", maps, see) / see.sum(1).clamp_min(1)[:, None, None]
        usable = consensus.mean(2) >= self.course.form.least_mass
        self.queue.put(gathered(consensus), gathered(usable))

    # The log and checkpoints

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports how many units had something to be told from."""
        active, asked = self._numbers.tolist()
        self._numbers.zero_()
        if not asked:
            return {}, []
        warnings = []
        if active == 0:
            warnings = [
                "ASC inactive: no organ had another sample to be told from; raise unlabelled_per_batch or queue, or "
                "look whether the networks predict anything in unlabelled images"
            ]
        return {"organs per step and pair that were told from others": active / asked}, warnings

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        queue = self._waiting if self.queue is None else self.queue.state_dict()
        return {"queue": queue, "numbers": self._numbers.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.queue, self._waiting = None, state["queue"]
        self._numbers.copy_(state["numbers"])


def organ_maps(p: Tensor, inside: Tensor, *, regions: bool) -> Tensor:
    """Averages foreground probabilities over 4 voxels along each axis.

    Args:
        p: (B, C, *spatial).
        inside: (B, 1, *spatial) bool; outside, the maps are zero.
        regions: every channel is foreground.

    Returns:
        (B, K, V), units of the contrast.
    """
    pool = F.avg_pool3d if p.ndim == 5 else F.avg_pool2d
    return pool((p if regions else p[:, 1:]) * inside, [min(POOL, size) for size in p.shape[2:]]).flatten(2)


def teachers_of(standing: Sequence[Sequence[float]], *, everybody: bool, per_label: bool) -> list[list[int | None]]:
    """Chooses who teaches whom: of the other networks the best one, unless the student is better.

    Networks whose Dice differs by less than 0.01 teach each other; else, one that found nothing teaches nobody.

    Args:
        standing: (P, K) Dice of each network and label, NaN where nothing is known.
        everybody: the better one learns, too.
        per_label: for each label by itself, not by the mean.

    Returns:
        Of each student, for each label (or once), its teacher or None.
    """
    scores = np.asarray(standing, float)
    if not per_label:
        known = ~np.isnan(scores)
        total = np.where(known, scores, 0).sum(1)
        scores = (total / np.maximum(known.sum(1), 1))[:, None]
    scores = np.nan_to_num(scores, nan=0.0)
    found: list[list[int | None]] = []
    for student in range(len(scores)):
        others = [n for n in range(len(scores)) if n != student]
        best = [max(others, key=lambda n, k=k: scores[n, k]) for k in range(scores.shape[1])]  # type: ignore[misc]
        least = np.minimum(scores[student] - AS_GOOD, 0.0 if everybody else np.inf)
        taught = scores[best, range(len(best))] > least
        found.append([n if teaches else None for n, teaches in zip(best, taught, strict=True)])
    return found


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
