"""Fixtures of all tests: nnU-Net folders of their own, one thread, no workers for loading, pools that fork."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import blosc2
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["BLOSC_NTHREADS"] = "1"
blosc2.set_nthreads(1)  # from the beginning: threads that once ran do not survive a fork, and the child waits for them
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ.pop("nnUNet_extTrainer", None)

contexts = multiprocessing.get_context


def forking(method: str | None = None) -> multiprocessing.context.BaseContext:
    """The context in which processes that would import nnU-Net for seconds are forked instead."""
    return contexts("fork" if method == "spawn" else method)


if sys.platform == "linux":
    multiprocessing.get_context = forking
multiprocessing.Pool = ThreadPool  # nnU-Net starts twelve processes each time that it lists the images of a folder


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Runs whole folders on all cores, a file on one core (``-n0``: in this process); single files start at once."""
    alone = getattr(config.option, "numprocesses", 0) is None and "PYTEST_XDIST_WORKER" not in os.environ
    if alone and all(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses = os.cpu_count()
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests come first: they take long, and at the end would keep one core at work while others wait."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: tests[item.path])


@pytest.fixture()
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Points nnUNet_raw, nnUNet_preprocessed and nnUNet_results below a temporary folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield tmp_path


@pytest.fixture()
def spawned_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of real runs, in processes that know nothing of this one."""
    monkeypatch.setattr(multiprocessing, "get_context", contexts)


@pytest.fixture()
def few_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint of 10,000 drawn voxels; nnU-Net draws a hundred million, however small the images are."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    number = property(lambda extractor: 10_000, lambda extractor, value: None)
    monkeypatch.setattr(DatasetFingerprintExtractor, "num_foreground_voxels_for_intensitystats", number, raising=False)


@pytest.fixture(autouse=True)
def variables_are_restored() -> Iterator[None]:
    """A test that leaves nnU-Net's variables changed would decide what later ones find in the same process."""

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}

    before = variables()
    yield
    os.environ.pop("nnUNet_extTrainer", None)  # which nnunet_mutual train sets for its process
    assert variables() == before
