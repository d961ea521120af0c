"""The only file that knows versions of nnU-Net and what processors can do."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from nnunet_mutual.errors import MutualError

if TYPE_CHECKING:
    import torch

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


@contextlib.contextmanager
def processes_of_planners() -> Iterator[None]:
    """Lets nnU-Net's planners run where nnUNet_n_proc_DA is 0, as trainings in one process need it; they fail there."""
    name = "nnUNet_n_proc_DA"
    given = os.environ.get(name)
    if given is not None:
        os.environ[name] = str(max(1, int(given)))
    try:
        yield
    finally:
        if given is not None:
            os.environ[name] = given


def cpu_computes_bfloat16() -> bool:
    """Tell whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX).

    Others emulate it many times slower than float32.
    """
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Returns the type of mixed precision for a setting, None for float32.

    Args:
        amp: "auto" (float16 on CUDA as nnU-Net, bfloat16 on a CPU that computes in it), "bfloat16" or "off".
        device: where the networks are.

    Raises:
        MutualError: bfloat16 was asked for on a processor that would emulate it.
    """
    import torch

    if amp == "off" or device.type == "mps":
        return None
    if device.type == "cuda":
        return torch.float16 if amp == "auto" else torch.bfloat16
    if cpu_computes_bfloat16():
        return torch.bfloat16
    if amp == "bfloat16":
        raise MutualError('this processor does not compute in bfloat16; set "amp": "auto" or "off" in the plans')
    return None


def require_device(device: str) -> None:
    """Verifies that this machine has a device.

    Args:
        device: "cuda", "cpu" or "mps".

    Raises:
        MutualError: it has not.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise MutualError(f"this machine has no {device.upper()} device; add -device cpu")
