"""Packaging of nnunet_mutual: metadata, the package map of trainers/ and planners/, and the console script."""

from __future__ import annotations

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return ``__version__`` of the package without importing it (its dependencies may not be installed yet)."""
    source = (ROOT / "nnunet_mutual" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "__version__" for t in node.targets):
            return str(ast.literal_eval(node.value))
    raise RuntimeError("nnunet_mutual/__init__.py has no __version__")


def read_readme() -> str:
    """Return the README as long description; a source tree without one still builds."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


# nnU-Net imports every module of a folder that nnUNet_extTrainer names. Without the guard, naming this checkout there
# would start an installation in the middle of a training.
if __name__ == "__main__":
    setup(
        name="nnunet_mutual",
        version=read_version(),
        description="nnU-Net learns from data that is not fully labelled: partial labels, unlabelled images",
        long_description=read_readme(),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE"],
        python_requires=">=3.10",
        # trainers/ and planners/ stand at the top level of the repository, but no import package of that name is ever
        # installed: they are mapped into nnunet_mutual.
        package_dir={
            "nnunet_mutual": "nnunet_mutual",
            "nnunet_mutual.trainers": "trainers",
            "nnunet_mutual.planners": "planners",
        },
        packages=[
            *find_packages(include=["nnunet_mutual", "nnunet_mutual.*"]),
            "nnunet_mutual.trainers",
            "nnunet_mutual.planners",
        ],
        # The shim folder is data, not a package: nnU-Net imports its one module by the folder's path.
        package_data={
            "nnunet_mutual": ["plugin/shim/*.py", "pseudo_labels/*/*.html", "report/templates/*", "py.typed"]
        },
        zip_safe=False,
        install_requires=["nnunetv2>=2.8", "openpyxl>=3.1"],
        extras_require={
            "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "import-linter", "monai>=1.4"],
        },
        entry_points={"console_scripts": ["nnunet_mutual = nnunet_mutual.cli.parser:main"]},
        keywords=["nnU-Net", "medical image segmentation", "partially labelled", "semi-supervised", "mutual learning"],
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Healthcare Industry",
            "Intended Audience :: Science/Research",
            "Programming Language :: Python :: 3",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Topic :: Scientific/Engineering :: Image Recognition",
            "Topic :: Scientific/Engineering :: Medical Science Apps.",
        ],
    )
