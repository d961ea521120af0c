"""What predicts whole cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import device, nn

from nnunet_mutual.engine.checkpoints import STOCK_TRAINER
from nnunet_mutual.engine.peers import unwrap

STEP = 0.5  # of a patch, nnU-Net's


@dataclass(frozen=True)
class Window:
    """A configuration as it predicts whole cases.

    Attributes:
        plans: nnU-Net's.
        configuration: nnU-Net's.
        dataset_json: content of dataset.json.
        labels: nnU-Net's.
        device: of the networks.
        mirror_axes: that prediction may mirror; None or empty for none.
        deep_supervision: whether the networks return all levels while they are trained.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    labels: LabelManager
    device: device
    mirror_axes: Sequence[int] | None
    deep_supervision: bool

    def tiles(self, shape: Sequence[int]) -> int:
        """Returns how often the sliding window asks a network about an image.

        Args:
            shape: of the image, without channels.
        """
        patch = self.configuration.patch_size
        planes, size = shape[: len(shape) - len(patch)], shape[-len(patch) :]
        padded = tuple(max(pair) for pair in zip(size, patch, strict=True))
        steps = compute_steps_for_sliding_window(padded, tuple(patch), STEP)
        return math.prod(planes) * math.prod(map(len, steps))

    @contextmanager
    def around(
        self, network: nn.Module, *, mirroring: bool, kind: type[nnUNetPredictor] = nnUNetPredictor
    ) -> Iterator[nnUNetPredictor]:
        """nnU-Net's sliding window around a network that is being trained.

        Args:
            network: is put into evaluation mode.
            mirroring: whether to average over mirrored images.
            kind: of predictor.
        """
        set_deep_supervision(network, False)
        network.eval()
        predictor = kind(use_mirroring=mirroring, device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            network, self.plans, self.configuration, None, self.dataset_json, STOCK_TRAINER, self.mirror_axes
        )
        try:
            yield predictor
        finally:
            set_deep_supervision(network, self.deep_supervision)
            compute_gaussian.cache_clear()


def set_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Whether a network returns all levels or only the highest resolution; one without decoder has a single level."""
    decoder = getattr(unwrap(network), "decoder", None)
    if decoder is not None:
        decoder.deep_supervision = enabled  # nnU-Net's own attribute
