"""A benchmark's protocol (``protocol/<name>.json``), fixed before its results, and where its files lie."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = tuple(sorted(p.stem for p in (HERE / "protocol").glob("*.json")))
CONFIGURATION = "3d_small"


class BenchmarkError(Exception):
    """What was found, what was expected, what to do."""


@dataclass(frozen=True)
class Schedule:
    """What calibration decides, the same for all arms: updates of each network, learning rate of the first epoch."""

    updates: int
    rate: float

    def __str__(self) -> str:
        return f"u{self.updates}_lr{self.rate:g}"


@dataclass(frozen=True)
class Network:
    """One training of an arm: which of the protocol's datasets, which trainer.

    Attributes:
        dataset: key of the protocol's ``datasets``.
        trainer: "stock" or a trainer of the package.
        settings: of the trainer, beside those of the protocol's ``training``.
        share: of the arm's updates; separate networks share them.
        deployed: what is scored: "final", "rectified" or "stage1" (all its networks), of these checkpoints, or
            "group:NAME", the network of a modality group.
    """

    dataset: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    deployed: str = "final"

    @property
    def variant(self) -> str:
        """What tells this training from others with the same dataset and trainer, as part of a file name."""
        if not self.settings and self.share == 1:
            return ""
        text = json.dumps([self.settings, self.share], sort_keys=True)
        return "_" + hashlib.sha256(text.encode()).hexdigest()[:8]


class Setting:
    """One benchmark: its protocol, the folder of the public data, and the work folder.

    Args:
        name: a file of ``protocol/``, without ``.json``.
        data: folder that holds the public datasets; None where only evidence is read.
        work: folder for datasets, trained networks and logs.
    """

    def __init__(self, name: str, data: Path | None, work: Path | None = None) -> None:
        self.name = name
        self.text = (HERE / "protocol" / f"{name}.json").read_text()
        self.protocol: dict[str, Any] = json.loads(self.text)
        self.data = data
        base = work or Path(tempfile.gettempdir()) / "nnunet_mutual_benchmarks"
        # A changed protocol gets its own folder, so that nothing of an older one can be mistaken for a finished part.
        simulated = ("second_modality",) if "second_modality" in self.protocol else ()
        self.work = base / f"{name}-{self._digest('network', 'plan_on', 'datasets', 'cases', *simulated)}"

    def __getitem__(self, key: str) -> Any:
        return self.protocol[key]

    def _digest(self, *keys: str) -> str:
        text = json.dumps({k: self.protocol[k] for k in keys}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def amp(self) -> str:
        """Arithmetic of the trainings: "off" is float32, "bfloat16" needs a processor that computes in it."""
        return str(self.protocol.get("amp", "off"))

    @property
    def evidence(self) -> Path:
        return HERE / "evidence" / self.name

    @property
    def calibration_file(self) -> Path:
        return self.evidence / "calibration.json"

    def evidence_file(self, arm: str, seed: int) -> Path:
        return self.evidence / f"{arm}_seed{seed}.json"

    def networks(self, arm: str) -> list[Network]:
        return [Network(**n) for n in self["arms"][arm]["networks"]]

    def dataset_name(self, dataset: str) -> str:
        words = "".join(w.capitalize() for w in (self.name, *dataset.split("_")))
        return f"Dataset{self['datasets'][dataset]['id']:03d}_{words}"

    def weights_file(self, network: Network, schedule: Schedule, seed: int) -> Path:
        arithmetic = () if self.amp == "off" else ("amp",)
        return (
            self.work
            / f"networks-{self._digest('training', 'mirroring', *arithmetic)}"
            / f"{network.dataset}_{network.trainer}{network.variant}_{schedule}_s{seed}.pth"
        )

    def data_folder(self, folder: str) -> Path:
        if self.data is None:
            raise BenchmarkError("no data folder was given; add --data FOLDER or set NNUNET_MUTUAL_DATA")
        found = self.data / folder
        if not (found / "imagesTr").is_dir():
            raise BenchmarkError(
                f"{found} holds no imagesTr; --data must name the folder that holds {folder}/ in nnU-Net's raw format"
            )
        return found

    def images(self, folder: str) -> Path:
        """Where the images of a data folder are: there, or with their simulated modality in the work folder."""
        original = self.data_folder(folder)
        return self.work / "modalities" / folder if "second_modality" in self.protocol else original / "imagesTr"

    def channel_names(self, folder: str) -> list[str]:
        """Names of the channels of the images of a data folder."""
        names = list(read_json(self.data_folder(folder) / "dataset.json")["channel_names"].values())
        return [*names, self["second_modality"]["name"]] if "second_modality" in self.protocol else names

    def test_folder(self) -> Path:
        return self.data_folder(self["folder"])

    def export_paths(self, environment: MutableMapping[str, str]) -> None:
        """Points nnU-Net to the work folder; has to come before nnunetv2 is imported."""
        for kind in ("raw", "preprocessed", "results"):
            folder = self.work / f"nnUNet_{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            environment[f"nnUNet_{kind}"] = str(folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
