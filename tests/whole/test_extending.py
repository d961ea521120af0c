"""The page for developers does what it says."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from training import SHORT, lines_of, partial_block, trainer_for

from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective
from nnunet_mutual.trainers import PartialTrainer

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
ONE_EPOCH = {**SHORT, "num_epochs": 1}


@pytest.fixture()
def trainer_class(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> type[nnUNetTrainer]:
    """The class of the page, saved where the page says and found by nnU-Net."""
    file = nnunet_folders / re.search(r"Save this as `(.*?)`", PAGE)[1]
    file.parent.mkdir()
    file.write_text(CODE)
    monkeypatch.setenv("nnUNet_extTrainer", str(file.parent))
    return recursive_find_trainer_class_by_name(re.search(r"-tr (\w+)", PAGE)[1])


def test_the_objective_of_the_page_trains(nnunet_folders: Path, trainer_class: type[nnUNetTrainer]) -> None:
    assert len(CODE.splitlines()) <= 40
    settings = {**ONE_EPOCH, "entropy_weight": 0.5}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, trainer_class)
    assert isinstance(trainer, PartialTrainer)
    first = trainer.train_step
    steps = []
    trainer.train_step = lambda batch: (steps.append(first(batch)), steps[-1])[1]
    trainer.run_training()
    assert 0 < lines_of(trainer)[0]["terms"]["entropy"] <= math.log(4)
    supervised, entropy = steps[1]["terms"]
    ramped = 0.5 * min(1, 10 * 1 / 3)
    assert steps[1]["loss"] == pytest.approx(supervised + ramped * entropy, abs=1e-5)
    with pytest.raises(MutualError, match='unknown setting "entropy_weight"'):
        trainer_for(preprocessed, PartialTrainer)
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["mutual_state"]["settings"]["entropy_weight"] == 0.5


def test_the_variable_finds_both(nnunet_folders: Path, trainer_class: type[nnUNetTrainer]) -> None:
    """The line with export, in a shell of its own."""
    line = re.search(r"^export nnUNet_extTrainer=.*$", PAGE, re.M)[0]
    find = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as f; "
        "print(f('PartialTrainer').__name__, f('ConfidentTrainer').__name__)"
    )
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", f'PATH="{scripts}:$PATH"; unset nnUNet_extTrainer; {line}; "{sys.executable}" -c "{find}"'],
        cwd=nnunet_folders,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.splitlines()[-1:] == ["PartialTrainer ConfidentTrainer"], done.stderr


def test_every_hook_of_the_table_exists() -> None:
    named = set(re.findall(r"`(\w+)(?:\(.*?\))?`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.M))))
    assert {"term_names", "terms", "build_peers", "candidates", "settings_class"} <= named
    for name in named:
        assert hasattr(Objective, name) or hasattr(PartialTrainer, name), name
