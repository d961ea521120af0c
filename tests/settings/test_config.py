"""Settings: merged deeply along inherits_from, typed, and strict."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import Settings, deep_merge, differences, merged_block, read_settings


@dataclass(frozen=True)
class Weights:
    pd: float = 1.0
    fd: float = 0.1


@dataclass(frozen=True)
class MethodSettings(Settings):
    loss: Weights = field(default_factory=Weights)
    memory: Literal["auto", "joint"] = "auto"
    group: str | None = None


def plans(**configurations: dict[str, Any]) -> dict[str, Any]:
    return {"configurations": configurations}


def test_the_block_is_merged_key_by_key_along_inherits_from() -> None:
    content = plans(
        base={"mutual": {"num_epochs": 100, "loss": {"pd": 0.5, "fd": 0.2}, "seed": 1}, "patch_size": [8]},
        middle={"inherits_from": "base"},
        long={"inherits_from": "middle", "mutual": {"num_epochs": 500, "loss": {"pd": 0.0}}},
    )
    assert merged_block(content, "long") == {"num_epochs": 500, "loss": {"pd": 0.0, "fd": 0.2}, "seed": 1}
    assert merged_block(content, "middle") == content["configurations"]["base"]["mutual"]
    # The plans themselves stay as they are.
    assert content["configurations"]["base"]["mutual"]["loss"] == {"pd": 0.5, "fd": 0.2}


def test_stock_plans_have_the_defaults() -> None:
    found = read_settings(Settings, merged_block(plans(base={}), "base"))
    assert found == Settings()
    assert (found.num_epochs, found.num_iterations_per_epoch, found.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )
    assert (found.optimizer, found.initial_lr, found.weight_decay) == ("sgd", 0.01, 3e-5)


@pytest.mark.parametrize("circle", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_circles(circle: dict[str, str]) -> None:
    content = plans(**{name: {"inherits_from": base} for name, base in circle.items()})
    with pytest.raises(MutualError, match='"inherits_from" of the plans file goes in a circle: a -> .*remove one'):
        merged_block(content, "a")


def test_unknown_configurations() -> None:
    with pytest.raises(MutualError, match=r"no configuration '3d_fulres' \(did you mean '3d_fullres'\?\); it has: 2d"):
        merged_block(plans(**{"2d": {}, "3d_fullres": {}}), "3d_fulres")
    with pytest.raises(MutualError, match="no configuration 'gone'"):
        merged_block(plans(long={"inherits_from": "gone"}), "long")


@pytest.mark.parametrize("block", [None, 5, "fast", ["num_epochs"]])
def test_a_block_that_is_no_object(block: Any) -> None:
    with pytest.raises(MutualError, match="\"mutual\" of configuration 'base' of the plans file must be an object"):
        merged_block(plans(base={"mutual": block}, long={"inherits_from": "base"}), "long")
    with pytest.raises(MutualError, match='"mutual" of the plans file must be an object'):
        read_settings(Settings, block)


def test_unknown_keys_list_the_known_ones() -> None:
    with pytest.raises(MutualError) as error:
        read_settings(Settings, {"num_epoch": 5})
    assert 'unknown setting "num_epoch" in "mutual" of the plans file (did you mean \'num_epochs\'?)' in str(
        error.value
    )
    for setting in dataclasses.fields(Settings):
        assert setting.name in str(error.value)
    with pytest.raises(MutualError, match='unknown setting "ps" in "mutual.loss" of the plans file.*known: pd, fd'):
        read_settings(MethodSettings, {"loss": {"ps": 1.0}})
    # A setting of one method is unknown to another.
    with pytest.raises(MutualError, match='unknown setting "memory"'):
        read_settings(Settings, {"memory": "joint"})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"num_epochs": 2.5}, '"mutual.num_epochs" must be int, found 2.5'),
        ({"num_epochs": "5"}, "must be int, found '5'"),
        ({"num_epochs": True}, "must be int, found True"),
        ({"num_epochs": None}, "must be int, found None"),
        ({"initial_lr": "0.1"}, "must be float, found '0.1'"),
        ({"initial_lr": True}, "must be float, found True"),
        ({"balance_sources": 1}, "must be bool, found 1"),
        ({"seed": 1.0}, "must be int or null, found 1.0"),
        ({"optimizer": "adam"}, "\"mutual.optimizer\" must be one of sgd, adamw, found 'adam'"),
        ({"optimizer": ["sgd"]}, "must be one of sgd, adamw"),
        ({"amp": False}, "must be one of auto, bfloat16, off, found False"),
        ({"loss": 0.5}, '"mutual.loss" of the plans file must be an object, found 0.5'),
        ({"loss": {"pd": "x"}}, "\"mutual.loss.pd\" must be float, found 'x'"),
        ({"group": 1}, '"mutual.group" must be str or null'),
        # Right types, impossible values.
        ({"num_epochs": 0}, '"num_epochs" must be at least 1, found 0'),
        ({"num_iterations_per_epoch": -1}, '"num_iterations_per_epoch" must be at least 1'),
        ({"num_val_iterations_per_epoch": 0}, "must be at least 1"),
        ({"checkpoint_epochs": 0}, '"checkpoint_epochs" must be at least 1'),
        ({"initial_lr": 0}, '"initial_lr" must be positive'),
        ({"initial_lr": float("nan")}, '"initial_lr" must be positive'),
        ({"weight_decay": -1e-5}, '"weight_decay" must be 0 or more'),
    ],
)
def test_wrong_values(block: dict[str, Any], message: str) -> None:
    with pytest.raises(MutualError, match=message):
        read_settings(MethodSettings, block)


def test_integers_are_taken_for_floats_and_null_for_optional() -> None:
    found = read_settings(MethodSettings, {"initial_lr": 1, "weight_decay": 0, "seed": None, "loss": {"pd": 2}})
    assert (found.initial_lr, found.weight_decay, found.seed, found.loss) == (1.0, 0.0, None, Weights(2.0))
    assert type(found.initial_lr) is float and type(found.loss.pd) is float
    assert read_settings(MethodSettings, {"seed": 0, "group": "T1"}).group == "T1"


def test_what_is_written_is_read_back() -> None:
    found = read_settings(MethodSettings, {"num_epochs": 3, "loss": {"fd": 0.5}, "memory": "joint"})
    assert read_settings(MethodSettings, dataclasses.asdict(found)) == found


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
)
BLOCKS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@settings(deadline=None, max_examples=60)
@given(BLOCKS, BLOCKS)
def test_deep_merge(base: dict[str, Any], override: dict[str, Any]) -> None:
    merged = deep_merge(base, override)
    assert deep_merge(merged, override) == merged
    assert set(merged) == {*base, *override}
    for key, value in merged.items():
        if key not in override:
            assert value == base[key]
        elif isinstance(override[key], dict) and isinstance(base.get(key), dict):
            assert value == deep_merge(base[key], override[key])
        else:
            assert value == override[key]
    assert deep_merge(base, {}) == base and deep_merge({}, override) == override


def test_differences() -> None:
    old = {"num_epochs": 100, "seed": None, "loss": {"pd": 1.0, "fd": 0.1}, "amp": "auto"}
    new = {"num_epochs": 200, "seed": 3, "loss": {"pd": 1.0, "fd": 0.0}, "amp": "auto", "extra": 1}
    assert differences(old, new) == [
        "extra: not set -> 1",
        "loss.fd: 0.1 -> 0.0",
        "num_epochs: 100 -> 200",
        "seed: None -> 3",
    ]
    assert differences({"loss": {"pd": 1}}, {"loss": 2}) == ["loss: {'pd': 1} -> 2"]


@settings(deadline=None, max_examples=60)
@given(BLOCKS)
def test_nothing_differs_from_itself(block: dict[str, Any]) -> None:
    assert differences(block, deep_merge({}, block)) == []
