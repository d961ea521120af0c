"""MutualCrossModalTrainer: who sees what, what ties the networks, and when who teaches whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from modalities import GROUPS, make_preprocessed
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from prepared import prepare
from training import SHORT, largest_difference, trainer_for

from nnunet_mutual.engine.checkpoints import load_own
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.input_columns import input_keys
from nnunet_mutual.objectives.crossmodal import teachers_of
from nnunet_mutual.settings import read_settings
from nnunet_mutual.trainers import MutualCrossModalTrainer, PartialTrainer

FAST = {**SHORT, "memory": "joint", "form": "contrast"}


def started(root: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    trainer = trainer_for(make_preprocessed(root, settings=FAST | (settings or {}), **options), MutualCrossModalTrainer)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def test_a_training_from_beginning_to_end(nnunet_folders: Path) -> None:
    preprocessed = make_preprocessed(nnunet_folders, settings=FAST)
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer)
    trainer.run_training()
    fold = Path(trainer.output_folder)
    lines = [json.loads(line) for line in (fold / "mutual_log.jsonl").read_text().splitlines()]
    terms = [line["terms"] for line in lines if "terms" in line]
    assert all(
        epoch[f"{name}[{n}]"] != 0 for epoch in terms[:1] for n in range(3) for name in ("supervised", "contrast")
    )
    assert terms[0]["relearning[0]"] == 0 and any(terms[-1][f"relearning[{n}]"] != 0 for n in range(3))
    assert all((fold / f"checkpoint_best_{name}.pth").is_file() for name in GROUPS)
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "Export_first_with_nnunet_mutual_export"


def test_each_stored_channel_has_the_mask_of_its_own(nnunet_folders: Path) -> None:
    groups = {"FLAIR": ["FLAIR"], "both": ["T1", "FLAIR"]}  # stored one after the other
    trainer = trainer_for(make_preprocessed(nnunet_folders, settings=FAST, groups=groups), MutualCrossModalTrainer)
    trainer.initialize()
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [True, False]
    asked: dict[str, Any] = {}
    original = trainer.get_training_transforms
    trainer.get_training_transforms = lambda *some, **more: (asked.update(more), original(*some, **more))[1]
    trainer.get_dataloaders()
    assert asked["use_mask_for_norm"] == [False, True, False]


KINDS: dict[str, dict[str, Any]] = {
    "regions": {"labels": tiny.REGIONS},
    "ignore": {"ignore": True},
    "regions with ignore": {"labels": tiny.REGIONS, "ignore": True},
    "2d": {"configuration": "2d"},
    "anisotropic": {"configuration": "3d_aniso"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_nnunet_supports(nnunet_folders: Path, kind: str) -> None:
    """All terms of all phases are finite, and the networks learn."""
    options = KINDS[kind]
    settings = FAST | {
        "relearn_from": 0.3,
        "all_from": 0.7,
        "ramp": 0.01,
        "num_iterations_per_epoch": 12,
        "optimizer": "adamw",
    }
    preprocessed = make_preprocessed(nnunet_folders, settings=settings, **options)
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer, options.get("configuration", "3d_fullres"))
    trainer.run_training()
    log = Path(trainer.output_folder) / "mutual_log.jsonl"
    terms = [line["terms"] for line in map(json.loads, log.read_text().splitlines()) if "terms" in line]
    assert np.isfinite([list(epoch.values()) for epoch in terms]).all()
    for n in range(3):
        assert terms[-1][f"supervised[{n}]"] < terms[0][f"supervised[{n}]"]
        assert terms[0][f"consistency[{n}]"] > 0 and terms[-1][f"relearning[{n}]"] != 0


@pytest.mark.parametrize("kind", ["plain", *KINDS, "missing"])
def test_averages_teach_together(nnunet_folders: Path, kind: str) -> None:
    """From a mean of all averages, each network learns; of a case without FLAIR, those that see T1 alone."""
    options = {"missing": {"case_01": "FLAIR", "un_0": "FLAIR"}} if kind == "missing" else KINDS.get(kind, {})
    settings = FAST | {"form": "averages", "ramp": 0.01, "num_iterations_per_epoch": 12, "optimizer": "adamw"}
    preprocessed = make_preprocessed(nnunet_folders, settings=settings, **options)
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer, options.get("configuration", "3d_fullres"))
    trainer.run_training()
    log = Path(trainer.output_folder) / "mutual_log.jsonl"
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "terms" in line]
    assert np.isfinite([list(epoch["terms"].values()) for epoch in lines]).all()
    for n in range(3):
        assert lines[-1]["terms"][f"supervised[{n}]"] < lines[0]["terms"][f"supervised[{n}]"]
        assert lines[-1]["terms"][f"consistency[{n}]"] != 0
    shares = {k: v for k, v in lines[-1]["diagnostics"].items() if k.startswith("share of network")}
    assert len(shares) == 9 and sum(shares.values()) == pytest.approx(3)
    assert max(shares.values()) > 1 / 3 + 0.001, "every network counts alike, so nothing was noticed"


def test_settings_of_the_other_form_are_refused(nnunet_folders: Path) -> None:
    for settings in ({"queue": 4}, {"form": "contrast", "taught": 1.0}):
        with pytest.raises(MutualError, match="has no effect with form="):
            read_settings(MutualCrossModalTrainer.settings_class, settings)


def test_a_group_that_no_validation_case_has_validates_as_empty(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessed = make_preprocessed(nnunet_folders, settings=FAST, missing={"case_00": "FLAIR"})
    keys = [f"case_{n:02d}" for n in range(6)]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": keys[1:], "val": keys[:1]}]))
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer)
    trainer.initialize()
    monkeypatch.setattr(MutualCrossModalTrainer, "validated", {"_FLAIR": 1})
    trainer.perform_actual_validation(save_probabilities=True)
    summary = load_summary_json(str(Path(trainer.output_folder) / "validation_FLAIR" / "summary.json"))
    assert summary["metric_per_case"] == [] and np.isnan(summary["foreground_mean"]["Dice"])
    assert set(summary["mean"]) == {1, 2, 3} and all(np.isnan(entry["Dice"]) for entry in summary["mean"].values())
    said = Path(trainer.log_file).read_text()
    assert "FLAIR: no validation case has the channels that this network sees (n = 0)" in said
    assert "liver: Dice nan (annotated in 0 of 0 validation cases)" in said


def test_a_cascade_is_refused(nnunet_folders: Path) -> None:
    preprocessed = make_preprocessed(nnunet_folders, settings=FAST, configuration="3d_lowres")
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer, "3d_cascade_fullres")
    with pytest.raises(MutualError, match="does not train cascades"):
        trainer.initialize()


def test_each_network_sees_its_channels(nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders)
    images = torch.randn(2, 4, 8, 8, 8)
    seen = [trainer.stream.seen_by(n, images) for n in range(3)]
    assert all(part.shape == (2, 2, 8, 8, 8) for part in seen)
    assert torch.equal(seen[0][:, 0], images[:, 0]) and not seen[0][:, 1].any()
    assert torch.equal(seen[1][:, 1], images[:, 1]) and not seen[1][:, 0].any()
    assert torch.equal(seen[2], images[:, 2:])


def test_unused_columns_stay_zero(nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders)
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    for network, unused in ((0, 1), (1, 0)):
        for owner in (trainer.peers.networks[network], trainer.peers.evaluated[network]):
            state = unwrap(owner).state_dict()
            for key in input_keys(unwrap(owner)):
                assert state[key][:, unused].abs().max() == 0 and state[key][:, 1 - unused].abs().min() > 0
    assert all(p.isfinite().all() for network in trainer.peers.networks for p in network.parameters())


def test_what_a_checkpoint_holds_is_no_pretrained_encoder(nnunet_folders: Path) -> None:
    """Of a training that was stopped before its first step."""
    trainer = trainer_for(make_preprocessed(nnunet_folders, settings=FAST), MutualCrossModalTrainer)
    trainer.initialize()
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(latest))
    again = trainer_for(nnunet_folders / "nnUNet_preprocessed" / tiny.NAME, MutualCrossModalTrainer, resume="latest")
    again.on_train_start()
    for before, after in zip(trainer.peers.networks, again.peers.networks, strict=True):
        assert largest_difference(unwrap(before).state_dict(), unwrap(after).state_dict()) == 0


def test_pretrained_weights_leave_unused_columns_zero(nnunet_folders: Path) -> None:
    trainer = trainer_for(make_preprocessed(nnunet_folders, settings=FAST), MutualCrossModalTrainer)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.fill_(0.1)  # as nnU-Net's -pretrained_weights does between initialisation and start
    trainer.on_train_start()
    for network, unused in ((0, 1), (1, 0)):
        plain = unwrap(trainer.peers.networks[network])
        for key in input_keys(plain):
            weights = plain.state_dict()[key]
            assert weights[:, unused].abs().max() == 0 and torch.equal(
                weights[:, 1 - unused], torch.full_like(weights[:, 0], 0.1)
            )
        average = trainer.peers.evaluated[network].state_dict()
        assert all(torch.equal(average[key], value) for key, value in plain.state_dict().items())


def test_a_missing_modality_counts_nowhere(nnunet_folders: Path) -> None:
    missing = {f"case_{n:02d}": "T1" for n in range(1, 6)} | {f"un_{n}": "T1" for n in range(3)}
    trainer = started(nnunet_folders, missing=missing, settings={"loss": {"consistency": 1.0}})
    batch = next(trainer.dataloader_train)
    while any("case_00" in key for key in batch["keys"]):
        batch = next(trainer.dataloader_train)
    batch["data"] = torch.randn(batch["data"].shape)  # as the augmentation leaves it: noise where nothing was
    moved = trainer.training_batch(batch)
    assert not moved.data[:, 0].any() and not moved.data[:, 2].any() and moved.data[:, 1].any()
    assert moved.sight is not None and moved.sight.host == [[False, True, False]] * len(batch["keys"])
    before = [{key: value.clone() for key, value in unwrap(n).state_dict().items()} for n in trainer.peers.networks]
    trainer.train_step(batch)
    for n, network in enumerate(trainer.peers.networks):
        moved_at_all = any(not torch.equal(before[n][k], v) for k, v in unwrap(network).state_dict().items())
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert any(g.abs().max() > 0 for g in gradients) == (n == 1), n
        assert moved_at_all or n != 1


@pytest.mark.parametrize("phase", [0.0, 0.7, 0.95])
def test_both_memory_modes_give_the_same_gradients(nnunet_folders: Path, phase: float) -> None:
    trainer = started(nnunet_folders)
    batch = next(trainer.dataloader_train)
    trainer.current_epoch = round(phase * 1000)
    trainer.num_epochs = 1000
    gradients: dict[str, list[torch.Tensor]] = {}
    for memory in ("joint", "sequential"):
        trainer.peers.memory = memory
        torch.manual_seed(5)
        moved, progress = trainer.training_batch(batch), trainer.progress()
        trainer.peers.zero_grad()
        seen = [trainer.stream.seen_by(n, moved.data) for n in range(3)]
        objective = trainer.objectives[0]
        for peer, outputs, recorded in trainer.peers.passes(seen, trainer.autocast):
            if peer == 0:
                step = prepare(objective, recorded, moved, progress)
            terms = objective.terms(peer, outputs, step).values()
            trainer.peers.backward(torch.stack([term.value * term.weight for term in terms]).sum())
        gradients[memory] = [
            p.grad.clone() for n in trainer.peers.networks for p in n.parameters() if p.grad is not None
        ]
        assert step.phase == (phase > 0.6) + (phase > 0.9)
    for a, b in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_split_gradient_is_the_joint_one(nnunet_folders: Path) -> None:
    """Network by network against recorded outputs, the gradient is that of the sum of all losses."""
    trainer = started(nnunet_folders)
    objective = trainer.objectives[0]
    moved = trainer.training_batch(next(trainer.dataloader_train))
    progress = trainer.progress()
    levels = [
        torch.randn(3, 4, 16, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
        for n in range(3)
    ]
    total = torch.zeros((), dtype=torch.float64)
    from nnunet_mutual.objectives import Output

    outputs = [Output([z]) for z in levels]
    step = prepare(objective, [o.detach() for o in outputs], moved, progress)
    for peer in range(3):
        seen = [o if n == peer else o.detach() for n, o in enumerate(outputs)]
        p = objective._probabilities(seen[peer], moved)
        total = total + objective._contrast(peer, p, step) + objective._consistency(peer, p, step)
    split = torch.autograd.grad(total, levels)
    joint = torch.zeros((), dtype=torch.float64)
    p = [objective._probabilities(o, moved) for o in outputs]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        objective._said = [q if n in (a, b) else q.detach() for n, q in enumerate(p)]
        both = objective._both(moved, a, b)
        maps = [objective._maps(q, moved) for q in (p[a], p[b])]
        joint = joint + objective._similarity(*maps, both)[0] / 3
        inside = moved.views.inside[:2] & both.view(-1, 1, 1, 1, 1)
        joint = joint + (0.5 * (p[a] - p[b]).square().sum(1, keepdim=True) * inside).sum() / inside.sum() / 3
    expected = torch.autograd.grad(joint, levels)
    for found, wanted in zip(split, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)


def test_who_teaches_whom() -> None:
    nan = float("nan")
    assert teachers_of([[0.9, 0.7], [0.6, 0.6]], everybody=False, per_label=False) == [[None], [0]]
    assert teachers_of([[0.9, 0.7], [0.6, 0.6]], everybody=True, per_label=False) == [[1], [0]]
    assert teachers_of([[0.805], [0.8]], everybody=False, per_label=False) == [[1], [0]]  # as good as each other
    assert teachers_of([[0.9, 0.5], [0.6, 0.8]], everybody=False, per_label=True) == [[None, 1], [0, None]]
    assert teachers_of([[0.5], [0.7], [0.9]], everybody=False, per_label=False) == [[2], [2], [None]]
    assert teachers_of([[nan], [nan]], everybody=False, per_label=False) == [[1], [0]]
    assert teachers_of([[nan], [0.9]], everybody=True, per_label=False) == [[1], [None]]  # of no training case
    assert teachers_of([[nan, 0.8], [0.9, 0.7]], everybody=False, per_label=False) == [[1], [0]]


def test_a_resumed_training_is_the_same(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of re-learning: queue, teachers and their standing come back."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    settings = {"relearn_from": 0.3, "checkpoint_epochs": 1, "num_epochs": 4}
    preprocessed = make_preprocessed(nnunet_folders, settings=FAST | settings)
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer)
    fold = Path(trainer.output_folder)
    saved = trainer.save_checkpoint
    kept = {}

    def save(file: str) -> None:
        saved(file)
        if trainer.current_epoch == 1 and file.endswith("latest.pth"):
            kept["bytes"] = Path(file).read_bytes()

    trainer.save_checkpoint = save
    trainer.run_training()
    whole = load_own(fold / "checkpoint_final.pth", torch.device("cpu"))
    (fold / "checkpoint_final.pth").unlink()
    (fold / "checkpoint_latest.pth").write_bytes(kept["bytes"])
    again = trainer_for(preprocessed, MutualCrossModalTrainer, resume="latest")
    assert again.stage.forecast.left == 2 * again.num_iterations_per_epoch
    again.run_training()
    resumed = load_own(fold / "checkpoint_final.pth", torch.device("cpu"))
    for a, b in zip(*(c["mutual_state"]["peers"]["networks"] for c in (whole, resumed)), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    queues = [c["mutual_state"]["objectives"][0]["queue"] for c in (whole, resumed)]
    assert torch.equal(queues[0]["maps"], queues[1]["maps"]) and queues[0]["filled"].any()


def test_two_unlabelled_samples_at_least(nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders)
    assert trainer.stream.unlabelled == 2 and len(next(trainer.dataloader_train)["keys"]) == 3
    assert "raised to 2" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("form", ["contrast", "averages"])
def test_without_unlabelled_images_labelled_ones_are_seen_without_their_labels(nnunet_folders: Path, form: str) -> None:
    """Each network learns from the others what labelled images show, and labels of the other stream alone."""
    trainer = started(nnunet_folders, unlabelled=0, settings={"form": form, "ramp": 0.01})
    trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_epoch_start()
    trainer.current_epoch = 1
    batch = next(trainer.dataloader_train)
    assert {*batch["keys"]} <= {*trainer.stream.labelled_keys} and len(batch["keys"]) == 3
    said = trainer.train_step(batch)
    by_name = dict(zip(trainer.stage.term_names, said["terms"], strict=True))
    own = "contrast" if form == "contrast" else "consistency"
    assert all(by_name[f"{name}[{n}]"] != 0 for n in range(3) for name in ("supervised", own))
    acted = trainer.acted
    assert acted.methods == ("MutualCrossModalTrainer",) and not acted.idle
    assert "seen a second time" in acted.trained and "seen a second time" in Path(trainer.log_file).read_text()


def test_an_inactive_contrast_is_said(nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders, settings={"queue": 0})
    objective = trainer.objectives[0]
    batch = next(trainer.dataloader_train)
    moved = trainer.training_batch(batch)
    empty = torch.full((3, 4, 16, 16, 16), -20.0)
    empty[:, 0] = 20
    from nnunet_mutual.objectives import Output

    outputs = [Output([empty])] * 3
    step = prepare(objective, outputs, moved, trainer.progress())
    objective._contrast(0, objective._probabilities(outputs[0], moved), step)
    numbers, warnings = objective.diagnose()
    assert list(numbers.values()) == [0] and "ASC inactive" in warnings[0]


def test_wrong_plans_and_cascades_are_refused(nnunet_folders: Path) -> None:
    preprocessed = make_preprocessed(nnunet_folders, settings=FAST)
    with pytest.raises(MutualError, match="only MutualCrossModalTrainer reads"):
        trainer_for(preprocessed, PartialTrainer)
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    file.write_text(json.dumps({**plans, "modality_groups": {"T1": ["T1"], "FLAIR": ["FLAIR"]}}))
    with pytest.raises(MutualError, match="other modality groups"):
        trainer_for(preprocessed, MutualCrossModalTrainer)
    file.write_text(json.dumps({key: value for key, value in plans.items() if key != "modality_groups"}))
    with pytest.raises(MutualError, match="not preprocessed by modality group"):
        trainer_for(preprocessed, MutualCrossModalTrainer)
    assert not any((nnunet_folders / "nnUNet_results").iterdir())
