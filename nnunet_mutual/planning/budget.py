"""How nnU-Net's own planning is told what a method needs.

nnU-Net shrinks the patch until a number of feature-map voxels, which stands for a training of batch 2, fits a reference
that stands for 8 GB. The planners of this package leave that alone and replace the number. A training of b patches
needs :math:`b (s + e) + C` GB, where s is what nnU-Net reckons for a patch of one network, e what the method adds for
each patch, and C what it adds in any case (weights, gradients, momentum, teachers). Of a target of T GB, T - C is left
for patches, so nnU-Net gets its own number times :math:`(1 + e / s) T / (T - C)`: its rule "2 patches fit T" then is
"2 (s + e) + C is at most T". A method that adds nothing gets nnU-Net's own plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_mutual.errors import MutualError
from nnunet_mutual.planning.memory import Design, Trace
from nnunet_mutual.planning.method import Method
from nnunet_mutual.planning.needs import Memory, Needs
from nnunet_mutual.planning.shape import times
from nnunet_mutual.settings import BLOCK, PLANNED

GIB = 2**30
LEAST_VOXELS = {2: 64**2, 3: 32**3}  # of a patch; a smaller one shows a network too little


@dataclass(frozen=True)
class Cost:
    """GB of a training of one configuration: :math:`b (s + e) + C`.

    Attributes:
        stock: s, what nnU-Net reckons for a patch.
        patch: e, what the method adds for each.
        fixed: C, what it adds in any case.
    """

    stock: float
    patch: float = 0.0
    fixed: float = 0.0

    def total(self, batch: int) -> float:
        """GB of a batch."""
        return batch * (self.stock + self.patch) + self.fixed

    def largest_batch(self, target: float) -> int:
        """How many patches fit, 0 or more."""
        return max(0, math.floor((target - self.fixed) / (self.stock + self.patch) + 1e-6))


class Budget:
    """Tells one of nnU-Net's planners what a method needs.

    Args:
        planner: it, after its own ``__init__``.
        method: what is planned for.
        tried_batch: for how many patches its search lets the patch shrink, by the dimensions of the images.
    """

    def __init__(self, planner: Any, method: Method, tried_batch: Mapping[int, int]):
        self.planner = planner
        self.method = method
        self.needs = method.needs
        self.target = float(planner.UNet_vram_target_GB)
        self.tried_batch = tried_batch
        self.comparing = False  # with nnU-Net's own plans
        self.too_small: list[tuple[float, str]] = []  # GB that a smallest patch needs, and the patch
        self._searches: dict[str, Callable[[dict], dict]] = {}
        self._traces: dict[tuple, tuple[Trace, Trace]] = {}
        print(f"Planning for {method.trainer} ({method.why}): {self.needs.describe()}")

    def estimate(self, *network: Any) -> float:
        """Returns what nnU-Net shall take for its own number.

        Args:
            network: patch size, channels, outputs, class name, keyword arguments and imports, as nnU-Net passes them.
        """
        dimensions = len(network[0])
        number, tried = _stock_number(*network), self.tried_batch[dimensions]
        limit = self._reference(dimensions) / tried
        patches, cost = tried, Cost(number / self._reference(dimensions) * self.target)
        if not self._as_stock:
            patches, cost = max(self.needs.least_batch, tried), self._cost(network)
            room = self.target - cost.fixed
            number *= (1 + cost.patch / cost.stock) * patches / tried * (self.target / room if room > 0 else math.inf)
        if number > limit and math.prod(network[0]) <= LEAST_VOXELS[dimensions]:
            # nnU-Net would go on for ever: let it end here, and refuse when all configurations have been looked at.
            self.too_small.append((cost.total(patches), times(network[0])))
            return limit
        return number

    def plan(self, search: Callable[..., dict], *arguments: Any) -> dict:
        """Plans a configuration with nnU-Net's search, and as many patches in a batch as fit.

        Args:
            search: nnU-Net's ``get_plans_for_configuration``.
            arguments: its arguments.
        """
        plan = search(*arguments)
        if self._as_stock:
            return plan
        *what, voxels, _ = arguments
        self._searches[plan["data_identifier"]] = lambda cache: search(*what, voxels, cache)
        network, least = self._network(plan), self.needs.least_batch
        seen = round(voxels * self.planner.max_dataset_covered / math.prod(plan["patch_size"]))  # nnU-Net's 5 %
        batch = max(least, min(seen, self._cost(network).largest_batch(self.target)))
        while batch > least and self._cost(network, batch).total(batch) > self.target:  # attention grows faster
            batch = max(least, min(batch - 1, self._cost(network, batch).largest_batch(self.target)))
        plan["batch_size"] = batch
        return plan

    def settle(self, plans: dict) -> dict:
        """Adds what the trainer is to be told, and prints what was planned.

        Raises:
            MutualError: not even the smallest patch fits; nothing has been written then.
        """
        if self.too_small:
            gigabytes, patch = max(self.too_small)
            raise MutualError(
                f"{self.method.trainer} does not fit {self.target:g} GB: {self.needs.describe()} need "
                f"{math.ceil(gigabytes * 100) / 100:.2f} GB with a patch of {patch} voxels, below which nothing is "
                "planned; give -gpu_memory_target that much, or plan for fewer networks"
            )
        rows: list[tuple[str, ...]] = [("configuration", "patch", "batch", "memory", "about", "stock nnU-Net's")]
        for name, plan in plans["configurations"].items():
            if "patch_size" in plan:
                rows.append((name, *self._settle(plan)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        print(f"Planned for {self.method.trainer} on a GPU of {self.target:g} GB:")
        for row in rows:
            print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        return plans

    def _settle(self, plan: dict) -> tuple[str, ...]:
        """Puts what the trainer is to be told into a configuration; returns its row of the printed table."""
        batch, network = int(plan["batch_size"]), self._network(plan)
        settings, mode, stock = dict(self.method.given), "-", "the same"
        cost = self._cost(network, batch)
        if self.needs.trained > 1:
            joint = self._cost(network, batch, "joint")
            settings.setdefault("memory", "joint" if joint.total(batch) <= self.target else "sequential")
            mode = settings["memory"]
            cost = joint if mode == "joint" else cost
        labelled = math.ceil(batch / 2)  # as the trainers divide a batch
        if labelled + max(self.needs.unlabelled, batch - labelled) > batch and self.needs.unlabelled:
            labelled, unlabelled = self.needs.split(batch)
            settings = {"labelled_per_batch": labelled, "unlabelled_per_batch": unlabelled} | settings
        gigabytes = round(cost.total(batch), 1)
        if settings:
            plan[BLOCK] = {PLANNED: {"trainer": self.method.trainer, "settings": settings, "gigabytes": gigabytes}}
            plan[BLOCK][PLANNED] |= {"given": sorted(self.method.given)} if self.method.given else {}
        if not self.needs.as_stock:
            other = self._stock(plan)
            if (times(other["patch_size"]), other["batch_size"]) != (times(plan["patch_size"]), batch):
                stock = f"{times(other['patch_size'])}, batch {other['batch_size']}"
        return times(plan["patch_size"]), str(batch), mode, f"{gigabytes} GB", stock

    def _stock(self, plan: dict) -> dict:
        """nnU-Net's own plan of the same configuration."""
        self.comparing = True
        try:
            return self._searches[plan["data_identifier"]]({})
        finally:
            self.comparing = False

    @property
    def _as_stock(self) -> bool:
        return self.comparing or self.needs.as_stock

    def _network(self, plan: dict) -> tuple:
        """What nnU-Net passes to its estimate for a plan."""
        channels, outputs = len(plan["normalization_schemes"]), len(self.planner.dataset_json["labels"])
        entries = (plan["architecture"][key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
        return plan["patch_size"], channels, outputs, *entries

    def _cost(self, network: tuple, batch: int | None = None, memory: Memory | None = None) -> Cost:
        """Costs of a batch of one size; the least one if it is not given."""
        stock = _stock_number(*network) / self._reference(len(network[0])) * self.target
        if self.needs.as_stock:
            return Cost(stock)
        batch = batch or self.needs.least_batch
        key = (*network[0], str(network[4]["strides"]), batch)
        if key not in self._traces:
            self._traces[key] = self._trace(network, batch)
        own, alone = (one.footprint(memory or self.needs.memory) for one in self._traces[key])
        patch = (own.changing_mixed - alone.changing_mixed) / batch
        fixed = own.fixed_mixed - alone.fixed_mixed
        return Cost(stock, max(0.0, patch) / GIB, max(0.0, fixed) / GIB)

    def _trace(self, network: tuple, batch: int) -> tuple[Trace, Trace]:
        """Runs a step of the method, and one of a network alone, without data."""
        patch_size, channels, _, name, kwargs, imports = network
        size = [int(n) for n in patch_size]
        design = Design(name, kwargs, imports, channels, self.method.outputs, size, self.method.regions)
        alone = Trace(design, Needs(partial=self.needs.partial), batch)
        return Trace(design, self.needs, *self.needs.split(batch)), alone

    def _reference(self, dimensions: int) -> float:
        """nnU-Net's number of all patches that fit the target."""
        planner, flat = self.planner, dimensions == 2
        number = planner.UNet_reference_val_2d if flat else planner.UNet_reference_val_3d
        patches = planner.UNet_reference_val_corresp_bs_2d if flat else planner.UNet_reference_val_corresp_bs_3d
        return float(number * (self.target / planner.UNet_reference_val_corresp_GB) * patches)


def _stock_number(*network: Any) -> float:
    with torch.device("meta"):  # a network without memory has as many voxels, and is there at once
        return float(ExperimentPlanner.static_estimate_VRAM_usage(*network))
