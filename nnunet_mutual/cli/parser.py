"""The command ``nnunet_mutual``: one sub-command per verb.

Nothing heavy is imported before the chosen handler runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nnunet_mutual import __version__
from nnunet_mutual.cli import dataset_commands, result_commands, training_commands, trial_commands, unforeseen
from nnunet_mutual.cli import types as cli_types
from nnunet_mutual.cli.arguments import add_training, names_training
from nnunet_mutual.disk.names import safe_name
from nnunet_mutual.errors import MutualError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

DESCRIPTION = """\
Teaches nnU-Net v2 to learn from data that is not fully labelled. Datasets, planning, training and prediction stay
nnU-Net's own commands; this one declares who annotated what, checks it, and exports stock nnU-Net models."""

EPILOG = """\
from nnU-Net dataset to stock model:
  nnunet_mutual annotate Dataset111_Abdomen cases.csv
  nnunet_mutual check Dataset111_Abdomen
  nnunet_mutual plan_and_preprocess -d 111 -c 3d_fullres
  nnunet_mutual train 111 3d_fullres 0 -tr PartialTrainer
  nnunet_mutual export 111 3d_fullres -tr PartialTrainer -f 0

Exit status: 0 done, 1 doctor or check_images found something, 2 an error, said in one sentence (with its traceback
before it where NNUNET_MUTUAL_TRACEBACK=1 is set), 130 interrupted.

Not a medical device. 'nnunet_mutual COMMAND --help' explains a command."""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, as for every other error.

    Arguments that may be left out may stand between and behind options, as those that may not.
    """

    _reading = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads a command whose arguments may be left out in two passes, options first; all others as usual."""
        if self._reading or not any(action.nargs == "?" for action in self._get_positional_actions()):
            return super().parse_known_args(args, namespace)
        self._reading = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._reading = False

    def error(self, message: str) -> NoReturn:
        raise MutualError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program name; those of the process if not given.

    Returns:
        Exit status: 0 fine, 1 ``doctor`` found problems, 2 an error with one sentence on stderr, 130 interrupted. No
        error leaves it as an exception; the variable NNUNET_MUTUAL_TRACEBACK adds the traceback to the sentence.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = build_parser()
    if not arguments:
        parser.print_help()
        return EXIT_ERROR
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        return _fail(_unknown(arguments[0], commands))
    try:
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise MutualError(
                f"unrecognized arguments: {' '.join(unknown)}; see {parser.prog} {options.command} --help"
            )
        _require_names(options)
        _require_numbers()
        status: int = options.handler(options)
        _flush()
        return status
    except MutualError as error:
        unforeseen.show(error)
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # of '| head': nobody reads any more
        _discard_output()
        return 0
    except Exception as error:  # the last line of defence: a sentence instead of a traceback
        missing = (getattr(error, "name", None) or "").split(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing in ("nnunetv2", "torch"):
            return _fail(
                f"{missing} is not installed for {sys.executable}; install it with: "
                f"{sys.executable} -m pip install 'nnunetv2>=2.8'"
            )
        return _fail(unforeseen.say(error))


def _require_names(options: argparse.Namespace) -> None:
    """Verifies the words that commands make names of files and folders of."""
    for what in (
        "configuration",
        "configurations",
        "fold",
        "folds",
        "trainer",
        "plans",
        "checkpoint",
        "ending",
        "as_planned",
    ):
        given = getattr(options, what, None)
        for name in given if isinstance(given, list) else [] if given is None else [given]:
            safe_name(name, what.removesuffix("s") if what != "plans" else "name of plans")


def _require_numbers() -> None:
    """Verifies the variables that nnU-Net reads as it is imported, in words that do not name them."""
    for name, least in (("nnUNet_def_n_proc", 1), ("nnUNet_n_proc_DA", 0)):
        value = os.environ.get(name, "1")
        if not value.strip().isdecimal() or int(value) < least:
            raise MutualError(
                f"{name} is {value!r}, expected a number of processes from {least}; correct it, or: unset {name}"
            )


def _flush() -> None:
    """Writes what was printed to its end; where that fails, not once more as Python ends.

    Raises:
        OSError: a full disk, or nobody reads.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        raise OSError(error.errno, error.strerror, "the output of this command") from None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser and the names of the sub-commands."""
    parser = _Parser(
        prog="nnunet_mutual",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nnunet_mutual {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, handler: Callable[[argparse.Namespace], int], summary: str, description: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(handler=handler)
        return command

    _add_plugin_commands(add)
    dataset_commands.add_commands(add)
    training_commands.add_commands(add)
    trial_commands.add_commands(add)
    _add_plan(add)
    _add_export(add)
    _add_pseudo_label(add)
    _add_demo(add)
    result_commands.add_commands(add)
    return parser, list(commands.choices)


def _add_plugin_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    add(
        "trainers",
        _trainers,
        "print the value for nnUNet_extTrainer",
        "Prints what nnU-Net's variable for further trainers already holds, plus the folder of this package.",
        'export nnUNet_extTrainer="$(nnunet_mutual trainers)"',
    )
    add(
        "register",
        _register,
        "let nnU-Net find trainers and planners in every shell",
        "Writes two small files into the nnU-Net installation that pass look-ups on to this package. They do nothing\n"
        "once this package is uninstalled; 'nnunet_mutual unregister' removes them.",
        "nnunet_mutual register",
    )
    add(
        "unregister",
        _unregister,
        "undo register",
        "Removes what 'nnunet_mutual register' wrote into the nnU-Net installation, and nothing else.",
        "nnunet_mutual unregister",
    )
    command = add(
        "doctor",
        _doctor,
        "check the installation; every problem comes with the command that fixes it",
        "Shows versions, device, nnU-Net's paths and the active plug-in way, and asks nnU-Net's own finder for every\n"
        "trainer and planner. Exit status 0: all fine, 1: problems were found.",
        "nnunet_mutual doctor",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")


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
    command.add_argument("-d", dest="dataset", metavar="DATASET", required=True, help="dataset name or number")
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
    command.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="settings, inner ones with a dot (loss.pd=0.5)",
    )


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
    command.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="settings of the filter (high=0.8 label=false)",
    )


def _add_demo(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "demo",
        _demo,
        "show the whole path on generated images, in a few minutes on a CPU",
        "Generates a small dataset in which two sites annotate different organs, trains on it with nnU-Net's\n"
        "commands, exports, predicts, and compares with stock nnU-Net.",
        "nnunet_mutual demo",
    )
    command.add_argument("--folder", help="where to work (default: a temporary folder)")
    command.add_argument("--keep", action="store_true", help="keep datasets and models afterwards")


def _unknown(word: str, commands: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, commands, n=1, cutoff=0.5)
    hint = f"did you mean: nnunet_mutual {near[0]}" if near else f"the commands are {', '.join(commands)}"
    return f"nnunet_mutual has no command {word!r}; {hint}"


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return EXIT_ERROR


def _trainers(options: argparse.Namespace) -> int:
    from nnunet_mutual.plugin import find as plugin

    print(plugin.trainers_variable(os.environ.get(plugin.VARIABLE)))
    return 0


def _register(options: argparse.Namespace) -> int:
    from nnunet_mutual.plugin import find as plugin

    for path in plugin.register():
        print(f"wrote {path}")
    print("nnU-Net now finds the trainers in every shell; undo with: nnunet_mutual unregister")
    return 0


def _unregister(options: argparse.Namespace) -> int:
    from nnunet_mutual.plugin import find as plugin

    removed = plugin.unregister()
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print("nothing was registered")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from nnunet_mutual.plugin.doctor import doctor

    return doctor(as_json=options.json)


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


def _demo(options: argparse.Namespace) -> int:
    from nnunet_mutual.demo.run import run_demo

    return run_demo(options.folder, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
