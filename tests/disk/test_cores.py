"""Many cases on all cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from nnunet_mutual.disk import cores
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.errors import MutualError

WORDS = [f"word{i}" for i in range(40)]


@pytest.fixture(autouse=True)
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    yield
    assert multiprocessing.active_children() == []


def test_results_are_in_the_order_of_the_cases() -> None:
    assert list(each_case(str.upper, WORDS, doing="reading")) == [word.upper() for word in WORDS]


def test_an_error_in_a_process_is_that_of_the_command() -> None:
    with pytest.raises(ValueError, match="word0"):
        list(each_case(int, WORDS, doing="reading"))


def test_an_interruption_ends_the_processes() -> None:
    results = each_case(str.upper, WORDS, doing="reading")
    assert next(results) == "WORD0" and multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined] # a generator
    assert multiprocessing.active_children() == []


def test_a_process_that_the_system_ends_is_said() -> None:
    with pytest.raises(MutualError, match="a process that was reading cases was ended by the system.*n_proc=1"):
        list(each_case(exec, ["import os; os._exit(9)"] * 40, doing="reading cases"))


def test_few_cases_need_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "Workers", None)
    assert list(each_case(str.upper, WORDS[: cores.FEW - 1], doing="reading")) == [w.upper() for w in WORDS[:31]]
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    assert len(list(each_case(str.upper, WORDS, doing="reading"))) == 40
