"""Online validation: Dice on patches of the validation cases, network by network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.peers import Autocast
from nnunet_mutual.objectives.supervised import SupervisedObjective

MOMENTUM = 0.9  # of nnU-Net's moving average of the Dice


@dataclass(frozen=True)
class EpochScores:
    """What an epoch of online validation found, over all processes.

    Attributes:
        loss: mean supervised loss.
        dice: of each label, see :meth:`Ranking.add`.
        by_source: Dice of the deployed network by label and source, of what was sampled; empty with one source.
    """

    loss: float
    dice: list[float]
    by_source: dict[str, float]


class OnlineValidation:
    """Scores validation batches, and chooses the network to deploy.

    Args:
        supervised: loss of what cases annotate.
        labels: nnU-Net's.
        candidates: networks that are compared.
        taught: labels that each network learns, by which it is judged.
        device: of the networks.
        ranks: the processes of the training.

    Attributes:
        ranking: moving averages of the candidates' Dice.
    """

    def __init__(
        self,
        supervised: SupervisedObjective,
        labels: LabelManager,
        candidates: Sequence[int],
        taught: Sequence[frozenset[str]],
        *,
        device: torch.device,
        ranks: Ranks,
    ):
        self.supervised = supervised
        self.knowledge = supervised.knowledge
        self.table = self.knowledge.table
        self.labels = labels
        self.candidates = tuple(candidates)
        self.device = device
        self.ranks = ranks
        self.ranking = Ranking(np.array([[x in taught[n] for x in self.table.labels] for n in self.candidates]))

    @property
    def deployed(self) -> int:
        """The best candidate so far."""
        return self.candidates[self.ranking.best]

    def score(
        self, batch: Batch, ask: Callable[[int, Tensor], list[Tensor]], autocast: Autocast
    ) -> dict[str, np.ndarray]:
        """Returns the mean loss and the voxel counts (P, K) of the candidates on a batch, and those by source.

        What another process's networks would add is 0.

        Args:
            batch: of the validation loader.
            ask: gives the logits of a candidate, highest resolution first.
            autocast: makes the context of mixed precision.
        """
        annotated, heirs, left_open = self.knowledge.scoring(batch.pattern_index)
        losses = [torch.zeros((), device=self.device)]
        member = self._membership(batch)
        counts = np.zeros((3, len(self.candidates), len(member), len(self.table.labels)), np.float32)
        for i, n in enumerate(self.candidates):
            if not self.ranks.runs(n):
                continue
            with autocast():
                levels = ask(n, batch.data)
                losses.append(self.supervised.labelled(levels, batch, n).detach())
            scored = annotated if batch.sight is None else annotated & batch.sight.device[:, n : n + 1]
            found = _sample_counts(levels[0], batch.target[0], scored, heirs, left_open, self.labels)
            counts[:, i] = (member @ found).cpu().numpy()
        loss = (torch.stack(losses).sum() / len(self.candidates)).cpu().numpy()
        names = ("tp_hard", "fp_hard", "fn_hard")
        return {"loss": loss, "by_source": counts, **dict(zip(names, counts.sum(2), strict=True))}

    def _membership(self, batch: Batch) -> Tensor:
        """Which samples of a batch come from which source, (S, B) float."""
        sources = list(self.table.sources)
        rows = [sources.index(self.table.case(key).source) for key in batch.keys]
        return torch.nn.functional.one_hot(torch.tensor(rows), len(sources)).T.float().to(self.device)

    def add(self, outputs: list[dict], *, samples_differ: bool) -> EpochScores:
        """Takes in what :meth:`score` returned in an epoch, on all processes.

        Args:
            outputs: of each batch.
            samples_differ: whether each process has samples of its own, else networks of its own.
        """
        collated = collate_outputs(outputs)
        counts = np.sum(collated["by_source"], 0, dtype=np.float64)
        of_processes = self.ranks.gather((counts, float(np.mean(collated["loss"]))))
        counts = np.sum([c for c, _ in of_processes], 0)
        together = np.mean if samples_differ else np.sum
        loss = float(together([value for _, value in of_processes]))
        dice = self.ranking.add(counts.sum(2))
        by_source = {}
        if counts.shape[2] > 1:
            of_deployed = counts[:, self.ranking.best].transpose(1, 0, 2)
            for source, of_source in zip(self.table.sources, of_deployed, strict=True):
                by_source.update({f"Dice of {x}, {source}": value for x, value in self._dice(of_source).items()})
        return EpochScores(loss, dice, by_source)

    def dice_of(self, counts: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns the Dice of each label that was sampled, on all processes.

        Args:
            counts: of each batch, (3, K) as of :func:`annotated_counts`.
        """
        return self._dice(np.sum(self.ranks.gather(np.sum(counts, 0, dtype=np.float64)), 0))

    def _dice(self, counts: np.ndarray) -> dict[str, float]:
        tp, fp, fn = counts
        with np.errstate(invalid="ignore"):
            dice = 2 * tp / (2 * tp + fp + fn)
        return {label: float(value) for label, value in zip(self.table.labels, dice, strict=True) if value == value}


def annotated_counts(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor,
    heirs: Tensor | None,
    left_open: Tensor | None,
    label_manager: LabelManager,
) -> np.ndarray:
    """True positive, false positive and false negative voxels per label, over samples that annotate the label.

    Args:
        logits: (B, C, *spatial), highest resolution.
        target: (B, 1, *spatial) labels, or (B, R[+1], *spatial) regions.
        annotated: (B, C) bool.
        heirs: (B, C) long or (B, C, C) bool, of plain labels: what a voxel of a predicted class counts as, so that a
            tumour predicted in a liver that was drawn with its tumours is no mistake about the liver.
        left_open: (B, V, C) bool, annotated labels about which a drawn value says nothing; None if there are none.
        label_manager: nnU-Net's.

    Returns:
        (3, K), K foreground labels or regions.
    """
    counts: np.ndarray = _sample_counts(logits, target, annotated, heirs, left_open, label_manager).sum(1).cpu().numpy()
    return counts


def _sample_counts(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor,
    heirs: Tensor | None,
    left_open: Tensor | None,
    label_manager: LabelManager,
) -> Tensor:
    """The same of each sample, (3, B, K)."""
    mask = None
    if label_manager.has_regions:
        prediction = (logits > 0).float()
        if label_manager.has_ignore_label:
            target, mask = target[:, :-1], (~target[:, -1:].bool()).float()
    else:
        assert heirs is not None
        restricted = _restricted(logits, heirs, target)
        prediction = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, restricted, 1)
        if label_manager.has_ignore_label:
            mask = (target != label_manager.ignore_label).float()
            target = torch.where(mask.bool(), target, 0)
        if left_open is not None:
            said = target.flatten(2).long().expand(-1, logits.shape[1], -1)
            prediction[left_open.transpose(1, 2).gather(2, said).view_as(prediction)] = 0
    counts = get_tp_fp_fn_tn(prediction, target, tuple(range(2, logits.ndim)), mask)[:3]
    found = torch.stack(counts) * annotated
    return found if label_manager.has_regions else found[:, :, 1:]


def _restricted(logits: Tensor, heirs: Tensor, target: Tensor) -> Tensor:
    """The classes (B, 1, *spatial) that predicted ones count as; what was drawn there counts as itself."""
    likeliest = logits.max(1, keepdim=True).indices  # on CPUs much faster than argmax
    if heirs.ndim == 2:
        counted = heirs.gather(1, likeliest.flatten(1)).view_as(likeliest)
    else:
        asked = likeliest.flatten(1)[:, None].expand(-1, logits.shape[1], -1)
        allowed = heirs.transpose(1, 2).gather(2, asked).view_as(logits)
        counted = logits.masked_fill(~allowed, -torch.inf).max(1, keepdim=True).indices
    return torch.where(likeliest == target, likeliest, counted)


class Ranking:
    """Moving average of each network's mean Dice, from which the network to deploy is chosen.

    Args:
        learns: (P, K) bool, which labels each network is taught; a network is judged by these.

    Attributes:
        averages: of each network, None before anything was sampled.
        by_label: (P, K) the same of each label, NaN before it was sampled.
        improved: networks whose average has just become higher than ever.
    """

    def __init__(self, learns: np.ndarray):
        self.learns = learns
        self.averages: list[float | None] = [None] * len(learns)
        self.by_label = np.full(learns.shape, np.nan)
        self.improved: list[int] = []
        self._highest = [-1.0] * len(learns)

    @property
    def best(self) -> int:
        """The network with the highest moving average; the first one before anything was sampled."""
        return max(range(len(self.averages)), key=lambda n: -1.0 if (a := self.averages[n]) is None else a)

    def add(self, counts: np.ndarray) -> list[float]:
        """Takes in the voxel counts of an epoch.

        Args:
            counts: (3, P, K) true positive, false positive, false negative voxels.

        Returns:
            Dice of each label: of the best network if it learns the label, else the mean over those that do; NaN for a
            label that was not sampled.
        """
        tp, fp, fn = counts
        with np.errstate(invalid="ignore"):
            dice = np.where(self.learns, 2 * tp / (2 * tp + fp + fn), np.nan)
        moved = MOMENTUM * self.by_label + (1 - MOMENTUM) * dice
        self.by_label = np.where(np.isnan(dice), self.by_label, np.where(np.isnan(self.by_label), dice, moved))
        for n, row in enumerate(dice):
            if (mean := _mean(row)) is not None:
                before = self.averages[n]
                self.averages[n] = mean if before is None else MOMENTUM * before + (1 - MOMENTUM) * mean
        now = [-1.0 if average is None else average for average in self.averages]
        self.improved = [n for n, value in enumerate(now) if value > self._highest[n]]
        self._highest = [max(pair) for pair in zip(now, self._highest, strict=True)]
        shown = []
        for label, own in enumerate(dice[self.best]):
            mean = own if self.learns[self.best, label] else _mean(dice[:, label])
            shown.append(float("nan") if mean is None else float(mean))
        return shown

    def state_dict(self) -> dict[str, Any]:
        """Returns builtins for a checkpoint."""
        return {"averages": list(self.averages), "by_label": self.by_label.tolist(), "highest": list(self._highest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.averages = list(state["averages"])
        self.by_label = np.asarray(state["by_label"], float)
        self._highest = list(state["highest"])


def mean_dice(dice: Sequence[float], earlier: Sequence[float]) -> float:
    """Mean over labels that were sampled.

    Args:
        dice: of each label; NaN where not sampled.
        earlier: means of earlier epochs; the last one stands in where nothing was sampled, since a NaN would stay in
            nnU-Net's moving average for ever.
    """
    mean = _mean(np.asarray(dice))
    return mean if mean is not None else (earlier[-1] if earlier else 0.0)


def _mean(values: np.ndarray) -> float | None:
    sampled = values[~np.isnan(values)]
    return float(sampled.mean()) if sampled.size else None
