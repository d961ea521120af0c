"""The generated data of the demo, its own folder, how it runs commands, and the demo itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, label

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.demo import commands
from nnunet_mutual.demo.anatomy import LABELS, SHAPE, SPACING
from nnunet_mutual.demo.commands import Command, run_commands
from nnunet_mutual.demo.folder import DemoFolder
from nnunet_mutual.demo.phantoms import SITES, Phantom, keep_annotated, make_phantom, write_dataset
from nnunet_mutual.demo.run import RESULTS, Scale, environment, run_demo
from nnunet_mutual.disk.locate import ROOTS
from nnunet_mutual.errors import MutualError

NORTH, SOUTH = SITES
FACES = np.array(
    [[[0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]]
)


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell without nnU-Net's variables, whose folders the demo keeps away from."""
    for name in ROOTS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(site, number, seed=5) for site in SITES for number in range(4)]


def contact(truth: np.ndarray, first: str, second: str) -> int:
    """Voxels of the first organ that share a face with the second."""
    return int(np.count_nonzero(binary_dilation(truth == LABELS[second], FACES) & (truth == LABELS[first])))


def test_every_phantom_has_all_organs_in_one_piece_and_plausible_volumes(phantoms: list[Phantom]) -> None:
    litres = {
        "liver": (0.5, 1.8),
        "spleen": (0.05, 0.35),
        "right_kidney": (0.05, 0.25),
        "left_kidney": (0.05, 0.25),
        "aorta": (0.04, 0.2),
        "spine": (0.2, 0.7),
    }
    for phantom in phantoms:
        for name, (low, high) in litres.items():
            organ = phantom.truth == LABELS[name]
            assert low < organ.sum() * np.prod(SPACING) * 1e-6 < high, (phantom.key, name)
            pieces, count = label(organ, np.ones((3, 3, 3)))
            largest = np.bincount(pieces.ravel())[1:].max() if count else 0
            assert largest > 0.95 * organ.sum(), (phantom.key, name)


def test_organs_touch_and_lie_on_the_right_side(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        truth = phantom.truth
        assert contact(truth, "right_kidney", "liver") > 10, phantom.key
        assert contact(truth, "aorta", "spine") > 10, phantom.key
        y, x = ({n: np.nonzero(truth == v)[axis].mean() for n, v in LABELS.items()} for axis in (1, 2))
        assert x["liver"] < x["spine"] < x["spleen"]  # x grows to the patient's left
        assert x["right_kidney"] < x["aorta"] < x["left_kidney"]
        assert y["aorta"] < y["spine"]  # y grows to the back


def test_the_right_kidney_mostly_lies_lower(phantoms: list[Phantom]) -> None:
    height = {n: np.mean([np.nonzero(p.truth == LABELS[n])[0].mean() for p in phantoms]) for n in LABELS}
    assert height["right_kidney"] < height["left_kidney"] - 0.5


def test_patients_differ_and_the_same_patient_is_reproduced(phantoms: list[Phantom]) -> None:
    again = make_phantom(NORTH, 0, seed=5)
    assert np.array_equal(again.image, phantoms[0].image)
    assert np.array_equal(again.truth, phantoms[0].truth)
    others = [phantoms[1], phantoms[4], make_phantom(NORTH, 0, seed=6)]
    for other in others:
        differing = np.count_nonzero(other.truth != again.truth) / np.count_nonzero(again.truth)
        assert 0.05 < differing < 1.5


def test_sites_differ_in_intensity_and_noise(phantoms: list[Phantom]) -> None:
    def median(site: str, organ: str) -> float:
        return float(np.median([np.median(p.image[p.truth == LABELS[organ]]) for p in phantoms if p.site.name == site]))

    def noise(site: str) -> float:
        def in_plane(p: Phantom) -> float:
            inside = (p.truth == LABELS["liver"])[:, :, 1:] & (p.truth == LABELS["liver"])[:, :, :-1]
            return float(np.diff(p.image.astype(float), axis=2)[inside].std())

        return float(np.mean([in_plane(p) for p in phantoms if p.site.name == site]))

    for organ in ("liver", "spleen", "aorta"):
        assert median("north", organ) - median("south", organ) > 10
    assert noise("south") > 1.3 * noise("north")


def test_images_are_ct_like(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.dtype == np.int16
        assert phantom.image.shape == phantom.truth.shape == SHAPE
        assert np.median(phantom.image[:, 0]) < -950  # air in front of the patient
        for organ, low, high in (("liver", 50, 150), ("aorta", 65, 230), ("spine", 150, 330)):
            assert low < np.median(phantom.image[phantom.truth == LABELS[organ]]) < high


def test_unannotated_organs_are_removed_and_the_others_untouched(phantoms: list[Phantom]) -> None:
    truth = phantoms[0].truth
    kept = keep_annotated(truth, ["liver", "aorta"])
    assert set(np.unique(kept)) == {0, LABELS["liver"], LABELS["aorta"]}
    for organ in ("liver", "aorta"):
        assert np.array_equal(kept == LABELS[organ], truth == LABELS[organ])


def test_written_dataset_says_what_each_site_annotates(tmp_path: Path) -> None:
    raw, truth = tmp_path / "Dataset901_TwoHospitals", tmp_path / "truth"
    tests = write_dataset(raw, truth, training=2, test=1, seed=3)
    assert tests == ["north_002", "south_002"]
    content = json.loads((raw / "dataset.json").read_text())
    table = AnnotationTable.from_dataset_json(content)
    assert set(NORTH.annotated) | set(SOUTH.annotated) == set(table.labels)
    assert not set(NORTH.annotated) & set(SOUTH.annotated)
    assert content["numTraining"] == 4 == len(list((raw / "imagesTr").iterdir()))
    for site in SITES:
        case = table.case(f"{site.name}_001")
        assert case.annotated == frozenset(site.annotated)
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / f"{case.key}.nii.gz")))
        assert set(np.unique(drawn)) == {0, *(LABELS[name] for name in site.annotated)}
    assert not (raw / "labelsTs").exists()
    for key in tests:
        image = sitk.ReadImage(str(raw / "imagesTs" / f"{key}_0000.nii.gz"))
        full = sitk.ReadImage(str(truth / f"{key}.nii.gz"))
        assert set(np.unique(sitk.GetArrayFromImage(full))) == {0, *LABELS.values()}
        assert image.GetSpacing() == full.GetSpacing() == SPACING[::-1]
        assert image.GetOrigin() == full.GetOrigin()


# The demo's own folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "nnUNet_raw").mkdir()
    (tmp_path / "nnUNet_raw" / "image").write_text("patient")
    before = contents(tmp_path)
    with pytest.raises(MutualError, match="not empty and was not made by a demo"):
        run_demo(str(tmp_path), keep=False)
    assert contents(tmp_path) == before
    (tmp_path / "demo.json").write_text('{"name": "of another program"}')
    with pytest.raises(MutualError, match="not empty and was not made by a demo"):
        run_demo(str(tmp_path), keep=False)
    with pytest.raises(MutualError, match="is a file"):
        run_demo(str(tmp_path / "thesis.txt"), keep=False)


@pytest.mark.parametrize("inside", ["", "some/where"])
def test_folders_of_the_users_nnunet_are_refused(nnunet_folders: Path, inside: str) -> None:
    target = nnunet_folders / "nnUNet_results" / inside
    with pytest.raises(MutualError, match="lies in your nnUNet_results"):
        run_demo(str(target), keep=False)
    assert not target.exists()


def test_an_interrupted_demo_goes_on_and_a_finished_or_other_one_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = DemoFolder.open(None, {"seed": 1}, last="evaluate")
    assert first.path == tmp_path / "nnunet_mutual_demo"
    (first.path / "nnUNet_raw").mkdir()
    first.finish("generate")
    assert DemoFolder.open(None, {"seed": 1}, last="evaluate").finished == ["generate"]
    assert (first.path / "nnUNet_raw").is_dir()
    assert DemoFolder.open(None, {"seed": 2}, last="evaluate").finished == []
    assert not (first.path / "nnUNet_raw").exists()
    again = DemoFolder.open(None, {"seed": 2}, last="evaluate")
    again.finish("evaluate")
    assert DemoFolder.open(None, {"seed": 2}, last="evaluate").finished == []


def test_commands_see_only_the_folders_of_the_demo(tmp_path: Path, nnunet_folders: Path) -> None:
    os.environ["nnUNet_wandb_enabled"] = "1"
    try:
        variables = environment(tmp_path / "demo")
    finally:
        del os.environ["nnUNet_wandb_enabled"]
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert variables[name] == str(tmp_path / "demo" / name)
    assert "nnUNet_wandb_enabled" not in variables


# How commands run


def python(code: str, log: str, epochs: int = 0) -> Command:
    return Command([sys.executable, "-c", code], log, epochs=epochs)


def test_commands_run_together_and_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wait = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    run_commands(
        [python(wait.format(one, two), "first", 3), python(wait.format(two, one), "second", 3)],
        tmp_path / "logs",
        dict(os.environ),
    )
    assert capsys.readouterr().out.count(f"$ {sys.executable} -c") == 2


def test_output_is_shown_without_progress_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = r"import sys; sys.stdout.write('reading: 10%\rreading: 90%\rtable\nend\n')"
    run_commands([Command([sys.executable, "-c", code], "log", shown=True)], tmp_path, dict(os.environ))
    assert capsys.readouterr().out.endswith("\ntable\nend\n")


def test_progress_is_read_from_the_output_of_nnunet() -> None:
    assert commands.epochs_done(b"") == 0
    log = b"2026-01-01 10:00:00.1: Epoch 3\n2026-01-01 10:00:00.2: Current learning rate: 0.01\n"
    assert commands.epochs_done(log) == 3
    assert commands.epochs_done(log + b"2026-01-01 10:00:09.1: Epoch time: 9.0 s\n") == 4


def test_a_failing_command_shows_its_last_lines_and_stops_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(MutualError, match=r"exit status 3; its output is in .*bad\.log"):
        run_commands(
            [python("import time; time.sleep(60)", "slow"), python("print('no space left'); exit(3)", "bad")],
            tmp_path / "logs",
            dict(os.environ),
        )
    assert time.monotonic() - started < 30
    assert "no space left" in capsys.readouterr().err


def test_an_unknown_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(MutualError, match="nnUNetv2_nothing was not found"):
        run_commands([Command(["nnUNetv2_nothing"], "log")], tmp_path / "logs", dict(os.environ))


def test_interrupting_lets_the_command_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""

    def interrupt_once(command: object) -> None:
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(commands._Progress, "update", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        run_commands([python(code, "training", 5)], tmp_path / "logs", dict(os.environ))
    assert (tmp_path / "saved").exists()


# The demo


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale = Scale(training=5, test=1, epochs=1, iterations=1, patch_size=(8, 32, 32), stages=3, features=4, expected=0)
    folder = tmp_path / "demo"
    assert run_demo(str(folder), keep=True, scale=scale) == 0
    printed = capsys.readouterr().out
    for command in (
        "$ nnunet_mutual check 901",
        "$ nnUNetv2_plan_and_preprocess -d 901",
        "$ nnUNetv2_train 901 3d_fullres_demo 0 -tr PartialTrainer",
        "$ nnunet_mutual export 901 3d_fullres_demo -tr PartialTrainer -f 0",
        "$ nnUNetv2_predict -d 901",
        "  nnunet_mutual annotate DATASET cases.csv",
    ):
        assert command in printed
    results = json.loads((folder / RESULTS).read_text())
    for trainer in ("PartialTrainer", "nnUNetTrainerDemo"):
        assert results["dice"][trainer]["n"] == dict.fromkeys(LABELS, 2)
        assert len(list((folder / "predictions" / trainer).glob("*.nii.gz"))) == 2
    assert str(tmp_path) not in (folder / RESULTS).read_text()
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "report" / "report.html").read_text()
    assert "with another model: nnUNetTrainerDemo" in page and "liver, the only case: Dice" in page
    exported = folder / "nnUNet_results/Dataset901_TwoHospitals/nnUNetTrainer__nnUNetPlans_Partial__3d_fullres_demo"
    assert (exported / "fold_0" / "checkpoint_final.pth").is_file()

    # Without the last step it goes on there: nothing is trained again. Without --keep only the results stay.
    record = json.loads((folder / "demo.json").read_text())
    record["finished"].remove("evaluate")
    (folder / "demo.json").write_text(json.dumps(record))
    assert run_demo(str(folder), keep=False, scale=scale) == 0
    assert "nnUNetv2_train" not in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == [
        "demo.json",
        "demo.png",
        "demo_results.json",
        "logs",
        "report",
    ]


def test_command_line_refuses_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_mutual.cli.parser", "demo", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "was not made by a demo" in done.stderr
    assert done.stderr.count("\n") == 1
