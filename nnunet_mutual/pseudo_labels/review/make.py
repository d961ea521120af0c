"""`nnunet_mutual review`: one page of doubtful pseudo labels, a table to fill in, and masks to correct."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tqdm import tqdm

from nnunet_mutual import __version__
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.disk.files import write_csv, write_json
from nnunet_mutual.disk.folders import finish, not_written, output_folder, temporary_folder
from nnunet_mutual.disk.images import read_images, voxel_ml, write_label_map
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.errors import MutualError, typed
from nnunet_mutual.pseudo_labels.filter import millilitres
from nnunet_mutual.pseudo_labels.review.arrivals import read_drawn
from nnunet_mutual.pseudo_labels.review.doubt import Doubt, by_doubt
from nnunet_mutual.pseudo_labels.review.figures import CANDIDATE, DRAWN, Scene, draw
from nnunet_mutual.pseudo_labels.review.orientation import frame_of
from nnunet_mutual.pseudo_labels.review.source import ReviewSource, open_masks, open_source
from nnunet_mutual.pseudo_labels.review.verdicts import COLUMNS, MANIFEST, TABLE

PAGE = "review.html"
TEMPLATE = Path(__file__).with_name("page.html")
_MASKS = "candidates"
_LONGEST = 60  # letters of a label in a file name


@dataclass(frozen=True)
class PageRow:
    """One (case, label) on the page.

    Attributes:
        decision: of the filter.
        doubt: why it is here.
        found: whether the mask has a voxel.
        size: of the mask, sure or not, in words.
        file: the mask, relative to the folder of the page.
        sha256: of that file.
        picture: content of an HTML image.
        drawn: annotated labels of the case and the colours of their outlines.
        channel: name of the channel in the picture.
    """

    decision: Decision
    doubt: Doubt
    found: bool
    size: str
    file: str
    sha256: str
    picture: str
    drawn: list[tuple[str, str]]
    channel: str


def review(
    named: NamedTraining | str, *, checkpoint: str | None, output: str, everything: bool, most: int | None
) -> None:
    """Writes a folder for a reader: ``review.html``, ``review.csv``, and a mask for each doubtful (case, label).

    Args:
        named: the training that made the pseudo labels, or a dataset (ID or name) with those of other tools' masks.
        checkpoint: of ``nnunet_mutual pseudo_label``, where there are several sets of pseudo labels.
        output: a folder that does not exist yet, or is empty.
        everything: also what is not doubtful.
        most: at most so many, the most doubtful ones.

    Raises:
        MutualError: nothing is written then.
    """
    place = output_folder(output, new="no decision")
    if most is not None and most < 1:
        raise MutualError(f"--max {most}: the number must be 1 or more")
    source = open_masks(named) if isinstance(named, str) else open_source(named, checkpoint)
    judged = by_doubt(source.decisions, source.settings)
    chosen = [(decision, doubt) for decision, doubt in judged if everything or doubt.doubtful]
    if not chosen:
        print(
            f"{len(judged)} pseudo label(s) of {source.folders.name}, none doubtful; nothing was written. To look at "
            "them all the same, add --all"
        )
        return
    shown = chosen[:most]
    rows = [(decision.case, decision.label, "", "", "") for decision, _ in shown]
    left_out = len(chosen) - len(shown)
    write_folder(source, shown, place, [COLUMNS, *rows], judged=len(judged), left_out=left_out)
    number = source.folders.number
    rest = f" ({left_out} less doubtful ones left out by --max)" if left_out else ""
    print(f"{len(shown)} of {len(judged)} pseudo labels of {source.folders.name} to review{rest}: {place / PAGE}")
    print(f"Next: open that page, fill in {place / TABLE}, then run")
    print(f"  nnunet_mutual accept {number} {typed(place / TABLE)} --dry-run")


def write_folder(
    source: ReviewSource,
    shown: Sequence[tuple[Decision, Doubt]],
    place: Path,
    table: Sequence[Sequence[object]],
    template: Path = TEMPLATE,
    **words: Any,
) -> None:
    """Writes the folder of a reader, whole or not at all: page, table, masks, and what ``accept`` needs to know.

    Args:
        source: of the pairs.
        shown: the pairs, in the order of the page.
        place: the folder.
        table: rows of the table to fill in, the header first.
        template: of the page; it may extend that of a review.
        words: for the template, beside what every page has.

    Raises:
        MutualError: nothing is written then.
    """
    try:
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(place.absolute(), "review", "review") as folder:
            entries = _entries(source, shown, folder)
            write_csv(folder / TABLE, table)
            write_json(folder / MANIFEST, _manifest(source, entries))
            (folder / PAGE).write_text(_page(source, entries, place, template, words), encoding="utf-8")
            finish(folder, place.absolute())
    except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
        raise not_written(place, error) from error


def _entries(source: ReviewSource, shown: Sequence[tuple[Decision, Doubt]], folder: Path) -> list[PageRow]:
    """Writes the masks and draws the pictures, case by case; returns entries in the order of ``shown``."""
    (folder / _MASKS).mkdir()
    cases = list(dict.fromkeys(decision.case for decision, _ in shown))
    made: dict[tuple[str, str], PageRow] = {}
    for key in tqdm(cases, desc="drawing", unit="case", leave=False):
        for entry in _entries_of(source, key, [pair for pair in shown if pair[0].case == key], folder):
            made[entry.decision.case, entry.decision.label] = entry
    return [made[decision.case, decision.label] for decision, _ in shown]


def _entries_of(
    source: ReviewSource, key: str, shown: Iterable[tuple[Decision, Doubt]], folder: Path
) -> Iterator[PageRow]:
    case, files, table = source.table.case(key), source.files[key], source.table
    there = {table.channels[n]: file for n, file in files.images.items() if table.channels[n] not in case.missing}
    channel, path = next(iter(there.items()))
    image, _ = read_images(source.reader, [path])
    drawn, properties = read_drawn(source.reader, files)
    size = voxel_ml(properties)
    frame = frame_of(properties)
    by_hand = [label for label in table.labels if label in case.drawn]
    outlines = {label: frame.turn(np.isin(drawn, table.values[label])) for label in by_hand}
    outlines = {label: mask for label, mask in outlines.items() if mask.any()}
    colours = [(label, DRAWN[i % len(DRAWN)]) for i, label in enumerate(outlines)]
    ending = ".nii.gz" if ".nii.gz" in source.reader.supported_file_endings else source.content["file_ending"]
    for decision, doubt in shown:
        mask = source.mask(case, decision.label, drawn)
        number = table.labels.index(decision.label) + 1  # two labels may differ in a character that no file name has
        words = re.sub(r"[^A-Za-z0-9.-]+", "_", decision.label)[:_LONGEST]
        name = f"{_MASKS}/{key}__{number:02d}_{words}{ending}"
        write_label_map(source.reader, mask.astype(np.uint8), folder / name, properties)
        scene = Scene(
            frame.turn(image[0]), frame.turn(mask), outlines, frame.spacing, oriented=frame.transform is not None
        )
        yield PageRow(
            decision,
            doubt,
            bool(mask.any()),
            _size(int(mask.sum()), size, decision),
            name,
            hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            draw(scene),
            colours,
            channel,
        )


def _size(voxels: int, voxel_ml: float | None, decision: Decision) -> str:
    if not voxels:
        return "nothing was found"
    if voxel_ml is None or decision.volume_ml is None:
        return f"{voxels} voxels; the image says no size"
    return f"{millilitres(voxels * voxel_ml)}, {millilitres(decision.volume_ml)} of it sure"


def _manifest(source: ReviewSource, entries: Sequence[PageRow]) -> dict:
    """What `accept` needs to know, and where everything came from."""
    return {
        "dataset": source.folders.name,
        **({"masks": source.maker} if source.training is None else {"training": asdict(source.training)}),
        "pseudo_labels": "/".join(source.store.folder.parts[-3:]),  # a review travels to its reader
        "nnunet_mutual": __version__,
        "candidates": [
            {"case": e.decision.case, "label": e.decision.label, "file": e.file, "sha256": e.sha256, **_tool(source, e)}
            for e in entries
        ],
    }


def _tool(source: ReviewSource, entry: PageRow) -> dict[str, str]:
    return {} if source.training is not None else {"tool": entry.decision.networks}


def _page(
    source: ReviewSource, entries: Sequence[PageRow], place: Path, template: Path, words: Mapping[str, Any]
) -> str:
    loader = jinja2.DictLoader({file.name: file.read_text(encoding="utf-8") for file in (TEMPLATE, template)})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=loader)
    return environment.get_template(template.name).render(
        dataset=source.folders.name,
        maker=source.maker,
        of_tools=source.training is None,
        settings=source.settings,
        number=source.folders.number,
        entries=entries,
        table=TABLE,
        table_path=typed(place / TABLE),
        candidate_colour=CANDIDATE,
        version=__version__,
        **words,
    )
