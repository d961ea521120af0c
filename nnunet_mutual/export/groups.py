"""What an export of one modality group holds: the plans, dataset.json and weights of a stock model of its channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_mutual.annotation.modality_groups import PLANS_KEY, ModalityGroups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.engine.checkpoints import STATE_KEY
from nnunet_mutual.engine.stock_model import require_known_networks
from nnunet_mutual.modules.input_columns import input_keys, only_used

_PER_CHANNEL = ("normalization_schemes", "use_mask_for_norm")


def modality_groups_of(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> ModalityGroups | None:
    """Returns the modality groups of a training, None if it has no networks by group."""
    if PLANS_KEY not in plan:
        return None
    return ModalityGroups.of(AnnotationTable.from_dataset_json(dataset_json))


def group_plan(plan: Mapping[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    """Returns the plans of a model that sees some channels only.

    Args:
        plan: of the training.
        channels: numbers, which become 0, 1, ...
    """
    result = copy.deepcopy({key: value for key, value in plan.items() if key != PLANS_KEY})
    for configuration in result["configurations"].values():
        for key in _PER_CHANNEL:
            if key in configuration:
                configuration[key] = [configuration[key][channel] for channel in channels]
    key = "foreground_intensity_properties_per_channel"
    result[key] = {str(new): plan[key][str(old)] for new, old in enumerate(channels)}
    return result


def group_dataset(dataset_json: Mapping[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    """Returns a dataset.json whose channels are some of another one's."""
    key = "channel_names" if "channel_names" in dataset_json else "modality"
    names = list(dataset_json[key].values())
    return {**dataset_json, key: {str(new): names[old] for new, old in enumerate(channels)}}


def group_weights(
    trained: Mapping[str, Any],
    number: int,
    channels: Sequence[int],
    *,
    plan: dict[str, Any],
    dataset_json: dict[str, Any],
    configuration: str,
) -> dict[str, Tensor]:
    """Returns the weights of one group's network, without the input columns of other channels.

    Args:
        trained: a checkpoint, of all networks or of this one alone.
        number: of the network.
        channels: that it sees.
        plan: of the training.
        dataset_json: of the training.
        configuration: that was trained.
    """
    peers = trained[STATE_KEY].get("peers")
    if peers is None:
        weights = trained["network_weights"]
    else:
        weights = [average["weights"] for average in peers["averages"]][number]
    return only_used(weights, input_keys(_network(plan, dataset_json, configuration)), channels)


def require_fit(content: Mapping[str, Any], plan: dict[str, Any], dataset_json: dict[str, Any]) -> None:
    """Verifies that stock nnU-Net can load the weights that are exported.

    Args:
        content: the checkpoint.
        plan: of the model.
        dataset_json: of the model.

    Raises:
        RuntimeError: they are of another network.
    """
    with torch.device("meta"):
        network = _network(plan, dataset_json, content["init_args"]["configuration"])
    network.load_state_dict(content["network_weights"], assign=True)


def _network(plan: dict[str, Any], dataset_json: dict[str, Any], configuration: str) -> nn.Module:
    """Builds the network of a configuration as nnU-Net does; its weights are of no use yet."""
    require_known_networks(plan, "the plans of the training")
    manager = PlansManager(plan)
    chosen = manager.get_configuration(configuration)
    network: nn.Module = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, chosen, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        allow_init=False,
        deep_supervision=True,
    )
    return network
