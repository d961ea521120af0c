"""Two networks that weigh classes differently: one by how rare they are, one by how hard they are to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forms.known import labelled_truth, likelihood_loss
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of
from nnunet_mutual.objectives import Output, Progress, Said, Term
from nnunet_mutual.objectives.correlation import CorrelationObjective, CorrelationStep
from nnunet_mutual.objectives.sampling import spread
from nnunet_mutual.trainers import MutualCorrelationTrainer

MOMENTUM = 0.99  # of the weights by rarity; as published
REMEMBERED, POWER = 20, 1 / 5  # steps, and how much the balance of learning counts; as published
LEAST = 1e-8


def by_rarity(voxels: Tensor) -> Tensor:
    r"""Weights of classes by their voxels, :math:`C \log(n_{max} / n_k) / \max_j \log(n_{max} / n_j)`.

    Args:
        voxels: n, (C,).

    Returns:
        (C,), 0 for the commonest class, C for the rarest.

    Source: DistDW of Wang & Li, MICCAI 2023, arXiv 2307.11960; a class without any voxel counts as one [E].
    """
    rare = (voxels.max().clamp_min(1) / voxels.clamp_min(1)).log()
    return len(voxels) * rare / rare.max().clamp_min(LEAST)


def by_difficulty(dice: Tensor, learnt: Tensor, unlearnt: Tensor) -> Tensor:
    r"""Weights of classes by their Dice and its history, :math:`(1 - D_k) (u_k / l_k)^{1/5}`, C for the hardest.

    Args:
        dice: D, (C,).
        learnt: l, (C,), how fast its logarithm has risen.
        unlearnt: u, (C,), how fast it has fallen.

    Source: DiffDW of Wang & Li, MICCAI 2023, arXiv 2307.11960.
    """
    hard = (1 - dice) * ((unlearnt + LEAST) / (learnt + LEAST)) ** POWER
    return len(dice) * hard / hard.max().clamp_min(LEAST)


def reweighted(logits: Tensor, target: Tensor, counted: Tensor, weights: Tensor) -> Tensor:
    """Returns what weights of the classes add to a cross-entropy with soft labels, mean over what counts.

    Args:
        logits: (C, N).
        target: (C, N) probabilities.
        counted: (N,) bool, or how much each counts.
        weights: (C,).
    """
    return likelihood_loss(logits.float().log_softmax(0), target * (weights - 1)[:, None], counted)


@dataclass(frozen=True)
class DebiasedStep(CorrelationStep):
    """One step.

    Attributes:
        labelled: of each labelled sample: voxels (N,), what their labels say (C, N), and which are known (N,).
        weights: of the classes, (C,) for each network.
    """

    labelled: Sequence[tuple[Tensor, Tensor, Tensor]] = ()
    weights: Sequence[Tensor] = ()


class DebiasedObjective(CorrelationObjective):
    """Mutual learning in which the first network favours rare classes and the second those that it learns badly.

    Weights act on the cross-entropy at full resolution, of labelled and unlabelled images; Dice and lower resolutions
    have none [E]. How rare classes are is counted in what is taught, pasted labels among it [E].

    Args:
        arguments, options: of :class:`CorrelationObjective`.

    Source: Wang & Li, MICCAI 2023, arXiv 2307.11960, where the networks teach each other as they are.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        nothing = torch.zeros(self.classes, device=self.knowledge.device)
        self.history = {name: nothing.clone() for name in ("rarity", "last", "learnt", "unlearnt")}

    @torch.no_grad()
    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> DebiasedStep:
        """See :meth:`Objective.prepare`."""
        plain = super().prepare(outputs, batch, progress, said)
        assert batch.views is not None and plain.lessons is not None and not self.regions
        labelled = []
        for sample in range(batch.views.unlabelled, len(batch.keys)):
            places = spread(batch.views.inside[sample].numel(), self.knowledge.device)
            labelled.append((places, *labelled_truth(batch, sample, places, self.supervised)))
        second = outputs[1].levels[0][batch.views.unlabelled :].flatten(2)
        decided = [logits[:, places].argmax(0) for logits, (places, _, _) in zip(second, labelled, strict=True)]
        truth, known = torch.cat([t for _, t, _ in labelled], 1), torch.cat([k for _, _, k in labelled])
        weights = [self._rarity(truth * known, plain.lessons[0].target), self._difficulty(decided, truth, known)]
        return DebiasedStep(batch, progress, plain.compared, plain.said, plain.lessons, labelled, weights)

    def _rarity(self, truth: Tensor, taught: Tensor) -> Tensor:
        """The labels of the first batch begin, what is taught goes on."""
        classes = torch.nn.functional.one_hot(taught.argmax(1).flatten(), self.classes)
        average = self.history["rarity"]
        begun = torch.where(average.any(), average, by_rarity(truth.sum(1)))
        average.copy_(begun.lerp(by_rarity(classes.sum(0)), 1 - MOMENTUM))
        return average.clone()

    def _difficulty(self, decided: Sequence[Tensor], truth: Tensor, known: Tensor) -> Tensor:
        said = torch.nn.functional.one_hot(torch.cat([*decided]), self.classes).T * known
        drawn = truth * known
        present = drawn.any(1)
        dice = 2 * (said * drawn).sum(1) / (said + drawn).sum(1).clamp_min(1)
        history = self.history
        change = ((dice + LEAST) / (history["last"] + LEAST)).log() * present
        for name, amount in (("learnt", change), ("unlearnt", -change)):
            history[name].lerp_(amount.clamp_min(0), 1 / REMEMBERED)
        history["last"].copy_(torch.where(present, dice, history["last"]))
        return by_difficulty(history["last"], history["learnt"], history["unlearnt"])

    def terms(self, peer: int, outputs: Sequence[Output], step: CorrelationStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        found = super().terms(peer, outputs, step)
        assert isinstance(step, DebiasedStep) and step.batch.views is not None and step.lessons is not None
        first, weights, lesson = step.batch.views.unlabelled, step.weights[peer], step.lessons[peer]
        logits = outputs[peer].levels[0].flatten(2)
        # nnU-Net's mean is over padded voxels, too.
        of_labels = mean_of(
            [
                reweighted(z[:, places], truth, known, weights) * known.float().mean()
                for z, (places, truth, known) in zip(logits[first:], step.labelled, strict=True)
            ]
        )
        flat = [values.movedim(1, 0).flatten(1) for values in (logits[:first], lesson.target, lesson.counted)]
        finest = self.supervised.level_weights[0]
        added = {"supervised": finest * of_labels, "consistency": reweighted(flat[0], flat[1], flat[2][0], weights)}
        return found | {name: Term(found[name].value + more, found[name].weight) for name, more in added.items()}

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {**super().state_dict(), "history": {name: values.clone() for name, values in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        super().load_state_dict(state)
        for name, values in state["history"].items():
            self.history[name].copy_(values)


class DebiasedCorrelationTrainer(MutualCorrelationTrainer):
    """Two differently weighted networks."""

    objective = DebiasedObjective
