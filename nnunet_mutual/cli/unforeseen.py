"""One sentence for errors that no command foresaw at their place: full disks, memory, and defects of our own."""

from __future__ import annotations

import errno
import os
import traceback

VARIABLE = "NNUNET_MUTUAL_TRACEBACK"  # set to anything, the traceback is printed, too
GENERIC = "which this command does not know"  # in the sentence of an error without a fix

_FIXES = {
    errno.ENOSPC: "the disk is full; free some space, then repeat the command",
    errno.EDQUOT: "your quota of the disk is used up; free some space, then repeat the command",
    errno.EROFS: "the disk is read-only; choose another folder, or have it mounted for writing",
    errno.EACCES: "there is no permission; get it (chmod, or the owner of the folder), or choose another folder",
    errno.EPERM: "there is no permission; get it (chmod, or the owner of the folder), or choose another folder",
    errno.ENOENT: "it does not exist; check the path, or whether it was moved meanwhile",
    errno.EEXIST: "it exists already; move it away, or choose another name",
    errno.EISDIR: "it is a folder where a file is expected; move it away, or correct the path",
    errno.ENOTDIR: "a part of the path is a file where a folder is expected; move it away, or correct the path",
    errno.EFBIG: "no file may become that large here; choose another disk, or raise the limit (ulimit -f)",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit with: ulimit -n 4096",
    errno.EIO: "the disk cannot be read or written; copy the data to another one",
    errno.ESTALE: "the network folder is gone; mount it again, then repeat the command",
}


def say(error: BaseException) -> str:
    """Returns the sentence; prints the traceback before it if the user asked for it.

    Args:
        error: what ended a command.
    """
    show(error)
    if isinstance(error, OSError) and error.errno in _FIXES:
        return f"{_file(error)}: {_FIXES[error.errno]}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"memory ran out ({_first_line(error)}); take fewer processes (-np 1), a smaller configuration, or another "
            "machine"
        )
    if type(error).__name__ == "BrokenProcessPool" or "background workers" in str(error):
        return (
            "a process that this command had started ended; what it said is above. If it said nothing, memory ran out: "
            "repeat with fewer of them (-np 1, or export nnUNet_def_n_proc=1 nnUNet_n_proc_DA=1)"
        )
    at = f" at {_file(error)}" if getattr(error, "filename", None) else ""
    return (
        f"{type(error).__name__}{at}, {GENERIC}: {_first_line(error)}; repeat it with {VARIABLE}=1 in front to see "
        "where, and report it with those lines"
    )


def show(error: BaseException) -> None:
    """Prints the traceback, if the user asked for it."""
    if os.environ.get(VARIABLE):
        traceback.print_exception(error)


def _file(error: BaseException) -> str:
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    shown = [os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name) for name in names if name is not None]
    return " -> ".join(shown) or "a file"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "nothing more is said"
