"""A command in a process of its own: how long it took, how much memory, how long it was silent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POLL = 0.5  # seconds
AT_WORK = re.compile(rb"\b[1-9]\d*/\d+ \[")  # a progress bar whose first cases are done


def watch(command: Sequence[str], *, interrupt: bool = False) -> dict[str, Any]:
    """Runs a command to its end.

    Args:
        command: the program and its arguments.
        interrupt: give it a Ctrl-C once it says that it has done some cases.

    Returns:
        ``status``, ``seconds`` by the clock and ``processor_seconds`` of all its processes, ``peak_bytes`` of them
        together, the longest ``silent_seconds``, and the ``end`` of what it said.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_heed
    )
    said: list[tuple[float, bytes]] = []

    def listen() -> None:
        assert process.stdout is not None
        pending = interrupt
        while part := os.read(process.stdout.fileno(), 1 << 16):
            said.append((time.monotonic(), part))
            if pending and AT_WORK.search(part):
                pending = False
                os.killpg(process.pid, signal.SIGINT)

    listener = threading.Thread(target=listen)
    listener.start()
    peak, status, usage = 0, None, None
    while status is None:
        ended, found, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(found)
            break
        peak = max(peak, _memory(process.pid))
        time.sleep(POLL)
    process.returncode = status
    listener.join()
    times = [started, *(at for at, _ in said), time.monotonic()]
    assert usage is not None
    return {
        "status": status,
        "seconds": round(times[-1] - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": peak,
        "silent_seconds": round(max(b - a for a, b in zip(times, times[1:], strict=False)), 1),
        "end": b"".join(part for _, part in said)[-2000:].decode(errors="replace"),
    }


def _heed() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _memory(session: int) -> int:
    """Bytes of all processes of a session; what several share counts once for each process by its part (PSS)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):  # it has just ended
            continue
    return total
