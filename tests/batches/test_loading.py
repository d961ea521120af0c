"""Which cases are drawn how often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.loading import case_probabilities, loader_seed
from nnunet_mutual.errors import MutualError


def table_of(sources: dict[str, str]) -> AnnotationTable:
    return AnnotationTable.from_dataset_json(
        {
            "labels": {"background": 0, "liver": 1},
            "channel_names": {"0": "CT"},
            "mutual": {
                "version": 1,
                "sources": {name: {"annotated": ["liver"]} for name in set(sources.values())},
                "cases": {key: {"source": name} for key, name in sources.items()},
            },
        }
    )


def test_a_source_of_four_gets_twice_the_share_of_a_source_of_one() -> None:
    sources = {"a1": "a", "b1": "b", "b2": "b", "b3": "b", "b4": "b"}
    probabilities = case_probabilities(table_of(sources), list(sources))
    np.testing.assert_allclose(probabilities, [1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_one_source_keeps_nnunets_own_drawing() -> None:
    table = table_of({"a1": "a", "a2": "a", "b1": "b"})
    assert case_probabilities(table, ["a1", "a2"]) is None
    plain = AnnotationTable.from_dataset_json({"labels": {"background": 0, "x": 1}, "channel_names": {"0": "CT"}})
    assert case_probabilities(plain, ["any", "case"]) is None


def test_an_unlisted_case_is_an_error() -> None:
    with pytest.raises(MutualError, match="stranger"):
        case_probabilities(table_of({"a1": "a"}), ["a1", "stranger"])


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_shares_follow_the_square_root_of_the_size(drawn: list[str]) -> None:
    keys = [f"case{i}" for i in range(len(drawn))]
    probabilities = case_probabilities(table_of(dict(zip(keys, drawn, strict=True))), keys)
    if len(set(drawn)) == 1:
        assert probabilities is None
        return
    assert probabilities is not None and probabilities.sum() == pytest.approx(1)
    shares = {name: sum(p for p, n in zip(probabilities, drawn, strict=True) if n == name) for name in set(drawn)}
    scale = {share / drawn.count(name) ** 0.5 for name, share in shares.items()}
    assert max(scale) == pytest.approx(min(scale))


def test_workers_that_go_on_draw_other_batches() -> None:
    assert loader_seed(None, 0, 3, 5) is None
    assert [loader_seed(2, rank, 0, 0) for rank in (0, 1)] == [20000, 21000]
    assert loader_seed(2**32 - 1, 0, 0, 0) < 2**32 - 1000
    seeds = [loader_seed(2, rank, *place) for rank in (0, 1) for place in ((0, 0), (0, 5), (1, 0), (5, 0))]
    assert len({*seeds}) == len(seeds) and all(0 <= seed < 2**32 - 1000 for seed in seeds)  # NumPy takes no more
    assert loader_seed(2, 0, 3, 5) == loader_seed(2, 0, 3, 5)
