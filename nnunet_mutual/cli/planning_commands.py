"""The sub-commands of ``nnunet_mutual`` that plan and preprocess; nothing heavy is imported before a handler runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_dataset_option, add_settings
from nnunet_mutual.errors import MutualError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    _add_plan_and_preprocess(add)
    _add_preprocess_unlabelled(add)
    _add_plan(add)


def _add_plan_and_preprocess(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "plan_and_preprocess",
        _plan_and_preprocess,
        "nnU-Net's planning and preprocessing, then unlabelled images and folds",
        "Runs nnunet_mutual check, then nnU-Net's fingerprint, planning and preprocessing with its own defaults,\n"
        "preprocesses the images in imagesUn into a folder of their own, and prints the folds (an existing\n"
        "splits_final.json is kept).\n"
        "With --for, patch and batch are such that this trainer, with its networks and teachers, fits the GPU.",
        "nnunet_mutual plan_and_preprocess -d 111 -c 3d_fullres --for MutualCorrelationTrainer -gpu_memory_target 8",
    )
    add_dataset_option(command)
    command.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", help="default: as in nnU-Net")
    command.add_argument(
        "-np",
        dest="processes",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        nargs="+",
        help="processes, one number or one for each -c",
    )
    command.add_argument(
        "-pl", dest="planner", help="planner (ExperimentPlanner; MutualPlanner if --for or --set is given)"
    )
    command.add_argument(
        "-gpu_memory_target",
        dest="gigabytes",
        metavar="GB",
        type=cli_types.positive,
        help="memory of the GPU (default: planner's)",
    )
    command.add_argument(
        "--for", dest="trainer", metavar="TRAINER", help="trainer that MutualPlanner and its ResEnc forms plan for"
    )
    add_settings(command, "its settings")
    command.add_argument(
        "--as-planned",
        metavar="PLANS",
        nargs="?",
        const="nnUNetPlans",
        help="preprocess with plans that are there, without planning (nnUNetPlans)",
    )
    _add_stock_options(command)


def _add_stock_options(command: argparse.ArgumentParser) -> None:
    """Adds options of nnU-Net's own command, and whether the check runs first."""
    command.add_argument(
        "-overwrite_target_spacing",
        dest="spacing",
        metavar="MM",
        type=cli_types.positive,
        nargs="+",
        help="spacing of 3d_fullres, as in nnU-Net: slices, rows, columns",
    )
    command.add_argument("-overwrite_plans_name", dest="plans_name", metavar="NAME", help="of the plans to write")
    command.add_argument("-preprocessor_name", dest="preprocessor", metavar="NAME", help="class of nnU-Net")
    command.add_argument(
        "-npfp",
        dest="fingerprint_processes",
        metavar="NUMBER",
        type=cli_types.at_least(1),
        help="processes for the fingerprint",
    )
    command.add_argument("--no_pp", action="store_true", help="plan only")
    command.add_argument("--clean", action="store_true", help="compute the dataset's fingerprint anew")
    command.add_argument("--no-check", action="store_true", help="do not run nnunet_mutual check first")
    command.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="as in nnU-Net; the check that runs first covers it, so it matters with --no-check only",
    )


def _add_preprocess_unlabelled(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "preprocess_unlabelled",
        _preprocess_unlabelled,
        "preprocess the images in imagesUn, only what is new or has changed",
        "Brings the preprocessed unlabelled images up to date with imagesUn and the plans; labelled cases are not\n"
        "touched. An interrupted run goes on where it stopped.",
        "nnunet_mutual preprocess_unlabelled -d 111 -c 3d_fullres",
    )
    add_dataset_option(command)
    command.add_argument(
        "-c", dest="configurations", metavar="CONFIGURATION", nargs="+", help="default: all that are preprocessed"
    )
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")
    command.add_argument(
        "-np", dest="processes", metavar="NUMBER", type=cli_types.at_least(1), help="processes at most"
    )
    command.add_argument(
        "--soft", metavar="FOLDER", help="soft labels of these images, as of pseudo_label --soft, for SoftLabelTrainer"
    )


def _add_plan(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "plan",
        _plan,
        "add a configuration with another patch, network or training settings, or declare modality groups",
        "Writes a new configuration, named like the base one plus NAME, that inherits from it and holds what differs.\n"
        "It survives re-planning and has its own results folder, with another spacing also its own data. What\n"
        "nnU-Net's networks do not allow is refused, and the memory that is needed is printed. With --groups instead,\n"
        "it writes into dataset.json which channels belong together for MutualCrossModalTrainer, before planning.",
        "nnunet_mutual plan -d 111 -c 3d_fullres --name long --set num_epochs=2000 optimizer=adamw\n"
        "  nnunet_mutual plan -d 111 -c 3d_fullres --name small --patch 64 64 64 --features 16 --set num_epochs=100\n"
        "  nnunet_mutual plan -d 111 -c 3d_fullres --name coarse --spacing 2 2 2",
    )
    add_dataset_option(command)
    command.add_argument("-c", dest="configuration", default="3d_fullres", help="base configuration (%(default)s)")
    command.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (%(default)s)")
    command.add_argument("--name", help="what the new configuration's name ends in")
    size: dict[str, Any] = {"metavar": "NUMBER", "type": cli_types.at_least(1)}
    command.add_argument("--patch", nargs="+", **size, help="voxels of a patch, axes as in the plans")
    command.add_argument("--batch", **size, help="patches in a batch")
    command.add_argument(
        "--features", nargs="+", **size, help="channels of the network's first stage, or of each stage"
    )
    command.add_argument("--stages", **size, help="resolutions of the network (default: as many as nnU-Net would take)")
    per_stage: dict[str, Any] = {"metavar": "Z,Y,X", "type": cli_types.axes, "nargs": "+"}
    command.add_argument("--strides", **per_stage, help="of each stage, the first 1,1,1 (default: nnU-Net's)")
    command.add_argument("--kernels", **per_stage, help="sizes of convolutions of each stage (default: nnU-Net's)")
    command.add_argument("--convs", **size, help="convolutions of a stage (residual networks: blocks), at most")
    command.add_argument(
        "--spacing", metavar="MM", type=cli_types.positive, nargs="+", help="of the voxels, in the same order"
    )
    command.add_argument(
        "--groups", metavar="NAME=CHANNEL[,CHANNEL]", nargs="+", help="modality groups, such as T1=T1 both=T1,FLAIR"
    )
    add_settings(command, "settings, inner ones with a dot (loss.pd=0.5)")


def _plan_and_preprocess(options: argparse.Namespace) -> int:
    from nnunet_mutual.planning.plan_and_preprocess import plan_and_preprocess, preprocess_as_planned
    from nnunet_mutual.planning.stock_options import DEFAULT_CONFIGURATIONS, PREPROCESSOR, StockOptions

    configurations, check = options.configurations or DEFAULT_CONFIGURATIONS, not options.no_check
    if options.as_planned is not None:
        _refuse_planning_options(options)
        preprocess_as_planned(
            options.dataset,
            options.as_planned,
            configurations=configurations,
            processes=options.processes,
            check=check,
        )
        return 0
    plan_and_preprocess(
        options.dataset,
        configurations=configurations,
        processes=options.processes,
        planner=options.planner,
        gigabytes=options.gigabytes,
        trainer=options.trainer,
        settings=options.settings,
        stock=StockOptions(
            options.spacing,
            options.plans_name,
            options.preprocessor or PREPROCESSOR,
            options.fingerprint_processes,
            preprocess=not options.no_pp,
        ),
        clean=options.clean,
        check=check,
        verify=options.verify_dataset_integrity,
    )
    return 0


def _refuse_planning_options(options: argparse.Namespace) -> None:
    planning = {"-pl": "planner", "-gpu_memory_target": "gigabytes", "--for": "trainer", "--set": "settings"}
    planning |= {"-overwrite_target_spacing": "spacing", "-overwrite_plans_name": "plans_name"}
    planning |= {"-preprocessor_name": "preprocessor", "-npfp": "fingerprint_processes", "--no_pp": "no_pp"}
    given = [option for option, name in {**planning, "--clean": "clean"}.items() if getattr(options, name)]
    if given:
        raise MutualError(f"--as-planned plans nothing, so leave {given[0]} out; or leave --as-planned out")


def _preprocess_unlabelled(options: argparse.Namespace) -> int:
    from nnunet_mutual.preprocessing.update import preprocess_unlabelled

    preprocess_unlabelled(
        options.dataset, configurations=options.configurations, plans=options.plans, processes=options.processes
    )
    if options.soft is not None:
        from nnunet_mutual.preprocessing.soft_labels import preprocess_soft

        preprocess_soft(options.dataset, options.soft, plans=options.plans)
        return 0
    from nnunet_mutual.datasets.next_step import say_next

    say_next(options.dataset, plans=options.plans)
    return 0


def _plan(options: argparse.Namespace) -> int:
    names = ("patch", "batch", "features", "stages", "strides", "kernels", "convs", "spacing")
    shape = {name: getattr(options, name) for name in names}
    if options.groups is not None:
        from nnunet_mutual.datasets.declare_groups import declare_groups

        if options.name is not None or options.settings or any(shape.values()):
            raise MutualError("--groups changes the dataset, all other options the plans; run the command twice")
        declare_groups(options.dataset, options.groups)
        return 0
    if options.name is None:
        raise MutualError("give the new configuration a --name, for example: --name long --set num_epochs=2000")
    from nnunet_mutual.planning.configuration import plan
    from nnunet_mutual.planning.shape import Shape

    plan(
        options.dataset,
        configuration=options.configuration,
        plans=options.plans,
        name=options.name,
        settings=options.settings,
        shape=Shape(**shape),
    )
    return 0
