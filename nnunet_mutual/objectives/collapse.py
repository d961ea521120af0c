"""Watches whether a network unlearns its organs on the images of other sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.annotation.label_groups import LabelGroup
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.objectives.base import Output
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.sampling import summed

LEAST_SAMPLES = 20
LEAST_RATIO = 0.5


class CollapseAlarm:
    """Compares the predicted volume of a network's labels on its own group's images with that on other groups' [E].

    There the network sees only negatives and can learn "images of that style have no such organ". Below half, it warns
    and the weight of the negatives stops rising. Patches that hold foreground by force are not counted.

    Args:
        knowledge: what each case annotates.
        groups: labels of each network.
        foreground_from: first sample of a batch with forced foreground.
    """

    def __init__(self, knowledge: Knowledge, groups: Sequence[LabelGroup], foreground_from: int):
        self.knowledge = knowledge
        self.groups = list(groups)
        self.foreground_from = foreground_from
        self.cap: float | None = None
        size = len(groups), len(groups), len(knowledge.mask(groups)[0])
        self.volume = torch.zeros(size, device=knowledge.device)  # network, group of the image, label: share of a patch
        self.samples = [0] * len(groups)
        self.weight = 0.0

    def capped(self, weight: float) -> float:
        """Returns the weight, or that at the alarm if it is smaller."""
        return weight if self.cap is None else min(weight, self.cap)

    def count(self, outputs: Sequence[Output], batch: Batch, homes: Sequence[int | None], weight: float) -> None:
        """Adds the predicted volumes of a batch.

        Args:
            outputs: of all networks.
            batch: the batch.
            homes: group of each sample.
            weight: of the negatives now; kept as the highest one if the alarm goes off.
        """
        self.weight = weight
        counted = [(i, g) for i, g in enumerate(homes) if g is not None and i < self.foreground_from]
        for i, group in counted:
            self.samples[group] += 1
            for n, output in enumerate(outputs):
                self.volume[n, group] += self._shares(output.levels[min(1, len(output.levels) - 1)][i])

    def _shares(self, logits: Tensor) -> Tensor:
        logits = logits.flatten(1)
        if self.knowledge.table.is_regions:
            return (logits > 0).float().mean(1)
        classes = torch.arange(len(logits), device=logits.device)[:, None]  # bincount would wait for the device
        return (logits.argmax(0) == classes).float().mean(1)

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Returns the ratio of volumes per network, group and label once enough was counted, and warnings."""
        counted = torch.cat([self.volume.flatten(), torch.tensor(self.samples).to(self.volume)])
        counted = summed(counted)  # so that all processes cap alike
        volume, samples = (
            counted[: -len(self.groups)].view(self.volume.shape).cpu(),
            counted[-len(self.groups) :].tolist(),
        )
        if min(samples) < LEAST_SAMPLES:
            return {}, []
        self.volume.zero_()
        self.samples = [0] * len(self.groups)
        numbers, warnings = {}, []
        for n, own in enumerate(self.groups):
            for g, other in enumerate(self.groups):
                for label in sorted(own - other):  # none of its own images: g == n
                    channel = self.knowledge.channel[label]
                    expected = float(volume[n, n, channel]) / samples[n]
                    ratio = float(volume[n, g, channel]) / samples[g] / expected if expected else 1.0
                    numbers[f"volume of {label} by network {n} on group {g} against its own"] = ratio
                    if ratio < LEAST_RATIO and self.weight > 0:  # before it counts, pd is not the reason
                        warnings.append(
                            f"network {n} predicts {ratio:.2f} times as much {label} on images that annotate "
                            f"{', '.join(sorted(other))} as on its own: it may take their style for absence; "
                            f"the weight of pd stays at {self.capped(self.weight):.3g}"
                        )
        if warnings:
            self.cap = self.capped(self.weight)
        return numbers, warnings

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins for a checkpoint."""
        return {"cap": self.cap, "volume": self.volume.clone(), "samples": list(self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.cap, self.samples = state["cap"], list(state["samples"])
        self.volume.copy_(state["volume"])
