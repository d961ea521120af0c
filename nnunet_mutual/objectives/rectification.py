"""A student learns unlabelled images from what its teacher says after prototypes rectified it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.contrast import draw_negatives, info_nce, softened_positives
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.modules.centroids import ClassCentroids
from nnunet_mutual.modules.interaction import prototypes_per_class
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import pasted_targets, ramp, truth_of
from nnunet_mutual.objectives.prototypes import PrototypeLoss, PrototypeObjective
from nnunet_mutual.objectives.sampling import any_of, at_voxels, gathered, spread
from nnunet_mutual.objectives.supervised import SupervisedObjective

STRIDE = 1  # of the features that are contrasted: full resolution
SIZE = 64  # D, of an embedding
ANCHORS, NEGATIVES, TEMPERATURE = 256, 512, 0.5
UNCERTAIN, VALID = 0.97, 0.7
MOMENTUM = 0.95  # of the centroids
PUBLISHED_CONFIDENCE, PUBLISHED_PLAIN = 0.97, 0.02


@dataclass(frozen=True)
class Corrected:
    """What the rectified teacher says about unlabelled samples, after boxes were pasted.

    Attributes:
        target: (unlabelled, C, *spatial) float32, 0 or 1 but in pasted boxes.
        certainty: (unlabelled, 1 or C, *spatial), 0 where nothing counts.
        share: mean over classes of the share of voxels of which it is sure, a scalar.
    """

    target: Tensor
    certainty: Tensor
    share: Tensor


@dataclass(frozen=True)
class Drawn:
    """Voxels that are contrasted, K classes.

    Attributes:
        anchors: (K, A) places in the batch.
        compared: what :func:`~nnunet_mutual.losses.contrast.info_nce` compares their embeddings with.
    """

    anchors: Tensor
    compared: dict[str, Tensor]


@dataclass(frozen=True)
class RectificationStep(Step):
    """One step; without unlabelled samples there is nothing corrected, without contrast nothing drawn."""

    corrected: Corrected | None
    drawn: Drawn | None


class RectificationObjective(Objective[RectificationStep]):
    """Supervision, pseudo labels of the rectified teacher, and contrast of uncertain voxels with their class.

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        prototypes: what learns the prototypes and asks the teacher, before this one.
        feature_size: channels of the features of the last decoder stage.
        loss: weights of the terms.
        supervised_weight: of the labelled samples.
        confidence: probability from which a pseudo label counts.
        published: cross-entropy alone, weighted by the share of confident voxels; the plain teacher at first.
        ramp_end: share of the training during which those of unlabelled images rise.

    Source: arXiv 2502.11456. Cross-entropy and Dice on confident voxels, weighted by the confident share of each class,
        is [E].
    """

    term_names = ("supervised", "pseudo", "contrast")

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        prototypes: PrototypeObjective,
        *,
        feature_size: int,
        loss: PrototypeLoss,
        supervised_weight: float,
        confidence: float,
        ramp_end: float,
        published: bool = False,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.prototypes = prototypes
        self.loss = loss
        self.supervised_weight = supervised_weight
        self.confidence = confidence
        self.published = published
        self.ramp_end = ramp_end
        self.regions = knowledge.table.is_regions
        outputs = knowledge.num_outputs
        self.classes = outputs + self.regions  # "no region" is a class of voxels, too
        if loss.contrast > 0:
            self.feature_strides = (STRIDE,)
            self.heads = nn.Sequential(nn.Linear(feature_size, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE)).to(
                knowledge.device
            )
        self.centroids = ClassCentroids(
            self.classes, prototypes_per_class(outputs), SIZE, momentum=MOMENTUM, device=knowledge.device
        )
        self._numbers = torch.zeros(2, outputs, device=knowledge.device)  # confident voxels, voxels

    # Once per step

    @torch.no_grad()
    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> RectificationStep:
        """Rectifies what the teacher of the prototypes said, and draws the voxels to be contrasted."""
        if batch.views is None:
            return RectificationStep(batch, progress, None, None)
        plain = self.published and progress.fraction < PUBLISHED_PLAIN
        corrected = self._correct(batch, *said[self.prototypes], plain=plain)
        drawn = self._draw(outputs[0], batch, corrected) if self.feature_strides else None
        return RectificationStep(batch, progress, corrected, drawn)

    def _correct(self, batch: Batch, logits: Tensor, scores: Tensor, *, plain: bool) -> Corrected:
        views = batch.views
        assert views is not None
        logits, scores = logits[: views.unlabelled], scores[: views.unlabelled]
        said = probabilities(logits if plain else self._rectify(logits, scores), regions=self.regions)
        inside = views.inside[: views.unlabelled]
        if self.regions:
            certainty, target = torch.maximum(said, 1 - said), (said > 0.5).float()
        else:
            certainty, winner = said.max(1, keepdim=True)  # on CPUs much faster than argmax
            target = torch.zeros_like(said).scatter_(1, winner, 1)
        share = self._confident_share(target, certainty >= self.confidence, inside)
        ignore = self.supervised.ignore_label
        return Corrected(*pasted_targets(target, certainty * inside, batch, self.knowledge, ignore), share)

    def _rectify(self, logits: Tensor, scores: Tensor) -> Tensor:
        averaged: Any = self.prototypes.average.network
        rectified: Tensor = averaged.rectify(logits, scores)
        return rectified

    def _confident_share(self, target: Tensor, confident: Tensor, inside: Tensor) -> Tensor:
        """Mean over classes of the share of a class's voxels of which the teacher is sure."""
        axes = [0, *range(2, target.ndim)]
        found = (target * inside).sum(axes)
        sure = (target * (confident & inside)).sum(axes)
        self._numbers += torch.stack([sure, found])
        present = found > 0
        return (sure / found.clamp_min(1) * present).sum() / present.sum().clamp_min(1)

    def _draw(self, output: Output, batch: Batch, corrected: Corrected) -> Drawn:
        """Chooses anchors, and negatives of other classes that look alike."""
        voxels = batch.data[0, 0].numel()
        places = [spread(voxels, batch.data.device) for _ in batch.keys]
        member = torch.cat(
            [self._members(i, place, batch, corrected) for i, place in enumerate(places)], 1
        )  # (K, all places)
        chance = torch.cat([self._chances(output.levels[0][i], place) for i, place in enumerate(places)], 1)
        where = torch.cat([place + i * voxels for i, place in enumerate(places)])
        anchors, counted = any_of(member & (chance < UNCERTAIN), min(ANCHORS, len(where)))
        pool, known = any_of(member, min(NEGATIVES, len(where)))
        embedded = self._embed(output.features[STRIDE], where[pool]).masked_fill(~known[..., None], 0)
        means = embedded.sum(1) / known.sum(1, keepdim=True).clamp_min(1)
        present = known.any(1)
        drawn = draw_negatives(means, present, pool.shape[1], NEGATIVES, temperature=TEMPERATURE)
        usable = known.flatten()[drawn] & ~member.gather(1, pool.flatten()[drawn])  # regions overlap
        compared = {
            "positives": softened_positives(
                means, self.centroids.vectors, self.centroids.filled, float(np.random.uniform())
            ),
            "negatives": embedded.flatten(0, 1)[drawn],
            "usable": usable,
            "counted": counted & usable.any(1, keepdim=True),
        }
        return Drawn(where[anchors], compared)

    def _members(self, sample: int, places: Tensor, batch: Batch, corrected: Corrected | None) -> Tensor:
        """(K, places) bool: to which classes voxels of a sample belong, where that is known."""
        assert batch.views is not None
        if sample < batch.views.unlabelled:
            assert corrected is not None
            truth = corrected.target[sample].flatten(1)[:, places]
            known = (corrected.certainty[sample].flatten(1)[:, places] >= VALID).all(0)
        else:
            drawn, pattern = batch.target[0][sample].flatten(1)[:, places], batch.pattern_index[sample]
            truth, known = truth_of(self.knowledge, drawn, pattern, self.supervised.ignore_label)
            known = known & batch.views.inside[sample].flatten()[places]
        return (self._with_none(truth) > 0.5) & known

    def _with_none(self, p: Tensor) -> Tensor:
        """Adds the class "no region" to (R, N) probabilities of regions."""
        return torch.cat([p, (1 - p).amin(0, keepdim=True)]) if self.regions else p

    def _chances(self, logits: Tensor, places: Tensor) -> Tensor:
        """(K, places) probability of each class."""
        p = probabilities(logits.flatten(1)[None, :, places], regions=self.regions)[0]
        return self._with_none(p)

    def _embed(self, features: Tensor, where: Tensor) -> Tensor:
        """Embeddings (*where, D) of voxels of a batch."""
        assert self.heads is not None
        voxels = features[0, 0].numel()
        chosen = at_voxels(features, torch.div(where, voxels, rounding_mode="floor"), where % voxels)
        return self.heads(chosen.float()).float()  # outside of autocast, features may be in half precision

    # Terms

    def terms(self, peer: int, outputs: Sequence[Output], step: RectificationStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        own, weights = outputs[peer], self.loss
        pseudo = contrast = own.levels[0].flatten()[0] * 0
        rise = ramp(step.progress, 0.0, self.ramp_end)
        if step.corrected is not None and weights.pseudo > 0:
            pseudo = self._pseudo(own.levels, step.corrected)
        if step.drawn is not None:
            anchors = self._embed(own.features[STRIDE], step.drawn.anchors)
            contrast = info_nce(anchors, **step.drawn.compared, temperature=TEMPERATURE)
        return {
            "supervised": Term(self.supervised.labelled(own.levels, step.batch), self.supervised_weight),
            "pseudo": Term(pseudo, weights.pseudo * rise),
            "contrast": Term(contrast, weights.contrast * rise),
        }

    def _pseudo(self, levels: Sequence[Tensor], corrected: Corrected) -> Tensor:
        number = len(corrected.target)
        if self.published:
            return self._published(levels[0][:number], corrected)
        parts = []
        for logits, weight in zip(levels, self.supervised.level_weights, strict=True):
            if weight > 0:
                size = logits.shape[2:]
                target, certainty = (_at(x, size) for x in (corrected.target, corrected.certainty))
                counted = certainty >= self.confidence
                parts.append(weight * soft_label_loss(logits[:number], target, counted, regions=self.regions))
        return torch.stack(parts).sum() * corrected.share

    def _published(self, logits: Tensor, corrected: Corrected) -> Tensor:
        """Cross-entropy of every voxel, samples weighted by the share of voxels of which the teacher is sure."""
        inside = corrected.certainty > 0
        axes = list(range(1, logits.ndim))
        if self.regions:
            each = F.binary_cross_entropy_with_logits(logits.float(), corrected.target, reduction="none")
        else:
            each = -(corrected.target * logits.float().log_softmax(1)).sum(1, keepdim=True)
        voxels = inside.expand_as(each).sum(axes).clamp_min(1)
        sure = (corrected.certainty >= PUBLISHED_CONFIDENCE).expand_as(each).sum(axes) / voxels
        return ((each * inside).sum(axes) / voxels * sure).mean()

    # Centroids, the log and checkpoints

    def update(self, outputs: Sequence[Output], step: RectificationStep) -> None:
        """Moves the centroids by labelled voxels that the student gets right."""
        batch = step.batch
        if not self.feature_strides or batch.views is None:
            return
        vectors, usable = [], []
        voxels = batch.data[0, 0].numel()
        for sample in range(batch.views.unlabelled, len(batch.keys)):
            places = spread(voxels, batch.data.device)
            right = self._members(sample, places, batch, step.corrected) & (
                self._chances(outputs[0].levels[0][sample], places) > 0.5
            )
            chosen, counts = any_of(right, min(64, len(places)))
            vectors.append(self._embed(outputs[0].features[STRIDE][sample : sample + 1], places[chosen]))
            usable.append(counts)
        # All processes keep the same centroids. Stacked, as processes come first in what is gathered.
        both = gathered(torch.cat(vectors, 1)[None]), gathered(torch.cat(usable, 1)[None])
        self.centroids.update(*(part.movedim(0, 1).flatten(1, 2) for part in both))

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports of which share of each label's voxels the rectified teacher is sure."""
        sure, found = self._numbers.tolist()
        self._numbers.zero_()
        channels = self.knowledge.channel.items()
        return {
            f"share of unlabelled voxels of {label} of which the teacher is sure": sure[n] / found[n]
            for label, n in channels
            if found[n]
        }, []

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"centroids": self.centroids.state_dict(), "numbers": self._numbers.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.centroids.load_state_dict(state["centroids"])
        self._numbers.copy_(state["numbers"])


def _at(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest-exact")
