"""The sub-command of ``nnunet_mutual`` that trains; nothing heavy is imported before its handler runs."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_training
from nnunet_mutual.errors import MutualError

if TYPE_CHECKING:
    from nnunet_mutual.disk.trainings import NamedTraining


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-command.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    command = add(
        "train",
        _train,
        "train as nnUNetv2_train does, or one network per GPU (--peer-parallel)",
        "Runs nnU-Net's own training with nnU-Net's own options, and finds the trainers of this package without\n"
        "nnUNet_extTrainer. With --peer-parallel, the networks of a trainer that has several run in processes of\n"
        "their own, one per GPU, and learn the same as in one process. On several computers, start it with torchrun.",
        "nnunet_mutual train 111 3d_fullres 0\n"
        "  nnunet_mutual train 111 3d_fullres 0 -tr PartialTrainer --c\n"
        "  nnunet_mutual train 111 3d_fullres 0 -tr MutualCorrelationTrainer --peer-parallel --processes 2",
    )
    add_training(command, fold=True, fitting=True)
    what = command.add_mutually_exclusive_group()
    what.add_argument("--c", dest="resume", action="store_true", help="go on from the last checkpoint, of either way")
    what.add_argument("--val", action="store_true", help="only validate; of a training that is finished")
    what.add_argument("-pretrained_weights", metavar="FILE", help="checkpoint of nnU-Net to begin with")
    command.add_argument("--npz", action="store_true", help="also write probabilities of the validation, to ensemble")
    command.add_argument(
        "--val_best", action="store_true", help="validate with checkpoint_best instead of the last one"
    )
    command.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints, to try things out")
    command.add_argument(
        "-num_gpus",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        default=1,
        help="divide each batch among so many (%(default)s)",
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
    if options.trainer is None:
        _choose_trainer(options)
    training = _require_plans(options)
    os.environ[plugin.VARIABLE] = plugin.trainers_variable(os.environ.get(plugin.VARIABLE))
    _require_trainer(options.trainer)
    if not _is_finished(options, training):
        if not options.peer_parallel:
            _alone(options)
        elif not _together(options):
            return 0
    print(f"Next, whether to use it:  nnunet_mutual report {training.options}")
    print(f"Then, a model for stock nnU-Net:  nnunet_mutual export {training.options}")
    return 0


def _choose_trainer(options: argparse.Namespace) -> None:
    """Takes the trainer that fits the dataset, and says why."""
    from nnunet_mutual.disk.host_files import read_plans
    from nnunet_mutual.disk.locate import locate, plans_file
    from nnunet_mutual.disk.trainings import device_option, plans_option
    from nnunet_mutual.planning.configuration import choose_trainer

    folders = locate(options.dataset, need_preprocessed=True)
    assert folders.preprocessed is not None
    plans = read_plans(plans_file(folders.preprocessed, options.plans))
    options.trainer, why = choose_trainer(folders, plans, options.configuration)
    words = f"{options.dataset} {options.configuration}{plans_option(options.plans)}"
    print(
        f"Trains with {options.trainer}, since {why}; whether another one pays on these data, a trial tells: "
        f"nnunet_mutual trial {words}{device_option()}"
    )


def _is_finished(options: argparse.Namespace, training: NamedTraining) -> bool:
    """Whether there is nothing to do; says so, and what to do instead.

    Raises:
        MutualError: a finished training would be written over, one that is not finished validated, or one continued
            that was never begun.
    """
    from nnunet_mutual.disk.trainings import CHECKPOINTS, FINAL, is_validated
    from nnunet_mutual.engine.parallel.launch import is_worker

    folder = training.place
    # There nnU-Net trains anew: scripts of torchrun, which repeat their line, rely on that, nobody else does.
    if options.resume and not is_worker() and not any((folder / name).is_file() for name in CHECKPOINTS):
        raise MutualError(f"{folder} holds no checkpoint to go on from; begin without --c: {training.command}")
    finished = (folder / FINAL).is_file()
    longer = (
        "to train longer, give it a name of its own, for example: nnunet_mutual plan "
        f"-d {options.dataset} -c {options.configuration} -p {options.plans} --name long --set num_epochs=2000"
    )
    if options.val and not finished:
        raise MutualError(f"{folder} has no {FINAL}, so there is nothing to validate; finish it with --c")
    if not finished or options.val:
        return False
    if not options.resume:
        raise MutualError(
            f"{folder} holds a finished training, which would be written over; validate it again with --val, move the "
            f"folder away to train anew, or, {longer}"
        )
    if not (folder / "progress.png").is_file() or not is_validated(folder):
        print(f"{folder}: the training is finished; what is left is its validation")
        return False
    print(f"{folder}: the training is finished and validated, there is nothing to do")
    if _labels_changed(training):
        print("WARNING: labels or their table have changed since it began, so move the folder away and train anew")
    print(f"To validate it again: --val; {longer}")
    return True


def _labels_changed(training: NamedTraining) -> bool:
    from nnunet_mutual.datasets.sync import table_changed
    from nnunet_mutual.disk.locate import locate

    preprocessed = locate(training.dataset, need_preprocessed=True).preprocessed
    return preprocessed is not None and table_changed(training.place.parent, preprocessed)


def _require_plans(options: argparse.Namespace) -> NamedTraining:
    """Verifies what nnU-Net ends with a traceback about; returns the training."""
    from nnunet_mutual.datasets.raw import read_dataset_json
    from nnunet_mutual.datasets.splits import require_fold
    from nnunet_mutual.disk.host_files import read_plans, read_splits
    from nnunet_mutual.disk.locate import locate, plans_file
    from nnunet_mutual.disk.trainings import NamedTraining, results_of
    from nnunet_mutual.settings import BLOCK, merged_block

    found = locate(options.dataset, need_preprocessed=True)
    assert found.preprocessed is not None
    # nnU-Net's own words about a damaged file do not name it
    merged_block(read_plans(plans_file(found.preprocessed, options.plans)), options.configuration)
    declared = BLOCK in read_dataset_json(found.preprocessed)
    splits = found.preprocessed / "splits_final.json"
    if declared and options.fold != "all" and splits.is_file():  # nnU-Net makes the folder of the fold before it asks
        require_fold(read_splits(splits), options.fold, splits)
    if options.pretrained_weights is not None and not Path(options.pretrained_weights).is_file():
        raise MutualError(
            f"-pretrained_weights {options.pretrained_weights} is no file; give a checkpoint of a training, such as "
            "checkpoint_final.pth"
        )
    results_of(found.name)  # refuses before the search for a trainer of others, which takes long
    return NamedTraining(found.name, options.configuration, str(options.fold), options.trainer, options.plans)


def _require_trainer(name: str) -> None:
    """One of ours, or one that nnU-Net finds; its own sentence about another one comes late and with a traceback."""
    from nnunet_mutual.plugin import find as plugin
    from nnunet_mutual.plugin.trainer_names import TrainerNames

    ours = plugin.public_names("trainers")
    if name in ours:
        return
    names = TrainerNames.of(os.environ.get(plugin.VARIABLE))
    if names.find(name) is not None:
        return
    near = difflib.get_close_matches(name, dict.fromkeys([*ours, *names.classes]), n=3, cutoff=0.7)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise MutualError(
        f"neither nnU-Net nor this package has a trainer called {name!r}{hint}; this package "
        f"has: {', '.join(plugin.training_names())}"
    )


def _alone(options: argparse.Namespace) -> None:
    import multiprocessing

    import torch
    from nnunetv2.run.run_training import run_training

    from nnunet_mutual.plugin.compat import require_device

    if options.processes is not None or options.exchange != "float32":
        raise MutualError("--processes and --exchange belong to --peer-parallel; add it, or leave them out")
    if options.val_best and options.disable_checkpointing:
        raise MutualError("--val_best takes the best checkpoint; leave --disable_checkpointing out")
    require_device(options.device)
    if options.device != "cuda" and options.num_gpus > 1:
        raise MutualError(f"-num_gpus {options.num_gpus} needs -device cuda; leave it out")
    if options.device == "cuda" and torch.cuda.device_count() < options.num_gpus:
        raise MutualError(
            f"this machine has {torch.cuda.device_count()} CUDA device(s) of the {options.num_gpus} asked for; give "
            "fewer -num_gpus"
        )
    torch.set_num_threads(multiprocessing.cpu_count() if options.device == "cpu" else 1)  # as nnUNetv2_train does
    run_training(
        options.dataset,
        options.configuration,
        options.fold,
        options.trainer,
        options.plans,
        options.pretrained_weights,
        options.num_gpus,
        options.npz,
        options.resume,
        options.val,
        options.disable_checkpointing,
        options.val_best,
        device=torch.device(options.device),
    )


def _together(options: argparse.Namespace) -> bool:
    """Starts the processes, or is one of those that torchrun started; returns whether this one speaks for all."""
    import torch

    from nnunet_mutual.engine.parallel.launch import is_worker, launch
    from nnunet_mutual.plugin.compat import require_device

    own = ("val", "val_best", "npz", "pretrained_weights", "disable_checkpointing")
    given = [name for name in own if getattr(options, name)] + ["num_gpus"] * (options.num_gpus > 1)
    if given:
        raise MutualError(
            f"{given[0]} is done in one process; leave --peer-parallel out, also for a training that it has finished"
        )
    if options.device == "mps":
        raise MutualError("an Apple GPU is one device; leave --peer-parallel out")
    place = options.dataset, options.configuration, options.fold
    chosen = {name: getattr(options, name) for name in ("trainer", "plans", "resume", "device", "exchange")}
    if is_worker():
        from nnunet_mutual.engine.parallel.worker import work

        work(*place, **chosen)
        return os.environ["RANK"] == "0"
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
