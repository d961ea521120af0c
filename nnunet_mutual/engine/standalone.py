"""Segments the images of a folder with the nnU-Net model in the folder "model" beside this file.

    python predict.py [INPUT] [OUTPUT]

INPUT (/input) holds CASE_0000.nii.gz, for a model of several channels also CASE_0001.nii.gz and so on; OUTPUT (/output)
gets CASE.nii.gz. Stock nnU-Net and nothing else, no network, a GPU where there is one. Exit status 0: all cases are
segmented, 2: one sentence on stderr says what is wrong, 130: interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import pydoc
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parent / "model"
CHECKPOINT = "checkpoint_final.pth"
ZIP = b"PK\x03\x04"  # what torch.save writes; the older format has its own, less careful reader
ENDING = r"(\.[A-Za-z0-9]+)+"  # nothing that would lead out of a folder or match other files
TRUSTED = ("torch", "dynamic_network_architectures")
VARIABLE = "nnUNet_mutual_networks"  # further packages whose networks plans.json may name, separated by commas


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
        if options.input.resolve() == options.output.resolve():
            raise InputError(f"{options.input} cannot be INPUT and OUTPUT; label maps would lie among the images")
        cases = find_cases(options.input, dataset_json["file_ending"], channel_names(dataset_json))
        segment(cases, folds, dataset_json, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or options.output
        print(f"error: {place}: {error.strerror or error}; mend that and repeat", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the label maps that are there are whole", file=sys.stderr)
        return 130
    return 0


def find_model(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Returns the folds of the model and its dataset.json."""
    folds = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing or not folds:
        what = ", ".join([*missing, *([] if folds else [f"fold_*/{CHECKPOINT}"])])
        raise InputError(f"the model in {folder} lacks {what}; put the whole folder that was exported there")
    dataset_json = _read_json(folder / "dataset.json")
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str) or re.fullmatch(ENDING, ending) is None:
        raise InputError(f"dataset.json has the file_ending {ending!r}; expected an ending such as .nii.gz")
    if not isinstance(dataset_json.get("channel_names") or dataset_json.get("modality"), dict):
        raise InputError('dataset.json has no "channel_names"; use the model as nnunet_mutual export has written it')
    return folds, dataset_json


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is damaged; use the model as nnunet_mutual export has written it")
    return content


def require_known_networks(plans: dict[str, Any], place: str) -> None:
    """Refuses plans that name anything but networks and layers of TRUSTED, which nnU-Net would import and call."""
    from torch import nn

    asked = {name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}
    for name in _named(plans):
        root = next((part for part in str(name).split(".") if part), "")
        if root in asked:
            continue
        if not isinstance(name, str) or root not in TRUSTED:
            raise InputError(
                f"{place} names the network {name!r}, which is neither of {' nor of '.join(TRUSTED)} and was not "
                f"imported; if you trust that package, allow it: export {VARIABLE}={root}"
            )
        found = pydoc.locate(name)
        if found is not None and not (isinstance(found, type) and issubclass(found, nn.Module)):  # None: it has moved
            raise InputError(
                f"{place} names {name!r}, which is no network or layer and was not called; use plans of nnU-Net's own "
                "planners"
            )


def _named(plans: dict[str, Any]) -> Iterator[Any]:
    for configuration in plans["configurations"].values():
        described = configuration.get("architecture")
        if described is not None:  # else inherited, or of an older nnU-Net, which knew two networks
            yield described["network_class_name"]
            values = (described["arch_kwargs"].get(key) for key in described["_kw_requires_import"])
            yield from (value for value in values if value is not None)


def make_predictor(
    plans: dict[str, Any], dataset_json: dict[str, Any], trained: list[dict[str, Any]], device: Any, build: Any
) -> Any:
    """Returns nnU-Net's predictor from what was read already, since its own way reads checkpoints without care.

    ``trained`` are the checkpoints of all folds, ``build`` is the build_network_architecture of their trainer.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    try:
        manager, weights = PlansManager(plans), [one["network_weights"] for one in trained]
        configuration = manager.get_configuration(trained[0]["init_args"]["configuration"])
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        outputs = manager.get_label_manager(dataset_json).num_segmentation_heads
        network = build(manager, configuration, channels, outputs, enable_deep_supervision=False)
        for one in weights:
            network.load_state_dict(one)
        axes, name = trained[0].get("inference_allowed_mirroring_axes"), trained[0]["trainer_name"]
        predictor.manual_initialization(network, manager, configuration, weights, dataset_json, name, axes)
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"plans.json, dataset.json and the checkpoint do not fit each other ({type(error).__name__}: {reason}); "
            "copy the whole folder anew from where it was trained"
        ) from None
    return predictor


def open_model(folder: Path, folds: list[str], dataset_json: dict[str, Any]) -> Any:
    """Returns the predictor of all folds; of the checkpoints, nothing but tensors, numbers and text is read."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = _read_json(folder / "plans.json")
    try:
        require_known_networks(plans, "plans.json")
    except (KeyError, TypeError, AttributeError):
        raise InputError("plans.json is no plans file of nnU-Net 2.2 or newer") from None
    trained = []
    for fold in folds:
        path = folder / f"fold_{fold}" / CHECKPOINT
        try:
            with path.open("rb") as stream:
                if stream.read(len(ZIP)) != ZIP:
                    raise ValueError("not what torch.save writes")
            trained.append(torch.load(path, map_location="cpu", weights_only=True))
        except Exception:  # torch's own words advise to run what is in the file
            raise InputError(
                f"fold_{fold}/{CHECKPOINT} is damaged, or holds more than tensors, numbers and text; nothing of it was "
                "run, use the model as nnunet_mutual export has written it"
            ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return make_predictor(plans, dataset_json, trained, device, nnUNetTrainer.build_network_architecture)


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Returns the channels that the model needs, in their order."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def find_cases(folder: Path, ending: str, channels: list[str]) -> dict[str, list[Path]]:
    """Returns case -> its images in the order of the channels."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give that of the images")
    files = sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # readers in C++ end the process
            raise InputError(f"the name {ascii(str(path))} is no UTF-8; rename it") from None
        if not path.is_file():
            raise InputError(f"{path} is no file, or a link to none; move it away")
    if not files:
        raise InputError(f"{folder} holds no image; expected files such as CASE_0000{ending}")
    others = sorted(ascii(path.name) for path in folder.glob("[!.]*") if path.is_file() and path not in files)
    if others:
        print(f"not read, since the model reads {ending}: {', '.join(others[:3])}{', ...' if others[3:] else ''}")
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


def whole_files() -> Any:
    """Returns the module whole.py beside this file; afterwards nothing beside it is a package that plans could name."""
    try:
        from nnunet_mutual.disk import whole
    except ImportError:
        import whole  # type: ignore[import-not-found, no-redef] # in a container
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != MODEL.parent]
    return whole


def segment(cases: dict[str, list[Path]], folds: list[str], dataset_json: dict[str, Any], output: Path) -> None:
    """Segments case by case; a label map appears under its name when it is whole."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # not used, but nnU-Net asks for them
        os.environ.setdefault(variable, tempfile.gettempdir())
    try:
        whole = whole_files()
        predictor = open_model(MODEL, folds, dataset_json)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; install nnunetv2") from None
    reader = predictor.plans_manager.image_reader_writer_class()
    ending, needed = dataset_json["file_ending"], len(channel_names(dataset_json))
    if ending not in reader.supported_file_endings:
        raise InputError(f"{type(reader).__name__} of plans.json neither reads nor writes {ending} of dataset.json")
    output.mkdir(parents=True, exist_ok=True)
    for place in (output / f"{case}{ending}" for case in cases):
        if place.is_dir():
            raise InputError(f"{place} is a folder, where a label map is to be written; move it away")
    for number, (case, files) in enumerate(cases.items(), 1):
        print(f"{number} of {len(cases)}: {case} ({predictor.device.type})", flush=True)
        image, properties = _read_case(case, files, needed, reader, whole)
        # In a folder that was not there before: no symbolic link in it leads the writer somewhere else.
        with tempfile.TemporaryDirectory(prefix=".partial_", dir=output) as partial:
            try:
                labels = predictor.predict_single_npy_array(image, properties)
                reader.write_seg(labels, str(Path(partial) / f"{case}{ending}"), properties)
            except OSError:
                raise
            except Exception as error:  # memory is short, the disk is full, or nnU-Net writes no image of this kind
                also = " and give each channel a file of its own" if len(files) < needed else ""
                raise InputError(
                    f"case {case} could not be segmented or written ({_reason(error)}); mend that{also}"
                ) from None
            for path in sorted(Path(partial).iterdir()):  # of .tif also the file with its spacing
                try:
                    whole.read_to_end(path)  # SimpleITK says nothing where a disk is full
                except whole.DAMAGED:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output / path.name)) from None
                os.replace(path, output / path.name)


def _read_case(case: str, files: list[Path], needed: int, reader: Any, whole: Any) -> tuple[Any, Any]:
    """Returns the image (C, Z, Y, X) and nnU-Net's properties."""
    import numpy as np

    for path in files:
        try:
            whole.read_to_end(path)
        except whole.DAMAGED as error:
            raise InputError(f"{path} is cut off or damaged ({error}); copy it again") from None
    try:
        image, properties = reader.read_images([str(path) for path in files])
    except Exception as error:  # every format fails in its own way
        raise InputError(f"case {case} cannot be read ({type(error).__name__}); export its images again") from None
    if len(image) != needed:
        raise InputError(f"case {case} has {len(image)} channel(s); the model needs {needed}")
    if not np.isfinite(image).all():
        raise InputError(f"case {case} has voxels that are no numbers, or too large; export its images again")
    return image, properties


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
