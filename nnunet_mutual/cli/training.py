"""The sub-command of ``nnunet_mutual`` that trains; nothing heavy is imported before its handler runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_training
from nnunet_mutual.errors import MutualError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-command.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    command = add(
        "train",
        _train,
        "train as nnUNetv2_train does, or one network per GPU (--peer-parallel)",
        "Runs nnU-Net's own training, which finds the trainers of this package here without nnUNet_extTrainer. With\n"
        "--peer-parallel, the networks of a trainer that has several run in processes of their own, one per GPU, and\n"
        "learn the same as in one process. On several computers, start the same command with torchrun.",
        "nnunet_mutual train 111 3d_fullres 0 -tr MutualCorrelationTrainer --peer-parallel --processes 2",
    )
    add_training(command, fold=True)
    command.add_argument(
        "--c", dest="resume", action="store_true", help="go on from the last checkpoint, of either way"
    )
    command.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where (%(default)s)")
    command.add_argument("--peer-parallel", action="store_true", help="one network per process")
    command.add_argument(
        "--processes",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        help="of --peer-parallel on this computer (default: one per GPU)",
    )
    command.add_argument(
        "--exchange",
        choices=("float32", "float16"),
        default="float32",
        help="precision in which networks send each other what they say (%(default)s: exactly as one process)",
    )


def _train(options: argparse.Namespace) -> int:
    from nnunet_mutual.plugin import find as plugin

    options.fold = options.fold if options.fold == "all" else int(options.fold)
    _require_plans(options)
    os.environ[plugin.VARIABLE] = plugin.trainers_variable(os.environ.get(plugin.VARIABLE))
    _require_trainer(options.trainer)
    if not options.peer_parallel:
        _alone(options)
    elif not _together(options):
        return 0
    print("Next, a model for stock nnU-Net:")
    print(
        f"  nnunet_mutual export {options.dataset} {options.configuration} -tr {options.trainer} -p {options.plans} "
        f"-f {options.fold}"
    )
    return 0


def _require_plans(options: argparse.Namespace) -> None:
    from nnunet_mutual.datasets.raw import read_dataset_json
    from nnunet_mutual.disk.host_files import read_plans
    from nnunet_mutual.disk.locate import locate

    folder = locate(options.dataset, need_preprocessed=True).preprocessed
    assert folder is not None
    if not (folder / f"{options.plans}.json").is_file():
        there = sorted(file.stem for file in folder.glob("*Plans*.json"))
        raise MutualError(f"{folder} has no {options.plans}.json; give -p one of: {', '.join(there)}")
    read_plans(folder / f"{options.plans}.json")  # nnU-Net's own words about a damaged one do not name it
    read_dataset_json(folder)


def _require_trainer(name: str) -> None:
    """One of ours, or one that nnU-Net finds; its own sentence about another one comes with a traceback."""
    from nnunet_mutual.errors import meant
    from nnunet_mutual.plugin import find as plugin

    ours = plugin.public_names("trainers")
    if name in ours:
        return
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        raise MutualError(
            f"neither nnU-Net nor this package has a trainer called {name!r}{meant(name, ours)}; this package has: "
            f"{', '.join(ours)}"
        ) from None


def _require_checkpoint(options: argparse.Namespace) -> None:
    """Where there is none to go on from, nnU-Net trains anew; scripts of torchrun rely on that, nobody else does."""
    from nnunet_mutual.disk.locate import locate
    from nnunet_mutual.disk.trainings import results_of

    base = results_of(locate(options.dataset).name)
    if not options.resume:
        return
    name = f"{options.trainer}__{options.plans}__{options.configuration}"
    fold = base / name / f"fold_{options.fold}"
    if not any((fold / f"checkpoint_{which}.pth").is_file() for which in ("final", "latest", "best")):
        raise MutualError(
            f"{fold} holds no checkpoint to go on from; begin without --c: nnunet_mutual train {options.dataset} "
            f"{options.configuration} {options.fold} -tr {options.trainer} -p {options.plans}"
        )


def _alone(options: argparse.Namespace) -> None:
    import multiprocessing

    import torch
    from nnunetv2.run.run_training import run_training

    from nnunet_mutual.plugin.compat import require_device

    if options.processes is not None or options.exchange != "float32":
        raise MutualError("--processes and --exchange belong to --peer-parallel; add it, or leave them out")
    _require_checkpoint(options)
    require_device(options.device)
    torch.set_num_threads(multiprocessing.cpu_count() if options.device == "cpu" else 1)  # as nnUNetv2_train does
    run_training(
        options.dataset,
        options.configuration,
        options.fold,
        options.trainer,
        options.plans,
        continue_training=options.resume,
        device=torch.device(options.device),
    )


def _together(options: argparse.Namespace) -> bool:
    """Starts the processes, or is one of those that torchrun started; returns whether this one speaks for all."""
    import torch

    from nnunet_mutual.engine.parallel.launch import is_worker, launch
    from nnunet_mutual.plugin.compat import require_device

    if options.device == "mps":
        raise MutualError("an Apple GPU is one device; leave --peer-parallel out")
    place = options.dataset, options.configuration, options.fold
    chosen = {name: getattr(options, name) for name in ("trainer", "plans", "resume", "device", "exchange")}
    if is_worker():
        from nnunet_mutual.engine.parallel.worker import work

        work(*place, **chosen)
        return os.environ["RANK"] == "0"
    _require_checkpoint(options)
    gpus = torch.cuda.device_count()
    require_device(options.device)
    processes = options.processes or (gpus if options.device == "cuda" else 2)
    if processes < 2 or (options.device == "cuda" and processes > gpus):
        raise MutualError(
            f"--peer-parallel needs two processes at least and a GPU for each, found {processes} and {gpus}; leave it "
            "out to train all networks in one process"
        )
    launch(processes, *place, **chosen)
    return True
