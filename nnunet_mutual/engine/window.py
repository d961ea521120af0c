"""What predicts whole cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import nn

from nnunet_mutual.engine.peers import unwrap

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer


def set_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Whether a network returns all levels or only the highest resolution."""
    unwrap(network).decoder.deep_supervision = enabled  # type: ignore[union-attr] # nnU-Net's own attribute


@contextmanager
def predictor_for(
    trainer: MutualTrainer, network: nn.Module, *, mirroring: bool, kind: type[nnUNetPredictor] = nnUNetPredictor
) -> Iterator[nnUNetPredictor]:
    """nnU-Net's sliding window around a network that is being trained, as it predicts the trainer's configuration."""
    set_deep_supervision(network, False)
    network.eval()
    predictor = kind(use_mirroring=mirroring, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    try:
        yield predictor
    finally:
        set_deep_supervision(network, trainer.enable_deep_supervision)
        compute_gaussian.cache_clear()
