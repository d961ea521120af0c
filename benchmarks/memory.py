"""Predicted and measured memory of a training step, for methods and networks.

    python benchmarks/memory.py --out benchmarks/evidence/memory_model.json
    python benchmarks/memory.py --device cuda --targets 8 24 --out benchmarks/evidence/memory_planned.json

Measured is a step on a CPU in float32, as in step.py: parameters, gradients, optimiser state, moving averages, the most
that autograd keeps at one time, and what the networks record for each other; every storage counts once. On a GPU it is
the allocator's peak in nnU-Net's mixed precision. Predicted is what `nnunet_mutual.planning.memory` says of the same
plans, which planners rely on; it runs nothing with data. "3d planned" has the size that nnU-Net plans, for a GPU.
With --targets, MutualPlanner plans each method for a GPU of so many GB, and what a training by these plans takes is
compared with that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cost.counting import Kept, gradient_bytes, peak_bytes, states, total_bytes
from cost.dataset import BY_GROUP, in_parts, make_dataset
from cost.trainers import Recipe, start
from settings import CONFIGURATION, point_nnunet_to, read_json, write_json

BAR = 0.15  # of the measured bytes
PARTIAL = {"stage1_networks": "groups", "stage2_networks": "groups"}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "one network": ("PartialTrainer", {}),
    "2 networks, joint": ("MutualPartialTrainer", {**PARTIAL, "memory": "joint"}),
    "2 networks, sequential": ("MutualPartialTrainer", {**PARTIAL, "memory": "sequential"}),
    "mean teacher": ("MeanTeacherTrainer", {}),
    "correlation, joint": ("MutualCorrelationTrainer", {"memory": "joint"}),
    "correlation, sequential": ("MutualCorrelationTrainer", {"memory": "sequential"}),
    "prototypes": ("MutualPrototypeTrainer", {}),
    "cross-modal, joint": ("MutualCrossModalTrainer", {"memory": "joint", "form": "contrast"}),
    "cross-modal, sequential": ("MutualCrossModalTrainer", {"memory": "sequential", "form": "contrast"}),
}
FOUR = ("one network", "2 networks, joint", "2 networks, sequential")  # with as many labels, a network for each


LARGE = "3d planned"


def networks(plans: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns configurations that inherit the data of 3d_fullres: 3d, anisotropic, 2d, residual, large."""
    from preparation import small_configuration

    bases = {**plans, "configurations": {**plans["configurations"], "residual": _residual(plans)}}

    def made(
        patch: list[int], batch: int, features: list[int], base: str = "3d_fullres", **network: Any
    ) -> dict[str, Any]:
        size = {"patch_size": patch, "batch_size": batch, "features_per_stage": features, **network}
        return {**small_configuration(bases, size, base), "inherits_from": "3d_fullres"}

    thick = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
    return {
        "3d": made([32, 48, 32], 2, [16, 32, 64, 128]),
        "3d aniso": made([16, 48, 48], 2, [16, 32, 64], **thick),
        "2d": made([48, 48], 8, [16, 32, 64, 128], "2d"),
        "3d residual": made([32, 48, 32], 2, [16, 32, 64], "residual"),
        LARGE: made([112, 112, 128], 2, [32, 64, 128, 256, 320]),
    }


def _residual(plans: dict[str, Any]) -> dict[str, Any]:
    """Returns 3d_fullres with the network of nnU-Net's residual planners."""
    base = plans["configurations"]["3d_fullres"]
    network = base["architecture"]
    kwargs = {name: value for name, value in network["arch_kwargs"].items() if name != "n_conv_per_stage"}
    kwargs |= {"n_blocks_per_stage": [1, 3, 4], "n_conv_per_stage_decoder": [1, 1]}
    name = network["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet")
    return {**base, "architecture": {**network, "network_class_name": name, "arch_kwargs": kwargs}}


def measured(trainer: Any) -> int:
    """Returns the bytes that a step of a trainer holds."""
    import torch

    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    if trainer.device.type == "cuda":
        trainer.train_step(batch)  # cuDNN has chosen its algorithms
        return peak_bytes(trainer, batch)
    peers, held_always = trainer.peers, states(trainer)
    kept = Kept({p.untyped_storage().data_ptr() for p in (*held_always["parameters"], *held_always["averages"])})
    passes = peers.passes

    def recording(*arguments: Any) -> Iterator[Any]:
        held: list[Any] = []  # counts as long as it is here
        for n, outputs, recorded in passes(*arguments):
            if not held:
                held += [kept.add(t) for one in recorded for t in (*one.levels, *one.features.values())]
            yield n, outputs, recorded
            if n == 0:  # what objectives prepared for all networks is complete
                held += [kept.add(t) for objective in trainer.objectives for t in _prepared(objective)]

    peers.passes = recording
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda entry: entry.tensor):
        trainer.train_step(batch)
    del peers.passes
    return sum(map(total_bytes, held_always.values())) + gradient_bytes(trainer) + kept.most


def _prepared(objective: Any) -> list[Any]:
    """What the objectives of this package prepare once per step."""
    said = getattr(objective, "said", None) or ()
    return [t for t in (*said, *getattr(objective, "_said", ())) if t is not None]


def predicted(trainer: Any) -> int:
    """Returns the bytes that the memory model says of the same training."""
    from nnunet_mutual.planning.memory import Design, footprint

    configuration, table = trainer.configuration_manager, trainer.table
    design = Design(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(table.channels),
        trainer.label_manager.num_segmentation_heads,
        configuration.patch_size,
        table.is_regions,
    )
    needs = type(trainer).needs(trainer.settings, table, trainer.do_split()[0])
    found = footprint(design, needs, trainer.batch_size, trainer.stream.unlabelled)
    return found.total if trainer.device.type == "cpu" else round(found.fixed_mixed + found.changing_mixed)


def configure(work: Path, dataset: str, configuration: dict[str, Any]) -> None:
    """Makes a configuration the one that is measured."""
    file = work / "nnUNet_preprocessed" / dataset / "nnUNetPlans.json"
    plans = read_json(file)
    plans["configurations"][CONFIGURATION] = configuration
    write_json(file, plans)


def rows(work: Path, labels: int, recipes: list[str], chosen: list[str], device: str) -> list[dict[str, Any]]:
    """Makes a dataset of so many labels, one in each case, and returns a row for each method and network."""
    import torch

    plain = in_parts(labels)
    names = [plain, BY_GROUP] if any("cross" in name for name in recipes) else [plain]
    for name in names:
        make_dataset(work, name, plans="small", size=(40, 56, 48), labels=labels, parts=labels)
    os.environ.update(nnUNet_n_proc_DA="0")
    found = []
    plans = read_json(work / "nnUNet_preprocessed" / plain / "nnUNetPlans.json")
    for network, configuration in networks(plans).items():
        if network not in chosen:
            continue
        for name in names:
            configure(work, name, configuration)
        for recipe in recipes:
            trainer_name, settings = RECIPES[recipe]
            dataset = BY_GROUP if "cross" in recipe else plain
            what = Recipe(trainer_name, dataset, settings)
            trainer = start(what, work, torch.device(device), mixed=device == "cuda", compiled=False)
            title = recipe.replace("2 networks", f"{len(trainer.peers.networks)} networks")
            row = {"method": title, "network": network, "labels": labels, "patches": trainer.batch_size}
            row["patches"] += trainer.stream.unlabelled
            row |= {"predicted": predicted(trainer), "measured": measured(trainer)}
            row["ratio"] = round(row["predicted"] / row["measured"], 4)
            found.append(row)
            print(json.dumps(row), flush=True)
    return found


def planned_rows(work: Path, targets: list[float], chosen: list[str], device: str) -> list[dict[str, Any]]:
    """Plans each method for GPUs of so many GB and returns what a training by these plans takes."""
    import torch

    names = {name: BY_GROUP if "cross" in name else in_parts(2) for name in chosen if "sequential" not in name}
    for dataset in sorted(set(names.values())):
        make_dataset(work, dataset, plans="full", size=(128, 128, 128), labels=2, parts=2)
    os.environ.update(nnUNet_n_proc_DA="0")
    found = []
    for target, (name, dataset) in itertools.product(targets, names.items()):
        row, recipe = planned(work, target, dataset, *RECIPES[name])
        trainer = start(recipe, work, torch.device(device), mixed=device == "cuda", compiled=False)
        taken = round(measured(trainer) / 2**30, 2)
        found.append({"method": name.split(",")[0], **row, "measured_GB": taken, "ratio": round(taken / target, 4)})
        print(json.dumps(found[-1]), flush=True)
    return found


def planned(
    work: Path, target: float, dataset: str, trainer: str, settings: dict[str, Any]
) -> tuple[dict[str, Any], Recipe]:
    """Puts what MutualPlanner plans into the plans of a dataset; returns what it says, and what to train."""
    from nnunet_mutual.planners import MutualPlanner
    from nnunet_mutual.settings import PLANNED

    settings = {key: value for key, value in settings.items() if key != "memory"}  # the planner decides
    plan = MutualPlanner(dataset, target, trainer=trainer, settings=settings).plan_experiment()
    own = plan["configurations"]["3d_fullres"]
    said = own.pop("mutual", {}).get(PLANNED, {"settings": {}, "gigabytes": None})
    configure(work, dataset, {**own, "data_identifier": "nnUNetPlans_3d_fullres"})  # the voxels are the same
    row = {"target": target, "patch": own["patch_size"], "batch": own["batch_size"]}
    row |= {"memory": said["settings"].get("memory"), "planned_GB": said["gigabytes"]}
    return row, Recipe(trainer, dataset, said["settings"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ["3d", "3d aniso", "2d", "3d residual"]
    parser.add_argument("--networks", nargs="+", choices=[*shapes, LARGE], default=shapes)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--methods", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--labels", nargs="+", type=int, default=[2, 3, 4], help="3 and 4: as many networks")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--targets", nargs="+", type=float, default=[], help="GB of GPUs to plan for, on a GPU")
    arguments = parser.parse_args(argv)
    return of_plans(arguments) if arguments.targets else of_model(arguments)


def of_plans(arguments: argparse.Namespace) -> int:
    """Compares trainings with the memory that they were planned for."""
    with folders() as work:
        found = planned_rows(work, arguments.targets, arguments.methods, arguments.device)
    worst = max(row["ratio"] for row in found)
    print(f"{len(found)} plans, at most {100 * worst:.0f} % of the GPU that they are for")
    if arguments.out:
        write_json(Path(arguments.out), {"accelerator": accelerator(), "rows": found})
    return int(worst > 1)


def of_model(arguments: argparse.Namespace) -> int:
    """Compares steps with the memory model."""
    found = []
    for labels in arguments.labels:
        with folders() as work:
            recipes = [name for name in arguments.methods if labels == 2 or name in FOUR]
            found += rows(work, labels, recipes, arguments.networks, arguments.device)
    worst = max(abs(row["ratio"] - 1) for row in found)
    print(f"{len(found)} combinations, largest error {100 * worst:.1f} % (bar {100 * BAR:.0f} %)")
    if arguments.out:
        content = {"bar": BAR, "largest_error": round(worst, 4), "accelerator": accelerator(), "rows": found}
        write_json(Path(arguments.out), content)
    return int(worst > BAR)


def accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


@contextmanager
def folders() -> Iterator[Path]:
    """Makes nnU-Net's folders, for as long as they are needed."""
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_memory_") as folder:
        point_nnunet_to(Path(folder))
        os.environ["nnUNet_n_proc_DA"] = "2"  # nnU-Net's planner needs at least one
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
