"""Of moving averages of networks that see different modalities, each class is taught by the one that knows it best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.objectives.base import Output
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.organs import drawn_dice, moved, truth_of
from nnunet_mutual.objectives.sampling import summed
from nnunet_mutual.objectives.teaching import Lesson, Teaching

MOMENTUM = 0.98  # of the running Dice
LEAST_MASS = 0.5  # of all classes together


class ModalTeaching(Teaching):
    r"""Teaching whose target is, class by class, what the average says that knows the class best.

    .. math:: q_c \propto p_{n(c), c}, \qquad n(c) = \arg\max_n D_{nc}

    where :math:`D_{nc}` is the running soft Dice of network n in labelled samples. Of background, and of networks that
    are equal, it is the mean. Where what they say of all classes sums up to less than a half, one of them denies what
    the other one is sure of, and nothing is learnt. A network that does not see a sample says nothing of it and learns
    nothing from it.

    Args:
        networks: how many; all teach all.
        knowledge: what each case annotates.
        ignore_label: nnU-Net's, if there is one.
        ask: gives a teacher's logits (unlabelled, C, *spatial) of a batch's weak views, in evaluation mode.
        temperature: sharpens what they say together, if below 1.
        again: whether the images were drawn, and are seen a second time: then half of the word is the drawing's.

    Source: [E]; entropy instead of Dice would trust a network that is sure of what it cannot see, and a mean weighted
        by 1 / (1.05 - D) leaves it half of the word (benchmarks/README.md).
    """

    def __init__(
        self,
        networks: int,
        knowledge: Knowledge,
        ignore_label: int | None,
        ask: Callable[[int, Batch], Tensor],
        *,
        temperature: float,
        again: bool = False,
    ):
        everyone = [range(networks)] * networks
        super().__init__(knowledge, ignore_label, ask, everyone, temperature=temperature, form="sample")
        self.again = again
        self.scores = torch.full((networks, self.knowledge.num_outputs), torch.nan, device=self.knowledge.device)

    def notice(self, outputs: Sequence[Output], batch: Batch) -> None:
        """Moves the running Dice of every network; processes share it, so that they agree on the weights."""
        found = torch.stack([drawn_dice(output, batch, self.knowledge, self.ignore_label) for output in outputs], 1)
        if batch.views is not None:  # whose images, drawn or not, are seen with boxes of others
            found = found[batch.views.unlabelled :]
        if batch.sight is not None:
            found = found.masked_fill(~batch.sight.device[-len(found) :, :, None], torch.nan)
        known = torch.isfinite(found).to(found)
        sums = torch.stack([torch.nan_to_num(found).sum(0), known.sum(0)])
        total, count = summed(sums)
        self.scores = moved(self.scores, total, count, MOMENTUM)

    def weights(self, sees: Tensor | None = None) -> Tensor:
        """Of each network for each class.

        Args:
            sees: (P, B) bool, which networks see which samples; None where all see all.

        Returns:
            (P, B, C) float, B = 1 without ``sees``.
        """
        scores = torch.nan_to_num(self.scores)[:, None]
        if not self.regions:
            scores[:, :, 0] = 0  # background is what all labels leave
        if sees is not None:
            scores = scores.masked_fill(~sees[:, :, None], -1)
        return (scores == scores.amax(0)).float()

    @torch.no_grad()
    def lessons(self, batch: Batch) -> list[Lesson]:
        """Asks all averages; returns the lesson of each network."""
        assert self.ask is not None and batch.views is not None
        number, networks = batch.views.unlabelled, len(self.teachers)
        said = torch.stack([probabilities(self.ask(n, batch), regions=self.regions) for n in range(networks)])
        sees = None if batch.sight is None else batch.sight.device[:number].T
        together, where = self._together(said, self.weights(sees))
        if self.again:
            together, where = self._beside_labels(together, where, batch)
        lesson = self.lesson(together, batch, where)
        if sees is None:
            return [lesson] * networks
        axes = [1] * (said.ndim - 3)
        seen = sees.reshape(networks, number, 1, *axes)
        return [replace(lesson, counted=lesson.counted & own, present=_of_seen(lesson.present, own)) for own in seen]

    def _beside_labels(self, said: Tensor, where: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor | None]:
        labels = zip(batch.target[0][: len(said)], batch.pattern_index, strict=False)
        found = [truth_of(self.knowledge, target, pattern, self.ignore_label) for target, pattern in labels]
        truth, known = torch.stack([values for values, _ in found]), torch.stack([sure[None] for _, sure in found])
        return torch.where(known, (said + truth) / 2, said), None if where is None else where | known

    def _together(self, said: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """What they say together, and where that may be learnt; None for everywhere."""
        by_class = weights.view(*weights.shape, *[1] * (said.ndim - 3))
        mean = (by_class * said).sum(0) / by_class.sum(0)
        if self.regions:
            return mean, None
        mass = mean.sum(1, keepdim=True)
        return mean / mass.clamp_min(LEAST_MASS), mass >= LEAST_MASS

    def diagnose(self) -> dict[str, float]:
        """Reports how sure the teachers were, and how much of each class comes from whom."""
        weights = self.weights()[:, 0]
        shares = weights / weights.sum(0)
        names = {self.knowledge.channel[label]: label for label in self.knowledge.table.labels}
        rows = enumerate(shares.tolist())
        return super().diagnose() | {f"share of network {n} in {names[c]}": row[c] for n, row in rows for c in names}


def _of_seen(present: Tensor | None, sees: Tensor) -> Tensor | None:
    """Labels of the samples, (B, C), that a network sees, (B, 1, ...): the Dice of others would count as perfect."""
    return None if present is None else present & sees.flatten(1)


class ModalTeacherObjective(MeanTeacherObjective):
    """Supervision of each network by the labelled samples that it sees, and of all by their averages together.

    Args:
        arguments: of :class:`MeanTeacherObjective`, with :class:`ModalTeaching`.
        options: likewise.

    Source: see :class:`ModalTeaching`.
    """

    teaching: ModalTeaching
    partner_levels = (1,)  # for the running Dice

    def update(self, outputs: Sequence[Output], step: TaughtStep) -> None:
        """Notes how well each network knows each class."""
        self.teaching.notice(outputs, step.batch)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return super().state_dict() | {"scores": self.teaching.scores.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        super().load_state_dict(state)
        self.teaching.scores.copy_(state["scores"])
