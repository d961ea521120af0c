"""The command ``nnunet_mutual demo``: from two hospitals' partial annotations to one stock model, on generated images.

Every step is a command that users type themselves; it is printed before it runs. nnU-Net works in folders of the demo.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.splits import stratified_splits
from nnunet_mutual.demo.anatomy import LABELS
from nnunet_mutual.demo.commands import Command, run_commands
from nnunet_mutual.demo.folder import HEAVY, DemoFolder
from nnunet_mutual.demo.phantoms import SITES, write_dataset
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.locate import ROOTS
from nnunet_mutual.disk.trainings import checkpoints_in, fold_of, training_name
from nnunet_mutual.engine.checkpoints import STOCK_TRAINER
from nnunet_mutual.evaluation.command import FOLDER
from nnunet_mutual.evaluation.output import SUMMARY, without_nan
from nnunet_mutual.plugin.find import EXPORT_COMMAND, SHIM_FOLDER, VARIABLE

NUMBER = "901"
DATASET = f"Dataset{NUMBER}_TwoHospitals"
BASE, NAME = "3d_fullres", "demo"
CONFIGURATION = f"{BASE}_{NAME}"
OURS, STOCK = "PartialTrainer", "nnUNetTrainerDemo"
NAMES = {OURS: OURS, STOCK: "stock nnU-Net"}
EXPORTED = "nnUNetPlans_Partial"
STOCK_FOLDER = Path(__file__).resolve().parent / "stock"
RESULTS = "demo_results.json"
PICTURE = "demo.png"
REPORT = "report/report.html"


@dataclass(frozen=True)
class Scale:
    """How large a demo is; the defaults take a few minutes on two processor cores.

    Attributes:
        training: training cases of each site.
        test: test cases of each site.
        epochs: of each training.
        iterations: updates in an epoch.
        initial_lr: of AdamW.
        patch_size: (Z, Y, X) voxels.
        stages: resolutions of the network.
        features: channels of its first stage.
        seed: of images, weights and batches.
        expected: mean Dice of PartialTrainer below which something is wrong with the installation.
    """

    training: int = 10
    test: int = 3
    epochs: int = 15
    iterations: int = 40
    initial_lr: float = 5e-3
    patch_size: tuple[int, int, int] = (16, 40, 48)
    stages: int = 4
    features: int = 8
    seed: int = 1
    expected: float = 0.8


def run_demo(folder: str | None, *, keep: bool, scale: Scale | None = None) -> int:
    """Generates, trains, exports, predicts, evaluates; prints a table and writes a picture and a results file.

    Args:
        folder: where to work, new or of an earlier demo; ``./nnunet_mutual_demo`` if None.
        keep: keep datasets and models, not only picture, results and logs.
        scale: size of the demo.

    Returns:
        0, or 1 if PartialTrainer's result is too bad to be true.

    Raises:
        MutualError: the folder is not the demo's, or a command failed.
        KeyboardInterrupt: interrupted; another call with the same folder goes on from there.
    """
    scale = scale or Scale()
    settings = {"version": version("nnunet_mutual"), **asdict(scale), "patch_size": list(scale.patch_size)}
    demo = Demo(DemoFolder.open(folder, settings, last="evaluate"), scale)
    try:
        demo.run()
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last finished step.")
        raise
    if not keep:
        demo.folder.remove(HEAVY)
    return demo.conclude(keep)


class Demo:
    """The steps of a demo in their order."""

    def __init__(self, folder: DemoFolder, scale: Scale):
        self.folder = folder
        self.scale = scale
        path = folder.path
        self.raw = path / "nnUNet_raw" / DATASET
        self.preprocessed = path / "nnUNet_preprocessed" / DATASET
        self.results = path / "nnUNet_results" / DATASET
        self.truth = path / "truth"
        self.device = [] if _has_cuda() else ["-device", "cpu"]
        self.environment = environment(path)
        self.started = time.monotonic()

    def run(self) -> None:
        """Runs the steps that are not finished yet."""
        steps: list[tuple[str, str, Callable[[], None]]] = [
            ("generate", "Generate abdominal CTs of two hospitals that annotate different organs", self.generate),
            ("prepare", "Plan and preprocess with nnU-Net", self.prepare),
            ("train", f"Train the same network twice: {OURS}, and nnU-Net's own loss", self.train),
            ("export", "Export a stock nnU-Net model", self.export),
            ("predict", "Predict the test images with stock nnU-Net", self.predict),
            ("report", "Make the page from which to decide about the model", self.report),
            ("evaluate", "Compare with the full truth", self.evaluate),
        ]
        print(f"Working in {self.folder.path}\n")
        for name in ROOTS:
            print(f'$ export {name}="{self.folder.path / name}"')
        print(f"$ {EXPORT_COMMAND}")
        for number, (name, title, step) in enumerate(steps, 1):
            if name in self.folder.finished:
                continue
            print(f"\n{number} of {len(steps)}  {title}", flush=True)
            started = time.monotonic()
            step()
            self.folder.finish(name)
            print(f"  {time.monotonic() - started:.0f} s")

    def generate(self) -> None:
        """Writes the raw dataset and shows who annotated what."""
        self.folder.remove(("nnUNet_raw", "truth"))
        write_dataset(self.raw, self.truth, training=self.scale.training, test=self.scale.test, seed=self.scale.seed)
        for site in SITES:
            print(f"  {site.name}: {self.scale.training} training images, only {_listed(site.annotated)} annotated")
        print(f"  {self.scale.test * len(SITES)} test images; all {len(LABELS)} organs are known there, for the end")
        self._run(Command(["nnunet_mutual", "check", NUMBER], "check", shown=True))

    def prepare(self) -> None:
        """Plans, preprocesses, and adds a configuration that a processor trains in minutes."""
        processes = ["-npfp", "1", "-np", "1"]
        self._run(
            Command(["nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", BASE, *processes], "plan_and_preprocess")
        )
        print(f"  {CONFIGURATION} is added to the plans: {BASE} with a small network, so that minutes suffice")
        settings = {
            "num_epochs": self.scale.epochs,
            "num_iterations_per_epoch": self.scale.iterations,
            "num_val_iterations_per_epoch": 2,
            "optimizer": "adamw",
            "initial_lr": self.scale.initial_lr,
            "amp": "off",
            "seed": self.scale.seed,
        }
        pairs = [f"{key}={value}" for key, value in settings.items()]
        shape = ["--patch", *map(str, self.scale.patch_size), "--batch", "2", "--convs", "1"]
        shape += ["--features", str(self.scale.features), "--stages", str(self.scale.stages)]
        words = ["nnunet_mutual", "plan", "-d", NUMBER, "-c", BASE, "--name", NAME, *shape, "--set", *pairs]
        self._run(Command(words, "plan"))
        # Both trainings start at once, and each would write the file.
        table = AnnotationTable.from_dataset_json(read_object(self.raw / "dataset.json"))
        write_json(self.preprocessed / "splits_final.json", stratified_splits(table, list(table.cases)))

    def train(self) -> None:
        """Trains both arms side by side."""
        print(f"  {STOCK} is nnU-Net's trainer on this short schedule: what nobody drew is background to it")
        commands = [
            Command(
                ["nnUNetv2_train", NUMBER, CONFIGURATION, "0", "-tr", trainer, *self.device, *_resume(fold)],
                f"train_{trainer}",
                epochs=self.scale.epochs,
                environment=_sharing_the_processor() | extra,
            )
            for trainer, fold, extra in (
                (OURS, self._trained(OURS), {}),
                (STOCK, self._trained(STOCK), {VARIABLE: str(STOCK_FOLDER)}),
            )
            if not (fold / "validation" / "summary.json").is_file()
        ]
        if commands:
            self._run(*commands)

    def export(self) -> None:
        """Makes a stock model of PartialTrainer's training."""
        shutil.rmtree(self.results / training_name(STOCK_TRAINER, EXPORTED, CONFIGURATION), ignore_errors=True)
        self._run(Command(["nnunet_mutual", "export", NUMBER, CONFIGURATION, "-tr", OURS, "-f", "0"], "export"))

    def predict(self) -> None:
        """Predicts with stock nnU-Net; the exported model without anything of this package on nnU-Net's search path."""
        self.folder.remove(("predictions",))
        shared = ["nnUNetv2_predict", "-d", NUMBER, "-c", CONFIGURATION, "-f", "0", "-i", str(self.raw / "imagesTs")]
        self._run(
            *(
                Command(
                    [*shared, *which, "-o", str(self._predictions(trainer)), *self.device],
                    f"predict_{trainer}",
                    environment=_sharing_the_processor() | extra,
                )
                for trainer, which, extra in (
                    (OURS, ["-p", EXPORTED], {VARIABLE: ""}),
                    (STOCK, ["-tr", STOCK], {VARIABLE: str(STOCK_FOLDER)}),
                )
            )
        )

    def report(self) -> None:
        """Makes the page about PartialTrainer's training, with the stock trainer's validation beside it."""
        page = self.folder.path / REPORT
        page.parent.mkdir(exist_ok=True)
        options = ["-tr", OURS, "-f", "0", "--compare", str(self._trained(STOCK)), "-o", str(page)]
        self._run(Command(["nnunet_mutual", "report", NUMBER, CONFIGURATION, *options], "report"))

    def evaluate(self) -> None:
        """Scores both against the full truth and draws the picture."""
        from nnunet_mutual.demo.picture import draw_comparison

        options = ["-djfile", str(self.raw / "dataset.json"), "--complete", "--no-surface"]
        self._run(
            *(
                Command(
                    ["nnunet_mutual", "evaluate", str(self._predictions(trainer)), str(self.truth), *options],
                    f"evaluate_{trainer}",
                )
                for trainer in (STOCK, OURS)
            )
        )
        scores = {trainer: dice_of(self._predictions(trainer) / FOLDER / SUMMARY) for trainer in (STOCK, OURS)}
        draw_comparison(
            self.folder.path / PICTURE,
            images=self.raw / "imagesTs",
            truth=self.truth,
            predictions={
                f"{said}\nmean Dice {_number(scores[trainer]['overall'])}": self._predictions(trainer)
                for trainer, said in ((STOCK, "stock nnU-Net: not drawn = background"), (OURS, OURS))
            },
        )
        content = {
            "what": "Dice on test images of both hospitals against the full truth; generated images, not patients",
            "dataset": DATASET,
            "annotated": {site.name: list(site.annotated) for site in SITES},
            "updates_of_each_network": self.scale.epochs * self.scale.iterations,
            "settings": self.folder.settings,
            "versions": {name: version(name) for name in ("nnunet_mutual", "nnunetv2", "torch", "numpy")},
            "dice": scores,
        }
        write_json(self.folder.path / RESULTS, content)
        print(table(scores))

    def conclude(self, keep: bool) -> int:
        """Says where the results are and what to type for one's own data; returns the exit status."""
        path = self.folder.path
        print(f"\nPicture: {path / PICTURE}\nReport:  {path / REPORT}\nResults: {path / RESULTS}")
        if keep:
            print(f"Models:  {self.results}")
        print(f"{(time.monotonic() - self.started) / 60:.1f} minutes. Generated images, not patients.\n")
        print("For your own data, with cases.csv saying which organs are annotated in which case:")
        print("  nnunet_mutual annotate DATASET cases.csv")
        print("Each command prints the next one.")
        mean = read_object(path / RESULTS)["dice"][OURS]["overall"] or 0.0
        if mean < self.scale.expected:
            print(
                f"\n{OURS} reached a mean Dice of {mean:.2f}, where at least {self.scale.expected} is expected: "
                "something is wrong with this installation; see: nnunet_mutual doctor"
            )
            return 1
        return 0

    def _run(self, *commands: Command) -> None:
        run_commands(commands, self.folder.path / "logs", self.environment)

    def _trained(self, trainer: str) -> Path:
        return fold_of(self.results / training_name(trainer, "nnUNetPlans", CONFIGURATION), "0")

    def _predictions(self, trainer: str) -> Path:
        return self.folder.path / "predictions" / trainer


def environment(folder: Path) -> dict[str, str]:
    """Returns the variables of the demo's commands: the user's, but nnU-Net's all set to the demo's own folders."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    return {
        **kept,
        **{name: str(folder / name) for name in ROOTS},
        VARIABLE: str(SHIM_FOLDER),
        "nnUNet_def_n_proc": "2",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "False",  # compiling takes longer than the whole training
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
    }


def _sharing_the_processor() -> dict[str, str]:
    """Returns variables for commands that run at the same time: no worker processes, and threads that wait asleep.

    nnU-Net gives every command as many threads as there are cores. By default they wait by spinning, which makes two
    commands several times slower than one after the other. (A smaller OMP_THREAD_LIMIT would make them wait for ever.)
    """
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        # glibc gives memory of this size back at every free, and clearing it anew costs a sixth of a training step.
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_npp": "0",
        "nnUNet_nps": "0",
    }


def dice_of(summary: Path) -> dict[str, Any]:
    """Returns Dice out of the file of ``nnunet_mutual evaluate``: mean and number of cases by label, of all, of each.

    None is what no case scored: a label that is neither drawn nor predicted.
    """
    content = read_object(summary)
    ours, known = content["nnunet_mutual"], without_nan(content)
    found = ours["statistics"]["Dice"]
    cases = zip(ours["cases"], known["metric_per_case"], strict=True)
    return {
        "mean": {label: found[label]["mean"] for label in ours["labels"]},
        "n": {label: found[label]["n"] for label in ours["labels"]},
        "overall": known["foreground_mean"]["Dice"],
        "cases": {
            key: {label: case["metrics"][written]["Dice"] for label, written in ours["labels"].items()}
            for key, case in cases
        },
    }


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table of mean Dice, label by trainer."""
    annotated_by = {label: site.name for site in SITES for label in site.annotated}
    names = "".join(f"{NAMES[trainer]:>18}" for trainer in scores)
    lines = [f"  {'mean Dice, test images':<26}{'annotated by':<14}{names}"]
    for label in LABELS:
        values = "".join(f"{_number(found['mean'][label]):>18}" for found in scores.values())
        lines.append(f"  {label:<26}{annotated_by[label]:<14}{values}")
    lines.append(
        f"  {'mean of the organs':<40}" + "".join(f"{_number(found['overall']):>18}" for found in scores.values())
    )
    return "\n" + "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _resume(fold: Path) -> list[str]:
    return ["--c"] if checkpoints_in(fold) else []


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
