"""nnU-Net's sliding window with mirroring, of which the image as it is and its mirrored copies stay two opinions.

Planes are handed over as soon as no window to come reaches them, so that the logits of a whole image are never held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor, nn

from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError

SLAB = 16  # planes that are handed over at once: float32 takes several times the memory of the logits


class TwoOpinions(nnUNetPredictor):
    """Gives two logits for each voxel: of the image, and the mean over all mirrored ones, at the cost of mirroring.

    Where the trainer allows no axis to be mirrored, the image's alone. One pass of the window for both.
    """

    def manual_initialization(self, *arguments: Any, **keywords: Any) -> None:
        """Notes how images are mirrored (nnU-Net's hook)."""
        super().manual_initialization(*arguments, **keywords)
        axes = [axis + 2 for axis in self.allowed_mirroring_axes or ()]
        self.flips = [c for r in range(1, len(axes) + 1) for c in itertools.combinations(axes, r)]
        self.number = 2 if self.flips else 1

    @torch.inference_mode()
    def planes(self, image: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """Predicts an image; every plane of its first axis comes once, in order.

        Args:
            image: (M, *spatial), preprocessed.

        Yields:
            Which planes, and (C, planes, *others) float16 logits of each opinion, on its device if there is room.

        Raises:
            MutualError: logits are infinite.
        """
        size = tuple(self.configuration_manager.patch_size)
        data, crop = pad_nd_image(image, size, "constant", {"value": 0}, True, None)
        in_planes = len(size) < data.ndim - 1
        # Of planes from `begin` on: sums of weighted logits, and of weights.
        begin, sums = 0, self._room((1 if in_planes else size[0], *data.shape[2:]))
        weight = compute_gaussian(size, sigma_scale=1 / 8, value_scaling_factor=10, device=sums.device)
        windows = self._internal_get_sliding_window_slicers(data.shape[1:])
        for start, beside in itertools.groupby(windows, key=_first_plane):
            if start > begin:
                yield from self._complete(sums[:, : start - begin], begin, crop[1:])
                sums = sums.roll(begin - start, 1)
                sums[:, begin - start :] = 0
                begin = start
            for window in beside:
                place = (slice(None), 0 if in_planes else slice(None), *window[2:])
                patch = data[window][None].to(self.device)
                for opinion, logits in zip(sums[:-1].chunk(self.number), self._opinions(patch), strict=True):
                    opinion[place] += logits.to(sums.device).mul_(weight)
                    del logits  # before the next one is asked for
                sums[-1][place[1:]] += weight
        yield from self._complete(sums, begin, crop[1:])

    def _room(self, planes: Sequence[int]) -> Tensor:
        """Zeros for all logits and a weight of some planes; where the device has no room, on the host, as nnU-Net's."""
        shape = self.number * int(self.label_manager.num_segmentation_heads) + 1, *planes
        try:
            return torch.zeros(shape, dtype=torch.half, device=self.device)
        except torch.OutOfMemoryError:
            return torch.zeros(shape, dtype=torch.half)

    def _opinions(self, x: Tensor) -> Iterator[Tensor]:
        """Logits (C, *patch) of a patch (1, M, *patch), then the mean of those of its mirrored copies."""
        yield self._ask(x)
        if self.flips:
            mirrored = self._ask(x.flip(self.flips[0])).flip([axis - 1 for axis in self.flips[0]])
            for flip in self.flips[1:]:
                mirrored += self._ask(x.flip(flip)).flip([axis - 1 for axis in flip])
            mirrored /= len(self.flips)
            yield mirrored

    def _ask(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):  # as nnU-Net's
            logits: Tensor = self.network(x)[0]
        return logits

    def _complete(self, sums: Tensor, begin: int, crop: Sequence[slice]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Hands planes over that lie in the image, not in what was added to reach the size of a patch."""
        first, end = max(begin, crop[0].start), min(begin + sums.shape[1], crop[0].stop)
        for lower in range(first, end, SLAB):
            upper = min(lower + SLAB, end)
            within = (slice(None), slice(lower - begin, upper - begin), *crop[1:])
            logits = sums[:-1][within] / sums[-1][within[1:]]
            if torch.isinf(logits).any():
                raise MutualError(
                    "a network predicts numbers beyond those of float16; its training has diverged, or the image is "
                    "not finite: look at the loss, and run nnunet_mutual check"
                )
            yield slice(lower - crop[0].start, upper - crop[0].start), list(logits.chunk(self.number))


def _first_plane(window: tuple[Any, ...]) -> int:
    return int(getattr(window[1], "start", window[1]))


@contextmanager
def asked_twice(window: Window, networks: Sequence[nn.Module]) -> Iterator[list[TwoOpinions]]:
    """A window of two opinions around each of some networks that are being trained."""
    with ExitStack() as stack:
        opened: list[Any] = [window.around(network, mirroring=True, kind=TwoOpinions) for network in networks]
        yield [stack.enter_context(context) for context in opened]
