"""Fresh interpreters, and a copy of this one, for tests of what happens outside the test process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

NNUNET_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")


def environment(*first_on_path: Path, **variables: str) -> dict[str, str]:
    """The environment of a user's shell: no nnU-Net variable but the given ones, folders put before all packages."""
    env = {key: value for key, value in os.environ.items() if key not in NNUNET_VARIABLES}
    path = [*map(str, first_on_path), *filter(None, [env.get("PYTHONPATH")])]
    env |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env | variables


def run(arguments: Sequence[str], folder: Path, env: Mapping[str, str], status: int = 0) -> str:
    """Run Python with arguments in a folder outside the checkout; return stdout, fail unless it ends in ``status``."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=dict(env), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_code(code: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run source code in a fresh interpreter."""
    return run(["-c", code], folder, env)


def run_cli(arguments: Sequence[str], folder: Path, env: Mapping[str, str], status: int = 0) -> str:
    """Run ``nnunet_mutual`` in a fresh interpreter."""
    return run(["-m", "nnunet_mutual.cli.parser", *arguments], folder, env, status)


def status_of_copy(work: Callable[[], object]) -> int:
    """Do what may end a process in a copy of this one; return its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(work: Callable[[], object], renames: int) -> None:
    """Do something in a copy of this process that is killed instead of the next rename after so many."""

    def counted_work() -> None:
        replace, left = os.replace, renames

        def counted(*names: str | Path) -> None:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            replace(*names)

        os.replace = counted  # type: ignore[assignment]
        work()

    assert status_of_copy(counted_work) == -signal.SIGKILL


def run_code_in_copy(code: str, folder: Path, env: Mapping[str, str]) -> None:
    """Run source code in a copy of this process that imports nnU-Net and this package anew, but no other library."""

    def work() -> None:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
        for name in list(sys.modules):
            if name.split(".")[0] in ("nnunetv2", "nnunet_mutual"):
                del sys.modules[name]
        exec(code, {"__name__": "__main__"})

    assert status_of_copy(work) == 0
