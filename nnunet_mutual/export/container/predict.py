"""Segments the images of a folder with the nnU-Net model in the folder "model" beside this file.

    python predict.py [INPUT] [OUTPUT]

INPUT (/input) holds CASE_0000.nii.gz, for a model of several channels also CASE_0001.nii.gz and so on; OUTPUT (/output)
gets CASE.nii.gz. Stock nnU-Net and nothing else, no network, a GPU where there is one. Exit status 0: all cases are
segmented, 2: one sentence on stderr says what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parent / "model"
CHECKPOINT = "checkpoint_final.pth"


class InputError(Exception):
    """One sentence about what is wrong."""


def main() -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Segments the images of a folder with nnU-Net.")
    parser.add_argument("input", type=Path, nargs="?", default=Path("/input"), help="folder of images (%(default)s)")
    parser.add_argument("output", type=Path, nargs="?", default=Path("/output"), help="for label maps (%(default)s)")
    options = parser.parse_args()
    try:
        folds, dataset_json = find_model(MODEL)
        cases = find_cases(options.input, dataset_json["file_ending"], channel_names(dataset_json))
        options.output.mkdir(parents=True, exist_ok=True)
        segment(cases, folds, dataset_json, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_model(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Returns the folds of the model and its dataset.json."""
    folds = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing or not folds:
        what = ", ".join([*missing, *([] if folds else [f"fold_*/{CHECKPOINT}"])])
        raise InputError(f"the model in {folder} lacks {what}; put the whole folder that was exported there")
    return folds, json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Returns the channels that the model needs, in their order."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def find_cases(folder: Path, ending: str, channels: list[str]) -> dict[str, list[Path]]:
    """Returns case -> its images in the order of the channels."""
    files = sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no image; expected files such as CASE_0000{ending}")
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name)
        if match is None:
            raise InputError(f"{path.name} has no channel number; rename it to CASE_0000{ending}")
        found[match[1]][int(match[2])] = path
    needed = ", ".join(f"{number:04d} = {name}" for number, name in enumerate(channels))
    for case, images in found.items():
        # All channels may lie in one file, as in colour images; how many it holds is seen when it is read.
        if sorted(images) not in (list(range(len(channels))), [0]):
            have = ", ".join(f"{number:04d}" for number in sorted(images))
            raise InputError(f"case {case} has {len(images)} channel(s) ({have}); the model needs {needed}")
    return {case: [images[number] for number in sorted(images)] for case, images in found.items()}


def segment(cases: dict[str, list[Path]], folds: list[str], dataset_json: dict[str, Any], output: Path) -> None:
    """Segments case by case; a label map appears under its name when it is whole."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # not used, but nnU-Net asks for them
        os.environ.setdefault(variable, tempfile.gettempdir())
    try:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; install nnunetv2") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(MODEL), tuple(fold if fold == "all" else int(fold) for fold in folds), CHECKPOINT
    )
    reader = predictor.plans_manager.image_reader_writer_class()
    needed = len(channel_names(dataset_json))
    for number, (case, files) in enumerate(cases.items(), 1):
        print(f"{number} of {len(cases)}: {case} ({device.type})", flush=True)
        try:
            image, properties = reader.read_images([str(path) for path in files])
        except Exception as error:  # every format fails in its own way
            raise InputError(f"case {case} cannot be read ({type(error).__name__}); export its images again") from None
        if len(image) != needed:
            raise InputError(f"case {case} has {len(image)} channel(s); the model needs {needed}")
        labels = predictor.predict_single_npy_array(image, properties)
        partial = output / f".partial_{case}{dataset_json['file_ending']}"
        reader.write_seg(labels, str(partial), properties)
        os.replace(partial, output / f"{case}{dataset_json['file_ending']}")


if __name__ == "__main__":
    sys.exit(main())
