"""Does an image look like the sequence that a model was trained on? nnU-Net knows sequences by file names only.

A sequence is recognised by where its edges are: the mean gradient of its dark to bright voxels, relative to each other.
That depends neither on the scale of the grey values nor on where in the scanner the patient lay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import CaseFiles, images_of, read_dataset_json
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.errors import MutualError

FILE = "sequences.json"
STEPS = (10, 30, 50, 70, 90)  # percentiles of the grey values between which gradients are averaged
MOST_CASES = 20  # that a reference is made of
UNLIKE = 3.0  # times the distance that training images have from each other

Profile = NDArray[np.float64]


def profile(image: NDArray[Any]) -> Profile:
    """Returns the mean gradient of six classes of grey values, dark to bright, relative to their mean.

    Args:
        image: (Z, Y, X); what equals its corner is no part of the patient where it is much.
    """
    x = image.astype(np.float64)
    outside = x == x.flat[0]
    much = 0.1 < outside.mean() < 1
    inside = ndimage.binary_fill_holes(~outside) if much else np.ones(x.shape, bool)
    values = x[inside]
    low, middle, high = np.percentile(values, [25, 50, 75])
    scaled = np.clip((x - middle) / max(high - low, 1e-6), -4, 4)
    gradient = ndimage.gaussian_gradient_magnitude(scaled, 1)[inside]
    grey = scaled[inside]
    of = np.digitize(grey, np.percentile(grey, STEPS))
    means = np.array([gradient[of == step].mean() if (of == step).any() else 0.0 for step in range(len(STEPS) + 1)])
    return np.asarray(means / max(means.mean(), 1e-6))


def references_of(cases: Iterable[CaseFiles], table: AnnotationTable, reader: Any) -> dict[str, Any]:
    """Returns what each sequence of a training looks like, without names of cases: the content of ``sequences.json``.

    Args:
        cases: training cases; of each sequence, the first twenty that have it count.
        table: of the training, which says what they lack.
        reader: nnU-Net's.
    """
    found: dict[str, list[Profile]] = {channel: [] for channel in table.channels}
    for files in cases:
        lacks = table.cases[files.key].missing if files.key in table.cases else ()
        for number, path in files.images.items():
            channel = table.channels[number]
            if channel not in lacks and len(found[channel]) < MOST_CASES:
                found[channel].append(profile(reader.read_images([str(path)])[0][0]))
    references = {}
    for channel, profiles in found.items():
        if len(profiles) < 2:
            continue  # one image does not say how much images differ
        apart = [
            _distance(one, np.mean([other for k, other in enumerate(profiles) if k != n], 0))
            for n, one in enumerate(profiles)
        ]
        references[channel] = {"profile": np.mean(profiles, 0).tolist(), "distance": float(np.mean(apart))}
    return references


def check_images(model: str, images: str) -> int:
    """Prints for each image which sequence of the training it looks like.

    Args:
        model: an exported model folder of a modality group.
        images: folder of images as for nnUNetv2_predict.

    Returns:
        0 if all look like the sequence that the model needs, else 1.

    Raises:
        MutualError: the folder is no such model, or the images have not its channels.
    """
    folder = Path(model)
    if not (folder / FILE).is_file():
        raise MutualError(
            f"{folder} has no {FILE}; give the folder of a modality group that nnunet_mutual export wrote, with the "
            "raw images at hand"
        )
    references = {
        name: (np.asarray(entry["profile"]), float(entry["distance"]))
        for name, entry in read_object(folder / FILE).items()
    }
    content = read_dataset_json(folder)
    reader = PlansManager(read_plans(folder / "plans.json")).image_reader_writer_class()
    wanted = list(content.get("channel_names", content.get("modality", {})).values())
    cases, _ = images_of(Path(images), content["file_ending"])
    if not cases:
        raise MutualError(f"{images} holds no image that is called like CASE_0000{content['file_ending']}")
    doubts = 0
    for key, files in cases.items():
        _require_channels(f"{images}: case {key}", files, wanted)
        for number, name in enumerate(wanted):
            said = judge(profile(reader.read_images([str(files[number])])[0][0]), name, references)
            doubts += said is not None
            print(f"{files[number].name}: {said or f'looks like {name}'}")
    print(f"{len(cases)} case(s), {doubts} image(s) in doubt" + ("; look at them before you predict" if doubts else ""))
    return int(doubts > 0)


def _require_channels(place: str, files: Collection[int], wanted: Sequence[str]) -> None:
    for number, name in enumerate(wanted):
        if number not in files:
            raise MutualError(f"{place} has no channel {number:04d} ({name})")
    if len(files) > len(wanted):
        takes = ", ".join(f"{name} as {number:04d}" for number, name in enumerate(wanted))
        raise MutualError(
            f"{place} has {len(files)} channels, but this model takes {takes} alone, and nnU-Net would feed it all of "
            "them; put the images that it takes into a folder of their own"
        )


def judge(found: Profile, wanted: str, references: Mapping[str, tuple[Profile, float]]) -> str | None:
    """Returns what is doubtful about an image, None if nothing is.

    Args:
        found: its profile.
        wanted: the sequence that it should be.
        references: of each sequence of the training, the mean profile and the usual distance from it.
    """
    if wanted not in references:
        return f"UNKNOWN, the training held fewer than two images of {wanted} to compare with"
    distance = {name: _distance(found, reference) for name, (reference, _) in references.items()}
    nearest = min(distance, key=lambda name: distance[name])
    if nearest != wanted:
        return f"DOUBTFUL, looks more like {nearest} than like {wanted}"
    if distance[wanted] > UNLIKE * references[wanted][1]:
        return f"DOUBTFUL, unlike the images of {wanted} in the training"
    return None


def _distance(a: Profile, b: Profile) -> float:
    return float(np.abs(a - b).mean())
