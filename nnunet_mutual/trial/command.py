"""`nnunet_mutual trial`: trains the arms that make sense on a dataset, scores them, and says which to take."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nnunet_mutual.datasets.coverage import columns
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.locate import locate, same_dataset
from nnunet_mutual.disk.trainings import train_command
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.compat import require_device
from nnunet_mutual.settings import Settings, common_settings, read_settings
from nnunet_mutual.trial import forecast
from nnunet_mutual.trial.answer import Answer, printed
from nnunet_mutual.trial.arms import STOCK, fitting_arms, networks_of, require_arms
from nnunet_mutual.trial.forecast import Timing, duration
from nnunet_mutual.trial.jobs import BEGUN, TIMING, command, command_line, run_all, runs_of, slots
from nnunet_mutual.trial.linked import require_unchanged
from nnunet_mutual.trial.page import PAGE, write_page
from nnunet_mutual.trial.power import smallest_difference
from nnunet_mutual.trial.protocol import LOCKS, RECORD, Options, TrialFolder
from nnunet_mutual.trial.results import Choice, Outcome, choose, collect, compare_arms, too_vague
from nnunet_mutual.trial.run import Trial, do_job, say_now
from nnunet_mutual.trial.training_data import MOST_DRAWS, Draw, draw_raw, link_data, locate_planned

Say = Callable[[str], None]


def trial(
    asked: Mapping[str, Any],
    *,
    output: str | None,
    job: str | None = None,
    list_jobs: bool = False,
    side_by_side: int | None = None,
    with_names: bool = False,
) -> Path | None:
    """Runs a trial, or a part of it; a trial that was killed is gone on with.

    Args:
        asked: options by name, None where the default, or what the folder's trial has, shall be.
        output: the folder of the trial; None: one in the current folder, named like the dataset and configuration.
        job: name of a single run to do.
        list_jobs: print a command for each run instead of doing them.
        side_by_side: runs at a time; None: as many as there are GPUs, on a CPU one.
        with_names: show names of cases in the tables beside the page.

    Returns:
        The page, None where none was written.

    Raises:
        MutualError: bad input, runs that failed, or another trial in the same folder.
    """
    path = Path(output or _usual_folder(asked)).expanduser()
    if job is not None:
        do_job(path, job)
        return None
    asked = _resolved(asked, path)
    folder, options, new = TrialFolder.open(path, asked)
    require_device(options.device)
    if new:
        _require(options)
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if list_jobs else say_now
    with folder.locked("trial", 0, f"another trial works in {folder.path} now; wait for it, or give another -o"):
        folder, options, new = TrialFolder.open(path, asked)  # another one may have made it meanwhile
        with _removed_unless_begun(folder.path, new):
            begun = _begin(folder, options)
        places = slots(options, side_by_side)
        _decide(begun, places, say)
        left = [run.name for run in begun.runs if not folder.run_file(run.name).is_file()]
        if list_jobs:
            for name in left:
                print(command_line(folder, begun.options, name))
            say(f"Then, for table and page: {command_line(folder, begun.options)}")
            return None
        failed = _run(begun, left, places, say)
        page = _answer(begun, with_names, say)
        if failed:
            raise MutualError(f"{len(failed)} run(s) failed: {failed[0]}; repeat the command to go on")
        return page


def _usual_folder(asked: Mapping[str, Any]) -> str:
    given = str(asked["dataset"])
    digits = given if given.isdecimal() else given.removeprefix("Dataset")[:3]
    number = int(digits) if digits.isdecimal() else locate(given).number
    return f"trial_{number}_{asked['configuration']}"


def _resolved(asked: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Full names of datasets, and what follows from other options; those of a trial that was begun may be gone."""
    begun = asdict(TrialFolder.open(path, {})[1]) if (path / RECORD).is_file() else {}

    def name(word: str) -> str:
        known = begun.get(word)
        return str(known) if known and same_dataset(asked[word], known) else locate(asked[word], need_raw=True).name

    found = dict(asked)
    found["dataset"] = name("dataset")
    found["labelled"] = None if asked.get("labelled") is None else sorted(asked["labelled"])
    if asked.get("test") is not None:
        found["test"] = name("test")
        if asked.get("fold") is not None:
            raise MutualError("-f holds out patients of the dataset itself, --test names others; give one of them")
        found["fold"] = "all"
        if found["test"] == found["dataset"]:
            raise MutualError(
                f"--test {found['test']} is the dataset that is trained on; leave it out, or name another"
            )
    return found


def _require(options: Options) -> None:
    """Verifies what can be verified before anything is written."""
    locate_planned(options)
    if options.arms:
        require_arms(options.arms)
    if options.fold == "all" and options.test is None:
        raise MutualError("-f all holds out nobody; give the number of a fold, or fully drawn patients with --test")
    if len({*options.labelled}) < len(options.labelled):
        raise MutualError("--labelled gives a number twice; keep one of them")
    if options.hides and len(options.numbers) * options.seeds > MOST_DRAWS:
        raise MutualError(
            f"{len(options.numbers) * options.seeds} draws are more than the {MOST_DRAWS} that nnU-Net has numbers of "
            "datasets for; give fewer --seeds"
        )


def _begin(folder: TrialFolder, options: Options) -> Trial:
    """Links the data and chooses the arms, as far as that was not done."""
    folder.save(options)
    link_data(folder, options)
    if not (options.arms and all(folder.run_file(run.name).is_file() for run in runs_of(options))):
        require_unchanged(folder.path)
    for number in options.numbers:  # each must be possible
        draw_raw(folder, options, Draw.of(options, number, 0))
    begun = Trial.of(folder, options)
    if not options.arms:
        begun = replace(begun, options=replace(options, arms=fitting_arms(begun.contents)))
    for arm in begun.options.arms:
        networks_of(arm, begun.contents, begun.block)
    folder.save(begun.options)
    return begun


@contextmanager
def _removed_unless_begun(path: Path, new: bool) -> Iterator[None]:
    """Removes what a new trial that could not begin has made; what its folder held before, hidden, stays."""
    before = {*path.iterdir()} - {path / LOCKS}
    try:
        yield
    except BaseException:
        for made in {*path.iterdir()} - before if new else ():
            shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink()
        if new and not before:
            with suppress(OSError):  # a lock that is held cannot be removed on every disk
                path.rmdir()
        raise


def _decide(begun: Trial, places: Sequence[dict[str, str]], say: Say) -> None:
    """Measures the arms, decides how long they train, and prints the forecast."""
    folder, options = begun.folder, begun.options
    cases = len(begun.held_out.training)
    say(f"Trial of {options.dataset}, {options.configuration}, in {folder.path}")
    say(f"Trains on {_trained_on(begun)}")
    say(f"Scores on {_scored_on(begun)}")
    missing = [arm for arm in options.arms if not folder.timing_file(arm).is_file()]
    if missing and not folder.schedule_file.is_file():
        say("Preparing the data, and measuring what a step of each arm takes ...")
        failed = _run(begun, [f"{TIMING}{arm}" for arm in missing], places[:1], lambda text: None)
        if failed:
            raise MutualError(f"an arm cannot be trained: {failed[0]}")
    timings = {arm: Timing.read(folder.timing_file(arm)) for arm in options.arms}
    runs = len(options.numbers) * options.seeds
    if not folder.schedule_file.is_file():
        decided = forecast.schedules(options, begun.block, timings, runs=runs, cases=cases, slots=len(places))
        write_json(folder.schedule_file, {arm: asdict(one) for arm, one in decided.items()})
    lengths = begun.schedules()
    said = begun.arms_in_words()
    say("\n" + columns(forecast.describe(options.arms, lengths, timings), indent="  ", gap="  "))
    say("\n".join(f"  {arm}: {text}" for arm, text in said.items()))
    seconds = forecast.total_seconds(lengths, timings, runs, cases, len(places))
    side = f", {len(places)} side by side" if len(places) > 1 else ""
    say(f"\nForecast: {runs * len(options.arms)} runs in about {duration(seconds)}{side}")
    patients = len({*begun.patients.values()})
    if patients > 1:
        least = smallest_difference(patients, options.seeds)
        say(
            f"So many patients ({patients}) and seeds ({options.seeds}) show a difference of about {least:.3f} Dice "
            "with a power of 80 %, where they vary as in this package's benchmarks; smaller ones are called level"
        )
    for text in begun.why_open:
        say(f"No winner will be named: {text}")


def _run(begun: Trial, names: Sequence[str], places: Sequence[dict[str, str]], say: Say) -> list[str]:
    """Does runs in processes of their own; returns what those said that failed."""
    logs = begun.folder.path / "logs"

    def start(name: str) -> list[str]:
        return ["-m", "nnunet_mutual.cli.parser", *command(begun.folder, begun.options, name)]

    statuses = run_all(names, start, logs, places, say)
    return [f"{name}: {_failure(logs / f'{name}.log', status)}" for name, status in statuses.items() if status]


def _failure(log: Path, status: int) -> str:
    """Says why the last attempt of a run failed, which its log may follow on earlier ones."""
    said = log.read_text(errors="replace").rpartition(BEGUN)[2].splitlines()[1:]
    lines = [line for line in said if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status < 0 and not errors:
        errors = [f"killed by signal {-status}" + ", as the system does where memory is short" * (status == -9)]
    return f"{(errors or lines or [f'nothing was said, exit status {status}'])[-1]} (log: {log})"


def _answer(begun: Trial, with_names: bool, say: Say) -> Path:
    """Prints the tables and writes the page."""
    options, runs = begun.options, begun.runs
    outcomes = collect(begun.folder, options, runs, begun.patients)
    comparisons = [compare_arms(outcome, options.arms) for outcome in outcomes]
    finished = sum(begun.folder.run_file(run.name).is_file() for run in runs)
    why_open = _why_open(begun, outcomes[-1], finished)
    if not why_open:
        choice = choose(outcomes[-1], options.arms, comparisons[-1])
        why_open += too_vague(choice, comparisons[-1])
    if why_open:
        choice = Choice(None, ())
    answer = Answer(
        options,
        begun.arms_in_words(),
        outcomes,
        comparisons,
        choice,
        why_open,
        finished,
        len(runs),
        _trained_on(begun),
        _scored_on(begun),
        "" if choice.arm is None else _trains_otherwise(begun, choice.arm),
    )
    say("\n" + printed(answer))
    page = begun.folder.path / PAGE
    files = write_page(page, answer, with_names=with_names)
    say("\n" + "\n".join(map(str, files)))
    if answer.otherwise:
        say(answer.otherwise)
    say(f"Next: {_next(answer)}")
    return page


def _why_open(begun: Trial, outcome: Outcome, finished: int) -> list[str]:
    """Returns why no arm can be chosen, before the differences are looked at."""
    options, runs = begun.options, begun.runs
    why = begun.why_open
    if finished < len(runs):
        why.append(f"{finished} of {len(runs)} runs are finished; repeat the command to go on")
    if finished and not outcome.labels:
        why.append("no label has a score in any case, since neither the cases nor the predictions show one")
    missed = outcome.not_learnt()
    for seed in range(options.seeds):
        labels = [label for label, of in missed.items() if {(arm, seed) for arm in options.arms} <= {*of}]
        if labels:
            why.append(
                f"with seed {seed} no arm has learnt {', '.join(labels)}, so the trainings are too short to compare"
            )
    if len({*begun.patients.values()}) < 2:
        why.append("one patient alone is scored; choose another fold, or name more with --test")
    return why


def _next(answer: Answer) -> str:
    options = answer.options
    if answer.choice.arm is None:
        return f"look at {PAGE}; {answer.why_open[0]}"
    return train_command(int(options.dataset[7:10]), options.configuration, answer.choice.arm, plans=options.plans)


def _trains_otherwise(begun: Trial, arm: str) -> str:
    """Says how a training outside of the trial differs: it has the planned length, stock nnU-Net its own schedule."""
    planned = read_settings(Settings, common_settings(begun.block))
    own, here = Settings() if arm == STOCK else planned, begun.schedules()[arm]
    updates = own.num_epochs * own.num_iterations_per_epoch * here.networks

    def said(number: int, with_: Settings) -> str:
        return f"{number:,} updates ({with_.optimizer}, initial_lr {with_.initial_lr:g})"

    if (then := said(updates, own)) == (now := said(here.updates, planned)):
        return ""
    whose = "nnU-Net's own trainer" if arm == STOCK else f"{arm}, as planned,"
    return f"{whose} makes {then}; what is concluded here is of {now}."


def _trained_on(begun: Trial) -> str:
    found = begun.contents
    labelled = sum(bool(found.table.case(key).drawn) for key in found.cases)
    each = [number for number in begun.options.numbers if number is not None] or [labelled]
    parts = [f"{' or '.join(map(str, each))} labelled case(s) of {begun.options.dataset}"]
    if found.partial:
        parts.append("which draw different labels" if found.leaves_out else "some with labels that are drawn in part")
    parts += ["and images without labels"] * found.unlabelled
    draws = ", another draw for every seed" if begun.options.hides else ""
    return ", ".join(parts) + draws


def _scored_on(begun: Trial) -> str:
    options, cases = begun.options, len(begun.held_out.training)
    whose = f"fold {options.fold} of {options.dataset}" if options.test is None else options.test
    patients, in_part = len({*begun.patients.values()}), begun.held_out.unscored_in_part()
    return f"{cases} case(s) of {patients} patient(s), {whose}, which no arm has seen{in_part}"
