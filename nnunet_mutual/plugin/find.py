"""Makes nnU-Net find the classes of this package, in the two ways that nnU-Net allows.

1. ``nnUNet_extTrainer``, nnU-Net's own variable for folders with further trainers. `trainers_variable` gives its value.
   It names the folder ``shim/``, never the package itself: nnU-Net imports every module of a named folder and then
   forgets it again, so a class that is defined there is a second copy of the installed one and cannot be pickled.
2. `register` copies the same shim into the nnU-Net installation, once for trainers and once for planners, because
   planners are looked up nowhere else. `unregister` removes exactly what was written.

A shim holds no class. It answers only the names in ``__all__`` of `nnunet_mutual.trainers` (or ``planners``), so the
many look-ups of nnU-Net's own classes pass through it without importing anything heavy.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError

VARIABLE = "nnUNet_extTrainer"
EXPORT_COMMAND = f'export {VARIABLE}="$(nnunet_mutual trainers)"'
SHIM_FOLDER = Path(__file__).resolve().parent / "shim"
SHIM = SHIM_FOLDER / "nnunet_mutual_trainers.py"

# Where the copies go, relative to the nnunetv2 package: the folders that nnU-Net searches for either kind of class.
REGISTERED = {
    "trainers": "training/nnUNetTrainer/nnunet_mutual_trainers.py",
    "planners": "experiment_planning/experiment_planners/nnunet_mutual_planners.py",
}
RECORD = "nnunet_mutual_registered.json"


@functools.cache
def public_names(kind: str) -> tuple[str, ...]:
    """Return the class names that nnU-Net may ask for, without importing the classes.

    Args:
        kind: ``"trainers"`` or ``"planners"``.

    Returns:
        ``__all__`` of ``nnunet_mutual.<kind>``, read from its source; empty if the sub-package cannot be found.
    """
    spec = importlib.util.find_spec(f"nnunet_mutual.{kind}")
    if spec is None or spec.origin is None:
        return ()
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return tuple(ast.literal_eval(value))
    return ()


def resolve(kind: str, name: str) -> Any:
    """Return the public class ``name`` of ``nnunet_mutual.<kind>``: the body of the shims' ``__getattr__``.

    Args:
        kind: ``"trainers"`` or ``"planners"``.
        name: attribute that somebody, usually ``hasattr`` in nnU-Net's finder, asks the shim for.

    Raises:
        AttributeError: not a public name. Nothing but this module has been imported then.
        ImportError: the name is public but its module cannot be imported. It is not hidden, because then nnU-Net would
            say "not found" where the truth is, say, a missing library.
    """
    if name.startswith("_") or name not in public_names(kind):
        raise AttributeError(f"nnunet_mutual.{kind} has no public name {name!r}")
    return getattr(importlib.import_module(f"nnunet_mutual.{kind}"), name)


def training_names() -> tuple[str, ...]:
    """Return the names of the trainers of this package that train; the others only predict."""
    return tuple(name for name in public_names("trainers") if name.endswith("Trainer"))


def is_built_on_ours(trainer: type) -> bool:
    """Tell whether a class of trainers is one of this package, or somebody's own one that is built on them."""
    return any(cls.__module__.startswith("nnunet_mutual.trainers.") for cls in trainer.__mro__)


def trainers_variable(current: str | None) -> str:
    """Return the value for ``nnUNet_extTrainer``: what it already holds, then our folder, nothing twice.

    Args:
        current: present value of the variable, ``None`` if it is not set.
    """
    entries: dict[str, str] = {}
    for entry in [*(current or "").split(os.pathsep), str(SHIM_FOLDER)]:
        if entry.strip():
            entries.setdefault(os.path.realpath(entry), entry)
    return os.pathsep.join(entries.values())


def variable_has_shim(current: str | None) -> bool:
    """Tell whether a folder named by the variable's value holds the shim (of this or another copy of the package)."""
    return any(
        entry.strip() and os.path.isfile(os.path.join(entry, SHIM.name)) for entry in (current or "").split(os.pathsep)
    )


def nnunet_folder() -> Path:
    """Return the folder of the installed nnunetv2 package, found without importing it (that takes seconds).

    Raises:
        MutualError: nnunetv2 is not installed for this Python.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise MutualError(
            f"nnU-Net is not installed for {sys.executable}; "
            f"install it with: {sys.executable} -m pip install 'nnunetv2>=2.8'"
        )
    return Path(list(spec.submodule_search_locations)[0])


def registered_files(folder: Path | None = None) -> dict[Path, str]:
    """Return the files that `register` wrote, with the SHA-256 of what it wrote; empty if it was not called.

    Args:
        folder: the nnunetv2 package; the installed one if not given.

    Raises:
        MutualError: the record cannot be read or names a file that `register` never writes.
    """
    folder = nnunet_folder() if folder is None else folder
    record = folder / RECORD
    if not record.exists():
        return {}
    try:
        files = dict(json.loads(record.read_text(encoding="utf-8"))["files"])
        unknown = sorted(set(files) - set(REGISTERED.values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MutualError(
            f"the record of registered files, {record}, cannot be read ({error}); delete it and the files "
            f"{', '.join(str(folder / path) for path in REGISTERED.values())}, then run: nnunet_mutual register"
        ) from error
    if unknown:
        raise MutualError(
            f"the record of registered files, {record}, names {unknown[0]!r}, which nnunet_mutual never writes; "
            "remove this line from it"
        )
    return {folder / path: digest for path, digest in files.items()}


def register() -> list[Path]:
    """Copy the shims into the nnU-Net installation, so that ``-tr`` and ``-pl`` find our classes in every shell.

    The shims are inert once this package is uninstalled. Calling it again refreshes them.

    Returns:
        The files written.

    Raises:
        MutualError: nnU-Net is not installed, its folder cannot be written, or a file of somebody else is in the way.
            Nothing is left behind then.
    """
    folder = nnunet_folder()
    if not (folder / "training" / "nnUNetTrainer" / "nnUNetTrainer.py").is_file():
        raise MutualError(
            f"{folder} is not a complete nnU-Net installation (it has no training/nnUNetTrainer/nnUNetTrainer.py); "
            f"repair it with: {sys.executable} -m pip install --force-reinstall --no-deps 'nnunetv2>=2.8'"
        )
    content = SHIM.read_bytes()
    known = registered_files(folder)
    targets = [folder / path for path in REGISTERED.values()]
    for target in targets:
        if target not in known and target.exists() and target.read_bytes() != content:
            raise MutualError(f"{target} exists and nnunet_mutual has not written it; rename or delete it first")

    # A record of a file that is not there yet does no harm, a file that no record knows of does: record first.
    digest = hashlib.sha256(content).hexdigest()
    record = json.dumps({"version": 1, "files": dict.fromkeys(REGISTERED.values(), digest)}, indent=2) + "\n"
    try:
        _write(folder / RECORD, record.encode())
        for target in targets:
            _write(target, content)
    except OSError as error:
        if not known:
            _remove([*targets, folder / RECORD])
        raise MutualError(
            f"the nnU-Net installation {folder} cannot be written ({error.strerror or error}); "
            f"use nnU-Net's variable instead: {EXPORT_COMMAND}"
        ) from error
    return targets


def unregister() -> list[Path]:
    """Remove what `register` wrote, and nothing else.

    Returns:
        The files removed, without the record; empty if nothing was registered.

    Raises:
        MutualError: a registered file was changed since, or the folder cannot be written. A changed file is kept, and
            so are all others.
    """
    folder = nnunet_folder()
    files = registered_files(folder)
    for path, digest in files.items():
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise MutualError(
                f"{path} was changed after nnunet_mutual had written it; keep a copy if you need it, delete it, "
                "then run again: nnunet_mutual unregister"
            )
    present = [path for path in files if path.exists()]
    try:
        _remove([*files, folder / RECORD])
    except OSError as error:
        raise MutualError(
            f"{error.filename} cannot be removed ({error.strerror}); "
            "run nnunet_mutual unregister as the user who owns the nnU-Net installation"
        ) from error
    return present


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then move it in place: nnU-Net may be importing the folder meanwhile."""
    with written(path) as temporary:
        temporary.write_bytes(content)


def _remove(paths: Iterable[Path]) -> None:
    """Remove files that may be missing, with their byte code.

    A missing file is not touched at all: on a read-only file system even that is an error.
    """
    for path in paths:
        for file in [*(path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"), path]:
            if file.exists():
                file.unlink()
