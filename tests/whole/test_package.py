"""What is installed: the same modules as a wheel and editable, under no name but nnunet_mutual."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from fresh import environment, run, run_code

import nnunet_mutual

ROOT = Path(__file__).resolve().parents[2]
MAPPED = {"nnunet_mutual": "nnunet_mutual", "trainers": "nnunet_mutual/trainers", "planners": "nnunet_mutual/planners"}
PIP = ["-m", "pip", "--disable-pip-version-check", "-q"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what setup.py needs: a build leaves files behind, and the checkout must stay clean."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("source")
    for name in (*MAPPED, "setup.py", "pyproject.toml", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / name)
    return folder


WHERE = """
import importlib.util
for name in ("nnunet_mutual", "nnunet_mutual.trainers", "nnunet_mutual.planners", "nnunet_mutual.plugin.find"):
    print(importlib.util.find_spec(name).origin)
assert importlib.util.find_spec("trainers") is None and importlib.util.find_spec("planners") is None
"""


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([*PIP, "wheel", *OFFLINE, "-w", str(folder), str(source)], folder, environment())
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture()
def site(wheel, tmp_path) -> Path:
    """What an installation of the wheel holds."""
    run([*PIP, "install", *OFFLINE, "--target", str(tmp_path / "site"), str(wheel)], tmp_path, environment())
    return tmp_path / "site"


def test_wheel(source, wheel, site, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{target}/{path.relative_to(source / folder).as_posix()}"
        for folder, target in MAPPED.items()
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    assert {name for name in names if ".dist-info/" not in name} == expected

    found = run_code(WHERE, tmp_path, environment(site)).splitlines()
    assert all(Path(path).is_relative_to(site / "nnunet_mutual") for path in found)
    said = run(["-m", "nnunet_mutual.cli.parser", "trainers"], tmp_path, environment(site))
    assert said.strip() == str(site / "nnunet_mutual" / "plugin" / "shim")


def test_an_upward_import_breaks_the_contract(site, tmp_path):
    """Of trainers and in annotations, too; what is checked is the installed package, where trainers are mapped in."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports_command as command; command(sys.argv[1:])"
    line = ["-c", code, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    assert "1 kept, 0 broken" in run(line, tmp_path, environment(site))
    module = site / "nnunet_mutual" / "engine" / "window.py"
    planted = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nnunet_mutual.trainers import base\n"
    module.write_text(f"{module.read_text()}\n{planted}")
    assert "nnunet_mutual.engine is not allowed to import nnunet_mutual.trainers" in run(
        line, tmp_path, environment(site), status=1
    )


def test_editable(source, tmp_path):
    site = tmp_path / "site"
    run([*PIP, "install", *OFFLINE, "--target", str(site), "-e", str(source)], tmp_path, environment())
    # Without site-packages (-S), where this package itself may be installed: only the new installation is visible.
    code = f"import site; site.addsitedir({str(site)!r})\n{WHERE}"
    found = run(["-S", "-c", code], tmp_path, environment()).splitlines()
    assert len(found) == 4 and all(Path(path).is_relative_to(source) for path in found)


def test_setup_does_nothing_when_it_is_imported():
    before = set(ROOT.iterdir())
    names = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    assert names["read_version"]() == nnunet_mutual.__version__
    assert set(ROOT.iterdir()) == before


def test_one_version_everywhere():
    version = re.escape(nnunet_mutual.__version__)
    assert importlib.metadata.version("nnunet_mutual") == nnunet_mutual.__version__
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert re.search(rf"^## \[{version}\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_needs_little_but_nnunet():
    required = importlib.metadata.requires("nnunet_mutual") or []
    assert [line for line in required if "extra ==" not in line] == ["nnunetv2>=2.8", "openpyxl>=3.1"]


def test_python_floor():
    assert importlib.metadata.metadata("nnunet_mutual")["Requires-Python"] == ">=3.10"
    assert sys.version_info >= (3, 10)
