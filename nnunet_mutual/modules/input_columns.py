"""Networks of one shape that see different channels: the input columns of channels that one does not see are zero.

Where the input is zero, too, gradient, momentum and weight decay of these columns stay exactly zero, so that leaving
them out in the end gives the same network for fewer channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunet_mutual.errors import MutualError


def input_keys(network: nn.Module) -> list[str]:
    """Returns the state-dict keys of the first convolution's weights, under all their names.

    Raises:
        MutualError: the architecture does not say where its input goes.
    """
    names = getattr(network, "keys_to_in_proj", None)
    if names is None:
        raise MutualError(
            f"{type(network).__name__} does not say which layer reads the image; plan a U-Net (PlainConvUNet or "
            "ResidualEncoderUNet)"
        )
    return [key for key in network.state_dict() if key.removeprefix("decoder.").removesuffix(".weight") in names]


@torch.no_grad()
def clear_unused(network: nn.Module, used: Sequence[int]) -> None:
    """Sets the input columns of all other channels to zero.

    Args:
        network: a plain network of the plans' architecture.
        used: channels that it sees.
    """
    state = network.state_dict()
    for key in input_keys(network):
        unused = [channel for channel in range(state[key].shape[1]) if channel not in used]
        state[key][:, unused] = 0


@torch.no_grad()
def fill_unseen(network: nn.Module, used: Sequence[int]) -> bool:
    """Fills columns of channels that pretrained weights never saw, all zero, with the mean of those that they saw.

    Args:
        network: as in :func:`clear_unused`.
        used: channels that it sees.

    Returns:
        Whether there were any.
    """
    state, filled = network.state_dict(), False
    for key in input_keys(network):
        weights = state[key]
        known = weights.flatten(2).abs().amax((0, 2)) > 0
        unseen = [channel for channel in used if not known[channel]]
        if unseen and known.any():
            weights[:, unseen] = weights[:, known].mean(1, keepdim=True)
            filled = True
    return filled


def only_used(weights: Mapping[str, Tensor], keys: Sequence[str], used: Sequence[int]) -> dict[str, Tensor]:
    """Returns a state dict for a network that has the used channels only.

    Args:
        weights: of the network with all channels.
        keys: of :func:`input_keys`.
        used: channels to keep, in this order.

    Raises:
        MutualError: a column that is left out is not zero, so that the result would be another network.
    """
    found = dict(weights)
    for key in keys:
        unused = [channel for channel in range(weights[key].shape[1]) if channel not in used]
        if unused and weights[key][:, unused].abs().max() > 0:
            raise MutualError(f"{key} has weights for channels that this network does not see; train it anew")
        found[key] = weights[key][:, list(used)].clone()
    return found
