"""What a training says of its method: by hand, and in the log and checkpoints of trainings that had nothing to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from training import KEYS, SHORT, partial_block, trainer_for

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.streams import Stream
from nnunet_mutual.batches.unlabelled_streams import NO_IMAGES
from nnunet_mutual.engine.acted import Acted, in_stages, of_stream
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trainers import MutualPartialTrainer


def table_of(block: dict[str, Any] | None) -> AnnotationTable:
    labels = {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
    content: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 6}
    return AnnotationTable.from_dataset_json(content if block is None else {**content, "mutual": block})


def stream_of(images: int, *, idle: str = "", again: bool = False) -> Any:
    return SimpleNamespace(unlabelled_keys=["x"] * images, idle=idle, again=again)


def decisions(*accepted: bool) -> list[Decision]:
    return [Decision("c", "s", "liver", one, "reason", 1.0, None, None, None, "0") for one in accepted]


def test_partial_and_complete_tables() -> None:
    partial = of_stream("PartialTrainer", table_of(partial_block()), KEYS, Stream(), 1)
    assert partial == Acted("one network on 6 cases, 6 of which leave labels open", ("PartialTrainer",))
    stock = of_stream("PartialTrainer", table_of(None), KEYS, Stream(), 1)
    assert stock == Acted("one network on 6 cases, which annotate every label, as by stock nnU-Net")


def test_with_and_without_unlabelled_images() -> None:
    taught = of_stream("MeanTeacherTrainer", table_of(None), KEYS, stream_of(9), 1)
    assert taught.methods == ("MeanTeacherTrainer",) and taught.unlabelled == 9 and not taught.idle
    assert taught.trained.endswith("which annotate every label, and on 9 unlabelled images")
    again = of_stream("MutualCrossModalTrainer", table_of(None), KEYS, stream_of(0, again=True), 2)
    assert again.methods == ("MutualCrossModalTrainer",) and again.unlabelled == 0 and not again.idle
    assert again.trained.endswith("which annotate every label, seen a second time for the loss of the method")
    idle = of_stream("MeanTeacherTrainer", table_of(partial_block()), KEYS, stream_of(0, idle=NO_IMAGES), 1)
    assert idle.methods == ("PartialTrainer",) and idle.unlabelled == 0
    assert "had nothing to be mutual about and trained as PartialTrainer: there are no unlabelled images" in idle.idle
    alone = of_stream("MutualCorrelationTrainer", table_of(None), KEYS, stream_of(0, idle=NO_IMAGES), 2)
    assert alone.methods == () and "2 networks" in alone.trained and "did not learn from each other" in alone.trained


def test_a_trainer_says_which_images_it_leaves_out(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    trainer.data.warn(trainer.log, "PartialTrainer", trainer.acted)
    assert "unlabelled" not in capsys.readouterr().out
    images = preprocessed / "unlabelled" / Path(trainer.data.folder).name
    images.mkdir(parents=True)
    (images / "un_1.pkl").touch()
    trainer.data.warn(trainer.log, "PartialTrainer", trainer.acted)
    said = "1 unlabelled image(s) are at hand, and PartialTrainer does not learn from them; MeanTeacherTrainer does"
    assert said in capsys.readouterr().out
    trainer.data.warn(trainer.log, "PartialTrainer", Acted("", unlabelled=1))
    assert "unlabelled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "networks", "asked", "methods", "idle", "trained"),
    [
        (None, 1, False, ["PartialTrainer"], "", "not made yet"),
        ([True, False], 1, False, ["PartialTrainer"], "", "1 of 2 pseudo labels were learnt from; no networks learn"),
        ([True], 1, True, ["PartialTrainer"], "was asked for several networks and had one", "1 of 1"),
        ([True], 2, True, ["PartialTrainer", "MutualPartialTrainer"], "", "the networks learn from each other"),
        ([False, False], 1, False, ["PartialTrainer"], "None of 2 pseudo labels was accepted", "0 of 2"),
        ([False], 2, True, ["PartialTrainer", "MutualPartialTrainer"], "None of 1 pseudo labels", "0 of 1"),
        ([], 1, False, ["PartialTrainer"], "every case annotates every label", "one network"),
    ],
)
def test_stages(
    found: list[bool] | None, networks: int, asked: bool, methods: list[str], idle: str, trained: str
) -> None:
    name = "MutualPartialTrainer"
    supervised = of_stream(name, table_of(partial_block()), KEYS, Stream(), networks)
    made = None if found is None else decisions(*found)
    acted = in_stages(supervised, name, made, networks=networks, asked=asked)
    assert list(acted.methods) == methods and trained in acted.trained
    assert idle in acted.idle and bool(acted.idle) == bool(idle)


def test_it_survives_a_checkpoint() -> None:
    acted = Acted("one network", ("PartialTrainer",), 3, "why")
    assert Acted.of_state({"acted": acted.as_state()}) == acted and Acted.of_state({}) is None
    for damaged in ({"trained": "x", "methods": [], "more": 1}, {"methods": None}, {"trained": 5, "methods": []}, 3):
        with pytest.raises(MutualError, match="is of another form"):
            Acted.of_state({"acted": damaged})


def test_rejected_pseudo_labels_are_said_in_log_and_checkpoint(nnunet_folders: Path) -> None:
    settings = {**SHORT, "num_epochs": 4, "pseudo_labels": {"min_agreement": 1.0, "voxel": False}}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    log = next(folder.glob("training_log*")).read_text()
    assert "pseudo labels are not made yet" in log and "WARNING: None of " in log
    states = {file.stem: Acted.of_state(read_checkpoint(file)["mutual_state"]) for file in folder.glob("*.pth")}
    before, after = states["checkpoint_stage1"], states["checkpoint_final"]
    assert before is not None and after is not None
    assert not before.idle and after.idle.startswith("None of ") and after.methods == ("PartialTrainer",)
