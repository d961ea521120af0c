"""The only file that knows nnU-Net versions."""

from __future__ import annotations

import re
from importlib.metadata import version

#: First and last nnunetv2 release that the tests of this package have passed with.
TESTED_NNUNET = ("2.8.0", "2.8.1")


def release(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (2, 8, 1) of ``2.8.1rc1+cu128``."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def warn_untested() -> str | None:
    """Return a sentence if the installed nnunetv2 is outside the tested range."""
    installed = version("nnunetv2")
    first, last = TESTED_NNUNET
    if release(first) <= release(installed) <= release(last):
        return None
    return f"nnunetv2 {installed} is outside the tested range {first} to {last}"


def cpu_computes_bfloat16() -> bool:
    """Tell whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX).

    Others emulate it many times slower than float32.
    """
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)
