"""The sub-commands of ``nnunet_mutual`` for what trained networks give; handlers import what they need."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_settings, add_training, names_training
from nnunet_mutual.errors import MutualError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
    _add_export(add)
    _add_pseudo_label(add)


def _add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "export",
        _export,
        "make a stock nnU-Net model of a training",
        "Writes a model folder that predicts, zips and installs with unmodified nnU-Net commands, without this\n"
        "package, and prints the command to predict with.",
        "nnunet_mutual export 111 3d_fullres -tr PartialTrainer -f 0 1 2 3 4",
    )
    add_training(command)
    command.add_argument(
        "-f", dest="folds", metavar="FOLD", nargs="+", required=True, type=cli_types.fold, help="folds, or 'all'"
    )
    command.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    command.add_argument(
        "--name", dest="output_name", help="plans name of the exported model (default: made from them)"
    )
    command.add_argument(
        "--peers",
        action="store_true",
        help="export all networks that learnt together in one fold, as an ensemble; network p becomes fold_p",
    )
    command.add_argument(
        "--container",
        metavar="FOLDER",
        help="also write a new folder that a container of the model is built from, as challenges ask for",
    )
    command.add_argument(
        "--validate",
        action="store_true",
        help="predict the validation cases first, with this checkpoint: of a training that was stopped",
    )
    command.add_argument(
        "--compared",
        metavar="NUMBER",
        type=cli_types.at_least(0),
        default=5,
        help="of modality groups: validation cases to compare the models with the training on (%(default)s; 0: none)",
    )


def _add_pseudo_label(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "pseudo_label",
        _pseudo_label,
        "label what training cases do not annotate, with a trained network or with masks of other tools",
        "Predicts the training cases with the networks of a checkpoint, keeps what they are sure of, and writes every\n"
        "decision with its reason into a CSV, in a folder beside the checkpoint. It can be interrupted and repeated.\n"
        "MutualPartialTrainer does this by itself; here one can look first, or try another filter. With --from, masks\n"
        "of other tools are judged instead, without a training, or with one whose network is the second opinion;\n"
        "'nnunet_mutual review' shows them.",
        "nnunet_mutual pseudo_label 111 3d_fullres 0 -tr PartialTrainer -o labels_to_look_at\n"
        "  nnunet_mutual pseudo_label 111 --from totalsegmentator_out --map kidney_left=kidney kidney_right=kidney\n"
        "  nnunet_mutual pseudo_label 111 3d_fullres 0 -tr PartialTrainer --from totalsegmentator_out",
    )
    add_training(command, fold=True, optional=True)
    command.add_argument(
        "--from",
        dest="masks",
        metavar="FOLDER",
        action="append",
        default=[],
        help="masks of another tool (CASE.nii.gz, CASE.npz, or CASE/organ.nii.gz); a second --from, or a training, "
        "measures agreement",
    )
    command.add_argument(
        "--map",
        dest="names",
        metavar="NAME=LABEL",
        nargs="+",
        action="extend",
        default=[],
        help="of --from: what the tool's names mean; several may make one label, and NAME= is left out",
    )
    command.add_argument(
        "--tool", dest="tools", metavar="NAME", action="append", default=[], help="of --from: who made it, with version"
    )
    command.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    command.add_argument("-o", dest="output", metavar="FOLDER", help="also write label maps of drawn and pseudo labels")
    command.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where (%(default)s)")
    command.add_argument(
        "--soft",
        action="store_true",
        help="instead, predict the images in imagesUn and write probabilities (-o), for another model to learn from",
    )
    add_settings(command, "settings of the filter (high=0.8 label=false)")


def _export(options: argparse.Namespace) -> int:
    from nnunet_mutual.export.command import export

    export(
        options.dataset,
        options.configuration,
        trainer=options.trainer,
        plans=options.plans,
        folds=options.folds,
        checkpoint=options.checkpoint,
        output_name=options.output_name,
        peers=options.peers,
        compared=options.compared,
        container=options.container,
        validate=options.validate,
    )
    return 0


def _pseudo_label(options: argparse.Namespace) -> int:
    named = names_training(options, "pseudo_label")
    if options.masks:
        return _label_with_masks(options, named)
    if options.names or options.tools:
        raise MutualError("--map and --tool speak of masks of other tools; name their folder with --from FOLDER")
    if not named:
        raise MutualError(
            "pseudo_label needs a training (CONFIGURATION FOLD -tr TRAINER), or masks of another tool (--from FOLDER); "
            "see nnunet_mutual pseudo_label --help"
        )
    if options.soft:
        return _soft_label(options)
    from nnunet_mutual.pseudo_labels.command import pseudo_label

    pseudo_label(
        options.dataset,
        options.configuration,
        options.fold,
        trainer=options.trainer,
        plans=options.plans,
        checkpoint=options.checkpoint,
        output=options.output,
        device=options.device,
        settings=options.settings,
    )
    return 0


def _label_with_masks(options: argparse.Namespace, named: bool) -> int:
    if options.soft or options.output is not None:
        raise MutualError(
            "--from knows neither --soft nor -o: masks of other tools become pseudo labels, which review shows; leave "
            "that option out"
        )
    from nnunet_mutual.disk.locate import locate
    from nnunet_mutual.disk.trainings import NamedTraining
    from nnunet_mutual.pseudo_labels.masks.make import label_with_masks
    from nnunet_mutual.pseudo_labels.masks.own import OwnNetwork

    network = None
    if named:
        words = options.configuration, options.fold, options.trainer, options.plans
        network = OwnNetwork(NamedTraining(locate(options.dataset).name, *words), options.checkpoint, options.device)
    label_with_masks(
        options.dataset,
        options.masks,
        said=options.names,
        tools=options.tools,
        settings=options.settings,
        network=network,
    )
    return 0


def _soft_label(options: argparse.Namespace) -> int:
    from nnunet_mutual.pseudo_labels.soft_prediction import write_soft_labels

    if options.output is None or options.settings:
        raise MutualError("--soft needs a folder for the soft labels, -o FOLDER, and knows no --set")
    write_soft_labels(
        options.dataset,
        options.configuration,
        options.fold,
        trainer=options.trainer,
        plans=options.plans,
        checkpoint=options.checkpoint,
        output=options.output,
        device=options.device,
    )
    return 0
