"""Images of another sequence are noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from modalities import two_channels
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage
from tiny import write_nifti

from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.export.sequences import FILE, MOST_CASES, judge, profile, references_of


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sequences of one smooth anatomy: in the first the edges are in bright, in the second in dark places."""
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.normal(size=(20, 24, 22)), 2)
    x = (x - x.min()) / (x.max() - x.min())
    first = 100 * x**3 + rng.normal(0, 0.3, x.shape)
    second = 50 * (1 - x**3) + rng.normal(0, 0.3, x.shape)
    return first.astype(np.float32), second.astype(np.float32)


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    """A model folder of the first sequence, and images of twelve patients."""
    folder = tmp_path / "model"
    folder.mkdir()
    cases = []
    for number in range(8):
        paths = {n: tmp_path / f"train_{number}_{n:04d}.nii.gz" for n in range(2)}
        for path, image in zip(paths.values(), anatomy(number), strict=True):
            write_nifti(image, path)
        cases.append(CaseFiles(f"train_{number}", paths, tmp_path / "none"))
    write_json(folder / FILE, references_of(cases, two_channels(), SimpleITKIO()))
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}))
    return folder


def test_the_wrong_sequence_is_noticed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        write_nifti(anatomy(20 + number)[0] * 3 - 50, images / f"p{number}_0000.nii.gz")  # of another scanner
    assert main(["check_images", str(model), str(images)]) == 0
    assert "4 case(s), 0 image(s) in doubt" in capsys.readouterr().out
    write_nifti(anatomy(30)[1], images / "wrong_0000.nii.gz")
    assert main(["check_images", str(model), str(images)]) == 1
    shown = capsys.readouterr().out
    assert "wrong_0000.nii.gz: DOUBTFUL, looks more like FLAIR than like T1" in shown and "1 image(s) in doubt" in shown
    assert "train" not in (model / FILE).read_text()


def test_an_image_unlike_all_is_noticed() -> None:
    references = {"T1": (np.ones(6), 0.1), "FLAIR": (np.full(6, 9.0), 0.1)}
    assert judge(np.full(6, 1.2), "T1", references) is None
    assert judge(np.full(6, 1.4), "T1", references) == "DOUBTFUL, unlike the images of T1 in the training"
    assert "UNKNOWN" in str(judge(np.full(6, 1.4), "T2", references))


def test_the_profile_knows_no_scale() -> None:
    image = anatomy(0)[0].astype(np.float64)
    np.testing.assert_allclose(profile(image), profile(7 * image + 1000), rtol=1e-9)
    padded = np.pad(image, 8)
    assert np.abs(profile(padded) - profile(image)).mean() < 0.3
    assert np.isfinite(profile(np.zeros((4, 4, 4)))).all()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "holds no image"),
        (["a_0001.nii.gz"], "case a has no channel 0000 (T1)"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], "case a has 2 channels, but this model takes T1 as 0000 alone"),
    ],
)
def test_nothing_to_look_at(
    model: Path, tmp_path: Path, files: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in files:
        write_nifti(anatomy(0)[0], images / name)
    assert main(["check_images", str(model), str(images)]) == 2
    assert says in capsys.readouterr().err
    (model / FILE).unlink()
    assert main(["check_images", str(model), str(images)]) == 2
    assert FILE in capsys.readouterr().err


def test_zeros_of_missing_channels_are_no_reference(tmp_path: Path) -> None:
    """And cases that lack a channel leave room for others that have it."""
    cases = []
    for number in range(MOST_CASES + 3):
        paths = {n: tmp_path / f"c{number:02d}_{n:04d}.nii.gz" for n in range(2)}
        first, second = anatomy(number % 3)
        for n, image in enumerate((first, second if number >= MOST_CASES else np.zeros_like(second))):
            write_nifti(image, paths[n])
        cases.append(CaseFiles(f"c{number:02d}", paths, tmp_path / "none"))
    missing = {f"c{number:02d}": "FLAIR" for number in range(MOST_CASES)}
    found = references_of(cases, two_channels(missing), SimpleITKIO())
    assert np.allclose(found["FLAIR"]["profile"], np.mean([profile(anatomy(n)[1]) for n in (2, 0, 1)], 0), atol=1e-3)
    found = references_of(cases[:MOST_CASES], two_channels(missing), SimpleITKIO())
    references = {name: (np.asarray(entry["profile"]), entry["distance"]) for name, entry in found.items()}
    assert [*references] == ["T1"]
    assert "UNKNOWN" in str(judge(profile(anatomy(0)[1]), "FLAIR", references)), (
        "without a reference nothing looks like it"
    )
