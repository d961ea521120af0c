"""Reads who annotated what from a spreadsheet, CSV or JSON file that a data manager keeps."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.cases import Outline
from nnunet_mutual.datasets.sheets import TEXTS, WORKBOOKS, Sheet, file_stem, read_sheet
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.errors import MutualError, meant, shown

# As people write it, and as spreadsheets write TRUE and FALSE in the language of the office.
_YES = {"yes", "y", "1", "true", "x", "ja", "j", "wahr", "oui", "vrai", "si", "sí", "sì", "vero", "verdadero"}
_NO = {"no", "n", "0", "false", "nein", "falsch", "non", "faux", "falso", "nee"}
# A third state of a cell: some of the label is drawn, such as some of many lesions.
_PART = (
    *("partly", "part", "partial", "partially", "some", "incomplete", "(x)"),
    *("teilweise", "teils", "unvollständig", "partiel", "partielle", "partiellement", "en partie", "incomplet"),
)
_RESERVED = ("case", "labels", "source", "patient", "missing", "incomplete")
# Other names of columns in English, German and French, without blanks, signs and accents: 'Patient ID' is 'patient_id'.
_MEANING = {
    "case": (
        *("caseid", "casename", "image", "imageid", "imagename", "file", "filename", "scan", "scanid"),
        *("fall", "fallid", "fallnr", "fallnummer", "bild", "datei", "dateiname"),
        *("cas", "idcas", "numerodecas", "fichier", "nomdufichier"),
    ),
    "source": (
        *("sourceid", "site", "center", "centre", "hospital", "clinic"),
        *("quelle", "herkunft", "zentrum", "standort", "klinik", "krankenhaus"),
        *("origine", "provenance", "hopital", "clinique"),
    ),
    "patient": (
        *("patientid", "patid", "subject", "subjectid"),
        *("patientin", "patientenid", "patientennr", "patientennummer", "proband"),
        *("idpatient", "numeropatient", "sujet"),
    ),
    "labels": (
        *("label", "organs", "structures", "annotated"),
        *("organe", "strukturen", "gezeichnet", "eingezeichnet", "annotiert"),
        *("organes", "etiquettes", "annote", "annotes"),
    ),
    "missing": ("missingchannels", "fehlt", "fehlend", "fehlende", "fehlendekanale", "manquant", "manquants"),
    "incomplete": ("incompletelabels", "drawninpart", "teilweise", "unvollstandig", "enpartie", "incomplet"),
}
_EVERYTHING = {"all", "alle", "alles", "tous", "toutes", "tout"}
_NOTHING = {"none", "keine", "keines", "nichts", "aucun", "aucune", "rien"}
_ENTRY_KEYS = ("source", "annotated", "incomplete", "patient", "pseudo", "missing")


@dataclass(frozen=True)
class Entry:
    """One case of a table.

    Attributes:
        case: its name.
        annotated: labels that somebody drew wherever they are present; never one of ``pseudo``.
        source: None where the table names none.
        patient: None where the table names none.
        pseudo: labels that a model drew and nobody corrected.
        missing: channels that were not acquired.
        incomplete: labels of which somebody drew a part; never one of ``annotated`` or ``pseudo``.
        outlined: of an earlier table, what is known of outlines that are of a tool.
        says: which of patient, pseudo and missing the table has a column or a key for.
    """

    case: str
    annotated: frozenset[str]
    source: str | None = None
    patient: str | None = None
    pseudo: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    incomplete: frozenset[str] = frozenset()
    says: frozenset[str] = frozenset()
    outlined: tuple[Outline, ...] = ()

    @property
    def drawn(self) -> frozenset[str]:
        """Labels that somebody drew, completely or in part."""
        return self.annotated | self.incomplete


@dataclass(frozen=True)
class Known:
    """What a table may name.

    Attributes:
        labels: foreground labels of the dataset.
        channels: of its images.
        unlabelled: images in imagesUn/, whose rows need not say that nothing was drawn.
        cases: all that a row may be about.
        ending: of the names of files.
    """

    labels: Sequence[str]
    channels: Sequence[str] = ()
    unlabelled: Container[str] = ()
    cases: Collection[str] = ()
    ending: str = ".nii.gz"


def read_table(path: Path, known: Known, sheet: str | None = None) -> tuple[list[Entry], list[str]]:
    """Reads a table of case -> labels.

    JSON: ``{case: [label, ...]}`` or ``{case: {"annotated": [...], "source": ..., "patient": ...}}``.
    CSV or workbook: a column ``case`` with one column per label (yes/no, 1/0, or x and empty; ``partly`` where it is
    drawn in part) or with one column ``labels`` (separated by ``;``, or the word ``all`` or ``none``); columns
    ``source``, ``patient``, ``missing`` (channels) and ``incomplete`` (labels that are drawn in part), separated by
    ``;``, may follow.

    Args:
        path: a file ending in .json, .csv, .tsv, .txt or .xlsx.
        known: what the dataset has.
        sheet: of a workbook that has several.

    Returns:
        The cases, and what was guessed to read them, in words.

    Raises:
        MutualError: names the row or case, what it holds, and what was expected.
    """
    ending, guesses = path.suffix.lower(), list[str]()
    if ending == ".json":
        if sheet is not None:
            raise MutualError(f"{path} has no sheets, only a workbook (.xlsx) has; leave --sheet {sheet} out")
        entries = [_json_entry(case, value, known, path) for case, value in read_object(path).items()]
    elif ending in (*TEXTS, *WORKBOOKS):
        cells, guesses = _recognised(read_sheet(path, _RESERVED, sheet), known, path)
        entries = _entries(cells, known, path, guesses)
    else:
        raise MutualError(f"{path} is neither .xlsx, .csv nor .json; save the table as one of these")
    if not entries:
        raise MutualError(f"{path} lists no case; every training case needs a row")
    return entries, guesses


def _recognised(sheet: Sheet, known: Known, path: Path) -> tuple[Sheet, list[str]]:
    """Returns a table with our names of columns and the dataset's names of cases, and what was guessed."""
    guesses = list(sheet.guesses)
    named: dict[str, str] = {}
    for ours, others in _MEANING.items():
        found = [column for column in sheet.header if column not in known.labels and _plain(column) in others]
        by_label = ours == "labels" and any(column in known.labels for column in sheet.header)
        if ours not in sheet.header and found and not by_label:
            named[found[0]] = ours
    if "case" not in {*sheet.header, *named.values()}:
        named |= dict.fromkeys(_columns_of_cases(sheet, known)[:1], "case")
    guesses += [f"{ours!r} is the column {column!r}" for column, ours in named.items()]
    header = [named.get(column, column) for column in sheet.header]
    if "case" not in header:
        raise MutualError(
            f"{path} has no column 'case'; its first line is {sheet.first_line!r}, expected for example: case,labels"
        )
    rows, changed = [], dict[str, str]()
    for number, cells in sheet.rows:
        row = {named.get(column, column): cell for column, cell in cells.items()}
        case = _case(row["case"], known)
        if case != row["case"]:
            changed[row["case"]] = case
        rows.append((number, {**row, "case": case}))
    if changed:
        name, case = next(iter(changed.items()))
        guesses.append(f"file names are cases, such as {name} of {case}")
    return replace(sheet, header=header, rows=rows), guesses


def _plain(column: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", column).casefold() if letter.isalnum())


def _case(name: str, known: Known) -> str:
    stem = file_stem(name, (known.ending, ".nii.gz", ".nii"))
    return stem if name not in known.cases and stem in known.cases else name


def _columns_of_cases(sheet: Sheet, known: Known) -> list[str]:
    """Returns the columns in which every cell names another case of the dataset."""
    found = []
    for column in sheet.header:
        cases = [_case(cells[column], known) for _, cells in sheet.rows]
        if cases and len(set(cases)) == len(cases) and all(case in known.cases for case in cases):
            found.append(column)
    return found


def _json_entry(case: str, value: Any, known: Known, path: Path) -> Entry:
    place = f'{path}, case "{case}"'
    if isinstance(value, list):
        value = {"annotated": value}
    if isinstance(value, dict) and case in known.unlabelled:
        value = {"annotated": [], **value}
    if not isinstance(value, dict) or not isinstance(value.get("annotated"), list):
        raise MutualError(
            f'{place} holds {shown(value)}; expected a list of labels, or an object with "annotated": [...]'
        )
    for key in value:
        if key not in _ENTRY_KEYS:
            raise MutualError(
                f"{place} has the unknown key {key!r}{meant(key, _ENTRY_KEYS)}; known: {', '.join(_ENTRY_KEYS)}"
            )
    for key in ("source", "patient"):
        if key in value and not (isinstance(value[key], str) and value[key].strip()):
            raise MutualError(f'{place} has "{key}": {shown(value[key])}; expected text in quotes')
    for key in ("pseudo", "missing", "incomplete"):
        if not isinstance(value.get(key, []), list):
            raise MutualError(f'{place} has "{key}": {shown(value[key])}; expected a list of names')
    annotated, incomplete, pseudo = (
        _labels(value.get(key, []), known.labels, place) for key in ("annotated", "incomplete", "pseudo")
    )
    _require_apart(incomplete, annotated | pseudo, place)
    return Entry(
        case,
        annotated - pseudo,
        value.get("source"),
        value.get("patient"),
        pseudo,
        _names(value.get("missing", []), known.channels, place, "channel"),
        incomplete,
        frozenset(value),
    )


def _require_apart(incomplete: frozenset[str], others: frozenset[str], place: str) -> None:
    for label in sorted(incomplete & others):
        raise MutualError(
            f"{place} calls {label} incomplete and also annotated or pseudo; keep one: incomplete says that what is "
            "drawn of it is right and that there may be more"
        )


def _labels(names: Sequence[Any], labels: Sequence[str], place: str) -> frozenset[str]:
    return _names(names, labels, place, "label")


def _names(names: Sequence[Any], known: Sequence[str], place: str, what: str) -> frozenset[str]:
    for name in names:
        if name not in known:
            raise MutualError(
                f"{place} names the unknown {what} {shown(name)}{meant(str(name), known)}; dataset.json has: "
                f"{', '.join(known)}"
            )
    if len(set(names)) != len(names):
        raise MutualError(f"{place} names a {what} twice: {', '.join(names)}; remove the repetition")
    return frozenset(names)


def _entries(sheet: Sheet, known: Known, path: Path, guesses: list[str]) -> list[Entry]:
    """Reads the rows; adds to ``guesses`` what a cell was taken for."""
    labels, header, rows = known.labels, sheet.header, sheet.rows
    label_columns = [name for name in header if name not in _RESERVED]
    crosses = False
    if "labels" not in header:
        _require_label_columns(label_columns, labels, path)
        words = {row[name] for _, row in rows for name in label_columns}
        # In a table of crosses an empty cell means "not drawn"; in a table of yes and no it means "forgotten".
        crosses = all(word.lower() in ("x", "", *_PART) for word in words)
        guesses += _said(words, crosses)
    elif label_columns:
        raise MutualError(
            f"{path} has a column 'labels' and also "
            f"{label_columns[0]!r}{meant(label_columns[0], _RESERVED[2:])}; use either one column 'labels' "
            "or one column per label"
        )
    entries: dict[str, Entry] = {}
    for number, row in rows:
        place = f"{path}, line {number}"
        case = row["case"]
        if not case:
            raise MutualError(f"{place} has no case name; fill it in or delete the line")
        if case in entries:
            raise MutualError(f'{place} lists case "{case}" a second time; keep one line per case')
        if row.get("source") == "":
            raise MutualError(
                f'{place} has no source for case "{case}"; fill it in for every case or delete the column'
            )
        where = f'{place}, case "{case}"'
        nothing = crosses or case in known.unlabelled  # then an empty cell needs no word
        in_part = _labels(_split(row.get("incomplete", "")), labels, where)
        if "labels" in header:
            drawn = _listed(row["labels"] or ("none" if case in known.unlabelled or in_part else ""), labels, where)
        else:
            in_part |= {name for name in label_columns if row[name].lower() in _PART}
            whole = (name for name in label_columns if name not in in_part or row[name].lower() in _YES)
            drawn = frozenset(name for name in whole if _marked(row[name], name, nothing, where))
        _require_apart(in_part, drawn, where)
        entries[case] = Entry(
            case,
            drawn,
            row.get("source"),
            row.get("patient") or None,
            missing=_names(_split(row.get("missing", "")), known.channels, where, "channel"),
            incomplete=in_part,
            says=frozenset({"patient", "missing"} & set(header)),
        )
    return list(entries.values())


def _require_label_columns(columns: Sequence[str], labels: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in labels:
            raise MutualError(
                f"{path} has a column {name!r}, which is neither a label{meant(name, labels)} nor case, labels, "
                f"source, patient, missing or incomplete; dataset.json has: {', '.join(labels)}"
            )
    absent = [name for name in labels if name not in columns]
    if absent:
        raise MutualError(
            f"{path} has no column for {', '.join(absent)}; add it with yes or no for each case (no everywhere if "
            "nobody drew it), or use one column 'labels'"
        )


def _said(words: Collection[str], crosses: bool) -> list[str]:
    """Says how words are understood that a label column holds."""
    meanings = {"drawn": _YES, "not drawn": _NO, "drawn in part": _PART}
    said = {meaning: sorted(word for word in words if word.lower() in known) for meaning, known in meanings.items()}
    found = [f"{', '.join(own)} = {meaning}" for meaning, own in said.items() if own]
    return found + ["an empty cell = not drawn"] * (crosses and "" in words)


def _marked(cell: str, label: str, crosses: bool, place: str) -> bool:
    if cell.lower() in _YES:
        return True
    if cell.lower() in _NO or (crosses and not cell):
        return False
    found = repr(cell) if cell else "an empty cell"
    raise MutualError(
        f"{place} has {found} for {label}; expected yes or no (or 1 or 0, or x and empty throughout), or partly"
    )


def _split(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(";") if name.strip()]


def _listed(cell: str, labels: Sequence[str], place: str) -> frozenset[str]:
    names = _split(cell)
    if not names:
        raise MutualError(
            f"{place} has an empty list of labels; write none if nothing was drawn there, all if everything was"
        )
    if len(names) == 1 and names[0] not in labels and names[0].lower() in _EVERYTHING | _NOTHING:
        return frozenset(labels) if names[0].lower() in _EVERYTHING else frozenset()
    return _labels(names, labels, place)
