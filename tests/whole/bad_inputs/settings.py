"""Settings: unknown, of the wrong type, impossible; from --set and from the plans."""

from __future__ import annotations

from typing import Any

from bad_inputs.rows import PLAN, PLANS, PSEUDO, TRAIN, Row, Spoil, edit, nothing, row

KIND = "Settings"


def given(setting: str, *words: str) -> Row:
    """With plan --set."""
    return row(f"--set {setting[:60]}", nothing, f"{PLAN} '{setting}'", *words)


def planned(block: Any, *words: str) -> Row:
    """In the plans, read by a training."""
    spoil: Spoil = edit(PLANS, "configurations/3d_fullres/mutual", block)
    return row(f'"mutual": {block} in the plans', spoil, TRAIN, *words)


ROWS = [
    given("loss.pd=NaN", "loss.pd", "must be 0 or more", "nan"),
    given("loss.pd=-1", "loss.pd", "must be 0 or more"),
    given("loss.pd=Infinity", "loss.pd", "must be 0 or more"),
    given("loss.pdd=1", "MutualPartialTrainer", "did you mean 'pd'", "pd, fd, ps, dfs"),
    given("loss=1", "loss", "must be an object"),
    given("stage1_shar=0.3", "MutualPartialTrainer", "did you mean 'stage1_share'"),
    given("stage1_share=NaN", "stage1_share", "between 0 and 1"),
    given("stage1_share=half", "stage1_share", "must be float", "'half'"),
    given("pseudo_labels.min_agrement=0.5", "MutualPartialTrainer", "did you mean 'min_agreement'"),
    given("pseudo_labels.low=2", "pseudo_labels.low", "probabilities"),
    given("pseudo_labels.max_z=NaN", "pseudo_labels.max_z", "positive"),
    given("unlabelled_per_bach=2", "did you mean 'unlabelled_per_batch'"),
    given("relearning_contrst=1", "did you mean 'relearning_contrast'"),
    given("temprature=2", "did you mean 'temperature'"),
    given("num_epoch=3", "did you mean 'num_epochs'"),
    given("num_epochs=2.5", "num_epochs", "must be int", "2.5"),
    given("num_epochs=0", "num_epochs", "at least 1"),
    given("num_epochs=NaN", "num_epochs", "must be int"),
    given(f"num_epochs={10**20}", "num_epochs", "at most"),
    given(f"num_epochs={'9' * 5000}", "num_epochs", "cannot be read"),
    given("num_epochs=" + "[" * 100_000, "num_epochs", "cannot be read"),
    given("initial_lr=NaN", "initial_lr", "must be positive"),
    given("initial_lr=1e999", "initial_lr", "must be positive"),
    given("checkpoint_minutes=NaN", "checkpoint_minutes", "0 or more"),
    given("optimizer=adam", "optimizer", "sgd, adamw"),
    given("amp=on", "amp", "auto, bfloat16, off"),
    given("seed=-1", "seed", "from 0 to"),
    given("seed=12345678901234567890", "seed", "at most"),
    given("seed=1.0", "seed", "int or null"),
    given("planned=5", "planned", "leave it out"),
    given("planned.trainer=PartialTrainer", "planned", "leave it out"),
    given("colour=red", "colour", "known: num_epochs"),
    given("num_epochs", "num_epochs", "key=value"),
    given("=5", "key=value"),
    given("loss..pd=1", "key=value"),
    row("a setting given twice", nothing, f"{PLAN} seed=1 seed=2", "seed", "twice"),
    row("a new configuration with a slash", nothing, "plan -d 901 --name a/b --set seed=1", "'a/b'", "letters"),
    row("a filter that does not exist", nothing, f"{PSEUDO} --set min_agrement=0.5", "did you mean 'min_agreement'"),
    row("a filter of NaN", nothing, f"{PSEUDO} --set min_agreement=NaN", "min_agreement", "from 0 to 1"),
    row("a filter of another trainer's setting", nothing, f"{PSEUDO} --set loss.pd=1", "loss", "min_agreement"),
    planned(5, '"mutual"', "plans file", "found 5"),
    planned({"planned": 5}, "planned", "plans file", "found 5"),
    planned({"planned": {"trainer": "PartialTrainer"}}, "planned", "plans file", "settings"),
    planned({"planned": None}, "planned", "plans file", "None"),
    planned({"num_epochs": "3"}, "mutual.num_epochs", "must be int"),
    planned({"seed": -1}, "seed", "from 0 to"),
    planned({"seed": 10**20}, "mutual.seed", "at most"),
    planned({"initial_lr": float("nan")}, "initial_lr", "positive"),
    planned({"num_epohcs": 3}, "did you mean 'num_epochs'"),
    planned({"loss": {"pd": 1}}, '"loss"', "plans file", "known:"),
]
