"""``nnunet_mutual doctor``: is everything in place, and if not, which command puts it there."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_mutual import __version__
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin import find as plugin
from nnunet_mutual.plugin.compat import TESTED_NNUNET, cpu_computes_bfloat16, release

# What nnU-Net and this package cannot do without, by the names of their distributions.
LIBRARIES = (
    *(
        "batchgenerators",
        "batchgeneratorsv2",
        "acvl-utils",
        "dynamic-network-architectures",
        "blosc2",
        "numpy",
        "scipy",
    ),
    *("scikit-image", "SimpleITK", "nibabel", "pandas", "matplotlib", "jinja2", "openpyxl"),
)
OPTIONAL = {"wandb": "nnU-Net's log in Weights & Biases (nnUNet_wandb_enabled=1)"}
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: ``"ok"``, ``"note"`` (worth knowing, nothing to repair) or ``"problem"``.
        found: what was found, in words.
        fix: the command that repairs it, empty where there is nothing to repair.
    """

    name: str
    state: str
    found: str
    fix: str = ""


def doctor(*, as_json: bool = False) -> int:
    """Print the report.

    Args:
        as_json: print one JSON object instead of lines.

    Returns:
        0 if no check found a problem, else 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between torch and its users are nothing a reader could repair
        checks = collect()
    problems = [check for check in checks if check.state == PROBLEM]
    if as_json:
        print(json.dumps({"ok": not problems, "checks": [asdict(check) for check in checks]}, indent=2))
        return 1 if problems else 0
    for check in checks:
        print(f"{check.state.upper() if check.state == PROBLEM else check.state:8} {check.name:30} {check.found}")
        if check.fix:
            print(f"{'':8} {'':30} -> {check.fix}")
    if problems:
        print(
            f"\n{len(problems)} problem{'s' * (len(problems) > 1)}; each line with -> is the command that repairs it."
        )
    else:
        print("\nEverything is in place. Next: nnunet_mutual demo, or with your own data: nnunet_mutual check DATASET")
    return 1 if problems else 0


def collect() -> list[Check]:
    """Run all checks, the cheap ones first."""
    checks = [*check_versions(), *check_paths(), *check_device()]
    checks += check_plugin()
    # The finder imports whatever the variable names. Where that is known to be harmful, repair it first; and where
    # nnU-Net does not know us, its search would only say so again, once for each trainer.
    states = {check.name: check.state for check in checks}
    if PROBLEM not in (states["nnunetv2"], states.get(plugin.VARIABLE), states["plug-in"]):
        checks += check_finder(known=states["plug-in"] == OK)
    return checks


def check_versions() -> Iterator[Check]:
    """Python, this package, nnU-Net, PyTorch, and the libraries in which their behaviour can differ."""
    yield Check("python", OK, f"{platform.python_version()} ({sys.executable})")
    yield Check("nnunet_mutual", OK, f"{__version__} ({Path(__file__).resolve().parents[1]})")
    yield check_nnunet()
    yield check_torch()
    found = {name: _version(name) for name in LIBRARIES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield Check("libraries", PROBLEM, f"not installed: {', '.join(missing)}", _pip(" ".join(missing)))
    else:
        yield Check("libraries", OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Check(name, NOTE, f"optional, not installed; only for {purpose}:", _pip(name))
        else:
            yield Check(name, OK, f"{version}, optional, for {purpose}")


def check_nnunet() -> Check:
    """The nnunetv2 installation: there, whole, and of a version that the tests have seen."""
    install = _pip(shlex.quote("nnunetv2>=2.8"))
    try:
        folder = plugin.nnunet_folder()
    except MutualError:
        return Check("nnunetv2", PROBLEM, "not installed", install)
    version = _version("nnunetv2")
    if version is None or not (folder / "__init__.py").is_file():
        return Check("nnunetv2", PROBLEM, f"{folder} is only what an uninstalled nnU-Net left behind", install)
    first, last = TESTED_NNUNET
    found = f"{version} ({folder})"
    if release(version) < release(first):
        return Check("nnunetv2", PROBLEM, f"{found}; {first} is the oldest that works", install)
    if release(version) > release(last):
        return Check("nnunetv2", NOTE, f"{found}; newer than the tested range {first} to {last}")
    return Check("nnunetv2", OK, f"{found}; tested: {first} to {last}")


def check_torch() -> Check:
    """PyTorch: there, and not the series that nnU-Net excludes."""
    version = _version("torch")
    if version is None:
        return Check("torch", PROBLEM, "not installed", _pip("torch"))
    if release(version)[:2] == (2, 9):
        return Check("torch", PROBLEM, f"{version}; nnU-Net excludes 2.9", _pip(shlex.quote("torch!=2.9.*")))
    return Check("torch", OK, version)


def check_device() -> Iterator[Check]:
    """The device that nnU-Net will train on, and whether it computes in bfloat16."""
    if _version("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways; the report must still be printed
        yield Check("device", PROBLEM, f"torch cannot be imported: {error}", _pip("--force-reinstall torch"))
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            native = card.major >= 8
            yield Check("device", OK, f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GiB, {_bf16(native)}")
    elif torch.backends.mps.is_available():
        yield Check("device", OK, "mps (pass -device mps to nnU-Net's commands)")
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Check(
            "device",
            NOTE,
            f"cpu only, {cores} cores, {_bf16(cpu_computes_bfloat16())}; full-size trainings need a GPU "
            "(pass -device cpu to nnU-Net's commands)",
        )


def check_paths() -> Iterator[Check]:
    """nnU-Net's three folders: set, there, writable."""
    for name in PATHS:
        value = os.environ.get(name)
        if not value:
            yield Check(name, PROBLEM, "not set", f"export {name}=/path/to/{name}   # any folder of yours")
        elif not os.path.isdir(value):
            yield Check(name, PROBLEM, f"{value} is not a folder", f"mkdir -p {shlex.quote(value)}")
        elif os.access(value, os.W_OK | os.X_OK):
            yield Check(name, OK, value)
        elif name == "nnUNet_raw":
            yield Check(name, NOTE, f"{value} is read-only: annotate cannot write dataset.json there")
        else:
            yield Check(name, PROBLEM, f"{value} is not writable", f"chmod u+rwx {shlex.quote(value)}")


def check_plugin() -> Iterator[Check]:
    """Which of the two plug-in ways is active, and whether the variable names folders that do harm."""
    value = os.environ.get(plugin.VARIABLE)
    entries = [entry for entry in (value or "").split(os.pathsep) if entry.strip()]
    harmful = [entry for entry in entries if os.path.isfile(os.path.join(entry, "setup.py"))]
    good = os.pathsep.join(entry for entry in entries if entry not in harmful)
    if harmful:
        yield Check(
            plugin.VARIABLE,
            PROBLEM,
            f"{harmful[0]} is a source checkout: nnU-Net imports every file in it, setup.py included",
            f"export {plugin.VARIABLE}={shlex.quote(plugin.trainers_variable(good))}",
        )
    for entry in entries:
        if not os.path.isdir(entry):
            yield Check(plugin.VARIABLE, NOTE, f"{entry} is not a folder, nnU-Net skips it")

    by_variable = plugin.variable_has_shim(value)
    try:
        registered = plugin.registered_files()
    except MutualError as error:
        yield Check("plug-in", PROBLEM, str(error), "nnunet_mutual register")
        return
    missing = [path for path in registered if not path.exists()]
    if missing:
        yield Check("plug-in", PROBLEM, f"registered, but {missing[0]} is gone", "nnunet_mutual register")
    ways = [f"the variable {plugin.VARIABLE}"] * by_variable + ["registered in nnU-Net"] * bool(registered)
    if ways:
        yield Check("plug-in", OK, " and ".join(ways))
    else:
        yield Check(
            "plug-in",
            NOTE,
            "nnunet_mutual train works as it is; for nnUNetv2_train, in this shell:",
            f"{plugin.EXPORT_COMMAND}   # or, for every shell: nnunet_mutual register",
        )


def check_finder(*, known: bool = True) -> Iterator[Check]:
    """Import each of our trainers and planners, and ask nnU-Net's own finder for it; what is alike is one line.

    Args:
        known: whether nnU-Net knows this package at all.
    """
    try:
        import nnunetv2
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except Exception as error:  # as for torch: any failure is a finding, not a reason to stop
        reinstall = _pip("--force-reinstall --no-deps " + shlex.quote("nnunetv2>=2.8"))
        yield Check("nnunetv2 import", PROBLEM, f"{type(error).__name__}: {error}", reinstall)
        return

    def find_planner(name: str) -> object:
        folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
        return recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")

    find_trainer = recursive_find_trainer_class_by_name if known else None
    yield from _together(
        "trainers", [_found("trainer", name, find_trainer, plugin.EXPORT_COMMAND) for name in plugin.training_names()]
    )
    names = plugin.public_names("planners")
    register = "nnunet_mutual register"
    yield from _together(
        "planners", [_found("planner", name, find_planner if known else None, register, needed=False) for name in names]
    )


def _together(kind: str, checks: Sequence[Check]) -> list[Check]:
    """Returns one check for all that are alike: one cause, one line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        alike.setdefault((check.state, check.found, check.fix), []).append(check.name)
    return [Check(kind, state, f"{', '.join(names)}: {found}", fix) for (state, found, fix), names in alike.items()]


def _found(kind: str, name: str, find: Callable[[str], object] | None, fix: str, *, needed: bool = True) -> Check:
    """Look up one class; it counts as found only if it is the installed class itself.

    Planners need not be found by nnU-Net: nnunet_mutual plan_and_preprocess knows them. Without ``find`` it is only
    imported.
    """
    try:
        own = getattr(importlib.import_module(f"nnunet_mutual.{kind}s"), name)
    except ModuleNotFoundError as error:
        return Check(name, PROBLEM, f"cannot be imported: {error}", _pip((error.name or "").split(".")[0]))
    except Exception as error:  # for example a compiled library that does not fit this system
        return Check(name, PROBLEM, f"cannot be imported: {type(error).__name__}: {_line(error)}", "")
    if find is None:
        return Check(name, OK, "can be imported")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints where it looks
            found = find(name)
    except Exception as error:
        return Check(name, PROBLEM, f"nnU-Net's search ends in {type(error).__name__}: {_line(error)}", fix)
    if found is None and not needed:
        return Check(name, NOTE, "for nnunet_mutual plan_and_preprocess; nnUNetv2_plan_and_preprocess needs:", fix)
    if found is None:
        return Check(name, PROBLEM, "nnU-Net does not find it", fix)
    if found is not own:
        where = getattr(found, "__module__", "an unnamed module")
        return Check(name, PROBLEM, f"nnU-Net finds another class of this name in {where}; rename that one", fix)
    return Check(name, OK, "nnU-Net finds it")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip(arguments: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {arguments}"


def _bf16(supported: bool) -> str:
    return "bfloat16" if supported else "no bfloat16"
