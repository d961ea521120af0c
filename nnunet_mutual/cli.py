"""The command ``nnunet_mutual``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunet_mutual import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="nnunet_mutual")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(argv)
    return 0
