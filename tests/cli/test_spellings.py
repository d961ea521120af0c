"""Words in sentences: suggestions for misspelt names, in time that grows with their number, and telling numbers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import pytest

from nnunet_mutual import errors
from nnunet_mutual.errors import Spellings, closest, meant, telling

NAMES: dict[str, tuple[Callable[[int], str], Callable[[int], str]]] = {
    "a slip": (lambda i: f"case_{i:05d}", lambda i: f"cas_{i:05d}"),
    "words": (lambda i: f"north_patient_{i:05d}_scan", lambda i: f"nord_patient_{i:05d}_skan"),
    "another suffix": (lambda i: f"BraTS-GLI-{i:05d}-000", lambda i: f"BraTS-GLI-{i:05d}-t1"),
    "strangers": (lambda i: f"{i * 7919 % 99991:x}", lambda i: f"{i * 104729 % 99991:o}-{i}"),
}


@pytest.mark.parametrize("names", NAMES)
def test_comparisons_per_name_do_not_grow(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    right, wrong = NAMES[names]
    compared = 0
    compare = difflib.get_close_matches

    def counting(name: str, candidates: Sequence[str], **options: int) -> list[str]:
        nonlocal compared
        compared += len(candidates)
        return compare(name, candidates, **options)

    monkeypatch.setattr(errors.difflib, "get_close_matches", counting)
    per_name = []
    for number in (500, 2000):
        compared = 0
        spellings = Spellings(map(right, range(number)))
        for i in range(number):
            spellings.closest(wrong(i))
        per_name.append(compared / number)
    assert per_name[1] <= 60 and per_name[1] <= 1.5 * per_name[0] + 1


def test_many_names_are_still_found() -> None:
    right, wrong = NAMES["words"]
    spellings = Spellings(map(right, range(1000)))
    assert all(spellings.closest(wrong(i)) == right(i) for i in range(0, 1000, 50))


def test_endless_names_get_no_suggestion() -> None:
    endless = "liver" * 30_000  # all forms of it without one letter would take 20 GB
    assert meant(endless, ["liver", "spleen"]) == "" and meant(endless, [f"liver{i}" for i in range(100)]) == ""
    assert closest("livr", ["liver", endless]) == "liver"
    assert Spellings([endless, *map(str, range(100))]).closest("liver") is None


@pytest.mark.parametrize(
    ("value", "limits", "text"),
    [
        (0.9999999, (1,), "0.9999999"),
        (1.00000012, (0, 1), "1.0000001"),
        (-1e-9, (0, 1), "-1e-09"),
        (0.69999, (0.7,), "0.69999"),
        (1.5, (0, 1), "1.5"),
        (1, (0, 1), "1"),
        (0.123456, (), "0.1235"),
        (1 - 2**-53, (1,), "0.9999999999999999"),
    ],
)
def test_numbers_differ_from_their_limits(value: float, limits: tuple[float, ...], text: str) -> None:
    assert telling(value, *limits) == text
