"""The only file that knows nnU-Net versions."""

from __future__ import annotations

from pathlib import Path

#: First and last nnunetv2 release that the tests of this package have passed with.
TESTED_NNUNET = ("2.8.0", "2.8.1")


def cpu_has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Tell whether the CPU computes in bfloat16 (AVX512-BF16 or AMX), where autocast more than halves a step.

    Args:
        cpuinfo: the file in which Linux lists the processor's flags. Where there is none the answer is False: autocast
            without these instructions is slower than float32.
    """
    try:
        flags = set(Path(cpuinfo).read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def cpu_computes_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX); others emulate it many times slower than float32."""
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)


def warn_untested() -> str | None:
    """Returns a sentence if the installed nnunetv2 is outside the tested range."""
    from importlib.metadata import version

    installed = version("nnunetv2")
    numbers = [tuple(int(part) for part in text.split(".")[:3]) for text in (installed, *TESTED_NNUNET)]
    if numbers[1] <= numbers[0] <= numbers[2]:
        return None
    return f"nnunetv2 {installed} is outside the tested range {TESTED_NNUNET[0]} to {TESTED_NNUNET[1]}"
