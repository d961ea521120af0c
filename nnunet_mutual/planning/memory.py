"""How many bytes a training holds: counted on the networks and losses themselves, run without data.

nnU-Net scales the number of feature-map voxels of one network so that its training fits a GPU; it knows of no second
network, teacher or stream. Here a step is run on tensors that have a shape and no memory, and every storage that
autograd would keep is counted once. Added are weights, gradients, what optimisers keep, moving averages and the outputs
that networks record for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mutual.modules.attention import attention_stage, make_auxiliary
from nnunet_mutual.modules.interaction import DynamicInteraction, FeatureMap, feature_maps
from nnunet_mutual.modules.tap import feature_stage, levels_and_features
from nnunet_mutual.planning.needs import Memory, Needs
from nnunet_mutual.planning.terms import TERMS, Said, finest, supervised

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Design:
    """A network of the plans and what it sees.

    Attributes:
        class_name: of the architecture.
        arch_kwargs: its keyword arguments, as in the plans.
        imports: names of those that are classes.
        channels: of the input.
        outputs: of the network.
        patch_size: voxels.
        regions: whether outputs are regions.
    """

    class_name: str
    arch_kwargs: Mapping[str, Any]
    imports: Sequence[str]
    channels: int
    outputs: int
    patch_size: Sequence[int]
    regions: bool = False

    def build(self) -> nn.Module:
        """Returns the network, as nnU-Net builds it for a training."""
        network: nn.Module = get_network_from_plans(
            self.class_name,
            dict(self.arch_kwargs),
            list(self.imports),
            self.channels,
            self.outputs,
            allow_init=False,
            deep_supervision=True,
        )
        return network


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step in float32.

    Attributes:
        states: weights, gradients, optimiser state and moving averages; do not depend on the batch.
        weights: of all networks with a graph, of which mixed precision keeps a copy in half precision.
        graphs: what autograd keeps of the networks' forward passes that are alive at a time.
        loss: what it keeps of the terms of one network.
        recorded: outputs that networks and teachers leave for others.
        passing: gradients of feature maps, of which a backward pass holds the most at the finest decoder stage, while
            the rest of the graph is still there.
    """

    states: int
    weights: int
    graphs: int
    loss: int
    recorded: int
    passing: int

    @property
    def total(self) -> int:
        """All bytes that a step keeps, in float32."""
        return self.states + self.graphs + self.loss + self.recorded

    @property
    def fixed_mixed(self) -> float:
        """Bytes that do not depend on the batch in nnU-Net's mixed precision."""
        return self.states + self.weights * HALF / FLOAT

    @property
    def changing_mixed(self) -> float:
        """Bytes that grow with the batch in mixed precision, where networks run in half precision and losses do not."""
        return (self.graphs + self.recorded + self.passing) * HALF / FLOAT + self.loss


def footprint(design: Design, needs: Needs, labelled: int, unlabelled: int = 0) -> Footprint:
    """Counts what a training step holds.

    Args:
        design: of the networks.
        needs: of the method.
        labelled: patches in a batch.
        unlabelled: likewise; they come first.

    Raises:
        MutualError: the architecture lacks what the method needs.
    """
    return Trace(design, needs, labelled, unlabelled).footprint(needs.memory)


class Trace:
    """A step that was run without data, for which a footprint in either memory mode can be had.

    Arguments: see :func:`footprint`.
    """

    def __init__(self, design: Design, needs: Needs, labelled: int, unlabelled: int = 0):
        self._needs = needs
        maps = feature_maps(design.patch_size, design.arch_kwargs) if needs.prototypes else ()
        # Small, and their initialisation looks at data, so they are real.
        heads = DynamicInteraction(maps, design.outputs) if maps else None
        with FakeTensorMode(allow_non_fake_inputs=True):
            plain = _pass(design, design.build(), needs, labelled, unlabelled, heads, maps)
            self._passes = [plain] * needs.networks
            if needs.auxiliary:
                stage = attention_stage(design.patch_size, design.arch_kwargs["strides"])
                channels = int(design.arch_kwargs["features_per_stage"][stage])
                network = make_auxiliary(design.build(), stage, channels, inter="pooled", dropout=0.1)
                self._passes.append(_pass(design, network, needs, labelled, unlabelled))

    def footprint(self, memory: Memory) -> Footprint:
        """Returns the bytes with all graphs alive ("joint") or one at a time."""
        needs, passes = self._needs, self._passes
        plain, together = passes[0], memory == "joint" or len(passes) == 1
        weights = [one.parameters for one in passes]
        values = 2 + needs.optimizer_values  # a weight, its gradient, and the optimiser's
        at_a_time: Callable[[Sequence[int]], int] = sum if together else max
        # A graph that is alive holds its features; one at a time, networks run again, their first pass is recorded.
        recorded = sum(one.levels + (0 if together else one.features) for one in passes)
        return Footprint(
            states=values * (sum(weights) + plain.heads) + needs.averages * (plain.parameters + plain.heads),
            weights=at_a_time(weights),
            graphs=at_a_time([one.graph for one in passes]),
            loss=max(one.loss for one in passes),
            recorded=recorded + plain.asked + needs.held * needs.networks * plain.said,
            passing=max(one.passing for one in passes),
        )


@dataclass(frozen=True)
class _Pass:
    """Bytes of one network's forward pass and its terms."""

    parameters: int
    heads: int
    graph: int
    passing: int
    loss: int
    levels: int
    features: int
    asked: int
    said: int


def _pass(
    design: Design,
    network: nn.Module,
    needs: Needs,
    labelled: int,
    unlabelled: int,
    heads: DynamicInteraction | None = None,
    maps: Sequence[FeatureMap] = (),
) -> _Pass:
    """Runs one network and its terms within FakeTensorMode."""
    strides, patch = design.arch_kwargs["strides"], design.patch_size
    wanted = {*needs.features, *(features.stride for features in maps)}
    of_heads = [] if heads is None else list(heads.parameters())
    kept = _Kept([*network.parameters(), *of_heads])
    images = torch.empty(labelled + unlabelled, design.channels, *patch)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        stages = {stride: feature_stage(strides, stride) for stride in wanted}
        levels, features = levels_and_features(network, images, stages, every_level=True)
        graph, passing = kept.bytes, kept.largest * 3 // 2  # of a convolution of two maps into one: in and out
        said = Said(levels, unlabelled, design.regions, needs.trained - 1)
        terms = [supervised(said, partial=needs.partial), *(TERMS[name](said) for name in needs.terms)]
        asked = 0
        if heads is not None:
            scores = heads(*(features[one.stride][unlabelled:] for one in maps), patch)
            terms.append(finest(scores, regions=design.regions))
            answer = torch.empty_like(levels[0], requires_grad=False)  # the teacher's logits, and as many scores
            kept.add(answer)
            terms.append(finest(heads.rectify(answer[unlabelled:], answer[unlabelled:]), regions=design.regions))
            asked = answer.nbytes
        torch.stack(terms).sum()
    return _Pass(
        parameters=sum(parameter.nbytes for parameter in network.parameters()),
        heads=sum(parameter.nbytes for parameter in of_heads),
        graph=graph,
        passing=passing,
        loss=kept.bytes - graph,
        levels=sum(logits.nbytes for logits in levels),
        features=sum(values.nbytes for values in features.values()),
        asked=asked,
        said=levels[0][:unlabelled].nelement() * FLOAT,
    )


class _Kept:
    """Counts storages once.

    Args:
        own: parameters, which are counted elsewhere.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        self._known = {_identity(parameter) for parameter in own}
        self._alive: list[Tensor] = []  # or a storage's identity could be used again
        self.bytes = self.largest = 0

    def add(self, tensor: Tensor) -> Tensor:
        self._alive.append(tensor)
        if _identity(tensor) not in self._known:
            self._known.add(_identity(tensor))
            size = tensor.untyped_storage().nbytes()
            self.bytes += size
            self.largest = max(self.largest, size)
        return tensor


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # without memory there is no address
