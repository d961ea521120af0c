"""A training of ours as the second opinion on the masks of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from first_release import put
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from other_tools import label_maps, same
from reviewing import run

from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.preprocessing.soft_folder import SoftFolder
from nnunet_mutual.pseudo_labels import soft_prediction
from nnunet_mutual.pseudo_labels.masks.make import STORE

SPLEEN = tiny.PLAIN["spleen"]
A = ["case_00", "case_02", "case_04"]  # annotate the liver; tumour and spleen are drawn in others
TRAINING = ["901", "3d_fullres", "0", "-tr", "PartialTrainer", "-chk", "checkpoint_latest.pth", "-device", "cpu"]
LABEL = ["pseudo_label", *TRAINING, "--tool", "Tool 1", "--from"]


@pytest.fixture()
def fold(nnunet_folders: Path) -> Path:
    return put(nnunet_folders, "PartialTrainer")[1]


class Knows:
    """A network that sees the truth, and a spleen one slice further."""

    def __init__(self) -> None:
        self.plans_manager = SimpleNamespace(image_reader_writer_class=SimpleITKIO)
        self.truth = {tiny.image_and_labels(n)[0].tobytes(): further(tiny.image_and_labels(n)[1]) for n in (0, 2, 4)}

    def predict_single_npy_array(self, image: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        labels = next(self.truth[key] for key in self.truth if np.array_equal(as_image(key), image[0]))
        return labels, np.stack([np.where(labels == value, 0.9, 0.1 / 3) for value in range(4)])


def as_image(content: bytes) -> np.ndarray:
    image = tiny.image_and_labels(0)[0]
    return np.frombuffer(content, image.dtype).reshape(image.shape)


def further(labels: np.ndarray) -> np.ndarray:
    wider = labels.copy()
    wider[(np.roll(labels, 1, 0) == SPLEEN) & (labels == 0)] = SPLEEN
    return wider


def test_agreement_with_what_the_network_predicts_on_the_way(
    nnunet_folders: Path, fold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soft_prediction, "open_predictor", lambda *_: Knows())
    masks = label_maps(nnunet_folders / "tool", A)
    asked: list[str] = []
    write = SoftFolder.write

    def counted(soft: SoftFolder, files: Any, probabilities: Any) -> None:
        asked.append(files.key)
        if len(asked) == 2:
            raise KeyboardInterrupt
        write(soft, files, probabilities)

    monkeypatch.setattr(SoftFolder, "write", counted)
    assert run(*LABEL, masks) == 130
    assert run(*LABEL, masks) == 0
    assert asked == ["case_00", "case_02", "case_02", "case_04"], "only the cases that the tool has outlined"
    store = PseudoStore(nnunet_folders / "nnUNet_raw" / tiny.NAME / STORE)
    found = {(one.case, one.label): one for one in store.decisions(A)}
    assert {label for _, label in found} == {"tumour", "spleen"}, "not what the network alone may say"
    a, b = (labels(tiny.image_and_labels(2)[1]) == SPLEEN for labels in (same, further))
    one = found["case_02", "spleen"]
    assert one.networks == "Tool 1+PartialTrainer 3d_fullres fold 0" and one.accepted
    assert one.agreement == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum())) and one.agreement < 0.99
    assert "no second opinion" not in capsys.readouterr().out
    candidates = store.candidates("case_02")
    assert candidates is not None
    np.testing.assert_array_equal(candidates[0] == SPLEEN, a, "a reader sees the tool's masks")


def test_another_network_is_asked_anew(nnunet_folders: Path, fold: Path) -> None:
    masks = label_maps(nnunet_folders / "tool", A)
    assert run(*LABEL, masks) == 0
    record = fold / "opinion_latest" / "soft_labels.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "sha256": "of another"}))
    before = (fold / "opinion_latest" / "case_00.npz").stat().st_mtime_ns
    assert run(*LABEL, masks) == 0
    assert (fold / "opinion_latest" / "case_00.npz").stat().st_mtime_ns > before


def edit(fold: Path, change: Any) -> None:
    """Changes what the training knew."""
    content = json.loads((fold.parent / "dataset.json").read_text())
    change(content["mutual"])
    (fold.parent / "dataset.json").write_text(json.dumps(content))


def test_a_network_that_the_tool_has_taught_is_named(
    nnunet_folders: Path, fold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soft_prediction, "open_predictor", lambda *_: Knows())
    outlined = {"spleen": {"by": "Tool 1", "weight": 0.5}}
    edit(fold, lambda block: block["cases"]["case_01"].update(outlined=outlined))
    assert run(*LABEL, label_maps(nnunet_folders / "tool", A)) == 0
    assert "WARNING: PartialTrainer learnt from outlines of Tool 1, so that" in capsys.readouterr().out


def knows_nothing_of_it(fold: Path) -> str:
    edit(fold, lambda block: block["sources"]["b"].update(annotated=[]))
    return "PartialTrainer has learnt none of the labels that the masks are of (tumour, spleen)"


def not_trained(fold: Path) -> str:
    (fold / "checkpoint_latest.pth").unlink()
    return "checkpoint_latest.pth does not exist; finish the training with"


def cut_off(fold: Path) -> str:
    (fold / "checkpoint_latest.pth").write_bytes((fold / "checkpoint_latest.pth").read_bytes()[:1000])
    return "checkpoint_latest.pth"


def cascaded(fold: Path) -> str:
    plans = json.loads((fold.parent / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    return "3d_fullres is the second stage of a cascade"


@pytest.mark.parametrize("spoil", [knows_nothing_of_it, not_trained, cut_off, cascaded])
def test_a_network_that_cannot_be_asked(
    nnunet_folders: Path, fold: Path, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = label_maps(nnunet_folders / "tool", A, lambda labels: np.where(labels == 1, 0, labels))
    (masks / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2, "spleen": 3}}))
    said = spoil(fold)
    assert run(*LABEL, masks) == 2
    assert said in capsys.readouterr().err
    assert not (nnunet_folders / "nnUNet_raw" / tiny.NAME / STORE).exists()
