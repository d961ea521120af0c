"""Benchmarks of nnunet_mutual: resumable runner.

    python benchmarks/run.py calibrate hippocampus --data FOLDER
    python benchmarks/run.py run hippocampus --data FOLDER --budget 60m
    python benchmarks/run.py table hippocampus

Finished parts are skipped, so any command can be killed and repeated.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import calibration
import gate
import pooling
import screening
import table
from settings import HERE, BenchmarkError, Schedule, Setting, locked, names, read_json

from nnunet_mutual.trial.jobs import PARENT, end_with_parent


@dataclass(frozen=True)
class Job:
    """One arm with one seed, trained and scored in a process of its own."""

    arm: str
    seed: int
    schedule: Schedule
    cases: str
    out: Path
    networks: int
    trained: frozenset[Path] = frozenset()  # files of its networks, which other arms may share

    @property
    def title(self) -> str:
        updates = f"{self.networks} x {self.schedule.updates} updates"
        return f"{self.arm} seed {self.seed}, {updates}, learning rate {self.schedule.rate:g}"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    work = Path(arguments.work).resolve() if arguments.work else None
    data = Path(arguments.data).resolve() if arguments.data else None
    try:
        if arguments.command == "pool":
            settings = [Setting(name, data, work) for name in arguments.benchmarks]
            print(pooling.render(arguments.first, arguments.second, settings))
            return 0
        results = Path(arguments.results).resolve() if arguments.results else None
        chosen = {"device": arguments.device, "planned": arguments.planned, "results": results}
        setting = Setting(arguments.benchmark, data, work, **chosen)
        if arguments.command == "table":
            table.write(setting)
            table.put("gate", gate.render())
            if screening.schedule_of(setting):
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
    both.add_argument("first", help="arm of every protocol")
    both.add_argument("second", help="arm it is compared with")
    both.add_argument("benchmarks", nargs="+", choices=names(), metavar="benchmark")
    both.set_defaults(data=None, work=None)
    job = commands.add_parser("job", parents=[common])
    for name, kind in (("arm", str), ("seed", int), ("updates", int), ("rate", float), ("cases", str), ("out", Path)):
        job.add_argument(name, type=kind)
    return parser.parse_args(argv)


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
    scheduler = Scheduler(setting, arguments.jobs, arguments.budget)
    while True:
        state = calibration.collect(setting)
        if state["chosen"] is not None:
            print(f"calibrated: {state['chosen']} ({state['reason']})")
            return
        wanted = calibration.missing(setting, state)
        if not wanted:
            raise BenchmarkError(f"{state['reason']}; add a longer length to the protocol's calibration")
        jobs = [
            job(setting, arm, s, t, "calibration", calibration.run_file(setting, t, s, arm)) for arm, t, s in wanted
        ]
        if not scheduler.run(jobs):
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
        job(setting, arm, seed, schedule, arguments.on, evidence_file(setting, arm, seed, schedule, on_test))
        for seed in arguments.seeds or setting.seeds
        for arm in arms
    ]
    complete = Scheduler(setting, arguments.jobs, arguments.budget).run(jobs)
    if on_test and arguments.results is None:
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


def job(setting: Setting, arm: str, seed: int, schedule: Schedule, cases: str, out: Path) -> Job:
    networks = setting.networks(arm)
    trained = frozenset(setting.weights_file(network, schedule, seed) for network in networks)
    return Job(arm, seed, schedule, cases, out, len(networks), trained)


def run_job(setting: Setting, arguments: argparse.Namespace) -> None:
    end_with_parent()
    import training

    training.torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    schedule = Schedule(arguments.updates, arguments.rate)
    training.run_arm(setting, arguments.arm, arguments.seed, schedule, arguments.cases, arguments.out)


class Scheduler:
    """Keeps ``jobs`` processes busy until all is done or the budget would be exceeded."""

    def __init__(self, setting: Setting, jobs: int, budget: float | None) -> None:
        self.setting = setting
        self.jobs = max(1, jobs)
        self.end = None if budget is None else time.monotonic() + budget
        self.seconds_per_update = 0.0  # unknown until a run has ended

    def run(self, jobs: Iterable[Job]) -> bool:
        """Returns whether everything is finished; says what is not and why."""
        waiting = [job for job in jobs if not self.finished(job)]
        running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
        complete = True
        try:
            while waiting or running:
                while len(running) < self.jobs and (job := self.next(waiting, [entry[0] for entry in running])):
                    waiting.remove(job)
                    if self.end is not None and time.monotonic() + self.expected(job) > self.end:
                        print(f"not run, the budget is spent: {job.title}")
                        complete = False
                        continue
                    running.append((job, self.start(job), time.monotonic()))
                time.sleep(0.5)
                for entry in list(running):
                    if entry[1].poll() is not None:
                        running.remove(entry)
                        complete &= self.ended(*entry)
        finally:
            for _, process, _ in running:
                process.terminate()
        return complete

    @staticmethod
    def next(waiting: Sequence[Job], running: Sequence[Job]) -> Job | None:
        """Returns the first job that trains no network which another one is just training."""
        busy = {file for job in running for file in job.trained}
        return next((job for job in waiting if not job.trained & busy), None)

    def finished(self, job: Job) -> bool:
        if not job.out.is_file():
            return False
        found = read_json(job.out)
        schedule = Schedule(found["schedule"]["updates"], found["schedule"]["rate"])
        if schedule != job.schedule:
            raise BenchmarkError(
                f"{job.out} has the schedule {schedule}, wanted is {job.schedule}; delete it to run it again"
            )
        return True

    def expected(self, job: Job) -> float:
        return job.networks * job.schedule.updates * self.seconds_per_update

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        logs = self.setting.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{self.setting.name}_{job.cases}_{job.arm}_seed{job.seed}_{job.schedule}.log"
        print(f"start {job.title}; log: {log}", flush=True)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // self.jobs))
        # Nothing but the training process: batches are drawn in it, which makes a run repeatable.
        environment = {**os.environ, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment[PARENT] = str(os.getpid())
        command = [sys.executable, str(HERE / "run.py"), "job", self.setting.name]
        command += [job.arm, str(job.seed), str(job.schedule.updates), str(job.schedule.rate), job.cases, str(job.out)]
        command += ["--work", str(self.setting.work.parent), "--data", str(self.setting.data)]
        command += ["--device", self.setting.device, *(["--planned"] if self.setting.planned else [])]
        with log.open("wb") as stream:
            return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)

    def ended(self, job: Job, process: subprocess.Popen[bytes], started: float) -> bool:
        duration = time.monotonic() - started
        if process.returncode != 0 or not job.out.is_file():
            print(f"FAILED (exit status {process.returncode}): {job.title}", flush=True)
            return False
        if duration > 60:  # shorter: its networks were there already
            self.seconds_per_update = duration / (job.networks * job.schedule.updates)
        print(
            f"done {job.title}: {duration / 60:.1f} min, mean Dice {table.mean_dice(read_json(job.out)):.4f}",
            flush=True,
        )
        return True


if __name__ == "__main__":
    sys.exit(main())
