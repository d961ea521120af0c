"""Which network is deployed: moving averages of the Dice of what each network is taught."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_mutual.engine.online import MOMENTUM, Ranking, mean_dice

BOTH_LEARN_ALL = np.ones((2, 2), bool)
EACH_ITS_OWN = np.array([[True, False], [False, True]])


def counts(*dice: list[float | None]) -> np.ndarray:
    """Voxel counts (3, P, K) with these Dice; None for a label that was not sampled."""
    made = np.zeros((3, len(dice), len(dice[0])))
    for n, row in enumerate(dice):
        for label, value in enumerate(row):
            if value is not None:
                made[:, n, label] = [50 * value, 60 * (1 - value), 40 * (1 - value)]
    return made


def test_the_first_network_before_anything_was_sampled() -> None:
    ranking = Ranking(BOTH_LEARN_ALL)
    assert ranking.best == 0
    shown = ranking.add(counts([None, None], [None, None]))
    assert ranking.best == 0 and ranking.averages == [None, None]
    assert all(map(math.isnan, shown))


def test_averages_move_with_nnunets_momentum() -> None:
    ranking = Ranking(BOTH_LEARN_ALL)
    assert ranking.add(counts([0.5, 0.7], [0.9, 0.5])) == pytest.approx([0.9, 0.5])
    assert ranking.averages == pytest.approx([0.6, 0.7]) and ranking.best == 1
    shown = ranking.add(counts([1.0, 1.0], [0.7, 0.7]))
    assert MOMENTUM == 0.9 and ranking.averages == pytest.approx([0.64, 0.7])
    assert ranking.best == 1, "one good epoch is not enough"
    assert shown == pytest.approx([0.7, 0.7]), "of the network that would be deployed"


def test_among_equals_the_first() -> None:
    ranking = Ranking(np.ones((3, 1), bool))
    ranking.add(counts([0.5], [0.8], [0.8]))
    assert ranking.best == 1


def test_a_network_is_judged_by_what_it_is_taught() -> None:
    ranking = Ranking(EACH_ITS_OWN)
    shown = ranking.add(counts([0.6, 0.99], [0.99, 0.8]))
    assert ranking.averages == pytest.approx([0.6, 0.8]) and ranking.best == 1
    assert shown == pytest.approx([0.6, 0.8]), "of each label, by the network that learns it"


def test_labels_not_sampled_do_not_count() -> None:
    ranking = Ranking(BOTH_LEARN_ALL)
    shown = ranking.add(counts([0.6, None], [0.4, None]))
    assert ranking.averages == pytest.approx([0.6, 0.4])
    assert shown[0] == pytest.approx(0.6) and math.isnan(shown[1])
    ranking.add(counts([None, None], [None, None]))
    assert ranking.averages == pytest.approx([0.6, 0.4]), "an epoch without samples says nothing"


def test_no_voxel_found_is_worse_than_not_sampled() -> None:
    ranking = Ranking(BOTH_LEARN_ALL)
    ranking.add(counts([0.0, 0.4], [None, 0.3]))
    assert ranking.averages == pytest.approx([0.2, 0.3]) and ranking.best == 1


def test_a_ranking_goes_on_where_it_was_saved() -> None:
    ranking, other = Ranking(BOTH_LEARN_ALL), Ranking(BOTH_LEARN_ALL)
    ranking.add(counts([0.5, 0.5], [0.6, 0.6]))
    state = ranking.state_dict()
    ranking.add(counts([1.0, 1.0], [0.0, 0.0]))
    assert state["averages"] == pytest.approx([0.5, 0.6]), "a state is no view"
    other.load_state_dict(state)
    other.add(counts([1.0, 1.0], [0.0, 0.0]))
    assert other.averages == ranking.averages == pytest.approx([0.55, 0.54])
    assert other.best == 0


def test_the_mean_of_an_epoch_is_never_nan() -> None:
    nan = float("nan")
    assert mean_dice([0.2, nan, 0.6], []) == pytest.approx(0.4)
    assert mean_dice([nan, nan], [0.1, 0.3]) == 0.3
    assert mean_dice([nan], []) == 0.0
