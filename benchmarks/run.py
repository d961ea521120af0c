"""Benchmarks of nnunet_mutual: resumable runner.

    python benchmarks/run.py calibrate hippocampus --data FOLDER
    python benchmarks/run.py run hippocampus --data FOLDER --budget 60m
    python benchmarks/run.py table hippocampus

Finished parts are skipped, so any command can be killed and repeated.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import calibration
import gate
import pooling
import screening
import table
from settings import HERE, BenchmarkError, Schedule, Setting, locked, names, read_json

from nnunet_mutual.trial.jobs import end_with_parent, run_all


@dataclass(frozen=True)
class Job:
    """One arm with one seed, trained and scored in a process of its own."""

    arm: str
    seed: int
    schedule: Schedule
    cases: str
    out: Path

    def name(self, setting: Setting) -> str:
        return f"{setting.name}_{self.cases}_{self.arm}_seed{self.seed}_{self.schedule}"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    work = Path(arguments.work).resolve() if arguments.work else None
    data = Path(arguments.data).resolve() if arguments.data else None
    try:
        if arguments.command == "pool":
            print(pooling.render([(Setting(name, data, work), *arms) for name, *arms in arguments.compared]))
            return 0
        results = Path(arguments.results).resolve() if arguments.results else None
        chosen = {"device": arguments.device, "planned": arguments.planned, "results": results}
        setting = Setting(arguments.benchmark, data, work, **chosen)
        if arguments.command == "table":
            table.write(setting)
            if setting.in_readme:
                table.put("gate", gate.render())
            if setting.in_readme and screening.schedule_of(setting):
                table.put(f"screening_{setting.name}", screening.render(setting))
        elif arguments.command == "job":
            run_job(setting, arguments)
        elif arguments.command == "prepare":
            prepare(setting)
        elif arguments.command == "calibrate":
            calibrate(setting, arguments)
        else:
            return int(not run(setting, arguments))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{prepare,calibrate,run,table,pool}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("benchmark", choices=names())
    common.add_argument("--data", default=os.environ.get("NNUNET_MUTUAL_DATA"), help="folder of the public datasets")
    common.add_argument("--work", help="folder for datasets, networks and logs (default: in the temporary folder)")
    common.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for training (default: %(default)s)")
    common.add_argument("--planned", action="store_true", help="the network that nnU-Net plans, not the protocol's")
    common.add_argument("--results", help="folder of the evidence (default: this repository's, and README.md)")
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument(
        "--budget", type=seconds, default=None, help="e.g. 60m: start no run that would not end within it"
    )
    timed.add_argument("--jobs", type=int, default=2, help="runs side by side, cores divided among them (default 2)")
    commands.add_parser("prepare", parents=[common], help="make and preprocess the datasets")
    commands.add_parser("calibrate", parents=[common, timed], help="find the schedule for all arms")
    one = commands.add_parser("run", parents=[common, timed], help="train and score arms")
    one.add_argument("--arms", nargs="+", help="default: all, in the protocol's order")
    one.add_argument("--seeds", nargs="+", type=int, help="default: all of the protocol")
    one.add_argument("--on", choices=("test", "calibration"), default="test", help="the patients that are scored")
    one.add_argument("--updates", type=int, help="of each network, for a benchmark that has no calibration")
    one.add_argument("--rate", type=float, help="learning rate of the first epoch, likewise")
    commands.add_parser("table", parents=[common], help="write the results into README.md")
    both = commands.add_parser("pool", help="compare two arms over several benchmarks, in shares of their gaps")
    both.add_argument("compared", nargs="+", type=comparison, metavar="benchmark:arm:arm")
    both.set_defaults(data=None, work=None)
    job = commands.add_parser("job", parents=[common])
    for name, kind in (("arm", str), ("seed", int), ("updates", int), ("rate", float), ("cases", str), ("out", Path)):
        job.add_argument(name, type=kind)
    return parser.parse_args(argv)


def comparison(text: str) -> list[str]:
    """Reads a benchmark, an arm of it and the one with which it is compared."""
    words = text.split(":")
    if len(words) != 3 or words[0] not in names():
        raise argparse.ArgumentTypeError(f"{text!r} is no comparison; write for example hippocampus_few_1:posed:all")
    return words


def seconds(text: str) -> float:
    """Reads 90s, 60m, 2h or a number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 90s, 60m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def prepare(setting: Setting) -> None:
    setting.export_paths(os.environ)
    import preparation

    with locked(setting.work / "prepared"):
        preparation.prepare(setting)


def calibrate(setting: Setting, arguments: argparse.Namespace) -> None:
    if "calibration" not in setting.protocol:
        raise BenchmarkError(
            f"the protocol of {setting.name} has no calibration; give run the schedule with --updates and --rate"
        )
    prepare(setting)
    while True:
        state = calibration.collect(setting)
        if state["chosen"] is not None:
            print(f"calibrated: {state['chosen']} ({state['reason']})")
            return
        wanted = calibration.missing(setting, state)
        if not wanted:
            raise BenchmarkError(f"{state['reason']}; add a longer length to the protocol's calibration")
        jobs = [Job(arm, s, t, "calibration", calibration.run_file(setting, t, s, arm)) for arm, t, s in wanted]
        if not run_jobs(setting, jobs, arguments):
            return


def run(setting: Setting, arguments: argparse.Namespace) -> bool:
    """Trains and scores; returns whether everything is finished."""
    arms = arguments.arms or list(setting["arms"])
    for arm in arms:
        if arm not in setting["arms"]:
            raise BenchmarkError(
                f"the protocol of {setting.name} has no arm {arm}; it has {', '.join(setting['arms'])}"
            )
    if strangers := {*(arguments.seeds or ())} - {*setting.seeds}:
        raise BenchmarkError(f"the protocol of {setting.name} has no seed {min(strangers)}; it has {setting.seeds}")
    schedule = schedule_of(setting, arguments)
    prepare(setting)
    on_test = arguments.on == "test"
    jobs = [
        Job(arm, seed, schedule, arguments.on, evidence_file(setting, arm, seed, schedule, on_test))
        for seed in arguments.seeds or setting.seeds
        for arm in arms
    ]
    complete = run_jobs(setting, jobs, arguments)
    if on_test:
        table.write(setting)
    return complete


def schedule_of(setting: Setting, arguments: argparse.Namespace) -> Schedule:
    """Returns the calibrated schedule; on calibration patients, or without a calibration, the given one."""
    given = (arguments.updates, arguments.rate)
    if "calibration" in setting.protocol and (arguments.on == "test" or given == (None, None)):
        if given != (None, None):
            raise BenchmarkError(
                "the schedule of this benchmark comes from its calibration; leave --updates and --rate out"
            )
        return calibration.chosen(setting)
    if None in given:
        why = "is scored on calibration patients" if "calibration" in setting.protocol else "has no calibration"
        raise BenchmarkError(f"{setting.name} {why}; give both --updates and --rate")
    return Schedule(*given)


def evidence_file(setting: Setting, arm: str, seed: int, schedule: Schedule, on_test: bool) -> Path:
    """Returns where the result of a run goes."""
    return setting.evidence_file(arm, seed) if on_test else calibration.run_file(setting, schedule, seed, arm)


def run_job(setting: Setting, arguments: argparse.Namespace) -> None:
    end_with_parent()
    import training

    training.torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    schedule = Schedule(arguments.updates, arguments.rate)
    training.run_arm(setting, arguments.arm, arguments.seed, schedule, arguments.cases, arguments.out)


def run_jobs(setting: Setting, jobs: Iterable[Job], arguments: argparse.Namespace) -> bool:
    """Does what is not finished in processes of their own; returns whether everything is finished then."""
    wanted = {job.name(setting): job for job in jobs}
    left = [name for name, job in wanted.items() if not finished(job)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    # Nothing but the training process: batches are drawn in it, which makes a run repeatable.
    place = {"nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    run_all(
        left,
        lambda name: command(setting, wanted[name]),
        setting.work / "logs",
        [place] * arguments.jobs,
        lambda text: print(text, flush=True),
        math.inf if arguments.budget is None else arguments.budget,
    )
    for name in filter(lambda name: finished(wanted[name]), left):
        print(f"{name}: mean Dice {table.mean_dice(read_json(wanted[name].out)):.4f}")
    return all(finished(job) for job in wanted.values())


def finished(job: Job) -> bool:
    if not job.out.is_file():
        return False
    found = read_json(job.out)
    schedule = Schedule(found["schedule"]["updates"], found["schedule"]["rate"])
    if schedule != job.schedule:
        raise BenchmarkError(
            f"{job.out} has the schedule {schedule}, wanted is {job.schedule}; delete it to run it again"
        )
    return True


def command(setting: Setting, job: Job) -> list[str]:
    """Returns the words of the command that does one job."""
    words = [str(HERE / "run.py"), "job", setting.name]
    words += [job.arm, str(job.seed), str(job.schedule.updates), str(job.schedule.rate), job.cases, str(job.out)]
    words += ["--work", str(setting.work.parent), "--data", str(setting.data), "--device", setting.device]
    return [*words, *(["--planned"] if setting.planned else [])]


if __name__ == "__main__":
    sys.exit(main())
