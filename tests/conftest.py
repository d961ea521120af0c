"""Fixtures of all tests: nnU-Net folders of their own, one thread, no worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import blosc2
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["BLOSC_NTHREADS"] = "1"
blosc2.set_nthreads(1)  # from the beginning: threads that once ran do not survive a fork, and the child waits for them
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ.pop("nnUNet_extTrainer", None)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Runs whole folders on all cores, a file on one core (``-n0``: in this process); single files start at once."""
    alone = getattr(config.option, "numprocesses", 0) is None and "PYTEST_XDIST_WORKER" not in os.environ
    if alone and all(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses = os.cpu_count()
        config.option.dist = "loadfile"


@pytest.fixture()
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Points nnUNet_raw, nnUNet_preprocessed and nnUNet_results below a temporary folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield tmp_path


@pytest.fixture()
def forked_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validates in forked processes; the spawned ones of real runs, seen in test_end_to_end, import for ten seconds."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: fork)
