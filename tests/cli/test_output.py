"""What is printed reaches its reader, or one sentence says why not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TRAINERS = "import sys; from nnunet_mutual.cli.parser import main; sys.exit(main(['trainers']))"


def run(output: int) -> tuple[int, str]:
    """Prints into a file descriptor; returns exit status and what is on stderr."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", TRAINERS]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_a_full_disk_under_the_output() -> None:
    with open("/dev/full", "wb") as full:
        status, said = run(full.fileno())
    sentence = "error: the output of this command: the disk is full; free some space, then repeat the command\n"
    assert (status, said) == (2, sentence)


def test_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(writing) == (0, "")
    os.close(writing)
