"""Checkpoints are read here and nowhere else: tensors, numbers and text, never code."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.compat import release

_ZIP = b"PK\x03\x04"  # what torch.save writes; the older format has its own, less careful reader
_KINDS = "?bhilqBHILQefdFD"  # NumPy's letters for truth values, integers and floating point numbers
_CORE = np._core.multiarray  # type: ignore[attr-defined] # the name under which NumPy 2 pickles scalars and arrays


def _numpy_objects() -> list[Any]:
    """What the log of a stock checkpoint needs: NumPy's scalars and arrays, of NumPy 1 and 2."""
    made = {"scalar": _CORE.scalar, "_reconstruct": _CORE._reconstruct}
    found: list[Any] = [np.dtype, np.ndarray, *made.values(), *(type(np.dtype(kind)) for kind in _KINDS)]
    if release(torch.__version__) >= (2, 7):  # from then on a name may differ from that of the object
        found += [(one, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, one in made.items()]
    return found


def read_checkpoint(
    file: str | os.PathLike[str], device: torch.device | str = "cpu", *, mapped: bool = False, fix: str = ""
) -> dict[str, Any]:
    """Reads a checkpoint of nnU-Net or of this package; nothing that it asks for is run.

    Args:
        file: the checkpoint.
        device: where its tensors go.
        mapped: leave them on the disk until they are used.
        fix: what to do about a damaged file, for the sentence.

    Raises:
        MutualError: it is missing, damaged, or holds more than tensors, numbers and text.
    """
    path = Path(file)
    fix = fix or "copy it anew from where it was trained"
    try:
        with path.open("rb") as stream:
            begin = stream.read(len(_ZIP))
        if begin != _ZIP:
            what = "is empty" if not begin else "is no checkpoint (it does not begin like a file of torch.save)"
            raise MutualError(f"{path} {what}; {fix}")
        with torch.serialization.safe_globals(_numpy_objects()):
            content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise MutualError(f"{path} does not exist; give the path of a checkpoint") from None
    except PermissionError as error:
        raise MutualError(f"{path} cannot be read ({error.strerror}); get read permission for it") from None
    except MutualError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch fails in many ways; its own words advise to run what is in the file
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise MutualError(
                f"{path} asks for {name[1]}, which no checkpoint of nnU-Net needs and which may run anything on this "
                "machine; nothing of it was run. Take the checkpoint from somebody you trust, or have its weights "
                "saved without anything but tensors, numbers and text"
            ) from None
        raise MutualError(f"{path} is damaged, cut short or changed after it was written; {fix}") from error
    if not isinstance(content, dict):
        raise MutualError(f"{path} holds a {type(content).__name__}, expected the entries of a checkpoint; {fix}")
    return content
