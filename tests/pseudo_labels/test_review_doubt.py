"""Doubt on the filter's own scales."""

from __future__ import annotations

import pytest
from reviewing import decided

from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.review.doubt import by_doubt, doubt_of

SETTINGS = FilterSettings()  # agreement at least 0.7, |z| at most 3


@pytest.mark.parametrize(
    ("changed", "score", "doubtful"),
    [
        ({"agreement": 1.0, "z": 0.0}, 0.0, False),
        ({"agreement": 0.81, "z": 0.0}, 0.19 / 0.3, False),
        ({"agreement": 0.79, "z": 0.0}, 0.21 / 0.3, True),
        ({"agreement": 1.0, "z": -1.9}, 1.9 / 3, False),
        ({"agreement": 1.0, "z": -2.1}, 0.7, True),
        ({"agreement": 0.7, "z": 2.7}, 1.0, True),
        ({"agreement": None, "z": 2.7}, 0.9, True),
        ({"agreement": 1.0, "z": None}, 2 / 3, True),
        ({"agreement": 1.0, "z": None, "volume_ml": 0.0}, 0.0, False),
    ],
)
def test_accepted(changed: dict, score: float, doubtful: bool) -> None:
    doubt = doubt_of(decided("a", "liver", **changed), SETTINGS)
    assert (doubt.score, doubt.doubtful) == (pytest.approx(score), doubtful)
    assert doubt.reason.startswith("accepted")


def test_reasons_say_which_limit() -> None:
    both = doubt_of(decided("a", "liver", agreement=0.75, z=-2.5, reason="plausible: 9 ml"), SETTINGS)
    assert both.reason == (
        "accepted, but agreement 0.75 is near its limit of 0.7 and the volume is near its limit (z = -2.50, limit 3); "
        "plausible: 9 ml"
    )
    assert doubt_of(decided("a", "liver", False, agreement=None, z=None, reason="missing: no"), SETTINGS).reason == (
        "rejected, missing: no"
    )


def test_nothing_was_judged() -> None:
    off = FilterSettings(label=False)
    assert doubt_of(decided("a", "liver", z=None, volume_ml=0.0), off).doubtful


def test_order() -> None:
    decisions = [
        decided("usual", "liver"),
        decided("near", "liver", z=2.9),
        decided("far", "liver", False, z=9.0),
        decided("missing", "liver", False, z=None, agreement=1.0),
        decided("beyond", "liver", False, z=3.3),
    ]
    ordered = [decision.case for decision, _ in by_doubt(decisions, SETTINGS)]
    assert ordered == ["far", "beyond", "missing", "near", "usual"]
