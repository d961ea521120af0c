"""nnU-Net's own finder sees our classes by the variable and after ``register``, and nothing breaks without us."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fresh import environment, run_cli, run_code, run_code_in_copy
from hypothesis import given
from hypothesis import strategies as st

from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin import doctor
from nnunet_mutual.plugin import find as plugin

# Runs where nothing of us or of nnU-Net is imported. The search drops every module that lies below the named folder;
# only a class that lives elsewhere survives that and can be sent to the processes of the final validation.
FIND_PARTIAL_TRAINER = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
import os, nnunetv2
assert nnunetv2.__file__.startswith(os.environ["PYTHONPATH"].split(os.pathsep)[0]), "another nnU-Net"
stock = find("nnUNetTrainer_5epochs")
assert stock.__module__.startswith("nnunetv2."), stock
assert "nnunet_mutual.trainers" not in sys.modules, "looking for a stock trainer imported ours"
found = find("PartialTrainer")
import nnunet_mutual.trainers
assert found is nnunet_mutual.trainers.PartialTrainer, found
assert pickle.loads(pickle.dumps(found)) is found
print("module of the package:", nnunet_mutual.__file__)
"""

FIND_PLANNERS = """
import os, nnunetv2, nnunet_mutual.planners, nnunet_mutual.plugin.find
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
def find(name):
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    return recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
assert find("ExperimentPlanner") is ExperimentPlanner
assert find("NoSuchPlanner") is None
assert find("PartialTrainer") is None, "a trainer must not be found as a planner"
class SomePlanner(ExperimentPlanner): pass
nnunet_mutual.planners.SomePlanner = SomePlanner
nnunet_mutual.plugin.find.public_names = lambda kind: ("SomePlanner",) if kind == "planners" else ()
assert find("SomePlanner") is SomePlanner
"""

WITHOUT_THE_PACKAGE = """
import sys
class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_mutual":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Uninstalled())
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
import os, nnunetv2, nnunetv2.training.nnUNetTrainer.nnunet_mutual_trainers
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
assert find("nnUNetTrainer_5epochs").__name__ == "nnUNetTrainer_5epochs"
folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
planner = recursive_find_python_class(folder, "nnUNetPlannerResEncL", current_module="nnunetv2.experiment_planning")
assert planner.__name__ == "nnUNetPlannerResEncL"
try:
    find("PartialTrainer")
except RuntimeError as error:
    assert "Could not find requested nnunet trainer PartialTrainer" in str(error), error
else:
    raise AssertionError("found a trainer of an uninstalled package")
"""


@pytest.fixture(scope="module")
def copied_nnunet(tmp_path_factory) -> Path:
    """A folder with a private copy of nnunetv2, as an editable installation has it; the real one is never written."""
    spec = importlib.util.find_spec("nnunetv2")
    assert spec is not None and spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("nnunet")
    shutil.copytree(spec.submodule_search_locations[0], folder / "nnunetv2")
    return folder


@pytest.fixture
def empty_nnunet(tmp_path, monkeypatch) -> Path:
    """The few folders of nnU-Net that ``register`` writes to."""
    folder = tmp_path / "nnunetv2"
    for path in plugin.REGISTERED.values():
        (folder / path).parent.mkdir(parents=True)
    (folder / "training/nnUNetTrainer/nnUNetTrainer.py").touch()
    monkeypatch.setattr(plugin, "nnunet_folder", lambda: folder)
    return folder


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.host
def test_finder_with_variable(copied_nnunet, tmp_path):
    env = environment(copied_nnunet)
    env[plugin.VARIABLE] = run_cli(["trainers"], tmp_path, env | {plugin.VARIABLE: str(tmp_path)}).strip()
    assert env[plugin.VARIABLE].split(os.pathsep) == [str(tmp_path), str(plugin.SHIM_FOLDER)]
    run_code_in_copy(FIND_PARTIAL_TRAINER, tmp_path, env)


@pytest.mark.host
def test_finder_after_register_and_after_uninstall(copied_nnunet, tmp_path):
    env = environment(copied_nnunet)
    before = files_below(copied_nnunet)
    said = run_cli(["register"], tmp_path, env)
    written = files_below(copied_nnunet) - before
    assert written == {copied_nnunet / "nnunetv2" / path for path in (*plugin.REGISTERED.values(), plugin.RECORD)}
    assert all(str(copied_nnunet / "nnunetv2" / path) in said for path in plugin.REGISTERED.values())

    run_code_in_copy(FIND_PARTIAL_TRAINER + FIND_PLANNERS, tmp_path, env)
    # Registered and, from another Python, also named by the variable: inert both ways.
    run_code_in_copy(WITHOUT_THE_PACKAGE, tmp_path, env | {plugin.VARIABLE: str(plugin.SHIM_FOLDER)})

    run_cli(["unregister"], tmp_path, env)
    assert files_below(copied_nnunet) == before
    assert not list(copied_nnunet.rglob("nnunet_mutual*")), "byte code of a shim was left behind"


@pytest.mark.host
def test_doctor_finds_nothing_wrong(copied_nnunet, tmp_path):
    paths = {name: str(tmp_path) for name in doctor.PATHS}
    env = environment(copied_nnunet, **paths, **{plugin.VARIABLE: str(plugin.SHIM_FOLDER)})
    report = json.loads(run_cli(["doctor", "--json"], tmp_path, env))
    assert report["ok"]
    found = {check["name"]: check for check in report["checks"]}
    assert found["trainers"]["state"] == "ok"
    assert found["trainers"]["found"].endswith("SoftLabelTrainer, TaughtPartialTrainer: nnU-Net finds it")
    assert str(copied_nnunet) in found["nnunetv2"]["found"]
    assert plugin.VARIABLE in found["plug-in"]["found"]


def test_other_names_import_nothing_heavy(tmp_path):
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import nnunet_mutual_trainers as shim
assert not hasattr(shim, "nnUNetTrainer") and not hasattr(shim, "_PartialTrainer") and not hasattr(shim, "__path__")
heavy = {"torch", "numpy", "nnunetv2"} & set(sys.modules)
assert not heavy, heavy
"""
    run_code(code.replace("sys.argv[1]", repr(str(plugin.SHIM_FOLDER))), tmp_path, environment())


def test_shim_does_not_hide_a_broken_trainer(monkeypatch):
    def broken(name):
        raise ImportError("libsomething.so is missing")

    monkeypatch.setattr(plugin, "public_names", lambda kind: ("PartialTrainer",))
    monkeypatch.setattr(plugin.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="libsomething"):
        plugin.resolve("trainers", "PartialTrainer")
    with pytest.raises(AttributeError):
        plugin.resolve("trainers", "SomethingElse")


def test_public_names_are_the_literal_lists():
    import nnunet_mutual.planners
    import nnunet_mutual.trainers

    assert "PartialTrainer" in plugin.public_names("trainers")
    assert plugin.public_names("trainers") == tuple(nnunet_mutual.trainers.__all__)
    assert plugin.public_names("planners") == tuple(nnunet_mutual.planners.__all__)
    assert plugin.public_names("nothing_of_this_name") == ()


@given(st.lists(st.sampled_from(["", " ", "/a", "/a/", "/b/../a", "/b", str(plugin.SHIM_FOLDER)]), max_size=6))
def test_variable_keeps_order_and_holds_nothing_twice(entries):
    value = plugin.trainers_variable(os.pathsep.join(entries))
    got = value.split(os.pathsep)
    real = [os.path.realpath(entry) for entry in got]
    assert len(set(real)) == len(real)
    wanted = [os.path.realpath(entry) for entry in [*entries, str(plugin.SHIM_FOLDER)] if entry.strip()]
    assert real == list(dict.fromkeys(wanted))
    assert plugin.trainers_variable(value) == value


def test_variable_when_it_is_not_set():
    assert plugin.trainers_variable(None) == str(plugin.SHIM_FOLDER)
    assert plugin.variable_has_shim(plugin.trainers_variable(None))
    assert not plugin.variable_has_shim(None)


def test_register_twice_is_register_once(empty_nnunet):
    before = files_below(empty_nnunet)
    assert plugin.register() == plugin.register()
    assert len(plugin.unregister()) == 2
    assert plugin.unregister() == []
    assert files_below(empty_nnunet) == before


@pytest.mark.parametrize("writes_before_failure", [0, 1, 2])
def test_read_only_installation(empty_nnunet, monkeypatch, writes_before_failure):
    before = files_below(empty_nnunet)
    replace, written = os.replace, []

    def limited(source, target):
        if len(written) == writes_before_failure:
            raise PermissionError(13, "Permission denied", str(target))
        written.append(target)
        replace(source, target)

    monkeypatch.setattr(plugin.os, "replace", limited)
    with pytest.raises(MutualError, match="cannot be written.*Permission denied.*export nnUNet_extTrainer="):
        plugin.register()
    assert len(written) == writes_before_failure
    assert files_below(empty_nnunet) == before


def test_register_spares_a_file_of_somebody_else(empty_nnunet):
    theirs = empty_nnunet / plugin.REGISTERED["planners"]
    theirs.write_text("mine = 1\n")
    before = files_below(empty_nnunet)
    with pytest.raises(MutualError, match="nnunet_mutual_planners.py exists and nnunet_mutual has not written it"):
        plugin.register()
    assert files_below(empty_nnunet) == before and theirs.read_text() == "mine = 1\n"


def test_unregister_keeps_all_if_one_was_changed(empty_nnunet):
    changed = plugin.register()[1]
    changed.write_text(changed.read_text() + "# edited\n")
    before = files_below(empty_nnunet)
    with pytest.raises(MutualError, match="was changed after"):
        plugin.unregister()
    assert files_below(empty_nnunet) == before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "cannot be read"),
        ('{"version": 1}', "cannot be read"),
        ('{"version": 1, "files": {"../precious.txt": "0"}}', "never writes"),
    ],
)
def test_bad_record_removes_nothing(empty_nnunet, record, message):
    precious = empty_nnunet.parent / "precious.txt"
    precious.touch()
    (empty_nnunet / plugin.RECORD).write_text(record)
    before = files_below(empty_nnunet.parent)
    with pytest.raises(MutualError, match=message):
        plugin.unregister()
    assert files_below(empty_nnunet.parent) == before


def test_leftovers_of_an_uninstalled_nnunet(empty_nnunet):
    (empty_nnunet / "training/nnUNetTrainer/nnUNetTrainer.py").unlink()
    with pytest.raises(MutualError, match="not a complete nnU-Net installation.*pip install"):
        plugin.register()
    assert files_below(empty_nnunet) == set()


def test_no_nnunet_at_all(monkeypatch):
    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MutualError, match="not installed.*pip install 'nnunetv2>=2.8'"):
        plugin.nnunet_folder()


def problems(checks) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks if check.state == doctor.PROBLEM}


def test_doctor_paths_and_their_repair(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "a folder" / "raw"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    found = problems(doctor.check_paths())
    assert set(found) == {"nnUNet_raw", "nnUNet_preprocessed"}
    assert found["nnUNet_preprocessed"].fix.startswith("export nnUNet_preprocessed=")
    subprocess.run(found["nnUNet_raw"].fix, shell=True, check=True)
    assert set(problems(doctor.check_paths())) == {"nnUNet_preprocessed"}


def test_doctor_read_only_folders(tmp_path, monkeypatch):
    for name in doctor.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    states = {check.name: check.state for check in doctor.check_paths()}
    assert states == {"nnUNet_raw": "note", "nnUNet_preprocessed": "problem", "nnUNet_results": "problem"}


def test_doctor_plugin_way_and_its_repair(empty_nnunet, monkeypatch):
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    (neither,) = doctor.check_plugin()
    assert neither.state == "note"  # nnunet_mutual train needs neither
    said = subprocess.run(
        ["bash", "-c", f'{neither.fix}\nprintf %s "${plugin.VARIABLE}"'],
        env=environment(),
        cwd=empty_nnunet,
        capture_output=True,
        text=True,
        check=True,
    )
    monkeypatch.setenv(plugin.VARIABLE, said.stdout)
    assert [check.found for check in doctor.check_plugin()] == [f"the variable {plugin.VARIABLE}"]

    monkeypatch.delenv(plugin.VARIABLE)
    plugin.register()
    assert [check.found for check in doctor.check_plugin()] == ["registered in nnU-Net"]
    (empty_nnunet / plugin.REGISTERED["trainers"]).unlink()
    assert problems(doctor.check_plugin())["plug-in"].fix == "nnunet_mutual register"


def test_doctor_warns_of_a_checkout_in_the_variable(empty_nnunet, tmp_path, monkeypatch):
    (tmp_path / "setup.py").touch()
    monkeypatch.setenv(plugin.VARIABLE, os.pathsep.join([str(tmp_path), "/other", str(plugin.SHIM_FOLDER)]))
    found = problems(doctor.check_plugin())
    assert found[plugin.VARIABLE].fix == f"export {plugin.VARIABLE}=/other:{plugin.SHIM_FOLDER}"


@pytest.mark.parametrize(
    ("version", "state"), [("2.7.9", "problem"), ("2.8.0", "ok"), ("2.8.1+local", "ok"), ("3.0rc1", "note")]
)
def test_doctor_nnunet_version(monkeypatch, version, state):
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    check = doctor.check_nnunet()
    assert (check.state, bool(check.fix)) == (state, state == "problem")


def test_doctor_tells_another_class_of_the_same_name(monkeypatch):
    class PartialTrainer:
        pass

    check = doctor._found("trainer", "PartialTrainer", lambda name: PartialTrainer, "the command")
    assert check.state == "problem" and "another class" in check.found
    check = doctor._found("trainer", "PartialTrainer", lambda name: None, "the command")
    assert (check.state, check.fix) == ("problem", "the command")


def test_doctor_says_each_cause_once(tmp_path, monkeypatch):
    for name in doctor.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    monkeypatch.setattr(plugin, "registered_files", dict)
    checks = {check.name: check for check in doctor.collect()}
    assert not problems(checks.values())
    assert [name for name, check in checks.items() if plugin.VARIABLE in check.fix] == ["plug-in"]
    assert "RectifiedPredictor" not in checks["trainers"].found  # nobody trains with it
    assert checks["wandb"].state == ("ok" if doctor._version("wandb") else "note")

    monkeypatch.setenv(plugin.VARIABLE, str(plugin.SHIM_FOLDER))
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("scipy", "pandas") else "9.9")
    checks = {check.name: check for check in doctor.collect()}
    assert checks["libraries"].found == "not installed: scipy, pandas"
    assert checks["libraries"].fix.endswith("-m pip install scipy pandas")

    broken = [doctor.Check(name, doctor.PROBLEM, "libx.so is gone", "repair") for name in ("ATrainer", "BTrainer")]
    (one,) = doctor._together("trainers", broken)
    assert (one.name, one.found, one.fix) == ("trainers", "ATrainer, BTrainer: libx.so is gone", "repair")


def test_doctor_exit_status_counts_problems_only(monkeypatch, capsys):
    fine, note = doctor.Check("a", doctor.OK, "x"), doctor.Check("b", doctor.NOTE, "y")
    monkeypatch.setattr(doctor, "collect", lambda: [fine, note])
    assert doctor.doctor() == 0
    monkeypatch.setattr(doctor, "collect", lambda: [fine, doctor.Check("c", doctor.PROBLEM, "z", "repair me")])
    assert doctor.doctor() == 1
    assert "repair me" in capsys.readouterr().out
