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
from nnunet_mutual.cli import (
    dataset_commands,
    installation_commands,
    network_commands,
    planning_commands,
    result_commands,
    training_commands,
    trial_commands,
    unforeseen,
)
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

Exit status: 0 done, 1 doctor, check_images or demo found something, 2 an error, said in one sentence (with its
traceback before it where NNUNET_MUTUAL_TRACEBACK=1 is set), 130 interrupted.

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

    for group in (
        installation_commands,
        dataset_commands,
        planning_commands,
        training_commands,
        trial_commands,
        network_commands,
        result_commands,
    ):
        group.add_commands(add)
    return parser, list(commands.choices)


def _unknown(word: str, commands: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, commands, n=1, cutoff=0.5)
    hint = f"did you mean: nnunet_mutual {near[0]}" if near else f"the commands are {', '.join(commands)}"
    return f"nnunet_mutual has no command {word!r}; {hint}"


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
