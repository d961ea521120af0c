"""Whether a label was drawn with another one inside it: a liver with or without its tumour.

No file can answer that, and a wrong answer teaches a network that tumours are not there. So every pair that looks like
organ and part by its names is asked for or taken from an option, never assumed.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nnunet_mutual.datasets.merge.sources import MergeSource, split_option
from nnunet_mutual.errors import MutualError, meant, shorten, typed

# Endings that plurals and other languages add do not matter: words are compared by their beginning.
_DISEASE = ("tumo", "lesion", "cancer", "carcinom", "metasta", "cyst", "nodul", "mass", "infarct", "neoplas", "gtv")


@dataclass(frozen=True)
class _Question:
    dataset: MergeSource
    source: str  # its own name of the source
    outer: str
    inner: str

    def __str__(self) -> str:
        return f"{self.dataset.new_source(self.source)}:{self.outer}={self.inner}"


def decide_contains(
    sources: Sequence[MergeSource], contained: Sequence[str], separate: Sequence[str], *, is_regions: bool
) -> dict[str, dict[str, list[str]]]:
    """Returns ``contains`` of every source of the merged dataset.

    Args:
        sources: the datasets.
        contained: options ``"SRC:liver=liver_tumour"``: drawn as part of it.
        separate: options of the same form: not drawn as part of it.
        is_regions: the relation of regions follows from their integers, nothing is asked.

    Raises:
        MutualError: an option that fits nothing, or a pair that nobody decided and nobody can be asked about.
    """
    if is_regions:
        if contained or separate:
            raise MutualError(
                "--contains and --no-contains are not used for regions, whose integers say what lies in what; leave "
                "the option out"
            )
        return {}
    found: dict[str, dict[str, list[str]]] = {}
    for dataset in sources:
        for source in dataset.table.sources:
            inside = {outer: sorted(inner) for outer, inner in dataset.contains(source).items()}
            found[dataset.new_source(source)] = inside
    yes, no = _options("--contains", contained, sources), _options("--no-contains", separate, sources)
    both = sorted(map(str, yes & no))
    if both:
        raise MutualError(f"{both[0]} is given with --contains and with --no-contains; keep the one that is true")
    for question in sorted(yes | _ask(_open_questions(sources) - yes - no), key=str):
        inside = found[question.dataset.new_source(question.source)]
        if question.inner not in inside.setdefault(question.outer, []):
            inside[question.outer].append(question.inner)
    return found


def looks_inside(inner: str, outer: str, *, together: bool) -> bool:
    """Whether the names suggest that one label is drawn inside the other.

    Args:
        inner: 'liver_tumour', 'LiverLesion', 'kidney_left', or only 'tumour'.
        outer: 'liver', 'kidney'.
        together: some dataset draws both, so that a bare 'tumour' is probably that of this organ.
    """
    part, whole = _words(inner), _words(outer)
    if _disease(whole):
        return False
    if part and all(map(_is_disease, part)):
        return together
    return bool(whole) and whole < part


def _open_questions(sources: Sequence[MergeSource]) -> set[_Question]:
    everything = list(dict.fromkeys(label for source in sources for label in source.labels))
    drawn_by = {label: {source.short for source in sources if label in source.labels} for label in everything}
    found = set()
    for dataset in sources:
        drawn = _drawn_by_source(dataset)
        for source, outers in drawn.items():
            # pairs of two labels of its own were settled by who made the dataset or its table
            for inner in set(everything) - set(dataset.labels):
                for outer in outers:
                    if looks_inside(inner, outer, together=bool(drawn_by[inner] & drawn_by[outer])):
                        found.add(_Question(dataset, source, outer, inner))
    return found


def _drawn_by_source(dataset: MergeSource) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key in dataset.training:
        case = dataset.case(key)
        found[case.source] |= case.drawn
    return found


def _options(option: str, texts: Sequence[str], sources: Sequence[MergeSource]) -> set[_Question]:
    names = [source.name for source in sources]
    short = {source.name: source.short for source in sources}
    everything = list(dict.fromkeys(label for source in sources for label in source.labels))
    found = set()
    for text in texts:
        word = text.partition(":")[0].strip()
        single = [(d, s) for d in sources for s in d.table.sources if word == d.new_source(s) != d.short]
        if single:
            places, rest = single, text.partition(":")[2]
        else:
            name, rest = split_option(option, text, names, short)
            places = [(d, s) for d in sources if d.name == name for s in d.table.sources]
        outer, _, right = (part.strip() for part in rest.partition("="))
        inner = [right] if right in everything else [part.strip() for part in right.split(",")]
        for label in [outer, *inner]:
            if label not in everything:
                raise MutualError(
                    f"{option} {text!r}: the merged dataset has no label {label!r}{meant(label, everything)}; its "
                    f"labels: {', '.join(everything)}"
                )
        chosen = [(d, s) for d, s in places if outer in _drawn_by_source(d).get(s, ())]
        if not chosen:
            raise MutualError(
                f"{option} {text!r}: {outer} is not annotated there, so nothing can be inside it; correct the option"
            )
        found |= {_Question(d, s, outer, label) for d, s in chosen for label in inner}
    return found


def _ask(questions: Iterable[_Question]) -> set[_Question]:
    """Asks at the terminal; returns the pairs answered with yes."""
    ordered = sorted(questions, key=str)
    if ordered and not (sys.stdin is not None and sys.stdin.isatty()):
        raise _undecided(ordered)
    answered = set()
    for question in ordered:
        where, outer, inner = question.dataset.new_source(question.source), question.outer, question.inner
        text = f"{where}: {outer} was drawn, {inner} was not. Is {inner} part of the drawn {outer} there? [y/n] "
        while True:
            try:
                answer = input(text).strip().lower()
            except EOFError:
                raise _undecided(ordered) from None
            if answer in ("y", "yes"):
                answered.add(question)
            if answer in ("y", "yes", "n", "no"):
                break
    return answered


def _undecided(questions: Sequence[_Question]) -> MutualError:
    first = questions[0]
    return MutualError(
        f"{first.dataset.new_source(first.source)} draws {first.outer} but not {first.inner}, and no file says whether "
        f"the drawn {first.outer} includes it; look at a few cases, then add --contains {typed(first)} (included) or "
        f"--no-contains {typed(first)} (left out)"
        + (f"; likewise for {shorten(map(str, questions[1:]), 8)}" if len(questions) > 1 else "")
    )


def _words(name: str) -> frozenset[str]:
    parts = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z\d])", name)
    return frozenset(part.lower().rstrip("s") or part.lower() for part in parts if part)


def _is_disease(word: str) -> bool:
    return word.startswith(_DISEASE)


def _disease(words: Iterable[str]) -> bool:
    return any(map(_is_disease, words))
