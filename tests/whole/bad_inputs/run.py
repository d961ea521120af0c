"""Runs rows in forked children, so that nnU-Net is imported once and an abort of a C library ends one row only."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from bad_inputs.rows import FOLD, Row
from nnunet_mutual.cli import unforeseen
from nnunet_mutual.cli.parser import main

SECONDS = 240  # that a row may take
SMALL = 64  # bytes that a file on a "full" disk may have
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def outcome(row: Row, world: Path) -> tuple[str, list[str]]:
    """Breaks a copy of the world, runs the command in it.

    Returns:
        The sentence, with the folder of the copy left out, and what is wrong about it.
    """
    with tempfile.TemporaryDirectory(prefix="bad_input_") as scratch:
        root = Path(scratch) / "world"
        shutil.copytree(world, root, symlinks=True)
        Path(scratch).chmod(0o755)
        row.spoil(root)
        anew = row.command.startswith("train ") and not {"--c", "--val"} & {*row.command.split()}
        if anew:  # a finished training is never written over
            (root / FOLD / "checkpoint_final.pth").unlink(missing_ok=True)
        before = _listing(root)
        status, out, err = _in_child(row, root)
        after = _listing(root)
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        sentence = (said[-1] if said else "").removeprefix("error: ")
        if row.command.startswith("check ") and not said:
            sentence = out
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        changed = [name for name in changed if not name.startswith(row.leaves or ("\0",)) and not _is_log(name)]
        faults = [f"exit status {status}"] if status != 2 else []
        faults += [f"{len(said)} sentences"] if len(said) > 1 or not sentence else []
        faults += ["traceback"] if "Traceback" in out + err and not os.environ.get(unforeseen.VARIABLE) else []
        faults += ["generic"] if unforeseen.GENERIC in sentence else []
        faults += [f"does not say {word!r}" for word in row.words if word not in sentence]
        faults += [f"changed {', '.join(changed[:5])}"] if changed else []
        shown = sentence.replace(str(root.resolve()), "").replace(str(root), "") or err[-1500:]
        return shown, faults


def _is_log(name: str) -> bool:
    """nnU-Net writes a log file of every start of a training; that is no result."""
    return "/training_log_" in name


def _in_child(row: Row, root: Path) -> tuple[int, str, str]:
    """Returns exit status (minus the signal, of a killed child), stdout and stderr."""
    pipes = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for (reading, writing), target in zip(pipes, (1, 2), strict=True):
            os.close(reading)
            os.dup2(writing, target)
        _run_and_exit(row, root)
    found: list[bytes] = [b"", b""]

    def read(number: int) -> None:
        with os.fdopen(pipes[number][0], "rb") as stream:
            found[number] = stream.read()

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for (_, writing), reader in zip(pipes, readers, strict=True):
        os.close(writing)
        reader.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):  # loaders of a training that was ended by a signal or os._exit
        os.killpg(child, signal.SIGKILL)
    for reader in readers:
        reader.join()
    return status, found[0].decode(errors="replace"), found[1].decode(errors="replace")


def _run_and_exit(row: Row, root: Path) -> None:
    status = 99
    try:
        signal.alarm(SECONDS)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="backslashreplace", closefd=False) for n in (1, 2))
        os.chdir(root)
        os.environ |= {name: str(root / name) for name in ROOTS}
        for name, value in row.environment:
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value.format(root=root)
        with _limited(row.limits, root):
            status = main(shlex.split(row.command.format(root=root)))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def _limited(limits: str, root: Path) -> Iterator[None]:
    if limits == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))
    if limits == "read-only":
        for folder, _, files in os.walk(os.fsencode(root)):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chmod(path, os.stat(path).st_mode & 0o555)
        _obey_modes()
    yield


def _obey_modes() -> None:
    """Takes from root what lets it write everywhere: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER."""
    library = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    sets[0] &= ~0b1110  # effective
    assert library.capset(header, sets) == 0


def _listing(root: Path) -> dict[str, str]:
    """Hashes of files, targets of links."""
    found = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            path = os.path.join(folder, name)
            shown = os.fsdecode(path)[len(str(root)) + 1 :]
            if os.path.islink(path):
                found[shown] = os.fsdecode(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    found[shown] = hashlib.sha256(stream.read()).hexdigest()
            else:
                found[shown] = "folder"
    return found
