"""Files are read to their end: what is cut off is noticed, and no header, however odd, ends in another exception."""

from __future__ import annotations

import contextlib
import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_mutual.disk.whole import DAMAGED, read_to_end

ENDINGS = (".nii", ".nii.gz", ".mha", ".nrrd", ".gipl", ".tif")
VOXELS = np.random.default_rng(0).integers(0, 99, (6, 7, 8)).astype(np.int16)


def written(folder: Path, ending: str) -> Path:
    path = folder / f"a{ending}"
    if ending == ".tif":
        tifffile.imwrite(path, VOXELS)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path), True)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_whole_and_cut_off(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending)
    assert read_to_end(path) == 0
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DAMAGED):
        read_to_end(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_odd_headers_end_in_no_other_exception(tmp_path: Path, ending: str) -> None:
    draw = random.Random(1)
    path = written(tmp_path, ending)
    whole = gzip.decompress(path.read_bytes()) if ending.endswith(".gz") else path.read_bytes()
    for _ in range(150):
        spoilt = bytearray(whole)
        for _ in range(draw.choice((1, 2, 5))):
            spoilt[draw.randrange(min(len(spoilt), 352))] = draw.choice((0, 127, 128, 255, draw.randrange(256)))
        path.write_bytes(gzip.compress(spoilt) if ending.endswith(".gz") else spoilt)
        with contextlib.suppress(*DAMAGED):
            read_to_end(path)
