"""The command ``annotate``: a table of case -> labels becomes the ``"mutual"`` block of a raw dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.entries import drawn_entry, ordered, outlined_entry
from nnunet_mutual.annotation.table import VERSION, AnnotationTable, drawn_in_part
from nnunet_mutual.datasets.coverage import coverage, format_coverage
from nnunet_mutual.datasets.earlier import completed, completed_since, dropped, earlier_table, withdrawn, without_source
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ, refuse_interrupted
from nnunet_mutual.datasets.tables import Entry, Known, read_table
from nnunet_mutual.disk.files import keep_backup, natural, write_json
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError, meant, shorten
from nnunet_mutual.settings import BLOCK

_LONGEST_NAME = 32
_SHOWN = 5  # names in a sentence
_NOBODY = "unlabelled"  # source of cases in which nothing was drawn, where the table names no sources
_SOURCE_HINT = (
    "The table names no sources, so cases with the same labels make one. Training draws the cases of small "
    "sources\nmore often; if all cases come from one hospital and were drawn by one protocol, say so:  --source "
    "NAME --force\n"
)
_IGNORE_HINT = (
    "Of what is drawn in part, all that is not drawn counts as unknown. Where you know which voxels nobody looked at\n"
    "(slices between drawn ones, all but scribbles), nnU-Net's ignore label there says more (docs/data.md)."
)


def annotate(
    dataset: str | int,
    table_file: str | Path,
    *,
    sheet: str | None = None,
    source: str | None = None,
    contains: Sequence[str] = (),
    may_overlap: Sequence[str] = (),
    single: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Writes who annotated what into dataset.json of the raw dataset and prints the coverage.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        table_file: see :func:`nnunet_mutual.datasets.tables.read_table`. It must list every training case, and may list
            images of imagesUn.
        sheet: of a workbook that has several.
        source: name of the one source of all cases. Without it the table's own sources are used, and if it has none,
            cases with the same annotated labels make a source.
        contains: ``"outer=inner"`` for all sources that annotate ``outer``, or ``"source:outer=inner,inner"``.
        may_overlap: pairs ``"aorta,heart"``.
        single: labels of which a body has one connected piece.
        force: replace an existing block; the old file is kept as ``dataset.json.bak-<n>``. What the old block says
            about patients, pseudo labels, missing channels and images of imagesUn stays where the table is silent.

    Raises:
        MutualError: nothing is written then.
    """
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    refuse_interrupted(folders)
    path = folders.raw / "dataset.json"
    content = read_dataset_json(folders.raw)
    old = content.get(BLOCK)
    if old is not None and not force:
        raise MutualError(
            f'{path} already has a "{BLOCK}" block; repeat with --force to replace it (the old file is kept as a '
            "backup)"
        )
    plain = AnnotationTable.from_dataset_json({key: value for key, value in content.items() if key != BLOCK})
    files, _ = training_cases(folders.raw, content)
    apart = set(unlabelled_cases(folders.raw, content, files)[0]) - set(files)
    known = Known(plain.labels, plain.channels, apart, {*files, *apart}, content["file_ending"])
    entries, guesses = read_table(Path(table_file), known, sheet)
    if guesses:
        print(f"{table_file} is read so: {'; '.join(guesses)}", flush=True)
    _same_cases(entries, list(files), apart, Path(table_file))
    earlier = earlier_table(content)
    entries, kept = completed(entries, earlier, apart)
    entries = sorted(entries, key=lambda entry: natural(entry.case))
    block = _block(entries, plain, apart, source, contains, may_overlap, single)
    if isinstance(old, Mapping) and "modality_groups" in old:
        block["modality_groups"] = old["modality_groups"]  # no table can say this
    content[BLOCK] = block
    table = AnnotationTable.from_dataset_json(content)
    table.require(files)
    backup = keep_backup(path) if old is not None else None
    write_json(path, content)
    if kept:
        print(f"Kept from the block that was there before: {'; '.join(kept)}")
    _say_withdrawn(earlier, table, table_file)
    guessed = len(table.sources) > 1 and all(entry.source is None for entry in entries if entry.case not in apart)
    _report(folders.name, path, table, list(files), backup, _SOURCE_HINT if guessed else "")


def _block(
    entries: Sequence[Entry],
    plain: AnnotationTable,
    apart: Set[str],
    source: str | None,
    contains: Sequence[str],
    may_overlap: Sequence[str],
    single: Sequence[str],
) -> dict[str, Any]:
    """Returns what the table and the options of :func:`annotate` say."""
    sources, of_case = _sources(entries, plain.labels, source, apart)
    block: dict[str, Any] = {
        "version": VERSION,
        "sources": sources,
        "cases": _cases(entries, sources, of_case, plain, apart),
    }
    _add_contains(block, contains, plain, entries, of_case)
    if single:
        block["labels"] = {_label(name.strip(), plain.labels, "--single"): {"single": True} for name in single}
    if may_overlap:
        block["may_overlap"] = [_pair(text, plain.labels) for text in may_overlap]
    return block


def _say_withdrawn(earlier: AnnotationTable | None, table: AnnotationTable, table_file: str | Path) -> None:
    """Warns of what the block before said and the new one does not."""
    if lost := withdrawn(earlier, table):
        print(
            f"WARNING: {len(lost)} case(s) no longer annotate what the block before said, for example after accept: "
            f"{shorten(lost)}; if that is not meant, add it to {table_file} and repeat"
        )
    if complete := completed_since(earlier, table):
        print(
            f"WARNING: {len(complete)} case(s) draw completely what the block before said was drawn in part: "
            f"{shorten(complete)}; if more of it was not drawn since, write partly in {table_file} and repeat"
        )
    if options := dropped(earlier, table):
        print(f"No longer said; if it still holds, repeat with  --force {' '.join(options)}")
    if gone := without_source(earlier, table):
        print(f"No longer said, of sources that are called otherwise now: {shorten(gone)}; say it with --contains")


def _report(name: str, path: Path, table: AnnotationTable, keys: Sequence[str], backup: Path | None, hint: str) -> None:
    listed = len(table.cases) - len(keys)
    images = f" and {listed} image(s) of imagesUn" if listed else ""
    print(f"{name}: {len(keys)} training cases{images}, {len(table.sources)} source(s), written to {path}")
    if backup is not None:
        print(f"The block that was there before is kept in {backup}")
    cases = [table.case(key) for key in keys]
    print(format_coverage(table, cases, coverage(table, cases)))
    nobody = [label for label in table.labels if not any(label in case.annotated for case in cases)]
    if nobody:
        print(
            f"No case annotates {', '.join(nobody)}{drawn_in_part(cases, nobody)}. Such a label cannot be learnt: "
            "correct the table, or remove the label from dataset.json."
        )
    if any(case.incomplete for case in cases):
        print(_IGNORE_HINT)
    difference = raw_and_preprocessed_differ(name)
    print(f"{hint}Next, compare the table with the label maps:  nnunet_mutual check {name}")
    if difference:
        print(f"Then, because this dataset was preprocessed before:  nnunet_mutual sync {name}")


def _same_cases(entries: Sequence[Entry], keys: Sequence[str], apart: Set[str], path: Path) -> None:
    """Every training case is listed, images of imagesUn may be, nothing else is."""
    listed = {entry.case for entry in entries}
    absent = [key for key in keys if key not in listed]
    unknown = sorted(listed - set(keys) - apart, key=natural)
    found = []
    if unknown:
        possible = [*absent, *sorted(apart - listed)]
        named = [case + meant(case, possible) for case in unknown[:_SHOWN]]  # a suggestion costs time
        found.append(f"{len(unknown)} case(s) that are not in imagesTr: {shorten([*named, *unknown[_SHOWN:]], _SHOWN)}")
    if absent:
        found.append(f"no line for {len(absent)} training case(s): {shorten(absent)}")
    if found:
        raise MutualError(
            f"{path} has {' and '.join(found)}; list every training case once, by its file name without channel "
            "number and ending"
        )
    drawn = [entry for entry in entries if entry.case in apart and entry.drawn | entry.pseudo]
    if drawn:
        raise MutualError(
            f"{path} lists {', '.join(sorted(drawn[0].drawn | drawn[0].pseudo))} for {drawn[0].case}, which is in "
            "imagesUn, where nothing is drawn; write none there, or move its images to imagesTr and its label map to "
            "labelsTr"
        )


def _sources(
    entries: Sequence[Entry], labels: Sequence[str], only: str | None, apart: Set[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Returns the sources of the block and the source of each case."""
    training = [entry for entry in entries if entry.case not in apart]
    with_source = [entry for entry in training if entry.source is not None]
    if only is not None:
        if not only.strip():
            raise MutualError("--source is empty; name the hospital or project that drew the cases, or leave it out")
        if with_source:
            raise MutualError(
                f"--source {only} was given, but the table has its own sources (case {with_source[0].case}); use "
                "one of the two"
            )
        of_case = {entry.case: only for entry in entries}
    elif with_source:
        without = [entry.case for entry in training if entry.source is None]
        if without:
            raise MutualError(
                f"{len(without)} case(s) have no source ({shorten(without)}) while others have one; give it for all "
                "or for none"
            )
        of_case = {entry.case: str(entry.source) for entry in training}
    else:
        names = _names_of_sets({entry.drawn for entry in training}, labels)
        of_case = {entry.case: names[entry.drawn] for entry in training}
    sets: dict[str, Counter[frozenset[str]]] = defaultdict(Counter)
    for entry in training:
        sets[of_case[entry.case]][entry.annotated] += 1
    order = sorted(sets, key=lambda name: (-sets[name].total(), natural(name)))
    # A source annotates what most of its cases annotate; the other cases say what they have.
    usual = {name: max(sets[name], key=lambda drawn: (sets[name][drawn], len(drawn), sorted(drawn))) for name in order}
    sources = {name: {"annotated": ordered(usual[name], labels)} for name in order}
    for entry in entries:
        if entry.case in apart and only is None:
            # Of an image in imagesUn nothing was drawn, whoever sent it.
            of_case[entry.case] = entry.source or (next(iter(sources)) if len(order) == 1 else _NOBODY)
            sources.setdefault(of_case[entry.case], {"annotated": []})
    return sources, of_case


def _cases(
    entries: Sequence[Entry],
    sources: Mapping[str, Any],
    of_case: Mapping[str, str],
    table: AnnotationTable,
    apart: Set[str],
) -> dict[str, Any]:
    cases = {}
    for entry in entries:
        name = of_case[entry.case]
        case: dict[str, Any] = {"source": name}
        if entry.case not in apart:
            case |= drawn_entry(sources[name], entry.annotated, entry.incomplete, entry.pseudo, table.labels)
        if entry.patient is not None:
            case["patient"] = entry.patient
        if entry.missing:
            case["missing"] = ordered(entry.missing, table.channels)
        case |= outlined_entry(entry.outlined)
        cases[entry.case] = case
    return cases


def _names_of_sets(sets: Iterable[frozenset[str]], labels: Sequence[str]) -> dict[frozenset[str], str]:
    """Names annotated sets so that a reader sees what they hold: 'liver+spleen', 'without_Mandible', '12_labels_b'."""
    names: dict[frozenset[str], str] = {}
    used: Counter[str] = Counter()
    for drawn in sorted(sets, key=lambda drawn: [label not in drawn for label in labels]):
        absent = ordered(frozenset(labels) - drawn, labels)
        present = "+".join(ordered(drawn, labels))
        if not drawn or not absent:
            name = "all_labels" if drawn else _NOBODY
        elif len(absent) < len(drawn):
            name = "without_" + "+".join(absent)
        else:
            name = present
        if len(name) > _LONGEST_NAME:
            name = f"{len(drawn)}_of_{len(labels)}_labels"
        used[name] += 1
        names[drawn] = name if used[name] == 1 else f"{name}_{used[name]}"
    return names


def _add_contains(
    block: dict[str, Any],
    texts: Sequence[str],
    plain: AnnotationTable,
    entries: Sequence[Entry],
    of_case: Mapping[str, str],
) -> None:
    drawn: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        drawn[of_case[entry.case]] |= entry.drawn
    for text in texts:
        left, equals, right = text.partition("=")
        if not equals:
            raise MutualError(
                f"--contains {text!r} has no '='; write outer=inner or source:outer=inner, for example "
                "liver=liver_tumour"
            )
        name, outer = _split_source(left.strip(), block["sources"], plain.labels)
        outer = _label(outer, plain.labels, "--contains")
        inner = [right.strip()] if right.strip() in plain.labels else [part.strip() for part in right.split(",")]
        inner = [_label(part, plain.labels, "--contains") for part in inner]
        chosen = [name] if name is not None else [source for source in block["sources"] if outer in drawn[source]]
        if not chosen or outer not in drawn[chosen[0]]:
            where = f"source {name}" if name is not None else "any case"
            raise MutualError(
                f"--contains {text!r}: {outer} is not annotated in {where}, so nothing can be inside it; correct "
                "the source or the label"
            )
        for source in chosen:
            known = block["sources"][source].setdefault("contains", {}).setdefault(outer, [])
            known.extend(part for part in inner if part not in known)


def _split_source(left: str, sources: Mapping[str, Any], labels: Sequence[str]) -> tuple[str | None, str]:
    if left in labels or ":" not in left:
        return None, left
    name, _, outer = left.rpartition(":")
    if name not in sources:
        raise MutualError(
            f"--contains names the unknown source {name!r}{meant(name, sources)}; sources: {', '.join(sources)}"
        )
    return name, outer


def _pair(text: str, labels: Sequence[str]) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise MutualError(f"--may-overlap {text!r} is not a pair; write two labels, for example aorta,heart")
    return [_label(part, labels, "--may-overlap") for part in parts]


def _label(name: str, labels: Sequence[str], option: str) -> str:
    if name not in labels:
        raise MutualError(
            f"{option} names the unknown label {name!r}{meant(name, labels)}; dataset.json has: {', '.join(labels)}"
        )
    return name
