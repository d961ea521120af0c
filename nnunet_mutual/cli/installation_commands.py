"""The sub-commands of ``nnunet_mutual`` about its installation, and the demo; handlers import what they need."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the sub-commands.

    Args:
        add: makes a sub-command of (name, handler, summary, description, example).
    """
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
    _add_demo(add)


def _add_demo(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "demo",
        _demo,
        "show the whole path on generated images, in a few minutes on a CPU",
        "Generates a small dataset in which two sites annotate different organs, trains on it with nnU-Net's\n"
        "commands, exports, predicts, and compares with stock nnU-Net.",
        "nnunet_mutual demo",
    )
    command.add_argument("--folder", help="where to work (default: nnunet_mutual_demo in the current folder)")
    command.add_argument("--keep", action="store_true", help="keep datasets and models afterwards")


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


def _demo(options: argparse.Namespace) -> int:
    from nnunet_mutual.demo.run import run_demo

    return run_demo(options.folder, keep=options.keep)
