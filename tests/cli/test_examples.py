"""The examples of every ``--help``, and the commands on every page, are commands that exist; the examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from fresh import run_cli
from modalities import modalities, two_channels
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from raw_dataset import SHAPE, RawDataset
from reviewing import fill
from training import KEYS, SHORT, partial_block
from unlabelled_images import add_unlabelled

from nnunet_mutual.cli import parser as cli
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.export.sequences import FILE, references_of
from nnunet_mutual.plugin import find as plugin

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = cli.build_parser()[1]


def examples(text: str) -> list[list[str]]:
    """The words after ``nnunet_mutual`` of every line that calls it, also inside of another command."""
    called = re.findall(r"^[^#\n]*?\bnnunet_mutual ([a-z_]+\b[^)#\n]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in called]


def helped(command: str) -> list[list[str]]:
    """The examples at the end of a command's help."""
    (subparsers,) = (action for action in cli.build_parser()[0]._actions if isinstance(action.choices, dict))
    return examples(subparsers.choices[command].epilog)


def parse(words: list[str]) -> None:
    """Ends in a MutualError where the command line would end with exit status 2 before it begins."""
    cli._require_names(cli.build_parser()[0].parse_args(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_every_help_can_be_parsed(command: str) -> None:
    found = helped(command)
    assert found and all(words[0] == command for words in found)
    for words in found:
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_every_page_can_be_parsed(page: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = examples("\n".join(blocks).replace("\\\n", " "))
    for words in found:
        parse(words)
    assert len(found) > 5 or page.parent.name == "docs"


def test_links_between_pages_lead_somewhere_and_the_index_has_all() -> None:
    linked = {page: re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")) for page in PAGES}
    broken = {f"{page.name}: {link}" for page in PAGES for link in linked[page] if not (page.parent / link).exists()}
    assert not broken
    index = ROOT / "docs" / "README.md"
    assert {page.name for page in PAGES[1:] if page != index} <= set(linked[index])


# Each example is run as it stands, but on a tiny dataset, whose names take the place of those in the help.
NAMES = {"Dataset111_Abdomen": "Dataset901_Tiny", r"\b111\b": "901", "liver_tumour": "tumour"}
MORE = {
    "annotate": ["--force"],
    "plan_and_preprocess": ["-np", "1"],
    "preprocess_unlabelled": ["-np", "1"],
    "train": ["-device", "cpu"],
    "pseudo_label": ["-device", "cpu"],
    "suggest": ["-device", "cpu"],
    "evaluate": ["-np", "1"],
}
FINDINGS = {"doctor", "check_images"}  # exit status 1: they found something
ELSEWHERE = {"demo", "trial"}  # tests of their own


class World:
    """A folder in which a user works; ``run`` counts what was run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: set[str] = set()

    def run(self, *commands: str, literally: bool = False) -> None:
        for command in commands:
            for words in helped(command):
                if not literally:
                    for name, ours in NAMES.items():
                        words = [re.sub(name, ours, word) for word in words]
                words += MORE.get(command, [])
                if "--peer-parallel" in words:  # starts processes, which forks of this one may not be
                    run_cli(words, self.root, dict(os.environ))
                    continue
                assert cli.main(words) in ((0, 1) if command in FINDINGS else (0,)), words
            self.done.add(command)

    def train(self, trainer: str, fold: int) -> None:
        assert cli.main(["train", "901", "3d_fullres", str(fold), "-tr", trainer, "-device", "cpu"]) == 0


@pytest.mark.slow
def test_examples_of_every_help_run(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nnunet_folders)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    world = World(nnunet_folders)
    _installation(world, monkeypatch)
    _datasets(world)
    _trainings(world)
    _evaluation(world)
    assert world.done | ELSEWHERE == set(COMMANDS)


def _installation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    nnunet = world.root / "nnunetv2"
    for place in (*plugin.REGISTERED.values(), "training/nnUNetTrainer/nnUNetTrainer.py"):
        (nnunet / place).parent.mkdir(parents=True, exist_ok=True)
    (nnunet / "training/nnUNetTrainer/nnUNetTrainer.py").touch()
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "nnunet_folder", lambda: nnunet)
        world.run("trainers", "register", "unregister")
    world.run("doctor")


def _datasets(world: World) -> None:
    liver, spleen = {"background": 0, "liver": 1}, {"background": 0, "Milz": 1}
    RawDataset(world.root, {"a": ["liver"], "b": ["liver"]}, liver, name="Dataset011_Liver")
    other = RawDataset(world.root, {"c": ["Milz"], "d": ["Milz"]}, spleen, name="Dataset012_Spleen")
    for seed, key in enumerate(other.drawn, 7):  # images of other patients
        other.image(key, np.random.default_rng(seed).normal(size=SHAPE))
    world.run("merge", literally=True)
    shutil.rmtree(world.root / "nnUNet_raw" / "Dataset111_Abdomen")
    labels = {"background": 0, "liver": 1, "liver_tumour": 2, "spleen": 3}
    drawn = {f"case_{n}": list(labels)[1:] for n in range(4)}
    RawDataset(world.root, drawn, labels, name="Dataset111_Abdomen")
    world.run("simulate", "check", literally=True)
    shutil.rmtree(world.root / "nnUNet_raw" / "Dataset111_Abdomen")

    pre = tiny.make_dataset(world.root, block=partial_block(), settings={**SHORT, "num_epochs": 1})
    (pre / "dataset_fingerprint.json").unlink()
    add_unlabelled(world.root, 2)
    rows = [f"{key},{'liver' if n % 2 == 0 else 'tumour;spleen'}" for n, key in enumerate(KEYS)]
    (world.root / "cases.csv").write_text("\n".join(["case,labels", *rows]))
    world.run("annotate", "sync", "plan_and_preprocess", "preprocess_unlabelled")
    plans = json.loads((pre / "nnUNetPlans.json").read_text())
    world.run("plan")
    assert (pre / "nnUNetMutualPlans.json").is_file() and len(plans["configurations"]) == 5


def _trainings(world: World) -> None:
    world.run("train")
    for fold in range(1, 5):
        world.train("PartialTrainer", fold)
    world.train("MutualPartialTrainer", 0)
    world.run("export", "pseudo_label", "suggest", "review", "report")
    fill(world.root / "review_111" / "review.csv", {})
    world.run("accept")


def _evaluation(world: World) -> None:
    raw = world.root / "nnUNet_raw" / tiny.NAME
    for name in ("SEGMENTATIONS", "REFERENCES", "SEGMENTATIONS_A", "SEGMENTATIONS_B"):
        shutil.copytree(raw / "labelsTr", world.root / name)
    shutil.copy(raw / "dataset.json", world.root / "REFERENCES")
    world.run("evaluate")
    (words,) = helped("check_images")
    model, images = (world.root / name for name in words[1:])
    model.mkdir()
    images.mkdir()
    cases = []
    for number in range(6):
        paths = {channel: world.root / f"sequence_{number}_{channel:04d}.nii.gz" for channel in range(2)}
        for path, image in zip(paths.values(), modalities(number)[0], strict=True):
            tiny.write_nifti(image, path)
        cases.append(CaseFiles(f"sequence_{number}", paths, world.root / "none"))
        shutil.copy(paths[0], images / f"new_{number}_0000.nii.gz")
    write_json(model / FILE, references_of(cases, two_channels(), SimpleITKIO()))
    (model / "plans.json").write_text(json.dumps(tiny.plans()))
    (model / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}))
    world.run("check_images")
