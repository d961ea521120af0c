"""Worker processes: what Ctrl-C and a kill do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from waiting import has_ended, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and SIGKILL")

HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell may have turned it off
AT_WORK = """
import os, sys, time
from nnunet_mutual.disk.workers import Workers
with Workers(1) as workers:
    try:
        print(workers.submit(os.getpid).result(), flush=True)
        workers.submit(time.sleep, 1)
        END
    except KeyboardInterrupt:
        sys.exit(130)
"""
STARTING = """
from nnunet_mutual.disk.workers import Workers
with Workers(1) as workers:
    try:
        job = workers.submit(len, "abc")
        print("started", flush=True)
        job.result()
    except KeyboardInterrupt:
        print(job.result())
"""


def begin(script: str) -> tuple[subprocess.Popen[str], str]:
    """Runs a script in a process group of its own, as a shell does; returns it with the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_an_interrupt_of_all_is_for_the_command_alone() -> None:
    process, _ = begin(AT_WORK.replace("END", "time.sleep(60)"))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == ""


def test_a_process_that_is_starting_is_not_interrupted() -> None:
    process, _ = begin(STARTING)
    os.killpg(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (printed, said, process.returncode) == ("3\n", "", 0)


def test_they_end_with_a_killed_command() -> None:
    process, number = begin(AT_WORK.replace("END", "os.kill(os.getpid(), 9)"))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: has_ended(int(number)))
