"""A benchmark's protocol (``protocol/<name>.json``), fixed before its results, and where its files lie."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIGURATION = "3d_small"
PLANS = "nnUNetPlans"


def names() -> dict[str, tuple[str, int | None]]:
    """Returns benchmark -> protocol file and number of labelled patients; one that draws them is one per number."""
    found: dict[str, tuple[str, int | None]] = {}
    for file in sorted((HERE / "protocol").glob("*.json")):
        draws = protocol_of(file.stem).get("draws")
        numbers = draws["patients"] if draws else {}
        found |= {f"{file.stem}_{n}": (file.stem, int(n)) for n in numbers} or {file.stem: (file.stem, None)}
    return found


def protocol_of(name: str, labelled: int | None = None) -> dict[str, Any]:
    """Returns a protocol; what it does not say is as in the one that it is ``like``.

    Args:
        name: file of ``protocol/``, without ``.json``.
        labelled: number of labelled patients, for ``{labelled}`` in its words.
    """
    text = (HERE / "protocol" / f"{name}.json").read_text().replace("{labelled}", str(labelled))
    own: dict[str, Any] = json.loads(text)
    return {**protocol_of(own.pop("like"), labelled), **own} if "like" in own else own


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
        share: of the arm's updates; separate networks share them, a control may have more.
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
        if not self.settings:
            return ""
        return "_" + hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    def schedule(self, arm: Schedule) -> Schedule:
        """Returns its own share of the arm's schedule."""
        updates = float(arm.updates * self.share)
        if not updates.is_integer():
            raise BenchmarkError(f"{self.share:g} of {arm.updates} updates is no whole number; choose another length")
        return Schedule(int(updates), arm.rate)


class Setting:
    """One benchmark: its protocol, the folder of the public data, and the work folder.

    Args:
        name: of :func:`names`: a file of ``protocol/``, without ``.json`` and, where labelled patients are drawn, with
            their number.
        data: folder that holds the public datasets; None where only evidence is read.
        work: folder for datasets, trained networks and logs.
        device: on which networks are trained, "cpu" or "cuda".
        planned: takes the network that nnU-Net plans in place of the protocol's.
        results: folder of the evidence of runs; that of this repository by default.
    """

    def __init__(
        self,
        name: str,
        data: Path | None,
        work: Path | None = None,
        *,
        device: str = "cpu",
        planned: bool = False,
        results: Path | None = None,
    ) -> None:
        self.name, self.device, self.planned = name, device, planned
        self.file, self.labelled = names()[name]
        self.protocol = protocol_of(self.file, self.labelled)
        if planned:
            self.protocol["network"] = {}
        self.data = data
        self.results = results or HERE / "evidence"
        base = work or Path(tempfile.gettempdir()) / "nnunet_mutual_benchmarks"
        # A changed protocol gets its own folder, so that nothing of an older one can be mistaken for a finished part.
        further = [key for key in ("second_modality", "draws", "crop", "gaps") if key in self.protocol]
        self.work = base / f"{self.file}-{self._digest('network', 'plan_on', 'datasets', 'cases', *further)}"

    def __getitem__(self, key: str) -> Any:
        return self.protocol[key]

    def _digest(self, *keys: str) -> str:
        text = json.dumps({k: self.protocol[k] for k in keys}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def amp(self) -> str:
        """Arithmetic of the trainings: "off" is float32, "bfloat16" needs a processor that computes in it.

        On a GPU "auto", nnU-Net's own.
        """
        if self.device != "cpu":
            return "auto"
        return str(self.protocol.get("amp", "off"))

    @property
    def base(self) -> str:
        """The configuration of nnU-Net that :data:`CONFIGURATION` inherits from: "3d_fullres" or "2d"."""
        return str(self["network"].get("base", "3d_fullres"))

    @property
    def data_identifier(self) -> str:
        """nnU-Net's name for the folder of preprocessed cases."""
        return f"{PLANS}_{self.base}"

    @property
    def in_readme(self) -> bool:
        """Whether its evidence is what README.md shows: of the protocol's network, in this repository."""
        return not self.planned and self.results == HERE / "evidence"

    @property
    def evidence(self) -> Path:
        return self.results / (f"{self.name}_planned" if self.planned else self.name)

    @property
    def calibration_file(self) -> Path:
        return HERE / "evidence" / self.name / "calibration.json"

    def evidence_file(self, arm: str, seed: int) -> Path:
        return self.evidence / f"{arm}_seed{seed}.json"

    def networks(self, arm: str) -> list[Network]:
        return [Network(**n) for n in self["arms"][arm]["networks"]]

    @property
    def seeds(self) -> list[int]:
        """Seeds of an arm; where labelled patients are drawn, seed k has draw k."""
        return list(range(len(self.draws))) if self.labelled else list(self.protocol.get("seeds", range(3)))

    @property
    def draws(self) -> list[Any]:
        """Labelled patients of each seed: a list, or one for each source."""
        return list(self["draws"]["patients"][str(self.labelled)])

    def labelled_cases(self, dataset: str, seed: int) -> dict[str, list[str]]:
        """Returns the cases that a seed draws for a dataset, by the dataset from which each source's are linked."""
        origin, drawn = self["datasets"][dataset]["labelled_from"], self.draws[seed]
        if isinstance(origin, dict):
            return {folder: self.cases_of(drawn[source]) for source, folder in origin.items()}
        everybody = [p for patients in drawn.values() for p in patients] if isinstance(drawn, dict) else drawn
        return {origin: self.cases_of(everybody)}

    def cases_of(self, patients: Iterable[str]) -> list[str]:
        """Returns all cases of patients; where the protocol knows no patients, a case is one."""
        return [case for patient in patients for case in self.protocol.get("patients", {}).get(patient, [patient])]

    @property
    def patients(self) -> dict[str, str]:
        """Case -> patient."""
        every = {case: case for cases in self["cases"].values() for case in cases}
        return every | {c: patient for patient, cases in self.protocol.get("patients", {}).items() for c in cases}

    def lacks(self, dataset: str, case: str) -> list[str]:
        """Returns the channels of a dataset that a case lacks, where the protocol says that patients have gaps."""
        entry = self["datasets"][dataset]
        gaps = self["gaps"] if entry.get("gaps") else {}
        return [name for name in entry.get("channels", ()) if self.patients[case] in gaps.get(name, ())]

    def is_drawn(self, dataset: str) -> bool:
        """Whether each seed has a dataset of its own, linked from others."""
        return "labelled_from" in self["datasets"][dataset]

    def plans_from(self, dataset: str) -> str:
        """Returns the dataset whose plans a dataset has: itself, or where it is linked from."""
        return next(iter(self.labelled_cases(dataset, 0))) if self.is_drawn(dataset) else dataset

    def dataset_name(self, dataset: str, seed: int) -> str:
        words = "".join(w.capitalize() for w in (self.file, *dataset.split("_")))
        draw = f"{self.labelled}Draw{seed}" if self.is_drawn(dataset) else ""
        return f"Dataset{self['datasets'][dataset]['id']:03d}_{words}{draw}"

    def weights_file(self, network: Network, schedule: Schedule, seed: int) -> Path:
        """Returns where a trained network is kept.

        Args:
            network: of an arm.
            schedule: of the arm.
            seed: of the arm.
        """
        arithmetic = ("amp",) if "amp" in self.protocol else ()
        dataset = f"{network.dataset}{self.labelled}" if self.is_drawn(network.dataset) else network.dataset
        return (
            self.work
            / f"networks-{self._digest('training', 'mirroring', *arithmetic)}{'' if self.device == 'cpu' else '-gpu'}"
            / f"{dataset}_{network.trainer}{network.variant}_{network.schedule(schedule)}_s{seed}.pth"
        )

    def data_folder(self, folder: str) -> Path:
        """Returns the folder of a public dataset, or of its crops in the work folder."""
        if "crop" in self.protocol:
            return self.work / "crops" / folder
        return self.public_folder(folder)

    def public_folder(self, folder: str) -> Path:
        """Returns the folder of a public dataset."""
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
        point_nnunet_to(self.work, environment)


def point_nnunet_to(work: Path, environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes nnU-Net's three folders in a work folder and sets its variables; before nnunetv2 is imported."""
    for kind in ("raw", "preprocessed", "results"):
        folder = work / f"nnUNet_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        environment[f"nnUNet_{kind}"] = str(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process makes the same file; a killed process gives its lock back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
