"""The one exception that carries a sentence for the user."""

from __future__ import annotations


class MutualError(Exception):
    """Bad input or a state that cannot be used.

    The message is one sentence: what was found, what was expected, and the command or edit that fixes it. The command
    line prints it after ``error:`` and ends with exit status 2; inside nnU-Net's commands it ends the run.
    """
