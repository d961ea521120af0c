"""Image files: what is cut off is named, label maps hold every value, and only true sizes become millilitres."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunet_mutual.disk.images import read_images, read_label_map, voxel_ml, write_image, write_label_map
from nnunet_mutual.errors import MutualError

SHAPE = (6, 7, 8)
READERS: dict[Callable[[], Any], str] = {
    SimpleITKIO: ".nii.gz",
    SimpleITKIOWithReorient: ".nii.gz",
    NibabelIO: ".nii.gz",
    NibabelIOWithReorient: ".nii.gz",
    Tiff3DIO: ".tif",
    NaturalImage2DIO: ".png",
}


def image_of(kind: Any, folder: Path, voxels: np.ndarray, spacing: Sequence[float] | None = (3.0, 0.5, 0.5)) -> Path:
    """Writes (Z, Y, X) voxels; of a 2d format the first slice."""
    path = folder / f"a_0000{READERS[kind]}"
    if kind is NaturalImage2DIO:
        io.imsave(path, voxels[0].astype(np.uint8), check_contrast=False)
    elif kind is Tiff3DIO:
        tifffile.imwrite(path, voxels, photometric="minisblack")
        if spacing is not None:
            (folder / "a.json").write_text(json.dumps({"spacing": spacing}))
    else:
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing([float(size) for size in reversed(spacing or (1, 1, 1))])
        sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("highest", [1, 254, 255, 256, 300, 65535])
@pytest.mark.parametrize("kind", READERS)
def test_label_maps_hold_every_value_on_the_grid_of_the_image(tmp_path: Path, kind: Any, highest: int) -> None:
    image = image_of(kind, tmp_path, np.zeros(SHAPE, np.float32))
    voxels, properties = read_images(kind(), [image])
    drawn = np.arange(voxels[0].size).reshape(voxels.shape[1:]) % 7
    drawn.flat[-1] = highest
    place = tmp_path / f"a{READERS[kind]}"
    if highest > 255 and kind is SimpleITKIOWithReorient:
        with pytest.raises(
            MutualError, match=f"cannot hold the value {highest}, .* writes 0 to 255 there; use another"
        ):
            write_label_map(kind(), drawn, place, properties)
        assert not place.exists()
        return
    write_label_map(kind(), drawn, place, properties)
    found, described = read_label_map(kind(), place)
    np.testing.assert_array_equal(found, drawn)
    np.testing.assert_allclose(described["spacing"], properties["spacing"])


@pytest.mark.parametrize(
    ("kind", "spacing", "expected"),
    [
        (SimpleITKIO, (3.0, 0.5, 0.5), 0.75e-3),
        (SimpleITKIO, (1.0, 1.0, 1.0), 1e-3),
        (NibabelIO, (1.0, 1.0, 1.0), 1e-3),
        (Tiff3DIO, (1.0, 1.0, 1.0), 1e-3),
        (Tiff3DIO, None, None),
        (NaturalImage2DIO, None, None),
    ],
)
def test_only_true_sizes_become_millilitres(tmp_path: Path, kind: Any, spacing: Any, expected: float | None) -> None:
    path = image_of(kind, tmp_path, np.zeros(SHAPE, np.float32), spacing)
    size = voxel_ml(read_images(kind(), [path])[1])
    assert size == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_named_and_not_filled_with_zeros(tmp_path: Path, share: float, dtype: Any) -> None:
    path = image_of(SimpleITKIO, tmp_path, np.random.default_rng(0).integers(1, 100, (20, 30, 40)).astype(dtype))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (lambda: read_images(SimpleITKIO(), [path]), lambda: read_label_map(SimpleITKIO(), path)):
        with pytest.raises(MutualError, match=r"a_0000.nii.gz is cut off or damaged .*; copy it again"):
            read()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_what_was_not_written_to_its_end_is_noticed(tmp_path: Path, ending: str) -> None:
    """SimpleITK says nothing where a file may grow no further, as on a full disk."""
    drawn = np.random.default_rng(0).integers(0, 200, (16, 16, 16)).astype(np.uint8)
    place = tmp_path / f"a{ending}"
    properties = {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3).ravel().tolist()}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_label_map(SimpleITKIO(), drawn, place, properties)
        with pytest.raises((OSError, RuntimeError)):
            write_image(sitk.GetImageFromArray(drawn), place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
