"""nnU-Net's sliding window with mirroring, of which the image as it is and its mirrored copies stay two opinions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_mutual.engine.window import Window


class TwoOpinions(nnUNetPredictor):
    """Gives twice the outputs: logits of the image, then the mean over all mirrored ones, at the cost of mirroring.

    Where the trainer allows no axis to be mirrored, the image's alone. One pass of the window for both: a second one
    would again wait for the device, move the image and free its cache.
    """

    def manual_initialization(self, *arguments: Any, **keywords: Any) -> None:
        """Makes room for both (nnU-Net's hook)."""
        super().manual_initialization(*arguments, **keywords)
        axes = [axis + 2 for axis in self.allowed_mirroring_axes or ()]
        self.flips = [c for r in range(1, len(axes) + 1) for c in itertools.combinations(axes, r)]
        number: int = self.label_manager.num_segmentation_heads  # type: ignore[has-type] # untyped in nnU-Net
        self.label_manager = SimpleNamespace(num_segmentation_heads=2 * number if self.flips else number)

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        plain: Tensor = self.network(x)
        if not self.flips:
            return plain
        mirrored = torch.zeros_like(plain)
        for flip in self.flips:
            mirrored += self.network(x.flip(flip)).flip(flip)
        return torch.cat([plain, mirrored / len(self.flips)], 1)


@contextmanager
def asked_twice(window: Window, networks: Sequence[nn.Module]) -> Iterator[list[nnUNetPredictor]]:
    """A window of two opinions around each of some networks that are being trained."""
    with ExitStack() as stack:
        opened = [window.around(network, mirroring=True, kind=TwoOpinions) for network in networks]
        yield [stack.enter_context(context) for context in opened]
