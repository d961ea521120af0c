"""A configuration with another patch, batch, spacing or size of network, by nnU-Net's own rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mutual.disk.host_files import entry_of
from nnunet_mutual.errors import MutualError
from nnunet_mutual.planning.memory import Design, Trace
from nnunet_mutual.planning.method import Method

LEAST_EDGE = 4  # voxels of the smallest feature map, nnU-Net's UNet_featuremap_min_edge_length
MOST_FEATURES = {2: 512, 3: 320}  # nnU-Net's UNet_max_features
_UNETS = ("PlainConvUNet", "ResidualEncoderUNet")
_PER_STAGE = ("n_conv_per_stage", "n_blocks_per_stage")


@dataclass(frozen=True)
class Shape:
    """What shall differ from a base configuration; None: nothing.

    Attributes:
        patch: voxels, in the order of the plans, which may turn the axes of the images (the coarsest first).
        batch: patches of a batch.
        features: channels of the first stage; each further one has twice as many, up to nnU-Net's limit. Several: of
            each stage.
        stages: resolutions of the network; None: as many as nnU-Net takes for patch and spacing.
        strides: along each axis on the way to each stage, the first of 1; None: nnU-Net's.
        kernels: voxels along each axis of the convolutions of each stage, odd; None: nnU-Net's.
        convs: convolutions of a stage, of residual networks blocks, at most.
        spacing: mm, in the same order.
    """

    patch: Sequence[int] | None = None
    batch: int | None = None
    features: Sequence[int] | None = None
    stages: int | None = None
    strides: Sequence[Sequence[int]] | None = None
    kernels: Sequence[Sequence[int]] | None = None
    convs: int | None = None
    spacing: Sequence[float] | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    @property
    def changes_network(self) -> bool:
        """Whether more than the batch differs."""
        return bool(replace(self, batch=None))

    def number_of_stages(self) -> int | None:
        """Returns what the options say of it, None if nothing.

        Raises:
            MutualError: they contradict each other.
        """
        lists = {name: getattr(self, name) or () for name in ("features", "strides", "kernels")}
        said = {f"--{name}": len(given) for name, given in lists.items() if len(given) > (name == "features")}
        if self.stages is not None:
            said["--stages"] = self.stages
        if len(set(said.values())) > 1:
            numbers = " and ".join(f"{n} by {option}" for option, n in said.items())
            raise MutualError(f"the network would have stages of different number, {numbers}; give one for every stage")
        return next(iter(said.values()), None)


def reshaped(plans: Mapping[str, Any], base: str, shape: Shape, new: str) -> dict[str, Any]:
    """Returns the entries by which a new configuration differs from its base.

    Args:
        plans: content of the plans file.
        base: name of the base configuration.
        shape: what differs.
        new: name of the new configuration, of which its data are called where they differ.

    Raises:
        MutualError: what the network does not allow, with the nearest that it does.
    """
    configuration = PlansManager(dict(plans)).get_configuration(base).configuration
    entries: dict[str, Any] = {}
    if shape.batch is not None:
        entries["batch_size"] = shape.batch
    if shape.spacing is not None:
        entries |= _other_data(configuration, shape.spacing, f"{plans['plans_name']}_{new}", base)
    if shape.changes_network:
        entries |= _other_network(configuration, shape, base)
    return entries


def describe(plans: Mapping[str, Any], name: str, method: Method) -> list[str]:
    """Says what a configuration is, and the GPU memory that a training takes in nnU-Net's mixed precision.

    Args:
        plans: with the configuration.
        name: of the configuration.
        method: trainer and settings.

    Raises:
        MutualError: the network cannot be built, or the trainer cannot use it.
    """
    made = PlansManager(dict(plans)).get_configuration(name)
    lines = [f"patch {times(made.patch_size)} voxels of {times(made.spacing)} mm, {made.batch_size} in a batch"]
    network = made.configuration.get("architecture")
    if network is None or not _is_unet(network):
        return lines
    kwargs = network["arch_kwargs"]
    features = ", ".join(map(str, kwargs["features_per_stage"]))
    gigabytes = _forecast(made, network, method) / 2**30
    return [
        *lines,
        f"network of {kwargs['n_stages']} stages with {features} features",
        f"{f'about {gigabytes:.1f}' if gigabytes >= 0.1 else 'less than 0.1'} GB of GPU memory with {method.trainer}",
    ]


def _forecast(made: ConfigurationManager, network: Mapping[str, Any], method: Method) -> float:
    """Returns bytes, counted on the networks themselves."""
    needs = method.needs
    design = Design(
        network["network_class_name"],
        network["arch_kwargs"],
        network["_kw_requires_import"],
        len(made.normalization_schemes),
        method.outputs,
        [int(n) for n in made.patch_size],
        method.regions,
    )
    try:
        trace = Trace(design, needs, *needs.split(max(needs.least_batch, made.batch_size)))
    except MutualError:
        raise
    except Exception as error:  # PyTorch's own words about shapes
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise MutualError(f"this network cannot be built ({said}); try a larger --patch or fewer --stages") from error
    found = trace.footprint(needs.memory)
    return found.fixed_mixed + found.changing_mixed


def _is_unet(network: Mapping[str, Any]) -> bool:
    return network["network_class_name"].rpartition(".")[2] in _UNETS


def _other_data(
    configuration: Mapping[str, Any], spacing: Sequence[float], identifier: str, base: str
) -> dict[str, Any]:
    old = configuration["spacing"]
    if len(spacing) != len(old):
        raise MutualError(f"--spacing {times(spacing)}: {base} has {len(old)} axes, as in {times(old)} mm")
    if configuration.get("previous_stage") is not None:
        raise MutualError(
            f"{base} is the second stage of a cascade, whose data have the spacing of its first one; give --spacing "
            "for another base configuration"
        )
    median = entry_of(configuration, "median_image_size_in_voxels", f"{base} of the plans")
    size = [n * a / b for n, a, b in zip(median, old, spacing, strict=True)]
    return {
        "spacing": [float(mm) for mm in spacing],
        "median_image_size_in_voxels": size,
        "data_identifier": identifier,
    }


def _other_network(configuration: Mapping[str, Any], shape: Shape, base: str) -> dict[str, Any]:
    network = configuration.get("architecture")
    if network is None or not _is_unet(network):
        raise MutualError(
            f"the network of {base} is none of nnU-Net's {' or '.join(_UNETS)}, so only --batch and --set can differ"
        )
    kwargs = dict(network["arch_kwargs"])
    patch = list(shape.patch or configuration["patch_size"])
    if len(patch) != len(configuration["patch_size"]):
        sizes = times(configuration["patch_size"])
        raise MutualError(f"--patch {times(patch)}: {base} has {len(configuration['patch_size'])} axes, as in {sizes}")
    wanted = shape.number_of_stages()
    if wanted not in (None, kwargs["n_stages"]) or any(
        vars(replace(shape, features=None, convs=None, batch=None)).values()
    ):
        strides, kernels = _topology(shape, shape.spacing or configuration["spacing"], patch, wanted)
        patch = _fitting(shape, patch, strides)
        kwargs |= {"n_stages": len(strides), "strides": strides, "kernel_sizes": kernels}
    stages = kwargs["n_stages"]
    kwargs["features_per_stage"] = _features(kwargs["features_per_stage"], shape.features, stages, len(patch))
    for key, number in [*((key, stages) for key in _PER_STAGE), ("n_conv_per_stage_decoder", stages - 1)]:
        if key in kwargs:
            kwargs[key] = _repeated(kwargs[key], number, shape.convs)
    return {"patch_size": patch, "architecture": {**network, "arch_kwargs": kwargs}}


def _topology(
    shape: Shape, spacing: Sequence[float], patch: Sequence[int], wanted: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns strides and kernels: those given, or nnU-Net's, which halves axes while they are fine and large."""
    for option, table in (("--strides", shape.strides), ("--kernels", shape.kernels)):
        if table is not None and any(len(row) != len(patch) for row in table):
            raise MutualError(f"{option}: every stage has {len(patch)} axes, such as {','.join(['1'] * len(patch))}")
    if shape.strides is not None and any(n != 1 for n in shape.strides[0]):
        raise MutualError("--strides: the first stage has the resolution of the patch, so all of its numbers are 1")
    if shape.kernels is not None and any(n % 2 == 0 for row in shape.kernels for n in row):
        raise MutualError("--kernels: the convolutions of nnU-Net have odd sizes, such as 1 and 3")
    if 1 in (wanted, len(shape.strides or ()), len(shape.kernels or ())):
        raise MutualError("a network has two stages or more, the first at the resolution of the patch; give so many")
    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, patch, LEAST_EDGE, 999)
    most = len(strides)
    if shape.strides is None and (most < 2 or (wanted or 2) > most):
        raise MutualError(
            f"a patch of {times(patch)} voxels allows {most} stage(s) at most, since the smallest feature map must "
            f"have {LEAST_EDGE} voxels along an axis; "
            + ("give fewer --stages, or a larger --patch" if most > 1 else f"give at least {2 * LEAST_EDGE} voxels")
        )
    stages = wanted or most
    chosen = shape.strides or strides[:stages]
    around = shape.kernels or [*kernels[: stages - 1], *[kernels[-1]] * stages][:stages]
    return [[int(n) for n in row] for row in chosen], [[int(n) for n in row] for row in around]


def _fitting(shape: Shape, patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Returns the patch that the strides divide; refuses one that was given and is another."""
    factors = [math.prod(axis) for axis in zip(*strides, strict=True)]
    fitting = [-(-n // factor) * factor for n, factor in zip(patch, factors, strict=True)]
    if shape.patch is not None and fitting != list(patch):
        raise MutualError(
            f"--patch {times(patch)}: the network of {len(strides)} stages needs multiples of {times(factors)} voxels; "
            f"give {' '.join(map(str, fitting))}"
        )
    return fitting


def _features(base: Sequence[int], given: Sequence[int] | None, stages: int, dimensions: int) -> list[int]:
    if given is not None and len(given) > 1:
        return list(given)
    if given is not None:
        first = given[0]
        return [min(first * 2**stage, max(first, MOST_FEATURES[dimensions])) for stage in range(stages)]
    found = list(base[:stages])
    while len(found) < stages:
        found.append(max(found[-1], min(2 * found[-1], MOST_FEATURES[dimensions])))
    return found


def _repeated(base: int | Sequence[int], number: int, most: int | None) -> list[int]:
    """Returns an entry per stage; stages that are new have what the last one has."""
    known = [base] * number if isinstance(base, int) else [*base, *[base[-1]] * number][:number]
    return known if most is None else [min(most, n) for n in known]


def times(numbers: Sequence[Any]) -> str:
    """Returns sizes as they are printed: 64 x 64 x 32."""
    return " x ".join(f"{number:g}" for number in numbers)
