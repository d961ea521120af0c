"""Online validation and the choice of the best checkpoint: a label counts where it is annotated, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from training import KEYS, SHORT, partial_block, region_block, trainer_for

from nnunet_mutual.annotation.restriction import restriction_for

REGION_VALUES = ([1, 2, 3], [2, 3], [3])


class Fixed(nn.Module):
    """A network that always says the same."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, data: Tensor) -> list[Tensor]:
        return [self.logits, self.logits[:, :, ::2, ::2, ::2]]


def counts_by_hand(prediction: np.ndarray, target: np.ndarray, counted: np.ndarray) -> list[int]:
    return [
        int((counted & prediction & target).sum()),
        int((counted & prediction & ~target).sum()),
        int((counted & ~prediction & target).sum()),
    ]


def validated(trainer: Any, logits: Tensor, keys: list[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Lets a trainer validate a batch of these cases in which its network says ``logits``."""
    trainer.initialize()
    _, loader = trainer.get_dataloaders()
    batch = next(loader)
    for _ in range(200):
        if sorted(batch["keys"]) == keys:
            break
        batch = next(loader)
    assert sorted(batch["keys"]) == keys
    trainer.peers.asked[0] = Fixed(logits)
    return trainer.validation_step(batch), batch


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
@pytest.mark.parametrize("relation", ["", "contains", "overlap"])
def test_plain_labels(nnunet_folders: Path, ignore: bool, relation: str) -> None:
    block = partial_block()
    if relation == "contains":
        block["sources"]["a"]["contains"] = {"liver": ["tumour"]}
    if relation == "overlap":
        block["may_overlap"] = [["liver", "spleen"]]
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=SHORT, ignore=ignore)
    (preprocessed / "splits_final.json").write_text(f'[{{"train": {KEYS}, "val": {KEYS[:2]}}}]'.replace("'", '"'))
    trainer = trainer_for(preprocessed)
    logits = torch.randn(2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found, batch = validated(trainer, logits, KEYS[:2])

    by_source = np.zeros((3, 2, 3), int)
    for i, key in enumerate(batch["keys"]):
        expected = by_source[:, KEYS.index(str(key)) % 2]  # sources alternate
        target = batch["target"][0][i, 0].numpy()
        probabilities = logits[i].softmax(0).numpy()
        restriction = restriction_for(trainer.table, trainer.table.case(str(key)))
        assert restriction is not None
        prediction = restriction.apply(probabilities).argmax(0)
        for value in [1] if key == "case_00" else [2, 3]:
            counted = target != 4
            expected[:, value - 1] += counts_by_hand(prediction == value, target == value, counted)
    assert (by_source.sum(1) > 0).all()
    counts = np.stack([found[n][0] for n in ("tp_hard", "fp_hard", "fn_hard")])
    np.testing.assert_array_equal(counts, by_source.sum(1))
    np.testing.assert_array_equal(found["by_source"][:, 0], by_source)


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
def test_regions(nnunet_folders: Path, ignore: bool) -> None:
    preprocessed = tiny.make_dataset(
        nnunet_folders, labels=tiny.REGIONS, block=region_block(), settings=SHORT, ignore=ignore
    )
    (preprocessed / "splits_final.json").write_text(f'[{{"train": {KEYS}, "val": {KEYS[:2]}}}]'.replace("'", '"'))
    trainer = trainer_for(preprocessed)
    logits = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found, batch = validated(trainer, logits, KEYS[:2])

    expected = np.zeros((3, 3), int)
    for i, key in enumerate(batch["keys"]):
        target = batch["target"][0][i].numpy() > 0
        counted = ~target[3] if ignore else np.ones(target.shape[1:], bool)
        for region in [0] if key == "case_00" else [0, 1, 2]:
            expected[:, region] += counts_by_hand(logits[i, region].numpy() > 0, target[region], counted)
    assert (expected > 0).all()
    np.testing.assert_array_equal(np.stack([found[n][0] for n in ("tp_hard", "fp_hard", "fn_hard")]), expected)


def test_a_perfect_network_scores_one_although_it_finds_what_nobody_drew(nnunet_folders: Path) -> None:
    block = partial_block()
    block["sources"]["a"]["contains"] = {"liver": ["tumour"]}
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=SHORT)
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    images = [tiny.image_and_labels(i)[1][:16, :16, :16] for i in (0, 1)]
    truth = torch.tensor(np.stack(images)).long()
    drawn = truth.clone()
    drawn[0][truth[0] == 2] = 1  # the liver of source a is drawn with its tumour
    drawn[0][truth[0] == 3] = 0
    drawn[1][truth[1] == 1] = 0
    levels = [drawn[:, None, :: 2**i, :: 2**i, :: 2**i] for i in range(2)]
    batch = {"data": torch.zeros(2, 1, 16, 16, 16), "target": levels, "keys": np.array(KEYS[:2])}
    trainer.peers.asked[0] = Fixed(10 * nn.functional.one_hot(truth, 4).movedim(-1, 1).float())
    step = trainer.validation_step(batch)
    assert step["tp_hard"].min() > 0
    trainer.on_validation_epoch_end([step])
    assert trainer.logger.get_value("dice_per_class_or_region", 0) == [1, 1, 1]
    assert trainer.logger.get_value("mean_fg_dice", 0) == 1
