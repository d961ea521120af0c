"""The command ``simulate``: a fully labelled dataset becomes one that lacks labels, parts, label maps or channels.

So a group can try a method on its own images, whose truth it knows, before it trusts it with images of unknown truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.case_voxels import first_in_one_file
from nnunet_mutual.datasets.coverage import coverage, format_coverage
from nnunet_mutual.datasets.examination import listing_problems
from nnunet_mutual.datasets.look import look
from nnunet_mutual.datasets.new_dataset import free_place
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.simulate.block import CASES, FOLDERS, TRUTH, NewCase, Original, block_of, write_simulated
from nnunet_mutual.datasets.simulate.draw import choose, choose_labelled, divide, draw_missing
from nnunet_mutual.datasets.simulate.hiding import Hiding, Pieces
from nnunet_mutual.datasets.splits import by_patient
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError, meant, shorten, typed
from nnunet_mutual.settings import BLOCK


@dataclass(frozen=True)
class SimulateOptions:
    """What the new dataset shall lack.

    Attributes:
        keep: ``"site:label,label"`` each: what a site draws; the cases are divided among the sites.
        labelled: how many cases keep their label maps; None keeps all.
        test: how many cases are set aside as test images.
        missing: ``"channel=share"`` each: the share of cases that lacks a channel.
        incomplete: ``"label=share"`` each: the share of the label's pieces that is hidden where it is drawn in part.
        pieces: "components" or "slices".
        complete: labelled cases in which such a label stays as it is.
        seed: of all draws.
        copy: copy images instead of linking them.
    """

    keep: Sequence[str] = ()
    labelled: int | None = None
    test: int = 0
    missing: Sequence[str] = ()
    incomplete: Sequence[str] = ()
    pieces: Pieces = "components"
    complete: int = 5
    seed: int = 0
    copy: bool = False


def simulate(dataset: str | int, output: str, options: SimulateOptions) -> None:
    """Makes a new dataset of nnUNet_raw that lacks what the options say; the full truth is kept in ``truth/``.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        output: name of the new one, 'Dataset112_Simulated'.
        options: what it shall lack.

    Raises:
        MutualError: wrong options, errors in the dataset, or a place that is not free; nothing is written then.
    """
    asked = options.keep or options.missing or options.incomplete or options.test
    if not asked and options.labelled is None:
        raise MutualError(
            "nothing to simulate; say what shall be lacking: --keep SITE:LABEL,LABEL for each site, --labelled NUMBER, "
            "--missing CHANNEL=SHARE, --incomplete LABEL=SHARE, or set cases aside with --test NUMBER"
        )
    if options.test < 0:
        raise MutualError(f"--test {options.test}: a number of cases cannot be negative; give 0 or more")
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    refuse_interrupted(folders)
    place = free_place(output)
    content = read_dataset_json(folders.raw)
    table = AnnotationTable.from_dataset_json(content)
    keep = _parse_keep(options.keep, table)
    shares = _parse_missing(options.missing, table)
    hidden = _parse_shares("--incomplete", options.incomplete, table.labels, "label")
    original = _read(folders.name, folders.raw, content, table, one_file_per_channel=bool(shares))
    cases = _draw(original, keep, shares, options)
    cases = _draw_in_part(original, cases, hidden, options)
    settings = {**asdict(options), "dataset": original.name}
    dataset_json = {key: value for key, value in content.items() if key not in (BLOCK, "dataset")} | {
        "name": output,
        "numTraining": sum(case.use == "labelled" for case in cases),
        "simulated_from": settings,
        BLOCK: block_of(original, cases, keep),
    }
    new_table = AnnotationTable.from_dataset_json(dataset_json)
    new_table.require(case.files.key for case in cases if case.use == "labelled")
    _refuse_unlearnable(new_table, cases)
    hiding = Hiding(hidden, options.pieces, options.seed)
    write_simulated(place, original, cases, dataset_json, hiding, copy=options.copy)
    _report(place, original, new_table, cases)


def _parse_keep(texts: Sequence[str], table: AnnotationTable) -> dict[str, frozenset[str]]:
    keep: dict[str, frozenset[str]] = {}
    for text in texts:
        site, colon, names = (part.strip() for part in text.partition(":"))
        labels = [names] if names in table.labels else [name.strip() for name in names.split(",") if name.strip()]
        if not colon or not site or not labels:
            raise MutualError(f"--keep {text!r} is not understood; write SITE:LABEL,LABEL, for example siteA:liver")
        if site in keep:
            raise MutualError(f"--keep names the site {site} twice; list all its labels at once: {site}:LABEL,LABEL")
        for name in labels:
            if name not in table.labels:
                raise MutualError(
                    f"--keep {text!r} names the unknown label {name!r}{meant(name, table.labels)}; dataset.json has: "
                    f"{', '.join(table.labels)}"
                )
        keep[site] = frozenset(labels)
    nobody = [label for label in table.labels if keep and not any(label in labels for labels in keep.values())]
    if nobody:
        raise MutualError(
            f"no site keeps {', '.join(nobody)}, so it could not be learnt; add it to one of the --keep options"
        )
    return keep


def _parse_shares(option: str, texts: Sequence[str], known: Sequence[str], what: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for text in texts:
        name, _, number = (part.strip() for part in text.rpartition("="))
        if name not in known:
            raise MutualError(
                f"{option} {text!r} names the unknown {what} {name!r}{meant(name, known)}; write {what.upper()}=SHARE "
                f"with one of: {', '.join(known)}"
            )
        if name in shares:
            raise MutualError(f"{option} names the {what} {name} twice; keep one of the two")
        try:
            shares[name] = float(number)
        except ValueError:
            shares[name] = -1.0
        if not 0 < shares[name] < 1:
            raise MutualError(f"{option} {text!r}: the share must be a number between 0 and 1, such as {name}=0.3")
    return shares


def _parse_missing(texts: Sequence[str], table: AnnotationTable) -> dict[str, float]:
    shares = _parse_shares("--missing", texts, table.channels, "channel")
    if shares and len(table.channels) == 1:
        raise MutualError(f"the only channel, {table.channels[0]}, cannot be missing; --missing needs two or more")
    return shares


def _read(
    name: str, folder: Path, content: Mapping[str, Any], table: AnnotationTable, *, one_file_per_channel: bool
) -> Original:
    """Lists and reads every case, so that nothing is written of a dataset with errors."""
    training, problems = training_cases(folder, content)
    table.require(training)
    unlabelled, more = unlabelled_cases(folder, content, training)
    every = {**training, **unlabelled}
    if table.declared:
        more += listing_problems(set(table.cases), training, set(unlabelled))
    reader = reader_for(content, [path for files in training.values() for path in files.images.values()])
    original = Original(name, content, table, training, unlabelled, reader)
    errors = [problem for problem in problems + more if problem.severity == ERROR]
    listed = {key: case for key in every if (case := original.listed(key)) is not None}
    for key, seen in look(every, listed, table, reader).items():
        errors += [problem for problem in seen.problems if problem.severity == ERROR]
        original.present[key] = seen.present or frozenset()
        original.flat.update([key] * bool(seen.is_2d))
    if errors:
        raise MutualError(
            f"{name} has {len(errors)} error(s), the first is {errors[0].place}: {errors[0].text}; correct them all "
            f"(nnunet_mutual check {name} lists them) and repeat, nothing was written"
        )
    together = first_in_one_file(every, table)
    if one_file_per_channel and together is not None:
        raise MutualError(
            f"the channels of case {together} are in one file, so none can be left out; save each as its own file"
        )
    return original


def _draw(
    original: Original, keep: Mapping[str, frozenset[str]], shares: Mapping[str, float], options: SimulateOptions
) -> list[NewCase]:
    table = original.table
    random = Random(options.seed)
    units = by_patient(table, original.training)
    tested = choose(units, options.test, f"--test {options.test}", random) if options.test else []
    set_aside = {key for unit in tested for key in unit}
    rest = [unit for unit in units if set_aside.isdisjoint(unit)]
    if not rest:
        raise MutualError(f"--test {options.test} takes every case; leave some for the training")
    sites = divide(rest, list(keep), random) if keep else {"": rest}
    site_of = {key: site for site, members in sites.items() for unit in members for key in unit}

    def kept(key: str) -> frozenset[str]:
        case = table.case(key)
        drawn = case.drawn | case.pseudo
        return drawn & keep[site_of[key]] if keep and key in site_of else drawn

    def shown(key: str) -> frozenset[str]:
        return kept(key) & original.present[key]

    labelled = set(site_of)
    if options.labelled is not None:
        labelled = set(choose_labelled(sites, options.labelled, shown, random))
    pool = [*site_of, *(key for key in original.unlabelled if original.listed(key) is not None)]
    already = {key: case.missing if (case := original.listed(key)) else frozenset[str]() for key in pool}
    missing = draw_missing(already, table.channels, shares, random)
    cases = []
    for key, files in {**original.training, **original.unlabelled}.items():
        listed = original.listed(key)
        use = "labelled" if key in labelled else "test" if key in set_aside else "unlabelled"
        site = site_of.get(key, "")
        source = _source_name(original, listed, site) if listed is not None else None
        names = kept(key) if use == "labelled" else frozenset[str]()
        cases.append(NewCase(files, use, site, source, names, missing.get(key, frozenset())))
    return cases


def _draw_in_part(
    original: Original, cases: Sequence[NewCase], shares: Mapping[str, float], options: SimulateOptions
) -> list[NewCase]:
    """Chooses, label by label, the patients in whom it stays complete; in all others a part is hidden."""
    random, table = Random(options.seed), original.table
    in_part: dict[str, set[str]] = {case.files.key: set() for case in cases}
    for label in shares:
        own = [
            c.files.key for c in cases if c.use == "labelled" and label in c.kept & table.case(c.files.key).annotated
        ]
        complete = choose(by_patient(table, own), options.complete, f"--complete {options.complete} ({label})", random)
        rest = set(own) - {key for unit in complete for key in unit}
        if not rest:
            raise MutualError(
                f"--complete {options.complete} leaves no case in which {label} is drawn in part; give fewer than the "
                f"{len(own)} that draw it"
            )
        for key in rest:
            in_part[key].add(label)
    return [replace(case, in_part=frozenset(in_part[case.files.key])) for case in cases]


def _source_name(original: Original, case: Case, site: str) -> str:
    """'siteA', or 'siteA_HospitalB' where the dataset itself has several sources."""
    own = case.source if original.table.declared else original.name[11:] or original.name
    if not site:
        return own
    return site if len(original.table.sources) == 1 else f"{site}_{own}"


def _refuse_unlearnable(table: AnnotationTable, cases: Sequence[NewCase]) -> None:
    drawn = frozenset[str]().union(*(table.case(case.files.key).annotated for case in cases if case.use == "labelled"))
    lost = [label for label in table.labels if label not in drawn]
    if lost:
        raise MutualError(
            f"no labelled case would annotate {', '.join(lost)}; keep it in more sites, raise --labelled, or try "
            "another --seed"
        )


def _report(place: Path, original: Original, table: AnnotationTable, cases: Sequence[NewCase]) -> None:
    labelled = [case for case in cases if case.use == "labelled"]
    number = {use: sum(case.use == use for case in cases) for use in FOLDERS}
    entries = [table.case(case.files.key) for case in labelled]
    present = {case.files.key: case.kept & original.present[case.files.key] for case in labelled}
    print(
        f"{place.name}: {number['labelled']} labelled, {number['unlabelled']} unlabelled and {number['test']} test "
        f"case(s) of {original.name}, in {place}"
    )
    print(format_coverage(table, entries, coverage(table, entries, present)))
    unseen = [label for label in table.labels if not any(label in names for names in present.values())]
    if unseen:
        print(f"No labelled case has voxels of {shorten(unseen)}; another --seed or a higher --labelled may help.")
    lacking = {channel: sum(channel in case.missing for case in cases) for channel in table.channels}
    if any(lacking.values()):
        text = ", ".join(f"{channel} in {n}" for channel, n in lacking.items() if n)
        total = number["labelled"] + number["unlabelled"]
        print(
            f"Channels missing: {text} of {total} cases. Their files hold zeros, so that stock nnU-Net trains, but as"
        )
        print("if zeros were tissue; methods for missing channels look into the table.")
    print(f"Who lacks what: {place / CASES}\nThe full truth, which no training reads: {place / TRUTH}")
    print("Predictions of any of these cases are compared with it by")
    print(f"  nnunet_mutual evaluate PREDICTIONS {typed(place / TRUTH / 'labels')} --chill")
    if len(labelled) < 5:
        print("Fewer than five labelled cases make no five folds: train with fold 'all'.")
    print(f"Next:  nnunet_mutual check {place.name}")
    configuration = "2d" if len(original.flat) == len(original.training) + len(original.unlabelled) else "3d_fullres"
    print(f"Then:  nnunet_mutual plan_and_preprocess -d {int(place.name[7:10])} -c {configuration}")
