"""Tables for annotate, and what it made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raw_dataset import DRAWN, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable

LONG = "case,labels\n" + "".join(f"{case},{';'.join(names)}\n" for case, names in DRAWN.items())
WIDE = "case,liver,spleen,kidney\n"
SAME = {
    "column labels": LONG,
    "byte order mark and empty lines": "\ufeff" + LONG.replace("\n", "\r\n\r\n"),
    "spreadsheet with semicolons": LONG.replace(";", "/")
    .replace(",", ";")
    .replace("spleen/kidney", '"spleen;kidney"')
    .replace('liver/"spleen;kidney"', '"liver;spleen;kidney"'),
    "all": LONG.replace("liver;spleen;kidney", "all"),
    "json lists": dict(DRAWN),
    "json objects": {case: {"annotated": names} for case, names in DRAWN.items()},
}


def table(tmp_path: Path, content: str | dict[str, Any], *, encoding: str = "utf-8") -> Path:
    path = tmp_path / ("table.csv" if isinstance(content, str) else "table.json")
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))
    return path


def annotated(raw: RawDataset) -> dict[str, set[str]]:
    parsed = AnnotationTable.from_dataset_json(json.loads(raw.json.read_text()))
    return {key: set(case.annotated) for key, case in parsed.cases.items()}
