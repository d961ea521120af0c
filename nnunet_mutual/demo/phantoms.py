"""Generated abdominal CTs of two hospitals, each of which annotates its own organs, as a raw nnU-Net dataset.

No patient is behind them: anatomy comes from :mod:`nnunet_mutual.demo.anatomy`, the scanner from :func:`scan`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnunet_mutual.demo.anatomy import LABELS, SHAPE, SPACING, draw_abdomen
from nnunet_mutual.demo.solids import Array, smooth_field

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Site:
    """A hospital: how its scanner and its injection protocol change the image, and which organs it annotates.

    Attributes:
        name: source in the annotation table and first part of the case names.
        annotated: labels that were drawn there.
        enhancement: contrast medium, 1 = a good portal-venous phase.
        gain: factor on Hounsfield units (another tube voltage or calibration).
        offset: added Hounsfield units.
        noise: standard deviation in Hounsfield units.
        sharpness: width of the reconstruction kernel in voxels; less is sharper, with finer noise.
        shading: standard deviation in Hounsfield units of a smooth error over the image.
    """

    name: str
    annotated: tuple[str, ...]
    enhancement: float
    gain: float
    offset: float
    noise: float
    sharpness: float
    shading: float


SITES = (
    Site("north", ("liver", "right_kidney", "spine"), 1.0, 1.0, 0.0, 9.0, 0.55, 3.0),
    Site("south", ("spleen", "left_kidney", "aorta"), 0.7, 1.06, -18.0, 17.0, 0.4, 6.0),
)


@dataclass(frozen=True)
class Phantom:
    """One case: image (Z, Y, X) int16 in Hounsfield units and its full label map (Z, Y, X) uint8."""

    key: str
    site: Site
    image: Array
    truth: Array


def make_phantom(site: Site, number: int, seed: int) -> Phantom:
    """Returns a case; the same arguments always give the same case."""
    rng = np.random.default_rng([seed, *site.name.encode(), number])
    image, truth = draw_abdomen(rng, site.enhancement * rng.normal(1, 0.07))
    return Phantom(f"{site.name}_{number:03d}", site, scan(image, site, rng), truth)


def scan(tissue: Array, site: Site, rng: np.random.Generator) -> Array:
    """Images tissue on the scanner of a site.

    Args:
        tissue: Hounsfield units (Z, Y, X) without noise.
        site: the scanner.
        rng: source of the noise.

    Returns:
        (Z, Y, X) int16: blurred by the reconstruction kernel, with correlated noise, shading, gain and offset.
    """
    kernel = (0.3, site.sharpness, site.sharpness)
    noise = gaussian_filter(rng.standard_normal(tissue.shape), kernel)
    shading = site.shading * smooth_field(rng, tissue.shape, [70 / s for s in SPACING])
    image = gaussian_filter(tissue, kernel) + site.noise * noise / noise.std() + shading
    return np.maximum(site.gain * image + site.offset, -1024).round().astype(np.int16)


def keep_annotated(truth: Array, annotated: Collection[str]) -> Array:
    """Returns what a reader who draws only these labels would have drawn: everything else is 0."""
    kept = np.isin(truth, [LABELS[label] for label in annotated])
    return np.where(kept, truth, 0).astype(np.uint8)


def dataset_json(cases: Mapping[str, Site]) -> dict:
    """Returns dataset.json with the annotation table of the given training cases."""
    return {
        "name": "Generated abdominal CTs of two hospitals",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **LABELS},
        "numTraining": len(cases),
        "file_ending": ENDING,
        "mutual": {
            "version": 1,
            "sources": {site.name: {"annotated": list(site.annotated)} for site in SITES},
            "cases": {key: {"source": site.name} for key, site in cases.items()},
        },
    }


def write_dataset(folder: Path, truth_folder: Path, *, training: int, test: int, seed: int) -> list[str]:
    """Writes a raw nnU-Net dataset whose training labels are reduced to what each site annotates.

    Args:
        folder: ``Dataset###_Name`` to fill with imagesTr, labelsTr, imagesTs and dataset.json, which is written last.
        truth_folder: where the full label maps of the test images go, outside the dataset.
        training: training cases of each site.
        test: test cases of each site.
        seed: of all cases.

    Returns:
        Keys of the test cases.
    """
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    truth_folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, Site] = {}
    tests: list[str] = []
    for site in SITES:
        for number in range(training + test):
            phantom = make_phantom(site, number, seed)
            image_name = f"{phantom.key}_0000{ENDING}"
            if number < training:
                cases[phantom.key] = site
                write_volume(phantom.image, folder / "imagesTr" / image_name)
                drawn = keep_annotated(phantom.truth, site.annotated)
                write_volume(drawn, folder / "labelsTr" / (phantom.key + ENDING))
            else:
                tests.append(phantom.key)
                write_volume(phantom.image, folder / "imagesTs" / image_name)
                write_volume(phantom.truth, truth_folder / (phantom.key + ENDING))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(cases), indent=2) + "\n", encoding="utf-8")
    return tests


def write_volume(volume: Array, path: Path) -> None:
    """Writes (Z, Y, X) as NIfTI with the phantoms' spacing; axes point to the patient's left, back and head."""
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(SHAPE[::-1], SPACING[::-1], strict=True)])
    sitk.WriteImage(image, str(path))
