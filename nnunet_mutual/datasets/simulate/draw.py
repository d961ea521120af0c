"""Seeded draws of a simulation: which case goes to which site, which stays labelled, which lacks a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from nnunet_mutual.errors import MutualError

Unit = tuple[str, ...]  # cases of one patient
_TRIES = 50


def divide(units: Sequence[Unit], sites: Sequence[str], random: Random) -> dict[str, list[Unit]]:
    """Divides patients among sites so that all have about the same number of cases.

    Args:
        units: cases of each patient.
        sites: names.
        random: source of randomness.

    Raises:
        MutualError: there are fewer patients than sites.
    """
    if len(units) < len(sites):
        raise MutualError(
            f"{len(units)} patient(s) cannot be divided among {len(sites)} sites; name fewer sites with --keep"
        )
    shuffled = random.sample(list(units), len(units))
    shuffled.sort(key=len, reverse=True)
    found: dict[str, list[Unit]] = {site: [] for site in sites}
    sizes = dict.fromkeys(sites, 0)
    for unit in shuffled:
        smallest = min(sites, key=sizes.__getitem__)
        found[smallest].append(unit)
        sizes[smallest] += len(unit)
    return found


def choose(units: Sequence[Unit], number: int, option: str, random: Random) -> list[Unit]:
    """Chooses whole patients that have this many cases together.

    Args:
        units: cases of each patient.
        number: how many cases.
        option: that asked for them, for the sentence.
        random: source of randomness.

    Raises:
        MutualError: there are not so many, or whole patients do not add up to the number.
    """
    total = sum(map(len, units))
    if number > total:
        raise MutualError(f"{option} needs {number} case(s), but only {total} can be chosen from; ask for fewer")
    last: dict[int, Unit] = {}  # by number of cases that some patients have together: the one that was added last
    reached = 1  # bit n: some have n together
    for unit in random.sample(list(units), len(units)):
        new = reached << len(unit) & ~reached
        reached |= new
        while new:
            last[new.bit_length() - 1] = unit
            new &= ~(1 << new.bit_length() - 1)
        if reached >> number & 1:
            return _together(last, number)
    below, above = max((n for n in last if n < number), default=0), min(n for n in last if n > number)
    raise MutualError(
        f"{option}: {number} case(s) cannot be made of whole patients, whose cases stay together; {below} or "
        f"{above} can"
    )


def _together(last: Mapping[int, Unit], number: int) -> list[Unit]:
    """The patients who have this many cases together, in the order in which they were added."""
    found: list[Unit] = []
    while number:
        found.append(last[number])
        number -= len(last[number])
    return found[::-1]


def choose_labelled(
    sites: Mapping[str, Sequence[Unit]], number: int, shown: Callable[[str], frozenset[str]], random: Random
) -> list[str]:
    """Chooses the cases that stay labelled, as many in each site; of several draws the one that shows most labels.

    Args:
        sites: patients of each site.
        number: how many cases in all.
        shown: labels with voxels of a case, as its site draws them.
        random: source of randomness.

    Raises:
        MutualError: fewer cases than sites, or :func:`choose` cannot.
    """
    if number < len(sites):
        raise MutualError(
            f"--labelled {number} leaves a site without labelled case; give at least {len(sites)}, one for each site"
        )
    share, rest = divmod(number, len(sites))
    best: list[str] = []
    most = -1
    for _ in range(_TRIES):
        keys: list[str] = []
        for index, units in enumerate(sites.values()):
            for unit in choose(units, share + (index < rest), f"--labelled {number}", random):
                keys.extend(unit)
        labels = len(frozenset[str]().union(*map(shown, keys)))
        if labels > most:
            best, most = keys, labels
    return best


def draw_missing(
    already: Mapping[str, frozenset[str]], channels: Sequence[str], shares: Mapping[str, float], random: Random
) -> dict[str, frozenset[str]]:
    """Chooses the cases that lack a channel; every case keeps at least one.

    Args:
        already: channels that each case lacks before.
        channels: all channels.
        shares: of the cases that shall lack a channel, by channel.
        random: source of randomness.

    Raises:
        MutualError: the shares leave cases without any channel.
    """
    lacking = {key: set(names) for key, names in already.items()}
    for channel, share in shares.items():
        number = round(share * len(lacking))
        room = [key for key, names in lacking.items() if len(names | {channel}) < len(channels)]
        if number > len(room):
            raise MutualError(
                f"--missing {channel}={share:g} would leave {number - len(room)} case(s) without any channel; lower "
                "the shares"
            )
        for key in random.sample(room, number):
            lacking[key].add(channel)
    return {key: frozenset(names) for key, names in lacking.items()}
