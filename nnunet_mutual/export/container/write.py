"""Writes the folder that a container is built from: Dockerfile, entry script, model and README."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk import whole
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.engine import standalone
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.model_card import cell

BASE_IMAGE = "pytorch/pytorch:2.8.0-cuda12.6-cudnn9-runtime"  # nnU-Net does not run with torch 2.9
_MODEL_FILES = ("plans.json", "dataset.json", "model_card.md")  # and the checkpoints; nothing about single cases
SCRIPTS = {"predict.py": standalone, "whole.py": whole}
_DOCKERFILE = """\
# Another base needs Python 3.10 or newer and torch: docker build --build-arg BASE=...
ARG BASE={base}
FROM ${{BASE}}

RUN pip install --no-cache-dir nnunetv2=={nnunetv2}

# Nothing is downloaded or written outside of /output and /tmp when the container runs.
ENV nnUNet_raw=/tmp nnUNet_preprocessed=/tmp nnUNet_results=/tmp HOME=/tmp MPLCONFIGDIR=/tmp

COPY --chmod=755 predict.py whole.py /opt/segmentation/
COPY --chmod=755 model /opt/segmentation/model

USER 1000:1000
ENTRYPOINT ["python", "/opt/segmentation/predict.py"]
"""
_README = """\
# {name}

A container that segments images with stock nnU-Net {nnunetv2}. Not a medical device; read model/model_card.md first.

```bash
docker build -t {tag} .
docker run --rm --network none --gpus all --user "$(id -u):$(id -g)" \\
  -v "$PWD/images:/input:ro" -v "$PWD/segmentations:/output" {tag}
docker save {tag} | gzip > {tag}.tar.gz
```

Leave `--gpus all` out to run on the CPU. Make the folder of the segmentations before the container runs, so that it is
yours. Building needs the network, running does not.

| /input, for each case | channel |
|---|---|
{channels}

`/output` gets `CASE{ending}`, with these integers:

| integers | label |
|---|---|
{labels}

Exit status 0: every case is segmented; 2: one sentence says what is wrong. Without Docker, where nnunetv2 is installed:
`python predict.py IMAGES SEGMENTATIONS`.
"""


def require_container(folder: Path, plan: dict[str, Any], configuration: str) -> None:
    """Verifies, before anything is written, that a container can be.

    Raises:
        MutualError: the folder exists or cannot be made, or the model is the second stage of a cascade.
    """
    if os.path.lexists(folder):
        raise MutualError(f"{folder} exists and is never overwritten; remove it or name another folder for --container")
    there = next(path for path in folder.absolute().parents if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise MutualError(f"--container {folder}: nothing can be made in {there}; name another folder")
    if PlansManager(plan).get_configuration(configuration).previous_stage_name is not None:
        raise MutualError(
            f"{configuration} is the second stage of a cascade and needs the predictions of the first one, which a "
            "container of one model does not make; export without --container"
        )


def write_container(folder: Path, model: Path) -> None:
    """Writes the folder.

    Args:
        folder: is made.
        model: exported model folder.

    Raises:
        MutualError: a file of the model is missing.
    """
    folder.mkdir(parents=True)
    for name, module in SCRIPTS.items():
        shutil.copyfile(str(module.__file__), folder / name)
    copied = [*(model / name for name in _MODEL_FILES), *sorted(model.glob("fold_*/checkpoint_final.pth"))]
    for path in copied:
        target = folder / "model" / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    plan, dataset_json = read_object(model / "plans.json"), read_object(model / "dataset.json")
    table = AnnotationTable.from_dataset_json(dataset_json)
    ending = dataset_json["file_ending"]
    words = {
        "name": plan["plans_name"],
        "tag": tag(plan["plans_name"]),
        "nnunetv2": version("nnunetv2"),
        "base": BASE_IMAGE,
        "ending": ending,
        "channels": "\n".join(f"| `CASE_{n:04d}{ending}` | {cell(name)} |" for n, name in enumerate(table.channels)),
        "labels": "\n".join(
            f"| {', '.join(map(str, values))} | {cell(label)} |" for label, values in table.values.items()
        ),
    }
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(**words), encoding="utf-8")
    (folder / "README.md").write_text(_README.format(**words), encoding="utf-8")


def tag(plans_name: str) -> str:
    """Returns a name that Docker accepts for an image."""
    return re.sub(r"[^a-z0-9]+", "-", plans_name.lower()).strip("-")
