"""What nnU-Net's validation does not measure of its cases: surface distances and volumes, beside its summary.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.cases import Pair, Rules, measure_cases
from nnunet_mutual.evaluation.metrics import parse_tolerances
from nnunet_mutual.evaluation.output import TIDY, write_tidy


def measure_validation(
    folder: Path, references: Path, table: AnnotationTable, dataset_json: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Measures predicted validation cases and writes metrics.csv, as ``nnunet_mutual evaluate`` does.

    A training does not fail over it: what cannot be measured is said.

    Args:
        folder: of the predictions, restricted to what each case annotates.
        references: folder of the drawn label maps.
        table: who drew what.
        dataset_json: of the training.
        say: prints to the log.
    """
    ending = dataset_json["file_ending"]
    files = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}
    try:
        (folder / TIDY).unlink(missing_ok=True)  # of an older validation
        pairs = [Pair(key, path, references / path.name) for key, path in files.items() if table.case(key).annotated]
        if not pairs:
            return
        reader = reader_for(dataset_json, [pair.reference for pair in pairs])
        rules = Rules(table, reader, parse_tolerances((), table.labels))
        write_tidy(folder / TIDY, measure_cases(pairs, rules, processes=default_num_processes))
    except (MutualError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: also of a process that ended
        reason = error if isinstance(error, MutualError) else f"{type(error).__name__}: {error}"
        say(f"WARNING: surface distances and volumes were not measured: {reason}")
        return
    say(f"Surface Dice, HD95 and volumes of each case: {folder / TIDY}")
