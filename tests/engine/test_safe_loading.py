"""What a hostile or damaged file does to commands: nothing is run, one sentence names the file and the fix."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from training import SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.case_files import (
    Stored,
    damage_named,
    load_case,
    read_arrays,
    read_properties,
    require_readable,
)
from nnunet_mutual.engine import standalone as predict
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.engine.checkpoints import STATE_KEY
from nnunet_mutual.engine.stock_model import open_predictor, require_known_networks
from nnunet_mutual.errors import MutualError


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def stock_model(folder: Path, **entries: Any) -> Path:
    """A model folder of stock nnU-Net, as NumPy's objects in its log make it."""
    (folder / "fold_0").mkdir(parents=True)
    dataset = {"channel_names": {"0": "CT"}, "labels": tiny.PLAIN, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(tiny.plans())
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 4, False)
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "more": np.arange(3), "n": np.int64(3)},
        **entries,
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_a_stock_checkpoint_of_any_numpy_is_read(tmp_path: Path) -> None:
    file = stock_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    found = read_checkpoint(file)["logging"]
    assert found["ema_fg_dice"] == [0.5, 0.25] and found["more"].tolist() == [0, 1, 2]
    old = tmp_path / "old.pth"  # NumPy 1 had other names for the same
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(old)["logging"]["ema_fg_dice"] == [0.5, 0.25]


def test_the_predictor_is_what_nnunet_makes_of_the_folder(tmp_path: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = stock_model(tmp_path / "model")
    ours = open_predictor(folder, "0", "checkpoint_final.pth", torch.device("cpu"))
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(folder), (0,))
    image = torch.randn(1, 16, 20, 18)
    assert torch.equal(*(one.predict_logits_from_preprocessed_data(image) for one in (ours, theirs)))


def test_a_hostile_checkpoint_runs_nothing_in_any_command(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_stream_dataset(nnunet_folders)
    mark = nnunet_folders / "owned"
    results = nnunet_folders / "nnUNet_results" / tiny.NAME
    stock_model(results / "nnUNetTrainer__nnUNetPlans__3d_fullres", hostile=Hostile(mark))
    line = f"pseudo_label 901 3d_fullres 0 -tr nnUNetTrainer -device cpu --soft -o {nnunet_folders / 'soft'}"
    own = stock_model(results / "PartialTrainer__nnUNetPlans__3d_fullres", hostile=Hostile(mark))
    (own / "fold_0" / "validation").mkdir()
    for name in ("fold_0/validation/summary.json", "dataset_fingerprint.json"):
        (own / name).write_text("{}")
    for command in (
        line,
        "pseudo_label 901 3d_fullres 0 -tr PartialTrainer -device cpu",
        "export 901 3d_fullres -tr PartialTrainer -f 0",
    ):
        assert main(command.split()) == 2
        said = capsys.readouterr().err.rpartition("error: ")[2]
        assert "checkpoint_final.pth asks for posix.mkdir" in said and "nothing of it was run" in said
        assert "weights_only" not in said and said.count("\n") == 1
    assert not mark.exists() and not (nnunet_folders / "soft").exists()


@pytest.mark.usefixtures("nnunet_folders")  # in a container the script sets what is not set
def test_a_hostile_model_runs_nothing_in_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "owned"
    monkeypatch.setattr(predict, "MODEL", stock_model(tmp_path / "model", hostile=Hostile(mark)))
    (tmp_path / "in").mkdir()
    tiny.write_nifti(np.zeros((16, 20, 18), np.float32), tmp_path / "in" / "a_0000.nii.gz")
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path / "in"), str(tmp_path / "out")])
    assert predict.main() == 2
    said = capsys.readouterr().err
    assert "checkpoint_final.pth" in said and "weights_only" not in said and said.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nnunet_folders")  # in a container the script sets what is not set
def test_the_container_writes_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the output folder, taken already by a link, is replaced; what the link points to is not touched."""
    monkeypatch.setattr(predict, "MODEL", stock_model(tmp_path / "model", logging={}))
    (tmp_path / "in").mkdir()
    tiny.write_nifti(tiny.image_and_labels(1)[0], tmp_path / "in" / "a_0000.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("kept")
    for name in (".partial_a.nii.gz", "a.nii.gz"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path / "in"), str(tmp_path / "out")])
    assert predict.main() == 0
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "out" / "a.nii.gz").is_symlink() and (tmp_path / "out" / "a.nii.gz").stat().st_size > 50
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".partial_a.nii.gz", "a.nii.gz"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\x80\x02}q\x00.", "is no checkpoint"),
        (b"PK\x03\x04" + b"\0" * 50, "is damaged, cut short"),
        ([1, 2], "holds a list"),
    ],
)
def test_damaged_checkpoints_are_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "checkpoint_best.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(MutualError, match=f"checkpoint_best.pth {sentence}.*copy it anew") as caught:
        read_checkpoint(file)
    assert "weights_only" not in str(caught.value)
    with pytest.raises(MutualError, match="does not exist"):
        read_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("what", ["weights", "entries", "configuration"])
def test_a_tampered_model_is_one_sentence(tmp_path: Path, what: str) -> None:
    changed: dict[str, Any] = {
        "weights": {"network_weights": {"a": torch.zeros(1)}},
        "entries": {"init_args": None},
        "configuration": {"init_args": {"configuration": "4d"}},
    }[what]
    folder = stock_model(tmp_path / "model", **changed)
    with pytest.raises(
        MutualError, match=r"checkpoint_final.pth: plans.json, dataset.json and the checkpoint do not fit each other"
    ):
        open_predictor(folder, "0", "checkpoint_final.pth", torch.device("cpu"))


def test_a_tampered_checkpoint_of_a_training_is_one_sentence(nnunet_folders: Path) -> None:
    trainer = trainer_for(tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT))
    trainer.initialize()
    best, latest = (Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("best", "latest"))
    trainer.save_checkpoint(str(best))
    whole = torch.load(best, weights_only=True)
    short = [{key: value for key, value in whole.items() if key != name} for name in ("logging", "network_weights")]
    for content in (*short, {**whole, STATE_KEY: {**whole[STATE_KEY], "peers": {}}}, {**whole, STATE_KEY: 3}):
        torch.save(content, latest)
        with pytest.raises(MutualError, match=r"checkpoint_latest.pth.* --c goes on from checkpoint_best.pth"):
            trainer.load_checkpoint(str(latest))


@pytest.mark.parametrize(
    "name", ["model.hidden.Network", ".model.hidden.Network", "os.system", "", 3, "torch.hub.load", "torch.os.system"]
)
@pytest.mark.parametrize("as_layer", [False, True], ids=["network", "layer"])
def test_plans_cannot_have_other_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, as_layer: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "hidden.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    plans = tiny.plans()
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            described = configuration["architecture"]
            (described["arch_kwargs"] if as_layer else described)["nonlin" if as_layer else "network_class_name"] = name
    with pytest.raises(MutualError, match="plans.json names"):
        require_known_networks(plans, "plans.json")
    with pytest.raises(predict.InputError, match="plans.json names"):
        predict.require_known_networks(plans, "plans.json")
    assert not (tmp_path / "owned").exists()


def test_a_package_that_is_asked_for_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = tiny.plans()
    require_known_networks(plans, "plans.json")
    predict.require_known_networks(plans, "plans.json")
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "my_networks.unet.Net"
    with pytest.raises(MutualError, match=f"export {predict.VARIABLE}=my_networks"):
        require_known_networks(plans, "plans.json")
    monkeypatch.setenv(predict.VARIABLE, "other, my_networks")
    require_known_networks(plans, "plans.json")
    predict.require_known_networks(plans, "plans.json")


def test_properties_of_a_case_run_nothing(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, cases=1)
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    file = folder / "case_00.pkl"
    whole = pickle.loads(file.read_bytes())
    dataset = nnUNetDatasetBlosc2(str(folder), ["case_00"])
    data, seg, _, properties = load_case(dataset, "case_00")
    assert data[:].shape == seg.shape == (1, 16, 20, 18) and str(properties) == str(whole)
    mark = nnunet_folders / "owned"
    fix = "case_00.pkl .*delete it and run nnunet_mutual plan_and_preprocess -d 901"
    for content in (pickle.dumps({"spacing": Hostile(mark)}), b"", file.read_bytes()[:-20], pickle.dumps([1])):
        file.write_bytes(content)
        with pytest.raises(MutualError, match=fix):
            load_case(dataset, "case_00")
        with pytest.raises(MutualError, match=fix):
            read_properties(file)
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 100, -200])
def test_a_truncated_array_is_named(nnunet_folders: Path, kept: int) -> None:
    folder = tiny.make_dataset(nnunet_folders, cases=1) / "nnUNetPlans_3d_fullres"
    file = folder / "case_00_seg.b2nd" if kept == 0 else folder / "case_00.b2nd"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(MutualError, match="case_00.*b2nd.* run nnunet_mutual plan_and_preprocess -d 901"):
        load_case(nnUNetDatasetBlosc2(str(folder), ["case_00"]), "case_00")[0][:]


def test_what_a_loader_reads_is_opened_before_and_a_damaged_voxel_is_found_after(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.make_dataset(nnunet_folders, cases=3) / "nnUNetPlans_3d_fullres"
    dataset = nnUNetDatasetBlosc2(str(folder))
    require_readable(dataset)
    with pytest.raises(RuntimeError, match="no longer alive"), damage_named([dataset]):
        raise RuntimeError("workers are no longer alive")
    file = folder / "case_01.b2nd"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + b"\xa5" * 400 + whole[middle + 400 :])
    require_readable(dataset)
    damaged = "case_01.b2nd is missing, empty, cut short or changed; delete it"
    with pytest.raises(MutualError, match=damaged), damage_named([dataset]):
        raise RuntimeError("workers are no longer alive")
    file.write_bytes(whole)
    for name, content in (("case_02_seg.b2nd", b""), ("case_00.pkl", pickle.dumps(Hostile(folder / "owned")))):
        (folder / name).write_bytes(content)
        with pytest.raises(MutualError, match=f"{name} .*delete it and run nnunet_mutual plan_and_preprocess -d 901"):
            require_readable(dataset)
    assert not (folder / "owned").exists()
    monkeypatch.setattr(Stored, "__getitem__", lambda *_: pytest.fail("voxels are read last"))
    with pytest.raises(MutualError, match="case_00.pkl"), damage_named([dataset]):
        raise RuntimeError("workers are no longer alive")


def test_arrays_are_numbers_or_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, probabilities=np.arange(3000))
    whole = file.read_bytes()
    assert read_arrays(file, "make it")["probabilities"].sum() == 4498500
    np.savez_compressed(tmp_path / "b.npz", probabilities=np.array([Hostile(tmp_path / "owned")], object))
    for content in (b"", whole[:-30], whole[:300] + b"??" + whole[302:], (tmp_path / "b.npz").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(MutualError, match="a.npz is empty, cut short or holds more than numbers; make it"):
            read_arrays(file, "make it")
    assert not (tmp_path / "owned").exists()
