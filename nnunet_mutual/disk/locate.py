"""From '11', '011' or 'Dataset011_Liver' to the dataset's folders, by nnU-Net's own rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets, maybe_convert_to_dataset_name

from nnunet_mutual.disk.label_maps import RECORD
from nnunet_mutual.disk.names import safe_name
from nnunet_mutual.errors import MutualError, meant, shorten

GROUPS = "modality_groups_"  # notes of data that were preprocessed by group, called after them
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")  # nnU-Net's variables


@dataclass(frozen=True)
class DatasetFolders:
    """Where a dataset lies; None where the variable is not set or the folder does not exist."""

    name: str
    raw: Path | None
    preprocessed: Path | None

    @property
    def number(self) -> int:
        """The dataset ID that nnU-Net's commands take."""
        return int(self.name[7:10])


def locate(dataset: str | int, *, need_raw: bool = False, need_preprocessed: bool = False) -> DatasetFolders:
    """Finds the folders of a dataset.

    Args:
        dataset: the ID ('11', '011', 11) or the full name ('Dataset011_Liver').
        need_raw: fail unless the folder in nnUNet_raw exists.
        need_preprocessed: fail unless the folder in nnUNet_preprocessed exists.

    Raises:
        MutualError: a variable is unset, or the dataset is missing, misspelt or ambiguous.
    """
    roots = {variable: _root(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed")}
    for variable, needed in (("nnUNet_raw", need_raw), ("nnUNet_preprocessed", need_preprocessed)):
        if needed:
            require_root(variable)
    name = _name(str(dataset), [root for root in roots.values() if root is not None])
    folders = {variable: root / name if root and (root / name).is_dir() else None for variable, root in roots.items()}
    if need_raw and folders["nnUNet_raw"] is None:
        raise MutualError(
            f"{name} is not in nnUNet_raw ({roots['nnUNet_raw']}); this command reads the raw images, put the "
            "dataset there"
        )
    if need_preprocessed and folders["nnUNet_preprocessed"] is None:
        raise MutualError(
            f"{name} is not in nnUNet_preprocessed ({roots['nnUNet_preprocessed']}); run "
            f"nnunet_mutual plan_and_preprocess -d {int(name[7:10])} first"
        )
    return DatasetFolders(name, folders["nnUNet_raw"], folders["nnUNet_preprocessed"])


def _value(variable: str) -> str | None:
    return (nnUNet_raw if variable == "nnUNet_raw" else nnUNet_preprocessed).get()


def _root(variable: str) -> Path | None:
    value = _value(variable)
    return Path(value).absolute() if value and Path(value).is_dir() else None


def same_dataset(given: str | int, name: str) -> bool:
    """Whether an ID or a full name means the dataset of a full name, which need not exist."""
    return given == name or (str(given).isdecimal() and int(given) == int(name[7:10]))


def require_root(variable: str) -> Path:
    """Returns the folder that nnUNet_raw or nnUNet_preprocessed names.

    Raises:
        MutualError: the variable is unset or names no folder.
    """
    value = _value(variable)
    if not value:
        raise MutualError(f'{variable} is not set; set it as for nnU-Net: export {variable}="/path/to/{variable}"')
    if not Path(value).is_dir():
        raise MutualError(f'{variable} is "{value}", which is not a folder; create it or correct the variable')
    return Path(value).absolute()


def _name(dataset: str, roots: list[Path]) -> str:
    known = sorted(
        {entry.name for root in roots for entry in root.iterdir() if _is_dataset_name(entry.name) and entry.is_dir()}
    )
    there = (
        f"; datasets found: {shorten(known, 10)}"
        if known
        else "; no dataset folders were found, check nnUNet_raw and nnUNet_preprocessed"
    )
    if not dataset.isdecimal():
        if dataset not in known and not _has_results(dataset):
            raise MutualError(
                f"no dataset is called {dataset!r}{meant(dataset, known)}; give its ID or its full name{there}"
            )
        return dataset
    candidates = [str(candidate) for candidate in find_candidate_datasets(int(dataset))]
    if not candidates:
        raise MutualError(f"no dataset has the ID {dataset}{there}")
    if len(candidates) > 1:
        raise MutualError(
            f"ID {dataset} belongs to several datasets ({', '.join(candidates)}) in nnUNet_raw, nnUNet_preprocessed "
            "or nnUNet_results; nnU-Net cannot tell them apart either, give each its own ID"
        )
    return str(maybe_convert_to_dataset_name(int(dataset)))


def _has_results(dataset: str) -> bool:
    """Whether there are trainings of a dataset whose own folders are elsewhere."""
    results = nnUNet_results.get()
    return results is not None and _is_dataset_name(dataset) and (Path(results) / dataset).is_dir()


def _is_dataset_name(name: str) -> bool:
    return name.startswith("Dataset") and name[7:10].isdecimal()


def plans_in(preprocessed: Path) -> list[str]:
    """Returns the names of the plans of a preprocessed dataset."""
    names = (file.stem for file in preprocessed.glob("*Plans*.json"))
    return sorted(name for name in names if not name.startswith((RECORD, GROUPS)))


def plans_file(preprocessed: Path, plans: str) -> Path:
    """Returns the path of an existing plans file.

    Args:
        preprocessed: folder of the dataset in nnUNet_preprocessed.
        plans: name without .json.

    Raises:
        MutualError: there is none of this name; the others are listed.
    """
    path = preprocessed / f"{safe_name(plans, 'plans name')}.json"
    if not path.exists():
        there = plans_in(path.parent)
        raise MutualError(
            f"{path} does not exist; plans of {preprocessed.name}: {', '.join(there) or 'none, plan first'} (choose "
            "with -p)"
        )
    return path
