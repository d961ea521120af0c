"""Where to draw next, simulated on public data: suggested structures against random ones.

    python benchmarks/suggesting.py run hippocampus --data FOLDER
    python benchmarks/suggesting.py table hippocampus

The protocol is ``protocol/suggesting/<name>.json``. A network is trained on the few cases of a draw, structures are
chosen among the others by the code of ``nnunet_mutual suggest`` or at random and drawn (their true labels are
revealed), a network is trained anew and scored on test cases. Whatever is finished is kept, so any command can be
killed and repeated; processes with different ``--draws`` can run side by side.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import table
from settings import HERE, BenchmarkError, Network, Schedule, Setting, locked, read_json, write_json

from nnunet_mutual.evaluation.differences import Difference, Scores, compare_draws

PROTOCOLS = HERE / "protocol" / "suggesting"
START, SUGGEST, RANDOM = "start", "suggest", "random"
Structure = tuple[str, str]  # case, label
Drawn = Mapping[str, Sequence[str]]  # case -> labels
_MEMBER = 1000  # added to the seed, which is that of the draw, for each further network of the committee


@dataclass(frozen=True)
class Run:
    """One network that is scored: of a draw, after ``budget`` structures were chosen as the arm says (0: the start)."""

    draw: int
    arm: str
    budget: int

    @property
    def name(self) -> str:
        return self.arm if self.arm == START else f"{self.arm}{self.budget}"

    @property
    def file(self) -> str:
        return f"{self.name}_draw{self.draw}.json"


class Simulation(Setting):
    """A protocol of this benchmark as the other benchmarks know theirs; every run has a dataset of its own."""

    def __init__(self, name: str, data: Path | None, work: Path | None = None, device: str = "cpu") -> None:
        own = read_json(PROTOCOLS / f"{name}.json")
        super().__init__(f"{own['base']}_{own['start']}", data, work, device=device)
        self.protocol = {**self.protocol, **own}
        self.name, self.file = f"suggesting_{name}", f"suggesting{name}"
        digest = self._digest("network", "plan_on", "datasets", "cases", "draws", "start")
        self.work = self.work.parent / f"{self.file}-{digest}"
        self._drawn: dict[str, Drawn] = {}

    def add(self, run: Run, drawn: Drawn) -> None:
        """Adds the dataset of a run to those of the protocol, as a draw of them."""
        entry = {
            "id": self["run_id"],
            "labels": self["labels"],
            "labelled_from": "all",
            "unlabelled_from": "unlabelled",
        }
        self["datasets"][run.name] = entry
        self._drawn[run.name] = drawn

    def labelled_cases(self, dataset: str, seed: int) -> dict[str, list[str]]:
        """Returns the cases of a run by the dataset in which just these labels are drawn."""
        found: dict[str, list[str]] = {"all": []}  # first: it gives the plans
        for case, labels in self._drawn[dataset].items():
            found.setdefault("all" if len(labels) > 1 else labels[0].lower(), []).append(case)
        return found

    def dataset_name(self, dataset: str, seed: int) -> str:
        return super().dataset_name(dataset, seed % _MEMBER)

    def runs(self, draw: int) -> list[Run]:
        """All runs of a draw, that of the start first."""
        return [Run(draw, START, 0), *(Run(draw, arm, budget) for budget in self["budgets"] for arm in self["arms"])]

    def cases_with(self, draw: int, pairs: Iterable[Structure]) -> Drawn:
        """Returns what is drawn in a draw after further structures were."""
        drawn = {case: list(self["labels"]) for case in self.draws[draw]}
        for case, label in pairs:
            drawn.setdefault(case, []).append(label)
        return drawn


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("name", choices=sorted(file.stem for file in PROTOCOLS.glob("*.json")))
    parser.add_argument("--data", default=os.environ.get("NNUNET_MUTUAL_DATA"), help="folder of the public datasets")
    parser.add_argument("--work", help="folder for datasets and networks (default: in the temporary folder)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="the same for all draws (%(default)s)")
    parser.add_argument("--draws", nargs="+", type=int, help="default: all of the protocol")
    parser.add_argument("--updates", type=int, help="other than the protocol's, to try the script; keeps no evidence")
    options = parser.parse_args(argv)
    data, work = (Path(given).resolve() if given else None for given in (options.data, options.work))
    try:
        simulation = Simulation(options.name, data, work, options.device)
        if options.command == "run":
            simulate(simulation, options.draws or range(len(simulation.draws)), options.updates)
        if options.updates is None:
            table.put(simulation.name, render(simulation))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def simulate(simulation: Simulation, draws: Sequence[int], updates: int | None) -> None:
    """Does what is missing, draw by draw."""
    simulation.export_paths(os.environ)
    import preparation
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with locked(simulation.work / "prepared"):
        preparation.prepare(simulation)
    os.environ["nnUNet_n_proc_DA"] = "0"  # batches are drawn in this process, which makes a run repeatable
    given = simulation["schedule"]
    schedule = Schedule(updates or given["updates"], given["rate"])
    place = simulation.evidence if updates is None else simulation.work / "tried"
    for draw in draws:
        start = Run(draw, START, 0)
        link(simulation, start, simulation.cases_with(draw, []))
        missing = [run for run in simulation.runs(draw) if not (place / run.file).is_file()]
        orders = {RANDOM: shuffled(simulation, draw)}
        for run in missing:
            print(f"draw {draw}, {run.name}", flush=True)
            if run.arm == SUGGEST and SUGGEST not in orders:
                orders[SUGGEST] = suggested(simulation, draw, schedule)
            pairs = orders.get(run.arm, [])[: run.budget]
            write_json(place / run.file, score_run(simulation, run, pairs, schedule))


def score_run(simulation: Simulation, run: Run, pairs: list[Structure], schedule: Schedule) -> dict[str, Any]:
    """Trains the network of a run, after some structures were drawn, and scores it on the test cases."""
    import scoring
    import training

    link(simulation, run, simulation.cases_with(run.draw, pairs))
    trained = training.train_network(simulation, Network(run.name, simulation["trainer"]), schedule, run.draw)
    model = scoring.Model(Network("all", simulation["trainer"]), trained["network_weights"], simulation["labels"])
    dice, _ = scoring.score(simulation, [model], simulation["cases"]["test"])
    return {
        "benchmark": simulation.name,
        "arm": run.arm,
        "draw": run.draw,
        "budget": run.budget,
        "start": simulation.draws[run.draw],
        "drawn": pairs,
        "schedule": vars(schedule),
        "training_seconds": round(trained["seconds"], 1),
        "hardware": training.hardware(simulation.device),
        "versions": training.versions(),
        "source": simulation["source"],
        "dice": dice,
    }


def shuffled(simulation: Simulation, draw: int) -> list[Structure]:
    """Returns all undrawn structures in random order."""
    others = [case for case in simulation["cases"]["training"] if case not in simulation.draws[draw]]
    undrawn = [(case, label) for case in others for label in simulation["labels"]]
    return random.Random(draw).sample(undrawn, len(undrawn))


def suggested(simulation: Simulation, draw: int, schedule: Schedule) -> list[Structure]:
    """Returns what `nnunet_mutual suggest` would rank first, asking the committee of the draw."""
    import training

    from nnunet_mutual.batches.pseudo import PseudoStore
    from nnunet_mutual.disk.locate import locate
    from nnunet_mutual.engine.peers import unwrap
    from nnunet_mutual.pseudo_labels.filter import FilterSettings
    from nnunet_mutual.pseudo_labels.generate import Experts
    from nnunet_mutual.pseudo_labels.suggest.measuring import measure
    from nnunet_mutual.pseudo_labels.suggest.pool import open_pool
    from nnunet_mutual.pseudo_labels.suggest.ranking import rank

    network, networks, learnt = Network(START, simulation["trainer"]), [], []
    for member in range(simulation["committee"]):
        seed = draw + _MEMBER * member
        trainer = training.build_trainer(simulation, network, schedule, seed)
        trained = training.train_network(simulation, network, schedule, seed)
        trainer.initialize()
        unwrap(trainer.network).load_state_dict(trained["network_weights"])
        networks += trainer.pseudo_labelling
        learnt += trainer.network_labels()
    experts = Experts(networks, learnt, FilterSettings())
    pool = open_pool(locate(simulation.dataset_name(START, draw), need_raw=True), trainer.window, ["all"])
    pairs = measure(pool, trainer.window, experts, PseudoStore(simulation.work / "predictions" / f"{schedule}_{draw}"))
    ranked = rank(pairs, dict.fromkeys(simulation["labels"], 1.0), max(simulation["budgets"]))
    return [(one.pair.case, one.pair.label) for one in ranked]


def link(simulation: Simulation, run: Run, drawn: Drawn) -> None:
    """Makes the dataset of a run; that of the start also raw, with images that nobody drew, to choose from."""
    from draws import link_draw

    simulation.add(run, drawn)
    link_draw(simulation, run.name, run.draw)
    if run.arm != START:
        return
    kinds = [simulation.work / f"nnUNet_{kind}" for kind in ("raw", "preprocessed")]
    target, source = (kinds[0] / simulation.dataset_name(name, run.draw) for name in (run.name, "all"))
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (target / folder).mkdir(parents=True)
    for case in simulation["cases"]["training"]:
        image = source / "imagesTr" / f"{case}_0000.nii.gz"
        (target / ("imagesTr" if case in drawn else "imagesUn") / image.name).symlink_to(image)
    for case in drawn:
        (target / "labelsTr" / f"{case}.nii.gz").symlink_to(source / "labelsTr" / f"{case}.nii.gz")
    shutil.copyfile(kinds[1] / target.name / "dataset.json", target / "dataset.json")


def render(simulation: Simulation) -> str:
    """Returns the table of what is finished."""
    columns = ["drawn", *simulation["arms"], "difference", "over draws", "over patients", "verdict", "draws"]
    lines = [f"### {simulation['title']}", "", *table.heading(columns)]
    first = found(simulation, START, 0)
    lines.append(table.row([f"{len(simulation.draws[0])} cases", mean(first), mean(first), *[""] * 4, str(len(first))]))
    for budget in simulation["budgets"]:
        scores = [found(simulation, arm, budget) for arm in (SUGGEST, RANDOM)]
        both = {*scores[0]} & {*scores[1]}
        paired = [{draw: of_arm[draw] for draw in sorted(both)} for of_arm in scores]
        cells = [f"+ {budget} structures", *map(mean, paired)]
        cells += compared(compare_draws(*paired, simulation.patients)) if both else ["not run"] * 4
        lines.append(table.row([*cells, str(len(both))]))
    return "\n".join(lines)


def found(simulation: Simulation, arm: str, budget: int) -> dict[int, Scores]:
    """Returns draw -> case -> label -> Dice of the evidence that there is."""
    files = {draw: simulation.evidence / Run(draw, arm, budget).file for draw in range(len(simulation.draws))}
    return {draw: read_json(file)["dice"] for draw, file in files.items() if file.is_file()}


def mean(scores: Mapping[int, Scores]) -> str:
    """Mean over draws of the mean over labels of the mean over cases."""
    return f"{statistics.mean(table.mean_dice({'dice': one}) for one in scores.values()):.4f}" if scores else "not run"


def compared(difference: Difference) -> list[str]:
    """Mean, both intervals and what they say."""
    draws, patients = difference.over_draws, difference.over_patients
    intervals = [f"{one.low:+.4f} to {one.high:+.4f}" for one in (draws, patients)]
    return [f"{draws.mean:+.4f}", *intervals, difference.verdict]


if __name__ == "__main__":
    sys.exit(main())
