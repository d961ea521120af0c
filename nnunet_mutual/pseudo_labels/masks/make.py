"""`nnunet_mutual pseudo_label --from`: masks of other tools become pseudo labels, without a training."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.restriction import vouched
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.pseudo import CSV, PseudoStore
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases
from nnunet_mutual.disk.images import read_label_map, reader_for
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.audit import summarise
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import in_voxels
from nnunet_mutual.pseudo_labels.judge import Judge, Prediction, Volumes, agreement, volumes_of
from nnunet_mutual.pseudo_labels.masks.folder import MaskFolder, open_folders
from nnunet_mutual.pseudo_labels.masks.grid import read_image
from nnunet_mutual.pseudo_labels.masks.names import read_map
from nnunet_mutual.pseudo_labels.masks.own import OwnNetwork
from nnunet_mutual.settings import parse_settings, read_settings

_FIRST = 1e-3
STORE = "pseudo_labels"  # in the raw dataset: no plans know these grids


@dataclass(frozen=True)
class _Work:
    """What masks are judged against."""

    judge: Judge
    folders: Sequence[MaskFolder]
    files: Mapping[str, CaseFiles]
    reader: BaseReaderWriter

    def open_labels(self, key: str) -> list[str]:
        """Labels that the case does not annotate and some tool knows."""
        table = self.judge.table
        known = {label for one in self.folders if key in one.places for label in one.meaning}
        return [label for label in table.labels if label in known - table.case(key).annotated]


def label_with_masks(
    dataset: str,
    folders: Sequence[str],
    *,
    said: Sequence[str],
    tools: Sequence[str],
    settings: Sequence[str],
    network: OwnNetwork | None = None,
) -> None:
    """Makes pseudo labels of the training cases of a dataset from masks of other tools.

    They are judged on the grid of the images and stored in ``pseudo_labels`` of the raw dataset, case by case, so that
    an interrupted run goes on.

    Args:
        dataset: ID or name.
        folders: of masks; with several, their agreement is measured.
        said: ``name=label``, what the tools' names mean.
        tools: who wrote the folders, in their order; may be fewer.
        settings: ``key=value`` of the filter.
        network: whose predictions are one more opinion, made on the way.

    Raises:
        MutualError: a folder, a name, a mask or the network cannot be used; names the case.
    """
    place = locate(dataset, need_raw=True)
    assert place.raw is not None
    content = read_dataset_json(place.raw)
    table = AnnotationTable.from_dataset_json(content)
    files, _ = training_cases(place.raw, content)
    table.require(files)
    reader = reader_for(content, [path for case in files.values() for path in case.images.values()])
    endings = dict.fromkeys([content["file_ending"], *({".nii.gz"} & set(reader.supported_file_endings))])
    opened = open_folders(folders, tools, read_map(said, table.labels), table, list(files), list(endings))
    chosen = read_settings(FilterSettings, parse_settings(settings), "", "of --set, for the filter of pseudo labels")
    judge = Judge(table, chosen, trusts_one=False)
    work = _Work(judge, opened, files, reader)
    wanted = [key for key in files if work.open_labels(key)]
    if not wanted:
        raise MutualError(
            f"every case that the masks are of annotates their labels ({', '.join(_labels(opened))}) already; masks "
            "serve labels that nobody drew, as the annotation table says (nnunet_mutual annotate)"
        )
    if network is not None:
        cases, names = {key: files[key] for key in wanted}, [one.tool for one in opened]
        work = replace(work, folders=[*opened, network.opinion(cases, content, table, names, _labels(opened))])
    store = PseudoStore(place.raw / STORE)
    if store.claim(_identity(work, content, wanted)):
        print(f"{store.folder} held pseudo labels of other masks or settings: made anew")
    decisions = _make(work, store, wanted)
    print(summarise(decisions))
    print(f"Every decision: {store.folder / CSV}")
    _say_next(place.number, len(files), decisions, work)


def _make(work: _Work, store: PseudoStore, wanted: Sequence[str]) -> list[Decision]:
    left = [key for key in wanted if not store.has(key)]
    if left:
        work.judge.true_volumes = _true_volumes(work)
    for key in tqdm(left, desc="masks", unit="case", leave=False):
        _label_case(work, store, key)
    decisions = store.decisions(wanted)
    if all(decision.volume_ml == 0 for decision in decisions):
        shutil.rmtree(store.folder)
        raise MutualError(
            f"no mask has a voxel where {' or '.join(_labels(work.folders))} may be: all are empty, or lie on what was "
            "drawn; look at one beside its image, and see what --map says"
        )
    return store.summarise(wanted)


def _label_case(work: _Work, store: PseudoStore, key: str) -> None:
    judge, files = work.judge, work.files[key]
    case = judge.table.case(key)
    voxels, properties = read_label_map(work.reader, files.label)
    image = read_image(next(iter(files.images.values())), work.reader, key)
    if voxels.shape != image.voxels.shape[1:]:
        raise MutualError(f"case {key}: {files.label} is not on the grid of its image; run nnunet_mutual check")
    found = _opinions(work, case, image)
    drawn = vouched(voxels, judge.table, case).astype(np.int16)
    size = float(np.prod(properties["spacing"])) / 1000
    codes, candidates, decisions = judge.judge(case, found, drawn, size, in_voxels(properties))
    store.write(key, codes[None], {}, decisions, candidates=candidates[None])


def _opinions(work: _Work, case: Case, image: Any) -> Prediction:
    """What the tools say about a case: the mean of their probabilities, and how well they agree."""
    table, open_labels = work.judge.table, work.open_labels(case.key)
    tools = [one for one in work.folders if case.key in one.places]
    said = [one.read(case.key, open_labels, image, table, work.reader) for one in tools]
    own = {label: [p[label] for p in said if label in p] for label in open_labels}
    own = {label: opinions for label, opinions in own.items() if opinions}
    mean = {label: _mean(opinions) for label, opinions in own.items()}
    agreements = {label: agreement([p > 0.5 for p in opinions]) for label, opinions in own.items()}
    names = {label: [one.tool for one, p in zip(tools, said, strict=True) if label in p] for label in own}
    conflict = None
    if not table.is_regions:
        for outer, inner in itertools.permutations(mean, 2):
            if table.ever_contains(outer, inner):  # a label map holds the inner one
                mean[outer] = np.where(mean[inner] > 0.5, 0, mean[outer]).astype(np.float32)
        conflict = np.sum([p > 0.5 for p in mean.values()], 0) > 1
    return Prediction({work.judge.channel[label]: p for label, p in mean.items()}, agreements, names, conflict)


def _mean(opinions: Sequence[np.ndarray]) -> np.ndarray:
    """Where tools are of two minds, the first folder is the likelier one: of two tools, a reader sees its masks."""
    weights = [1 + _FIRST, *[1] * (len(opinions) - 1)]
    return np.average(opinions, 0, weights).astype(np.float32)


def _true_volumes(work: _Work) -> Volumes:
    """Returns, per label, its volumes in millilitres in the cases that annotate it, zeros included."""
    table = work.judge.table
    volumes: Volumes = {label: [] for label in table.labels}
    for key, files in work.files.items():
        annotated = table.case(key).annotated & set(_labels(work.folders))
        if annotated and files.label.is_file():
            voxels, properties = read_label_map(work.reader, files.label)
            size = float(np.prod(properties["spacing"])) / 1000
            for label, volume in volumes_of(voxels, annotated, table, size).items():
                volumes[label].append(volume)
    return volumes


def _labels(folders: Sequence[MaskFolder]) -> list[str]:
    return list(dict.fromkeys(label for one in folders for label in one.meaning))


def _identity(work: _Work, content: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Returns what these pseudo labels depend on, as builtins; files of masks and cases by name, size and time."""
    digest = hashlib.sha256()
    own = [(key, file) for key in wanted for file in (*work.files[key].images.values(), work.files[key].label)]
    masks = [(key, file) for one in work.folders for key in wanted if key in one.places for file in one.files(key)]
    for key, file in ((key, file) for key, file in [*own, *masks] if file.exists()):
        state = file.stat()
        digest.update(f"{key} {file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return {
        "masks": digest.hexdigest(),
        "tools": [one.tool for one in work.folders],
        "meaning": [{label: list(names) for label, names in one.meaning.items()} for one in work.folders],
        "labels": content["labels"],
        "table": hashlib.sha256(table_fingerprint(dict(content)).encode()).hexdigest(),
        "settings": asdict(work.judge.settings),
    }


def _say_next(number: int, cases: int, decisions: Sequence[Decision], work: _Work) -> None:
    seen = len({decision.case for decision in decisions})
    tools = " and ".join(dict.fromkeys(one.tool for one in work.folders))
    print(f"{seen} of {cases} cases have masks of {tools} for labels that they do not annotate")
    alone = sum(decision.agreement is None for decision in decisions)
    if alone:
        print(
            f"{alone} of {len(decisions)} have no second opinion: only their volume and geometry were judged, and none "
            "is accepted before a reader has seen it. Agreement is measured with a second --from FOLDER, of another "
            "tool, or with a network of yours: name its training, too (CONFIGURATION FOLD -tr TRAINER)"
        )
    print("Next, to show them to a reader, whose word makes them labels to learn from:")
    print(f"  nnunet_mutual review {number} -o review")
    if any(decision.accepted for decision in decisions):
        print("MutualPartialTrainer with --set pseudo_labels.given=true learns from the accepted ones without a reader")
