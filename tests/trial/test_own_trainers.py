"""Arms that somebody wrote: found where nnU-Net finds them, refused unless they are built on this package's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.find import VARIABLE
from nnunet_mutual.plugin.trainer_names import find_own, find_trainer
from nnunet_mutual.trial.arms import require_arms

OWN = '''
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_mutual.extending import PartialTrainer


class HalfTrainer(PartialTrainer):
    """PartialTrainer that sees every other case."""

    def do_split(self):
        training, validation = super().do_split()
        return training[::2], validation


class ForeignTrainer(nnUNetTrainer):
    """Knows nothing of a trial's schedule."""
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "half_trainer.py").write_text(OWN)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    yield
    find_trainer.cache_clear()


def test_an_own_trainer_is_an_arm() -> None:
    require_arms(["PartialTrainer", "HalfTrainer"])
    assert find_trainer("HalfTrainer").__name__ == "HalfTrainer"


def test_a_trial_that_goes_on_without_its_trainer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(MutualError, match=f"finds no trainer HalfTrainer; name its folder in {VARIABLE}"):
        find_trainer("HalfTrainer")


def test_others_are_left_to_nnunet() -> None:
    assert find_own("HalfTrainer").by_group is False
    with pytest.raises(MutualError, match="ForeignTrainer is no trainer of this package and built on none"):
        find_own("ForeignTrainer")


@pytest.mark.parametrize("name", ["ForeignTrainer", "MutualCrossModalTrainer", "nnUNetTrainerDA5", "NoTrainer"])
def test_other_trainers_are_refused(name: str) -> None:
    with pytest.raises(MutualError, match="trainers of your own that are built on these"):
        require_arms(["PartialTrainer", name])
