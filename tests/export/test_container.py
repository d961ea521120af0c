"""The folder of --container: its script segments like the training, where this package does not exist and offline."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from test_export import BLOCKED
from training import SHORT, partial_block, trainer_for

from nnunet_mutual.engine import standalone as predict
from nnunet_mutual.errors import MutualError
from nnunet_mutual.export.command import export
from nnunet_mutual.export.container.write import require_container

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

# What a machine without network and without this package is to Python: imported before the script runs.
OFFLINE = f"""{BLOCKED}
import socket
def refuse(*_, **__):
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script sets what is not set; in this process that would last."""
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training with its validation; shared, so tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, str(root / name))
        block = partial_block()
        block["cases"]["case_00"]["patient"] = "Jane Roe"
        trainer = trainer_for(tiny.make_dataset(root, block=block, settings=SHORT))
        trainer.run_training()
        (Path(trainer.output_folder) / "progress.png").write_bytes(b"png")  # which nnU-Net plots, not here
        trainer.perform_actual_validation()
    return root


@pytest.fixture()
def results(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.setenv(name, str(trained / name))
    return trained / "nnUNet_results" / tiny.NAME


@pytest.fixture(scope="module")
def container(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("containers") / "submission"
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, str(trained / name))
        run_export("nnUNetPlans_Boxed", folder)
    return folder


def run_export(name: str, container: Path, configuration: str = "3d_fullres") -> None:
    options = {"plans": "nnUNetPlans", "folds": ["0"], "checkpoint": "checkpoint_final.pth", "output_name": name}
    export(tiny.NAME, configuration, trainer="PartialTrainer", container=str(container), **options)


def start(script: Path, *arguments: Path | str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a user would, in an environment that holds nnU-Net only."""
    site = script.parent / "offline"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(OFFLINE)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    environment |= {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        cwd=site,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_script_segments_like_the_training(container: Path, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(container, tmp_path / "elsewhere")
    output = tmp_path / "output"
    done = start(copy / "predict.py", trained / "nnUNet_raw" / tiny.NAME / "imagesTr", output)
    assert done.returncode == 0, done.stderr
    assert "6 of 6: case_05 (cpu)" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == [f"case_{n:02d}.nii.gz" for n in range(6)]
    training = trained / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres"
    validated = sorted((training / "fold_0" / "validation_full").glob("*.nii.gz"))
    assert validated
    for file in validated:
        ours, boxed = (sitk.ReadImage(str(path)) for path in (file, output / file.name))
        assert np.array_equal(*(sitk.GetArrayFromImage(image) for image in (ours, boxed)))
        assert ours.GetOrigin() == boxed.GetOrigin() and ours.GetSpacing() == boxed.GetSpacing()


def test_what_is_in_the_folder(container: Path, trained: Path) -> None:
    found = sorted(str(path.relative_to(container)) for path in container.rglob("*") if path.is_file())
    model = ["dataset.json", "fold_0/checkpoint_final.pth", "model_card.md", "plans.json"]
    assert found == ["Dockerfile", "README.md", *(f"model/{name}" for name in model), "predict.py", "whole.py"]
    contents = b"".join((container / name).read_bytes() for name in found)
    assert b"Jane Roe" not in contents and str(trained).encode() not in contents and b"case_0" not in contents
    docker = (container / "Dockerfile").read_text()
    assert f"nnunetv2=={metadata.version('nnunetv2')}\n" in docker and "nnunet_mutual" not in docker
    assert docker.splitlines()[1].startswith("ARG BASE=pytorch/pytorch:")
    assert 'ENTRYPOINT ["python", "/opt/segmentation/predict.py"]' in docker
    readme = (container / "README.md").read_text()
    assert "docker build -t nnunetplans-boxed ." in readme and "docker run --rm --network none" in readme
    assert "| `CASE_0000.nii.gz` | CT |" in readme and "| 3 | spleen |" in readme


def image(folder: Path, *names: str, shape: tuple[int, ...] = (16, 20, 18)) -> None:
    for name in names:
        tiny.write_nifti(np.zeros(shape, np.float32), folder / name)


@pytest.fixture()
def failure(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], str]:
    """Runs the script in this process on a folder that it must refuse, and returns its sentence."""

    def run(source: Path) -> str:
        monkeypatch.setattr(predict, "MODEL", container / "model")
        monkeypatch.setattr(sys, "argv", ["predict.py", str(source), str(tmp_path / "output")])
        capsys.readouterr()
        assert predict.main() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    return run


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "holds no image; expected files such as CASE_0000.nii.gz"),
        (["a.nii.gz"], "a.nii.gz has no channel number; rename it to CASE_0000.nii.gz"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], "case a has 2 channel(s) (0000, 0001); the model needs 0000 = CT"),
        (["a_0001.nii.gz"], "case a has 1 channel(s) (0001); the model needs 0000 = CT"),
    ],
)
def test_bad_input_is_one_sentence(
    failure: Callable[[Path], str], tmp_path: Path, names: list[str], sentence: str
) -> None:
    source = tmp_path / "input"
    source.mkdir()
    image(source, *names)
    assert sentence in failure(source)
    assert not (tmp_path / "output").exists()


def test_what_is_wrong_inside_a_file_is_one_sentence(failure: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "a_0000.nii.gz").write_bytes(b"?")
    image(tmp_path, "b_0000.nii.gz", shape=(2, 16, 20, 18))
    assert f"{tmp_path / 'a_0000.nii.gz'} is cut off or damaged" in failure(tmp_path)
    (tmp_path / "a_0000.nii.gz").write_bytes(gzip.compress(b"no image"))
    assert "case a cannot be read" in failure(tmp_path)
    (tmp_path / "a_0000.nii.gz").unlink()
    assert "case b has 2 channel(s); the model needs 1" in failure(tmp_path)
    assert list((tmp_path / "output").iterdir()) == []


def test_images_that_cannot_be_segmented(failure: Callable[[Path], str], tmp_path: Path) -> None:
    tiny.write_nifti(np.full((16, 20, 18), 1e300), tmp_path / "a_0000.nii.gz")
    assert "case a has voxels that are no numbers, or too large; export its images again" in failure(tmp_path)
    image(tmp_path, "a_0000.nii.gz")
    header = sitk.ReadImage(str(tmp_path / "a_0000.nii.gz"))
    header.SetSpacing((1, 1, 0.001))
    sitk.WriteImage(header, str(tmp_path / "a_0000.nii.gz"))
    assert "case a could not be segmented or written (" in failure(tmp_path)
    assert list((tmp_path / "output").iterdir()) == []


def test_a_disk_that_is_full_leaves_no_half_label_map(
    failure: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SimpleITK says nothing there."""
    image(tmp_path, "a_0000.nii.gz", "b_0000.nii")
    write = SimpleITKIO.write_seg

    def full(self: SimpleITKIO, labels: Any, file: str, properties: Any) -> None:
        write(self, labels, file, properties)
        os.truncate(file, os.path.getsize(file) // 2)

    monkeypatch.setattr(SimpleITKIO, "write_seg", full)
    assert f"{tmp_path / 'output' / 'a.nii.gz'}: No space left on device; mend that and repeat" in failure(tmp_path)
    assert list((tmp_path / "output").iterdir()) == []
    predict.find_cases(tmp_path, ".nii.gz", ["CT"])
    assert capsys.readouterr().out == "not read, since the model reads .nii.gz: 'b_0000.nii'\n"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SimpleITKIO, "write_seg", interrupted)
    assert predict.main() == 130 and "interrupted; the label maps that are there are whole" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_image_is_refused_by_name(failure: Callable[[Path], str], tmp_path: Path, share: float) -> None:
    """SimpleITK would fill it with zeros."""
    tiny.write_nifti(tiny.image_and_labels(0)[0].astype(np.int16), tmp_path / "a_0000.nii.gz")
    whole = (tmp_path / "a_0000.nii.gz").read_bytes()
    (tmp_path / "a_0000.nii.gz").write_bytes(whole[: int(len(whole) * share)])
    assert SimpleITKIO().read_images([str(tmp_path / "a_0000.nii.gz")])[0].size == 16 * 20 * 18
    assert f"{tmp_path / 'a_0000.nii.gz'} is cut off or damaged" in failure(tmp_path)
    assert list((tmp_path / "output").iterdir()) == []


def test_a_complete_gzip_of_half_an_image_and_a_wrong_checksum(failure: Callable[[Path], str], tmp_path: Path) -> None:
    tiny.write_nifti(tiny.image_and_labels(0)[0], tmp_path / "a_0000.nii.gz")
    whole = (tmp_path / "a_0000.nii.gz").read_bytes()
    (tmp_path / "a_0000.nii.gz").write_bytes(gzip.compress(gzip.decompress(whole)[:-1000]))
    assert "1000 bytes of its voxels are missing" in failure(tmp_path)
    (tmp_path / "a_0000.nii.gz").write_bytes(whole[:-8] + b"0000" + whole[-4:])
    assert "is cut off or damaged" in failure(tmp_path)


def test_names_that_readers_cannot_open(failure: Callable[[Path], str], tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9_0000.nii.gz")
    image(tmp_path, "a_0000.nii.gz")
    (tmp_path / "a_0000.nii.gz").rename(tmp_path / name)
    assert r"caf\udce9_0000.nii.gz' is no UTF-8; rename it" in failure(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "b_0000.nii.gz")
    assert "b_0000.nii.gz is no file, or a link to none; move it away" in failure(tmp_path)
    (tmp_path / "b_0000.nii.gz").unlink()
    (tmp_path / "b_0000.nii.gz").symlink_to(tmp_path / "nowhere")
    assert "b_0000.nii.gz is no file, or a link to none; move it away" in failure(tmp_path)
    assert "nowhere is no folder; give that of the images" in failure(tmp_path / "nowhere")


def test_places_that_are_taken(container: Path, tmp_path: Path) -> None:
    image(tmp_path, "a_0000.nii.gz")
    before = (tmp_path / "a_0000.nii.gz").read_bytes()
    done = start(container / "predict.py", tmp_path, tmp_path)
    assert done.returncode == 2 and "cannot be INPUT and OUTPUT; label maps would lie among the images" in done.stderr
    assert (tmp_path / "a_0000.nii.gz").read_bytes() == before
    (tmp_path / "output" / "a.nii.gz").mkdir(parents=True)
    done = start(container / "predict.py", tmp_path, tmp_path / "output")
    assert done.returncode == 2 and "a.nii.gz is a folder, where a label map is to be written" in done.stderr


def test_a_container_lies_beside_its_model(results: Path) -> None:
    before = sorted(results.rglob("*"))
    target = results / "nnUNetTrainer__Inside__3d_fullres"
    for place in (target, target / "box", results):
        with pytest.raises(MutualError, match="would lie in .*, or around it|exists"):
            run_export("Inside", place)
    assert sorted(results.rglob("*")) == before


@pytest.mark.parametrize("ending", ["/../../evil.nii.gz", "", "*", "..", ".nii.gz/", "\\..\\x.nii.gz", 3, None, ".a\0"])
def test_the_file_ending_of_a_model_leads_nowhere(tmp_path: Path, container: Path, ending: Any) -> None:
    model = shutil.copytree(container / "model", tmp_path / "model")
    content = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**content, "file_ending": ending}))
    with pytest.raises(predict.InputError, match=r"dataset.json has the file_ending .*; expected an ending such as"):
        predict.find_model(model)


def test_an_ending_that_the_reader_does_not_know(
    failure: Callable[[Path], str], tmp_path: Path, container: Path
) -> None:
    file = container / "model" / "dataset.json"
    before = file.read_text()
    image(tmp_path, "a_0000.nii.gz")
    (tmp_path / "a_0000.nii.gz").rename(tmp_path / "a_0000.xyz")
    try:
        file.write_text(json.dumps({**json.loads(before), "file_ending": ".xyz"}))
        assert "SimpleITKIO of plans.json neither reads nor writes .xyz of dataset.json" in failure(tmp_path)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"configurations": {"2d": 3}}', "\udce9"])
def test_damaged_json_of_the_model_is_one_sentence(
    failure: Callable[[Path], str], tmp_path: Path, container: Path, name: str, content: str
) -> None:
    file = container / "model" / name
    before = file.read_bytes()
    (tmp_path / "in").mkdir()
    image(tmp_path / "in", "a_0000.nii.gz")
    try:
        file.write_bytes(content.encode(errors="surrogateescape"))
        assert name in failure(tmp_path / "in")
    finally:
        file.write_bytes(before)


def test_a_checkpoint_of_the_old_format_is_not_opened(
    failure: Callable[[Path], str], tmp_path: Path, container: Path
) -> None:
    file = container / "model" / "fold_0" / "checkpoint_final.pth"
    before = file.read_bytes()
    (tmp_path / "in").mkdir()
    image(tmp_path / "in", "a_0000.nii.gz")
    try:
        content = torch.load(file, weights_only=True)
        torch.save(content, file, _use_new_zipfile_serialization=False)
        assert "fold_0/checkpoint_final.pth is damaged, or holds more than tensors" in failure(tmp_path / "in")
    finally:
        file.write_bytes(before)


def test_nothing_beside_the_script_is_a_package(
    container: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even where somebody allows a package of the same name."""
    copy = shutil.copytree(container, tmp_path / "elsewhere")
    (copy / "model" / "hidden.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    plans = json.loads((copy / "model" / "plans.json").read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["network_class_name"] = "model.hidden.Network"
    (copy / "model" / "plans.json").write_text(json.dumps(plans))
    images = trained / "nnUNet_raw" / tiny.NAME / "imagesTr"
    monkeypatch.setattr(predict, "MODEL", copy / "model")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(images), str(tmp_path / "out")])
    assert predict.main() == 2 and "names the network 'model.hidden.Network'" in capsys.readouterr().err
    done = start(copy / "predict.py", images, tmp_path / "out", nnUNet_mutual_networks="model")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: plans.json, dataset.json and the checkpoint do not fit each other (ImportError" in done.stderr
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(predict.InputError, match=r"lacks plans.json, dataset.json, fold_\*/checkpoint_final.pth"):
        predict.find_model(tmp_path)


def test_several_channels() -> None:
    folder = Path("nothing")
    with pytest.raises(predict.InputError, match="nothing is no folder"):
        predict.find_cases(folder, ".png", ["T1", "FLAIR"])


def test_files_of_a_case_are_sorted_by_channel(tmp_path: Path) -> None:
    image(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_1_0000.nii.gz", "b_1_0001.nii.gz")
    found = predict.find_cases(tmp_path, ".nii.gz", ["T1", "FLAIR"])
    assert {case: [path.name for path in files] for case, files in found.items()} == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b_1": ["b_1_0000.nii.gz", "b_1_0001.nii.gz"],
    }
    image(tmp_path, "c_0001.nii.gz")
    with pytest.raises(predict.InputError, match="case c has 1 .*needs 0000 = T1, 0001 = FLAIR"):
        predict.find_cases(tmp_path, ".nii.gz", ["T1", "FLAIR"])


def test_refusals_write_nothing(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(results.rglob("*"))
    with pytest.raises(MutualError, match="never overwritten"):
        run_export("nnUNetPlans_Again", tmp_path)
    plan = json.loads((results / "PartialTrainer__nnUNetPlans__3d_fullres" / "plans.json").read_text())
    with pytest.raises(MutualError, match="second stage of a cascade"):
        require_container(tmp_path / "new", plan, "3d_cascade_fullres")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunet_mutual.export.command.write_container", full_disk)
    with pytest.raises(OSError):
        run_export("nnUNetPlans_Again", tmp_path / "full")
    assert sorted(results.rglob("*")) == before and list(tmp_path.iterdir()) == []
