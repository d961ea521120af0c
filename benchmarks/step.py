"""What a trainer costs against stock nnU-Net: one training step, its memory, one batch of the loader.

    python benchmarks/step.py --plans small --labels 4 --mix half --out step.json

All trainers get the same generated dataset, the same plans, the same batches and the same precision; their calls
alternate, so that whatever else the machine does hits all. Time is the median over the rounds, of one thread on a CPU
its own processor seconds. Memory is counted, not sampled: parameters, gradients, optimiser state and the most that
autograd keeps at one time for the backward pass.
MutualPartialTrainer is measured in its first stage, with the networks that the cases ask for. Trainers with unlabelled
images get batches of their own; where these hold more patches than stock's, time and kept memory count per patch.
MutualCrossModalTrainer has two groups, of one channel each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from settings import CONFIGURATION, read_json, write_json

# Ratios to stock; those of two networks hold for --mix half.
BARS = {
    "partial": {"step": 1.10, "memory": 1.05, "loader": 1.05},
    "mutual_partial_joint": {"step": 2.3},
    "mutual_partial_sequential": {"step": 2.6, "memory": 1.25},
    "pseudo_labels": {"case": 1.1},  # of stock predictions of that case by each network, with mirroring
    "mean_teacher": {"step": 1.5},  # of a batch with as many patches, half of them unlabelled
    "mutual_correlation": {"step": 2.2, "occ": 1.02},  # with the correlation against without
    "mutual_prototype": {"step": 1.7},
    "mutual_cross_modal_joint": {"step": 2.2},  # of two groups
    "mutual_cross_modal_sequential": {"memory": 1.25},
}
SMALL = {"patch_size": [40, 56, 40], "batch_size": 2, "features_per_stage": [8, 16, 32, 64]}
NAME, BY_GROUP = "Dataset990_Step", "Dataset991_StepGroups"
GROUPS = {"A": ["A"], "B": ["B"]}


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_step_") as folder:
        work = Path(arguments.work or folder)
        for kind in ("raw", "preprocessed", "results"):
            (work / f"nnUNet_{kind}").mkdir(parents=True, exist_ok=True)
            os.environ[f"nnUNet_{kind}"] = str(work / f"nnUNet_{kind}")
        make_dataset(work, arguments, NAME)
        make_dataset(work, arguments, BY_GROUP)
        os.environ.update(nnUNet_n_proc_DA="0")  # only now: nnU-Net's planner needs at least one process
        result = measure(work, arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(Path(arguments.out), result)
    return report(result["ratio"])


def report(ratios: dict[str, dict[str, float]]) -> int:
    """Prints the ratios beside their bars and returns the exit status, 1 if one is too high."""
    status = 0
    for trainer, bars in BARS.items():
        for quantity, ratio in ratios.get(trainer, {}).items():
            bar = bars.get(quantity)
            verdict = "" if bar is None else f" (bar {bar:.2f}): {'ok' if ratio <= bar else 'TOO MUCH'}"
            print(f"{trainer:26s} {quantity:7s} {ratio:.3f} x stock{verdict}")
            status |= bar is not None and ratio > bar
    return int(status)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", choices=("small", "full"), default="small", help="small network, or what nnU-Net plans"
    )
    parser.add_argument(
        "--size", nargs=3, type=int, default=(48, 64, 48), metavar=("Z", "Y", "X"), help="of the images, voxels"
    )
    parser.add_argument("--labels", type=int, default=4, help="number of foreground labels")
    parser.add_argument("--mix", choices=("all", "half", "one"), default="half", help="labels that a case annotates")
    parser.add_argument("--pairs", type=int, default=30, help="measured pairs of steps; three times as many batches")
    parser.add_argument("--only", nargs="+", choices=[name for name in BARS if name != "pseudo_labels"])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    parser.add_argument("--work", help="keep the generated dataset in this folder")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 30:
        parser.error("--pairs must be at least 30: fewer say little about a median")
    return arguments


def annotated_labels(case: int, names: list[str], mix: str) -> list[str]:
    """Returns what a case annotates: all labels, one of two halves, or one label."""
    if mix == "all":
        return names
    if mix == "half" and len(names) > 1:
        middle = len(names) // 2
        return names[:middle] if case % 2 == 0 else names[middle:]
    return [names[case % len(names)]]


def make_dataset(work: Path, arguments: argparse.Namespace, dataset: str) -> None:
    """Writes images of noise with balls, and lets nnU-Net plan and preprocess them; of BY_GROUP with two channels."""
    import numpy as np
    import SimpleITK as sitk
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )
    from preparation import small_configuration

    from nnunet_mutual.group_preprocessing import GroupPreprocessor
    from nnunet_mutual.groups import PLANS_KEY
    from nnunet_mutual.preprocessing import preprocess_unlabelled

    channels = list(GROUPS) if dataset == BY_GROUP else ["MRI"]
    raw = work / "nnUNet_raw" / dataset
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = [f"label{i + 1}" for i in range(arguments.labels)]
    number = 2 * max(4, arguments.labels)
    size = np.array(arguments.size)
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in size), indexing="ij"), -1)
    cases, sources = {}, {}
    for case in range(number):
        labels = np.zeros(size, dtype=np.uint8)
        annotated = annotated_labels(case, names, arguments.mix)
        for name in annotated:
            centre = generator.uniform(0.2, 0.8, 3) * size
            labels[((grid - centre) ** 2).sum(-1) < (0.12 * size.min()) ** 2] = names.index(name) + 1
        for n in range(len(channels)):
            image = (generator.normal(0, 1, size) + 0.5 * labels).astype(np.float32)
            sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / "imagesTr" / f"case_{case:03d}_{n:04d}.nii.gz"))
            further = generator.normal(0, 1, size).astype(np.float32)
            place = raw / "imagesUn" / f"further_{case:03d}_{n:04d}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(further), str(place))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(raw / "labelsTr" / f"case_{case:03d}.nii.gz"))
        source = "+".join(annotated)
        sources[source] = {"annotated": annotated}
        cases[f"case_{case:03d}"] = {"source": source}
    block: dict[str, Any] = {"version": 1, "sources": sources, "cases": cases}
    if dataset == BY_GROUP:
        block["modality_groups"] = GROUPS
    write_json(
        raw / "dataset.json",
        {
            "channel_names": {str(n): name for n, name in enumerate(channels)},
            "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(names)}},
            "numTraining": number,
            "file_ending": ".nii.gz",
            "mutual": block,
        },
    )
    identity = int(dataset[7:10])
    extract_fingerprint_dataset(identity, num_processes=2, show_progress_bar=False)
    plan_experiment_dataset(identity)
    file = work / "nnUNet_preprocessed" / dataset / "nnUNetPlans.json"
    plans = read_json(file)
    if dataset == BY_GROUP:
        plans[PLANS_KEY] = GROUPS
        GroupPreprocessor(verbose=False).run(identity, "3d_fullres", "nnUNetPlans", 2)
    else:
        preprocess_dataset(identity, "nnUNetPlans", ("3d_fullres",), [2], show_progress_bar=False)
    small = small_configuration(SMALL) if arguments.plans == "small" else {"inherits_from": "3d_fullres"}
    plans["configurations"][CONFIGURATION] = small
    write_json(file, plans)
    preprocess_unlabelled(identity, configurations=[CONFIGURATION], processes=1)


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns medians, counted bytes and the ratios to stock."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from training import hardware, versions

    from nnunet_mutual.trainers import (
        MeanTeacherTrainer,
        MutualCorrelationTrainer,
        MutualCrossModalTrainer,
        MutualPartialTrainer,
        MutualPrototypeTrainer,
        PartialTrainer,
    )

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # Stock nnU-Net is float32 on a CPU and float16 on CUDA, and so is this comparison.
    block = {"amp": "off" if device.type == "cpu" else "auto", "seed": 0}
    groups, joint = {**block, "stage1_networks": "groups"}, {**block, "memory": "joint"}
    recipes = {
        "stock": (nnUNetTrainer, block),
        "partial": (PartialTrainer, block),
        "mutual_partial_joint": (MutualPartialTrainer, {**groups, "memory": "joint"}),
        "mutual_partial_sequential": (MutualPartialTrainer, {**groups, "memory": "sequential"}),
        "mean_teacher": (MeanTeacherTrainer, block),
        "mutual_correlation": (MutualCorrelationTrainer, joint),
        "mutual_correlation_without_occ": (MutualCorrelationTrainer, {**joint, "loss": {"correlation": 0.0}}),
        "mutual_prototype": (MutualPrototypeTrainer, block),
        "mutual_cross_modal_joint": (MutualCrossModalTrainer, joint),
        "mutual_cross_modal_sequential": (MutualCrossModalTrainer, {**block, "memory": "sequential"}),
    }
    trainers = {
        name: start(*recipe, work, device)
        for name, recipe in recipes.items()
        if name == "stock" or arguments.only is None or name.removesuffix("_without_occ") in arguments.only
    }
    drawn: dict[tuple[bool, bool], list[Any]] = {}  # the same batches for all trainers of a kind
    batches = {}
    for name, trainer in trainers.items():
        kind = hasattr(trainer, "unlabelled_per_batch"), hasattr(trainer, "groups")
        if kind not in drawn:
            drawn[kind] = [next(trainer.dataloader_train) for _ in range(4)]
        batches[name] = drawn[kind]
    memory = {name: counted_bytes(trainer, batches[name][0]) for name, trainer in trainers.items()}
    names = {id(trainer): name for name, trainer in trainers.items()}

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step(trainer: Any, i: int) -> None:
        own = batches[names[id(trainer)]]
        trainer.train_step(own[i % len(own)])
        wait()

    def draw(trainer: Any, i: int) -> None:
        # The same draws for both: most augmentations are rare and slow, so unequal ones would decide the median.
        random.seed(i + 3)
        np.random.seed(i + 3)
        torch.manual_seed(i + 3)
        next(trainer.dataloader_train)

    # Processor seconds do not count what other processes take; they mean nothing for threads or a GPU.
    clock = time.process_time if device.type == "cpu" and arguments.threads == 1 else time.perf_counter
    steps = alternate(trainers, step, arguments.pairs, clock)
    loader = alternate(trainers, draw, 3 * arguments.pairs, clock)
    configuration = trainers["stock"].configuration_manager
    patches = {name: len(own[0]["keys"]) / len(batches["stock"][0]["keys"]) for name, own in batches.items()}
    fair = {name: {**own, "saved": own["saved"] / patches[name]} for name, own in memory.items()}
    ratio: dict[str, dict[str, float]] = {
        name: {
            "step": round(steps[name] / steps["stock"] / patches[name], 4),
            "memory": round(sum(fair[name].values()) / sum(fair["stock"].values()), 4),
            "loader": round(loader[name] / loader["stock"], 4),
        }
        for name in trainers
        if name != "stock"
    }
    if "mutual_correlation" in trainers:
        without = steps["mutual_correlation_without_occ"]
        ratio["mutual_correlation"]["occ"] = round(steps["mutual_correlation"] / without, 4)
    if "mutual_partial_joint" in trainers:
        ratio["pseudo_labels"] = {"case": labelling(trainers["mutual_partial_joint"], trainers["stock"], clock)}
    return {
        "plans": arguments.plans,
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "features_per_stage": configuration.network_arch_init_kwargs["features_per_stage"],
        "labels": arguments.labels,
        "annotated": arguments.mix,
        "pairs": arguments.pairs,
        "precision": "float32" if device.type == "cpu" else "float16 autocast",
        "median_step_seconds": steps,
        "bytes": memory,
        "median_loader_seconds": loader,
        "networks": {name: len(networks_of(trainer)) for name, trainer in trainers.items()},
        "ratio": ratio,
        "bars": BARS,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "hardware": {
            **hardware(),
            "accelerator": torch.cuda.get_device_name() if device.type == "cuda" else "none used",
        },
        "versions": versions(),
    }


def start(trainer_class: Any, block: dict[str, Any], work: Path, device: Any) -> Any:
    """Returns a trainer in the middle of its first epoch."""
    import torch

    folder = work / "nnUNet_preprocessed" / (BY_GROUP if getattr(trainer_class, "by_group", False) else NAME)
    plans = read_json(folder / "nnUNetPlans.json")
    plans["configurations"][CONFIGURATION]["mutual"] = block
    plans["continue_training"] = False
    torch.manual_seed(0)
    trainer = trainer_class(plans, CONFIGURATION, "all", read_json(folder / "dataset.json"), device)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def alternate(
    trainers: dict[str, Any], call: Callable[[Any, int], Any], pairs: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Returns the median seconds of each trainer's call; who goes first changes with every pair."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    names = list(trainers)
    for i in range(-3, pairs):  # three pairs to warm up
        for name in names if i % 2 else reversed(names):
            started = clock()
            call(trainers[name], i)
            if i >= 0:
                seconds[name].append(clock() - started)
    return {name: round(statistics.median(values), 5) for name, values in seconds.items()}


def labelling(trainer: Any, stock: Any, clock: Callable[[], float]) -> float:
    """Returns seconds to pseudo-label a case over those of predicting it with stock nnU-Net, once per network."""
    import numpy as np
    import torch

    from nnunet_mutual.pseudo_labels.filter import FilterSettings
    from nnunet_mutual.pseudo_labels.generate import PseudoLabeller
    from nnunet_mutual.validation import predictor_for

    key = trainer.do_split()[0][0]
    data, seg, _, _ = trainer.dataset_class(trainer.preprocessed_dataset_folder, [key]).load_case(key)
    image, drawn = torch.from_numpy(np.array(data[:])), np.asarray(seg[0])
    networks = networks_of(trainer)
    with contextlib.ExitStack() as stack:
        predictors = [stack.enter_context(predictor_for(trainer, n, mirroring=False)) for n in networks]
        reference = stack.enter_context(predictor_for(stock, stock.network, mirroring=True))
        labeller = PseudoLabeller(trainer, predictors, trainer.network_labels(), FilterSettings())
        calls = {
            "mutual": lambda: labeller.label(trainer.table.case(key), image, drawn, 0.001),
            "stock": lambda: reference.predict_sliding_window_return_logits(image),
        }
        seconds = alternate(calls, lambda call, _: call(), 4, clock)
    asked = sum(bool(own - trainer.table.case(key).annotated) for own in trainer.network_labels())
    return round(seconds["mutual"] / (asked * seconds["stock"]), 4)


def networks_of(trainer: Any) -> list[Any]:
    return trainer.peers.networks if hasattr(trainer, "peers") else [trainer.network]


def counted_bytes(trainer: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Returns bytes of parameters, gradients, optimiser state and the most that a step keeps for its backward pass."""
    import torch

    trainer.train_step(batch)
    parameters = [p for network in networks_of(trainer) for p in network.parameters()]
    kept = Kept({p.untyped_storage().data_ptr() for p in parameters})
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda entry: entry.tensor):
        trainer.train_step(batch)
    optimizers = trainer.peers.optimizers if hasattr(trainer, "peers") else [trainer.optimizer]
    state = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    return {
        "parameters": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimiser": sum(t.nbytes for t in state),
        "saved": kept.most,
    }


class Kept:
    """Counts the storages that autograd holds, each once, and remembers the most.

    Args:
        own: addresses of the parameters, which are counted elsewhere.
    """

    def __init__(self, own: set[int]) -> None:
        self.own = own
        self.holders: dict[int, int] = {}
        self.now = self.most = 0

    def add(self, tensor: Any) -> Entry:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self.own:
            if self.holders.get(address, 0) == 0:
                self.now += size
                self.most = max(self.most, self.now)
            self.holders[address] = self.holders.get(address, 0) + 1
        return Entry(tensor, self, address, size)

    def drop(self, address: int, size: int) -> None:
        if address not in self.own:
            self.holders[address] -= 1
            if self.holders[address] == 0:
                self.now -= size


class Entry:
    """A tensor that the graph holds; it goes when the graph frees it."""

    def __init__(self, tensor: Any, kept: Kept, address: int, size: int) -> None:
        self.tensor, self.kept, self.address, self.size = tensor, kept, address, size

    def __del__(self) -> None:
        self.kept.drop(self.address, self.size)


if __name__ == "__main__":
    sys.exit(main())
