"""The command line: fast help, exit statuses, suggestions, and what each command passes on."""

from __future__ import annotations

import errno
import importlib
import inspect
import os

import pytest
from fresh import environment, run, run_cli, run_code

from nnunet_mutual import __version__
from nnunet_mutual.cli import parser as cli
from nnunet_mutual.cli import unforeseen
from nnunet_mutual.errors import MutualError
from nnunet_mutual.planning.shape import Shape
from nnunet_mutual.plugin import find as plugin

COMMANDS = cli.build_parser()[1]


def test_help_is_fast(tmp_path):
    def seconds() -> float:  # of a processor, whatever else is running
        times = os.times()
        return times.children_user + times.children_system

    before = seconds()
    run_cli(["--help"], tmp_path, environment())
    assert seconds() - before < 1.0


def test_help_imports_nothing_heavy(tmp_path):
    code = """
import sys
import nnunet_mutual, nnunet_mutual.cli.parser, nnunet_mutual.errors
for arguments in (["--help"], ["train", "--help"], ["export", "--help"]):
    try:
        nnunet_mutual.cli.parser.main(arguments)
    except SystemExit as end:
        assert end.code == 0, end.code
heavy = {"torch", "numpy", "nnunetv2", "matplotlib", "batchgenerators"} & set(sys.modules)
assert not heavy, heavy
"""
    run_code(code.replace("train", "trainers"), tmp_path, environment())


def test_trainers_imports_nothing_heavy_and_prints_one_line(tmp_path):
    code = """
import sys
from nnunet_mutual.cli.parser import main
assert main(["trainers"]) == 0
heavy = {"torch", "numpy", "nnunetv2"} & set(sys.modules)
assert not heavy, heavy
"""
    said = run_code(code, tmp_path, environment(**{plugin.VARIABLE: "/mine"}))
    assert said == f"/mine{os.pathsep}{plugin.SHIM_FOLDER}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"nnunet_mutual {command}" in said.split("example:")[1] or command == "trainers"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert f"\n    {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"),
    [("tariners", "did you mean: nnunet_mutual trainers"), ("frobnicate", "the commands are trainers")],
)
def test_unknown_command(word, hint, capsys):
    assert cli.main([word]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"error: nnunet_mutual has no command '{word}'") and hint in said.err


def test_wrong_option_and_no_command_end_with_2(capsys):
    assert cli.main(["doctor", "--jsn"]) == 2
    assert "unrecognized arguments: --jsn; see nnunet_mutual doctor --help" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (MutualError("this was found; do that"), 2, "error: this was found; do that\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "error: torch is not installed for "),
    ],
)
def test_exit_status(monkeypatch, capsys, raised, status, message):
    def fail():
        raise raised

    monkeypatch.setattr(plugin, "register", fail)
    assert cli.main(["register"]) == status
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ModuleNotFoundError("No module named 'nnunet_mutual.oops'", name="nnunet_mutual.oops"), unforeseen.GENERIC),
        (KeyError("cases"), unforeseen.GENERIC),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/plans.json"),
            "/data/plans.json: the disk is full; free",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "/data: there is no permission; get it"),
        (MemoryError(), "take fewer processes (-np 1)"),
        (OSError("no number"), unforeseen.GENERIC),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_with_the_way_to_its_traceback(monkeypatch, capsys, raised, words):
    def fail():
        raise raised

    monkeypatch.setattr(plugin, "register", fail)
    assert cli.main(["register"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1
    assert (unforeseen.VARIABLE in said) == (words == unforeseen.GENERIC)
    monkeypatch.setenv(unforeseen.VARIABLE, "1")
    assert cli.main(["register"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "in fail" in said and words in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("export 11 2d -tr PartialTrainer -f \u00b2", "a fold is a number such as 0, or 'all', found '\u00b2'"),
        ("report 11 2d -tr PartialTrainer -f 01", "found '01'"),
        ("simulate 11 12 --seed -1", "a seed must be a whole number from 0 to 4294967295, found '-1'"),
        ("simulate 11 12 --seed 12345678901234567890", "a seed must be"),
        ("plan_and_preprocess -d 11 -gpu_memory_target nan", "it must be a positive number, found 'nan'"),
        ("evaluate a b -np 0", "it must be a whole number from 1"),
    ],
)
def test_arguments_that_cannot_be_meant(line, words, capsys):
    status = cli.main(line.split())
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and words in said and said.count("\n") == 1


CALLS = [
    (
        "datasets.annotate",
        "annotate",
        "annotate Dataset011_Liver t.csv --contains liver=tumor --may-overlap a,b --single liver --single lung --force",
        ("Dataset011_Liver", "t.csv"),
        {
            "sheet": None,
            "source": None,
            "contains": ["liver=tumor"],
            "may_overlap": ["a,b"],
            "single": ["liver", "lung"],
            "force": True,
        },
    ),
    ("datasets.check", "check", "check 11 --json", ("11",), {"as_json": True, "headers_only": False}),
    ("datasets.sync", "sync", "sync 11", ("11",), {}),
    ("export.sequences", "check_images", "check_images model images", ("model", "images"), {}),
    (
        "planning.configuration",
        "plan",
        "plan -d 11 --name long --set num_epochs=2 a.b=c --set d=e --patch 8 16 16 --spacing 2 1 1",
        ("11",),
        {
            "configuration": "3d_fullres",
            "plans": "nnUNetPlans",
            "name": "long",
            "settings": ["num_epochs=2", "a.b=c", "d=e"],
            "shape": Shape(patch=[8, 16, 16], spacing=[2.0, 1.0, 1.0]),
        },
    ),
    (
        "export.command",
        "export",
        "export 11 2d -tr PartialTrainer -f 0 all",
        ("11", "2d"),
        {
            "trainer": "PartialTrainer",
            "plans": "nnUNetPlans",
            "folds": ["0", "all"],
            "checkpoint": "checkpoint_final.pth",
            "output_name": None,
            "peers": False,
            "compared": 5,
            "validate": False,
            "container": None,
        },
    ),
    (
        "pseudo_labels.command",
        "pseudo_label",
        "pseudo_label 11 2d 0 -tr PartialTrainer -o maps -device cpu --set low=0.2 high=0.8",
        ("11", "2d", "0"),
        {
            "trainer": "PartialTrainer",
            "plans": "nnUNetPlans",
            "checkpoint": "checkpoint_final.pth",
            "output": "maps",
            "device": "cpu",
            "settings": ["low=0.2", "high=0.8"],
        },
    ),
    (
        "report.command",
        "report",
        "report 11 2d -tr PartialTrainer -f 1 -o page.html --compare other --with-names --no-images",
        ("11", "2d"),
        {
            "trainer": "PartialTrainer",
            "plans": "nnUNetPlans",
            "fold": "1",
            "output": "page.html",
            "compare": "other",
            "with_names": True,
            "images": False,
        },
    ),
    (
        "report.evidence",
        "report_evidence",
        "report --evidence folder --compare arm",
        ("folder",),
        {"output": None, "against": "arm", "with_names": False},
    ),
    ("demo.run", "run_demo", "demo --folder here --keep", ("here",), {"keep": True}),
]


@pytest.mark.parametrize(
    "line", ["11 2d 0 -tr PartialTrainer", "11 2d -tr PartialTrainer 0", "-tr PartialTrainer 11 2d 0"]
)
def test_what_may_be_left_out_may_stand_behind_options(line: str) -> None:
    parser, _ = cli.build_parser()
    found = parser.parse_args(["pseudo_label", *line.split()])
    assert (found.dataset, found.configuration, found.fold, found.trainer) == ("11", "2d", "0", "PartialTrainer")


@pytest.mark.parametrize(("module", "function", "line", "args", "kwargs"), CALLS, ids=[call[1] for call in CALLS])
def test_what_a_command_passes_on(monkeypatch, module, function, line, args, kwargs):
    """The handler calls the library function with exactly these arguments, and the function accepts them."""
    library = importlib.import_module(f"nnunet_mutual.{module}")
    inspect.signature(getattr(library, function)).bind(*args, **kwargs)
    calls = []

    def record(*got_args, **got_kwargs):
        calls.append((got_args, got_kwargs))
        return 0

    monkeypatch.setattr(library, function, record)
    assert cli.main(line.split()) == 0
    assert calls == [(args, kwargs)]


def test_status_of_check_is_passed_on(monkeypatch):
    library = importlib.import_module("nnunet_mutual.datasets.check")
    monkeypatch.setattr(library, "check", lambda dataset, *, as_json, headers_only: 2)
    assert cli.main(["check", "11"]) == 2


def test_console_script(tmp_path):
    run(
        ["-c", "import subprocess, sys; sys.exit(subprocess.call(['nnunet_mutual', 'nonsense']))"],
        tmp_path,
        environment(),
        2,
    )
