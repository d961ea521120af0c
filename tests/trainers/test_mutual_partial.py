"""MutualPartialTrainer on every kind of dataset and configuration: one command, two stages, one stock network."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import GROUPS, KEYS, SHORT, largest_difference, lines_of, partial_block, trainer_for, weights

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.batches.decisions import read_decisions
from nnunet_mutual.batches.loading import PooledLoader
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.trainers import MutualPartialTrainer, PartialTrainer

SETTINGS: dict[str, Any] = {
    **SHORT,
    **GROUPS,
    "num_epochs": 5,
    "num_iterations_per_epoch": 2,
    "ramp": {"start": 0.0, "end": 0.1},
    "pseudo_labels": {"label": False, "voxel": False},
}
EVERYTHING = ["liver", "tumour", "spleen"]


def block_of(*annotated: list[str], keys: list[str] = KEYS) -> dict[str, Any]:
    """A source per annotated set; cases alternate between them."""
    sources = {f"s{i}": {"annotated": labels} for i, labels in enumerate(annotated)}
    cases = {key: {"source": f"s{i % len(annotated)}"} for i, key in enumerate(keys)}
    return {"version": 1, "sources": sources, "cases": cases}


def trained(root: Path, block: dict[str, Any] | None, configuration: str = "3d_fullres", **options: Any) -> Any:
    settings = {**SETTINGS, **options.pop("settings", {})}
    options.setdefault("configurations", (configuration,))
    preprocessed = tiny.make_dataset(root, block=block, settings=settings, **options)
    trainer = trainer_for(preprocessed, MutualPartialTrainer, configuration)
    trainer.run_training()
    return trainer


def decisions_of(trainer: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for decision in read_decisions(Path(trainer.output_folder) / "pseudo_labels" / "decisions.csv"):
        found.setdefault(decision.case, set()).add(decision.label)
    return found


def assert_true_labels_untouched(trainer: Any) -> None:
    """Voxel for voxel, in the files that stage 2 trained with."""
    store = PseudoStore(Path(trainer.output_folder) / "pseudo_labels")
    codes = PseudoCodes.from_table(trainer.table)
    training, _ = trainer.do_split()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(training))
    made = [key for key in training if store.has(key)]
    assert made
    for key in made:
        stored = np.asarray(store.codes(key)[:])
        np.testing.assert_array_equal(codes.true_values(stored), np.asarray(dataset.load_case(key)[1][:]))


def assert_predicts_in_stock(trainer: Any) -> None:
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert final["trainer_name"] == "nnUNetTrainer"
    deployed = final["mutual_state"]["peers"]["networks"][final["mutual_state"]["deployed"]]
    assert largest_difference(final["network_weights"], deployed) == 0
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    fold = Path(trainer.output_folder)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,), "checkpoint_final.pth")
    image = np.zeros((1, 16, 20, 18), np.float32)
    assert predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}).shape == image.shape[1:]


@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ("3d_fullres", {}),
        ("3d_fullres", {"ignore": True, "batch_dice": True}),
        ("2d", {"batch_dice": True}),
        ("3d_aniso", {}),
        ("3d_lowres", {}),
    ],
    ids=["3d_fullres", "ignore, batch dice", "2d", "anisotropic", "3d_lowres"],
)
def test_every_configuration(nnunet_folders: Path, configuration: str, options: dict[str, Any]) -> None:
    trainer = trained(nnunet_folders, partial_block(), configuration, **options)
    lines = lines_of(trainer)
    assert [set(line["terms"]) for line in lines] == [{f"{t}[{n}]" for t in ("seg", "pd", "fd") for n in (0, 1)}] + [
        {f"{t}[{n}]" for t in ("seg", "ps", "dfs") for n in (0, 1)}
    ] * 2
    assert all(np.isfinite(list(line["terms"].values())).all() for line in lines)
    rates = trainer.logger.get_value("lrs", step=None)
    assert rates[0] == rates[1] == 0.01 and 0 < rates[2] < 0.01, "each stage has its own schedule"
    assert lines[0]["terms"]["pd[0]"] > 0 and lines[1]["terms"]["ps[1]"] != 0
    training, _ = trainer.do_split()
    assert decisions_of(trainer) == {
        key: ({"tumour", "spleen"} if int(key[-1]) % 2 == 0 else {"liver"}) for key in training
    }
    assert_true_labels_untouched(trainer)
    if configuration == "3d_fullres":
        assert_predicts_in_stock(trainer)


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
def test_regions(nnunet_folders: Path, ignore: bool) -> None:
    block = block_of(["whole"], ["core", "enhancing"])
    trainer = trained(nnunet_folders, block, labels=tiny.REGIONS, ignore=ignore)
    assert len(trainer.peers.networks) == 2
    assert {frozenset(labels) for labels in decisions_of(trainer).values()} == {
        frozenset({"whole"}),
        frozenset({"core", "enhancing"}),
    }
    assert_true_labels_untouched(trainer)
    assert_predicts_in_stock(trainer)


def test_cascades_are_refused_before_anything_is_made(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    trainer = trainer_for(preprocessed, MutualPartialTrainer, "3d_cascade_fullres")
    for begun in (trainer.initialize, trainer.run_training):
        with pytest.raises(MutualError, match="does not train cascades.*with PartialTrainer"):
            begun()
    assert not list(nnunet_folders.rglob("checkpoint*")) and not (preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize("block", [None, block_of(EVERYTHING)], ids=["no table", "one source"])
def test_nothing_to_be_mutual_about_is_partial_training(nnunet_folders: Path, block: dict[str, Any] | None) -> None:
    trainer = trained(nnunet_folders, block)
    assert trainer.num_epochs == 5 and trainer.stage_number == 2
    assert not (Path(trainer.output_folder) / "pseudo_labels").exists()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "nothing to be mutual about" in log
    plans = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME / "nnUNetPlans.json"
    content = json.loads(plans.read_text())
    for configuration in content["configurations"].values():
        for key in ("ramp", "pseudo_labels", *GROUPS):
            configuration.get("mutual", {}).pop(key, None)
    plans.write_text(json.dumps(content))
    reference = trainer_for(plans.parent, PartialTrainer)
    reference.run_training()
    assert largest_difference(weights(trainer), weights(reference)) == 0


def test_one_set_that_covers_all_labels(nnunet_folders: Path) -> None:
    trainer = trained(nnunet_folders, block_of(EVERYTHING, ["liver"]))
    assert trainer.stages.groups == [frozenset(EVERYTHING)] and len(trainer.peers.networks) == 1
    assert (trainer.stages.first_epochs, trainer.num_epochs) == (2, 5), (
        "one network in each stage: no epochs are shared"
    )
    assert set(lines_of(trainer)[0]["terms"]) == {"supervised"}
    assert all(labels == {"tumour", "spleen"} for labels in decisions_of(trainer).values())
    assert_predicts_in_stock(trainer)


def test_many_sets_and_an_unlabelled_case(nnunet_folders: Path) -> None:
    keys = [f"case_{i:02d}" for i in range(12)]
    block = block_of(["liver"], ["tumour"], ["spleen"], ["liver", "spleen"], [], keys=keys)
    trainer = trained(nnunet_folders, block, cases=12)
    assert trainer.stages.groups == [frozenset({"liver", "spleen"}), frozenset({"tumour"})]
    unlabelled = [key for key in keys if not trainer.table.case(key).annotated]
    training, validation = trainer.do_split()
    assert unlabelled and not set(unlabelled) & set(validation)
    assert all(decisions_of(trainer)[key] == set(EVERYTHING) for key in unlabelled if key in training)
    assert_true_labels_untouched(trainer)


def test_a_batch_of_one_is_raised(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.on_train_start()
    keys = next(trainer.dataloader_train)["keys"]
    assert {int(key[-1]) % 2 for key in keys} == {0, 1}, "one case of each group"
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "raised from 1 to 2" in log


def test_a_wrong_table_is_found_before_a_split_is_made_of_it(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    content = json.loads((preprocessed / "dataset.json").read_text())
    content["mutual"]["cases"]["case_00"]["patient"] = "p1"
    (preprocessed / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(MutualError, match="nnunet_mutual sync"):
        trainer_for(preprocessed, MutualPartialTrainer).initialize()
    assert not (preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize(("first", "second"), [("one", "one"), ("groups", "one"), ("one", "groups")])
def test_single_networks(nnunet_folders: Path, first: str, second: str) -> None:
    settings = {"num_epochs": 10, "stage1_networks": first, "stage2_networks": second, "ramp": {}}
    trainer = trained(nnunet_folders, partial_block(), settings=settings)
    number = {"one": 1, "groups": 2}
    assert trainer.stages.first_epochs == 4 // number[first]
    assert trainer.num_epochs - trainer.stages.first_epochs == 6 // number[second]
    assert len(trainer.peers.networks) == number[second]
    assert isinstance(trainer.dataloader_train.data_loader, PooledLoader) == (second == "groups")


def test_all_networks_of_stage_2_start_from_the_best_of_stage_1(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    seen: list[Any] = []
    original = trainer.start_stage

    def start_stage() -> None:
        if trainer.stage_number == 2:
            seen.append((before["deployed"], [copy.deepcopy(n.state_dict()) for n in before["networks"]]))
        original()

    before: dict[str, Any] = {}
    trainer.start_stage = start_stage
    restore = trainer.restore_stage

    def restore_stage(stage: int) -> None:
        before.update(deployed=trainer.deployed, networks=[n.network for n in trainer.peers.networks])
        restore(stage)

    trainer.restore_stage = restore_stage
    step = trainer.train_step
    starts: list[Any] = []

    def train_step(batch: dict) -> dict:
        if trainer.stage_number == 2 and not starts:
            starts.extend(copy.deepcopy(n.network.state_dict()) for n in trainer.peers.networks)
        return step(batch)

    trainer.train_step = train_step
    trainer.run_training()
    best, networks = seen[0]
    assert len(starts) == 2
    assert all(largest_difference(start, networks[best]) == 0 for start in starts)
    assert largest_difference(networks[0], networks[1]) > 1e-3


def test_pseudo_labels_are_learnt_by_their_own_group_only(nnunet_folders: Path) -> None:
    trainer = trained(nnunet_folders, partial_block())
    accepted = trainer.store.accepted(KEYS)
    known: Knowledge = trainer.knowledge
    training, validation = trainer.do_split()
    assert set(accepted) == set(training)
    for key in training:
        pattern = known.patterns([key])[0]
        names = {n for n in EVERYTHING if known.pseudo_tables.annotated[pattern, known.channel[n]]}
        assert names == set(EVERYTHING), "true and pseudo labels together"
    for key in validation:
        pattern = known.patterns([key])[0]
        assert torch.equal(known.pseudo_tables.annotated[pattern], known.tables.annotated[pattern])


def test_pretrained_weights_reach_every_encoder(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.initialize()
    given = {name: torch.randn_like(value) for name, value in trainer.network.state_dict().items()}
    trainer.network.load_state_dict(given)  # as nnU-Net's load_pretrained_weights does
    trainer.on_train_start()
    first, second = (network.network.state_dict() for network in trainer.peers.networks)
    for name, value in second.items():
        assert torch.equal(value, first[name]) == name.startswith(("encoder.", "decoder.encoder.")), name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ramp": {"start": 0.5, "end": 0.2}}, '"ramp.start" and "ramp.end" must be shares'),
        ({"loss": {"pd": -1}}, '"loss.pd" must be 0 or more'),
        ({"loss": {"pdd": 1}}, "did you mean 'pd'"),
        ({"stage1_share": 1}, '"stage1_share" must be between 0 and 1'),
        ({"pseudo_labels": {"low": 0.8}}, '"pseudo_labels.low" and "pseudo_labels.high"'),
        ({"memory": "both"}, "must be one of auto, joint, sequential"),
        ({"stage2_networks": "two"}, "must be one of groups, one"),
        ({"fd_form": "other"}, "must be one of projected, own"),
    ],
)
def test_wrong_settings_leave_nothing_behind(nnunet_folders: Path, settings: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {"configurations": (), "cases": 1, "settings": {**SHORT, **settings}}
    preprocessed = tiny.make_dataset(nnunet_folders, **options)
    with pytest.raises(MutualError, match=sentence):
        trainer_for(preprocessed, MutualPartialTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())
