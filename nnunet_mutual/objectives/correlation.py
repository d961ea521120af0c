"""Correlation-aware mutual learning: two networks agree on labels and on how voxels relate to labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import probabilities, squared_difference
from nnunet_mutual.losses.numerics import without_autocast
from nnunet_mutual.losses.omni_correlation import (
    correlation,
    correlation_cross_entropy,
    most_and_any,
    row_entropy,
    scale_of,
)
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.modules.bank import FeatureBank
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import ramp, truth_of
from nnunet_mutual.objectives.sampling import at_voxels, gathered, spread
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.settings import TermWeights

STRIDE = 1  # of the features: full resolution
SIZE = 32  # D, of an embedding
SLOTS = 64  # of the bank, per case and class
QUERY_SHARE, MOST_QUERIES = 1 / 256, 12800
MOST_MEMORY, MEMORY_PER_CLASS = 2048, 256
CORRELATION_TEMPERATURE = 0.1
PUBLISHED_TEMPERATURE = 0.1
SATURATED, DEAD = 0.05, 0.98  # shares of the highest row entropy


@dataclass(frozen=True)
class CorrelationLoss(TermWeights):
    """Weights of the terms of mutual learning, next to the supervised loss of weight 1.

    Attributes:
        consistency: mutual consistency of the predictions of unlabelled images.
        correlation: omni-correlation consistency (OCC).
    """

    consistency: float = 0.5
    correlation: float = 0.05


class _Heads(nn.Module):
    """Embedding of a voxel's features, and what is compared with the memory."""

    def __init__(self, features: int):
        super().__init__()
        self.project = _two_layers(features)
        self.predict = _two_layers(SIZE)

    def forward(self, features: Tensor) -> Tensor:
        # Small: casts to half precision would take longer than they save.
        with without_autocast(features.device):
            predicted: Tensor = self.predict(self.project(features.float()))
            return predicted


@dataclass(frozen=True)
class Compared:
    """What the voxels of both networks are compared with.

    Attributes:
        places: (Q,) sample and (Q,) voxel of each query.
        counted: (Q,) bool, queries of any use.
        memory: (M, D) of labelled voxels, and (M,) bool which are.
        scales: mean and deviation of the memory in each network's space.
    """

    places: tuple[Tensor, Tensor]
    counted: Tensor
    memory: tuple[Tensor, Tensor]
    scales: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CorrelationStep(Step):
    """One step.

    Attributes:
        compared: None without unlabelled samples, or without omni-correlation.
        said: (Q, M) correlation of each network, without a graph.
        lessons: what moving averages teach each network; None where the networks teach each other.
    """

    compared: Compared | None
    said: list[Tensor]
    lessons: list[Lesson] | None = None


class CorrelationObjective(Objective[CorrelationStep]):
    """Supervision, mutual consistency, and omni-correlation consistency (OCC) of network V (0) with network A (1).

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        keys: the labelled cases, for which the bank has room.
        feature_size: channels of the features.
        loss: weights of the terms after the ramp.
        temperature: of sharpened targets.
        teaching: of the networks by moving averages; None where they teach each other as they are.
        published: squared differences of all samples as consistency, dot products instead of cosines, gradients through
            targets, correlation in one direction.
        ramp_end: share of the training during which they rise.

    Source: Gao et al., MICCAI 2023, arXiv 2307.06312. Cross-entropy and Dice as consistency, cosines of standardised
        embeddings, stopped gradients, both directions, the choice of queries and the fixed bank are [E].
    """

    term_names = ("supervised", "consistency", "correlation")
    partner_levels = (0,)

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        keys: Sequence[str],
        *,
        feature_size: int,
        loss: CorrelationLoss,
        temperature: float,
        ramp_end: float,
        teaching: Teaching | None = None,
        published: bool = False,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.loss = loss
        self.temperature = temperature
        self.teaching = teaching
        self.published = published
        self.ramp_end = ramp_end
        self.row = {key: i for i, key in enumerate(sorted(keys))}
        self.regions = knowledge.table.is_regions
        self.classes = len(knowledge.table.labels) + 1
        self.feature_strides = (STRIDE,) if loss.correlation > 0 else ()
        if self.feature_strides:
            self.heads = nn.ModuleList(_Heads(feature_size) for _ in range(2)).to(knowledge.device)
        self.bank = FeatureBank(self.classes, len(self.row), SLOTS, SIZE, knowledge.device)
        self._numbers = torch.zeros(4, device=knowledge.device)  # entropy, agreeing voxels, voxels, steps

    # Once per step

    def ask(self, batch: Batch, progress: Progress) -> list[Lesson] | None:
        """Asks the moving averages, where they teach."""
        if self.teaching is None or batch.views is None or self.loss.consistency == 0:
            return None
        return self.teaching.lessons(batch)

    @torch.no_grad()
    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> CorrelationStep:
        """Chooses queries and memory, and compares them for both networks."""
        lessons = said[self]
        if not self.feature_strides or batch.views is None:
            return CorrelationStep(batch, progress, None, [], lessons)
        compared = self._compared(outputs, batch)
        found = [self._correlation(n, output, compared) for n, output in enumerate(outputs)]
        self._numbers[0] += row_entropy(found[0], compared.counted)
        return CorrelationStep(batch, progress, compared, found, lessons)

    def _compared(self, outputs: Sequence[Output], batch: Batch) -> Compared:
        places, counted = self._queries([output.levels[0] for output in outputs], batch)
        per_class = min(MEMORY_PER_CLASS, MOST_MEMORY // self.classes)
        memory, usable = self.bank.draw(per_class)
        # Nothing is known before the first labelled voxels are in the bank: a row needs at least one column.
        columns = usable | ~usable.any()
        scales: list[tuple[Tensor, Tensor]] = []
        if not self.published:
            heads: Any = self.heads
            with without_autocast(memory.device):  # of the memory in the space of each network's queries
                scales = [scale_of(head.predict(memory), columns) for head in heads]
            mean, deviation = scale_of(memory, columns)
            memory = (memory - mean) / deviation
        self._numbers[3] += usable.any()
        return Compared(places, counted & usable.any(), (memory, columns), scales)

    def _queries(self, logits: Sequence[Tensor], batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Unlabelled voxels on which both networks agree, as many of each class: (sample, voxel), and which count."""
        assert batch.views is not None
        number = batch.views.unlabelled
        inside = batch.views.inside_as_seen.flatten(1)
        voxels = inside.shape[1]
        places = spread(number * voxels, inside.device)
        sample, voxel = torch.div(places, voxels, rounding_mode="floor"), places % voxels
        chances = [self._chances(at_voxels(z, sample, voxel).T.contiguous()) for z in logits]  # along rows: slow
        agree = chances[0][1] & chances[1][1] & inside[sample, voxel]
        score = torch.minimum(chances[0][0], chances[1][0])
        wanted = int(min(MOST_QUERIES, number * voxels * QUERY_SHARE)) // self.classes
        chosen, counted = most_and_any(score, agree, min(max(2, wanted // 2 * 2), len(places)))
        self._numbers[1] += agree.any(0).sum()
        self._numbers[2] += inside[sample, voxel].sum()
        return (sample[chosen].flatten(), voxel[chosen].flatten()), counted.flatten()

    def _chances(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence in each class and whether it is decided, (K, N) each, from (C, N); class 0 is "no region"."""
        if not self.regions:
            p = logits.float().softmax(0)
            return p, p == p.amax(0)
        p = logits.float().sigmoid()
        p = torch.cat([(1 - p).amin(0, keepdim=True), p])
        return p, p > 0.5

    def _correlation(self, peer: int, output: Output, compared: Compared) -> Tensor:
        assert isinstance(self.heads, nn.ModuleList)
        sample, voxel = compared.places
        memory, usable = compared.memory
        queries = self.heads[peer](at_voxels(output.features[STRIDE], sample, voxel))
        if self.published:
            return correlation(queries, memory, usable, temperature=CORRELATION_TEMPERATURE, cosine=False)
        mean, deviation = compared.scales[peer]
        return correlation((queries - mean) / deviation, memory, usable, temperature=CORRELATION_TEMPERATURE)

    # Per network

    def terms(self, peer: int, outputs: Sequence[Output], step: CorrelationStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        own, batch = outputs[peer], step.batch
        rise = ramp(step.progress, 0.0, self.ramp_end)
        nothing = own.levels[0].flatten()[0] * 0
        mutual = batch.views is not None and len(outputs) > 1
        loss = self.loss
        found = {
            "supervised": Term(self.supervised.labelled(own.levels, batch), 0.5 if self.published else 1.0),
            "consistency": Term(nothing, loss.consistency * rise),
            "correlation": Term(nothing, loss.correlation * rise),
        }
        if step.lessons is not None and self.teaching is not None:
            taught = self.teaching.loss(own.levels[0], step.lessons[peer])
            found["consistency"] = Term(taught, found["consistency"].weight)
        elif self.teaching is None and mutual and loss.consistency > 0:
            found["consistency"] = Term(self._consistency(peer, outputs, batch), found["consistency"].weight)
        if step.compared is not None:
            agreement = self._agreement(peer, own, step.compared, step.said[1 - peer])
            found["correlation"] = Term(agreement, found["correlation"].weight)
        return found

    def _consistency(self, peer: int, outputs: Sequence[Output], batch: Batch) -> Tensor:
        assert batch.views is not None
        mine, other = outputs[peer].levels[0], outputs[1 - peer].levels[0].detach()
        inside = batch.views.inside
        if self.published:
            return self._squared(mine, other, inside)
        number = batch.views.unlabelled
        target = self._sharp(other[:number])
        return soft_label_loss(mine[:number], target, inside[:number], regions=self.regions)

    def _squared(self, mine: Tensor, other: Tensor, inside: Tensor) -> Tensor:
        """The other network's term also has a gradient through its target, which is ours."""
        ours, theirs = (probabilities(z, regions=self.regions) for z in (mine, other))
        return squared_difference(ours, self._sharp(other), inside) + squared_difference(
            theirs, self._sharp(mine), inside
        )

    def _sharp(self, logits: Tensor) -> Tensor:
        return probabilities(logits, regions=self.regions, temperature=self.temperature)

    def _agreement(self, peer: int, own: Output, compared: Compared, other: Tensor) -> Tensor:
        mine = self._correlation(peer, own, compared)
        if self.published and peer == 1:  # the target is A's correlation, through which the gradient goes
            return correlation_cross_entropy(other, mine, compared.counted)
        return correlation_cross_entropy(mine, other, compared.counted)

    # The bank

    def update(self, outputs: Sequence[Output], step: CorrelationStep) -> None:
        """Remembers labelled voxels that both networks predict correctly."""
        batch = step.batch
        if not self.feature_strides or batch.views is None:
            return
        found = [self._embeddings(i, outputs, batch) for i in range(batch.views.unlabelled, len(batch.keys))]
        rows = torch.tensor([self.row[key] for key in batch.keys[batch.views.unlabelled :]])
        rows = rows.to(self.knowledge.device, non_blocking=True)
        vectors, usable = (torch.stack(parts) for parts in zip(*found, strict=True))
        self.bank.put(*(gathered(part) for part in (rows, vectors, usable)))  # all processes remember the same

    def _embeddings(self, sample: int, outputs: Sequence[Output], batch: Batch) -> tuple[Tensor, Tensor]:
        """(K, slots, D) embeddings of voxels of a labelled sample, and (K, slots) which of them are of any use."""
        assert batch.views is not None and isinstance(self.heads, nn.ModuleList)
        target, pattern = batch.target[0][sample].flatten(1), batch.pattern_index[sample]
        voxels = target.shape[1]
        places = spread(voxels, target.device)
        truth, known = truth_of(self.knowledge, target[:, places], pattern, self.supervised.ignore_label)
        known = known & batch.views.inside[sample].flatten()[places]
        if self.regions:
            truth = torch.cat([1 - truth.amax(0, keepdim=True), truth])
        right = (truth > 0.5) & known
        for output in outputs:
            right = right & self._chances(output.levels[0][sample].flatten(1)[:, places])[1]
        number = min(SLOTS, len(places))
        chosen, usable = most_and_any(torch.zeros_like(truth), right, number)
        where = places[chosen]
        projected = [
            head.project(output.features[STRIDE][sample].flatten(1)[:, where].movedim(0, -1).float())  # type: ignore
            for head, output in zip(self.heads, outputs, strict=True)
        ]
        vectors = torch.stack(projected).mean(0)
        missing = SLOTS - number
        return nn.functional.pad(vectors, (0, 0, 0, missing)), nn.functional.pad(usable, (0, missing))

    # The log and checkpoints

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports agreement, the bank and the entropy of the correlation, with an alarm."""
        entropy, agreeing, voxels, steps = self._numbers.tolist()
        self._numbers.zero_()
        taught = {} if self.teaching is None else self.teaching.diagnose()
        if not voxels:
            return taught, []
        numbers = {
            **taught,
            "share of unlabelled voxels on which the networks agree": agreeing / voxels,
            "share of the bank that is filled": float(self.bank.filled.float().mean()),
        }
        if not steps:
            return numbers, []
        share = entropy / steps
        numbers["row entropy of the correlation, of its highest"] = share
        if SATURATED <= share <= DEAD:
            return numbers, []
        state = "saturated: each voxel resembles one" if share < SATURATED else "dead: all voxels resemble all alike"
        return numbers, [
            f"the correlation is {state} (row entropy {share:.2f} of the highest), so it teaches nothing; look at the "
            "images of the cases with labels, or set correlation to 0"
        ]

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        taught = {} if self.teaching is None else {"confident": self.teaching.confident.clone()}
        return {"bank": self.bank.state_dict(), "numbers": self._numbers.clone(), **taught}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.bank.load_state_dict(state["bank"])
        self._numbers.copy_(state["numbers"])
        if self.teaching is not None:
            self.teaching.confident.copy_(state["confident"])


def _two_layers(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, SIZE), nn.LayerNorm(SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))
