"""A memory of labelled voxels classifies unlabelled ones by their soft nearest neighbours: a vote, or a filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forms.known import labelled_truth, likelihood_loss
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import agreement, mean_of, probabilities
from nnunet_mutual.losses.numerics import exact_product, unit, without_autocast
from nnunet_mutual.modules.bank import FeatureBank
from nnunet_mutual.modules.ema import MovingAverage
from nnunet_mutual.modules.tap import feature_stage, levels_and_features
from nnunet_mutual.objectives import Output, Progress, Said, Term
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.sampling import any_of, at_voxels, spread
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer

STRIDE, SIZE = 1, 32  # as of omni-correlation
SLOTS = PER_CLASS = 64  # embeddings of a class: kept of each case, drawn in each step
TEMPERATURE, WEIGHT = 0.1, 0.05  # likewise
LEAST_CHANCE = 1e-7


def neighbours(queries: Tensor, memory: Tensor, usable: Tensor, classes: int) -> Tensor:
    r"""Chances of each class, :math:`p_k(v) = \sum_{j \in k} \operatorname{softmax}_j(\cos(q_v, r_j) / T)`.

    Args:
        queries: q, (N, D).
        memory: r, (classes * M, D), class by class.
        usable: (classes * M,) bool, at least one.
        classes: K.

    Returns:
        (N, K) float32; 0 of a class of which nothing is known.

    Source: soft nearest neighbours in the memory of arXiv 2307.06312, whose labels are not used there [E].
    """
    likeness = exact_product(unit(queries.float(), 1), unit(memory.float(), 1).T / TEMPERATURE)
    return likeness.masked_fill(~usable, -torch.inf).softmax(1).unflatten(1, (classes, -1)).sum(2)


@dataclass(frozen=True)
class MemoryStep(TaughtStep):
    """One step.

    Attributes:
        memory: what was drawn of it, and which rows are usable.
        places: (N,) voxels of each labelled sample that are looked at.
        found: cases, embeddings and which of them are usable, to be remembered.
    """

    memory: tuple[Tensor, Tensor]
    places: Sequence[Tensor]
    found: tuple[Tensor, Tensor, Tensor]


class MemoryVote(MeanTeacherObjective):
    """What the average says is mixed with what the memory says of the same voxels.

    A head embeds voxels so that their neighbours in the memory have their class, which labelled voxels teach it; the
    averages of network and head embed what is remembered and what is asked.

    Args:
        keys: the labelled cases.
        features: channels of the decoder's last stage.
        decay: of the head's average.
        teacher: gives the average's logits and features of images.
        arguments, options: of :class:`MeanTeacherObjective`.
    """

    term_names = ("supervised", "consistency", "neighbours")
    feature_strides = (STRIDE,)

    def __init__(
        self,
        keys: Sequence[str],
        features: int,
        decay: float,
        teacher: Callable[[Tensor], tuple[list[Tensor], dict[int, Tensor]]],
        *arguments: Any,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        knowledge = self.supervised.knowledge
        self.row = {key: n for n, key in enumerate(sorted(keys))}
        self.teacher = teacher
        layers = nn.Linear(features, SIZE), nn.LayerNorm(SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE)
        self.heads = nn.Sequential(*layers).to(knowledge.device)
        self.average = MovingAverage(self.heads, decay)
        self.bank = FeatureBank(knowledge.num_outputs, len(self.row), SLOTS, SIZE, knowledge.device)

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> MemoryStep:  # type: ignore[override]
        """Asks teacher and memory, and embeds what is to be remembered."""
        assert batch.views is not None
        number = batch.views.unlabelled
        (logits,), features = self.teacher(torch.cat([batch.weak, batch.data[number:]]))
        drawn, usable = self.bank.draw(PER_CLASS)
        memory = drawn, usable | ~usable.any()
        embed = self.average.network
        with without_autocast(logits.device):
            asked = [embed(shown.flatten(1).T.float()) for shown in features[STRIDE][:number]]
            chances = torch.stack([neighbours(vectors, *memory, logits.shape[1]).T for vectors in asked])
            places = [spread(shown[0].numel(), shown.device) for shown in batch.data[number:]]
            found = [self._embeddings(n, batch, p, features[STRIDE][n]) for n, p in enumerate(places, number)]
        rows = torch.tensor([self.row[key] for key in batch.keys[number:]], device=logits.device)
        vectors, known = (torch.stack(parts) for parts in zip(*found, strict=True))
        lesson = self.judged(probabilities(logits[:number], regions=False), chances.view_as(logits[:number]), batch)
        return MemoryStep(batch, progress, [lesson], memory, places, (rows, vectors, known))

    def _embeddings(self, sample: int, batch: Batch, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """(K, SLOTS, D) embeddings of voxels of each class, and which there are."""
        truth, known = labelled_truth(batch, sample, places, self.supervised)
        chosen, usable = any_of((truth > 0.5) & known, SLOTS)
        return self.average.network(features.flatten(1)[:, places[chosen]].movedim(0, -1).float()), usable

    def judged(self, said: Tensor, chances: Tensor, batch: Batch) -> Lesson:
        """Returns what is learnt.

        Args:
            said: the teacher's probabilities of the weak views, (unlabelled, C, *spatial).
            chances: of the memory, likewise.
            batch: with views.
        """
        return self.teaching.lesson(mean_of([said, chances]), batch)

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> MemoryStep:
        """See :meth:`Objective.prepare`."""
        step: MemoryStep = said[self]
        return step

    def terms(self, peer: int, outputs: Sequence[Output], step: MemoryStep) -> dict[str, Term]:  # type: ignore[override]
        """See :meth:`Objective.terms`."""
        features, losses = outputs[peer].features[STRIDE], []
        for sample, places in enumerate(step.places, len(features) - len(step.places)):
            truth, known = labelled_truth(step.batch, sample, places, self.supervised)
            with without_autocast(features.device):
                queries = self.heads(at_voxels(features, torch.full_like(places, sample), places).float())
            chances = neighbours(queries, *step.memory, len(truth)).T
            losses.append(likelihood_loss(chances.clamp_min(LEAST_CHANCE).log(), truth, known))
        return {**super().terms(peer, outputs, step), "neighbours": Term(mean_of(losses), WEIGHT)}

    def update(self, outputs: Sequence[Output], step: MemoryStep) -> None:  # type: ignore[override]
        """Remembers labelled voxels, and moves the average of the head."""
        self.bank.put(*step.found)
        self.average.update(self.heads)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {**super().state_dict(), "bank": self.bank.state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        super().load_state_dict(state)
        self.bank.load_state_dict(state["bank"])
        self.average.load_state_dict(state["average"])


class MemoryFilter(MemoryVote):
    """What the average says is learnt where the memory says the same class."""

    def judged(self, said: Tensor, chances: Tensor, batch: Batch) -> Lesson:
        """See :meth:`MemoryVote.judged`."""
        return self.teaching.lesson(said, batch, agreement(said, chances, regions=False)[:, None])


class MemoryVoteTrainer(MeanTeacherTrainer):
    """A mean teacher and a memory that votes."""

    taught: type[MemoryVote] = MemoryVote

    def build_taught(self, teaching: Teaching, **options: float) -> MemoryVote:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        own = self.stream.labelled_keys, self.networks.feature_channels(STRIDE), self.decay, self.ask_features
        return self.taught(*own, self.supervised, teaching, **options)

    def ask_features(self, images: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Returns logits of the highest resolution and features of the moving average."""
        stages = {STRIDE: feature_stage(self.networks.strides, STRIDE)}
        return levels_and_features(self.peers.averages[0].network, images, stages, every_level=False)


class MemoryFilterTrainer(MemoryVoteTrainer):
    """A mean teacher and a memory that filters."""

    taught = MemoryFilter
