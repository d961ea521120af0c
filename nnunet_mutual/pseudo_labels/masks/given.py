"""Pseudo labels that were made of masks of other tools, brought to the grid of a training that begins with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.restriction import vouched
from nnunet_mutual.annotation.table import table_fingerprint
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.fold import Fold
from nnunet_mutual.batches.pseudo import CSV, IDENTITY, PseudoStore
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.generate import locations
from nnunet_mutual.pseudo_labels.geometry import in_network_space
from nnunet_mutual.pseudo_labels.masks.make import STORE


@dataclass(frozen=True)
class Given:
    """The pseudo labels of other tools' masks, and those of a training that begins with them.

    Attributes:
        dataset: full name.
        window: of the configuration.
        fold: whose training cases are labelled.
        store: of the training.
        ranks: of the training; the first process brings them.
    """

    dataset: str
    window: Window
    fold: Fold
    store: PseudoStore
    ranks: Ranks

    def take(self) -> list[Decision]:
        """Copies them to where a training looks for its own, once; returns all decisions.

        Raises:
            MutualError: there are none, they are of another annotation table, or none of them is accepted.
        """
        if self.ranks.rank == 0 and not (self.store.folder / CSV).is_file():
            given = self._given()
            cases = [key for key in sorted(self.fold.training) if given.has(key)]
            if not any(decision.accepted for decision in given.decisions(cases)):
                raise MutualError(
                    f"no pseudo label in {given.folder} is accepted in a training case of this fold, with which to "
                    f"begin; show them to a reader: nnunet_mutual review {int(self.dataset[7:10])} -o review"
                )
            self.store.claim(read_object(given.folder / IDENTITY))
            for key in cases:
                if not self.store.has(key):
                    _take(self.window, self.fold, given, self.store, key)
            self.store.summarise(cases)
        self.ranks.barrier()
        return self.store.decisions(key for key in sorted(self.fold.training) if self.store.has(key))

    def require_same(self) -> None:
        """Verifies that a training that begins has the pseudo labels as they are now.

        Raises:
            MutualError: it found those of an earlier training.
        """
        if read_object(self.store.folder / IDENTITY) != read_object(self._given().folder / IDENTITY):
            raise MutualError(
                f"{self.store.folder} is of an earlier training with other masks or settings; delete that folder, then "
                "train anew"
            )

    def _given(self) -> PseudoStore:
        raw = locate(self.dataset, need_raw=True).raw
        assert raw is not None
        given, content = PseudoStore(raw / STORE), self.window.dataset_json
        anew = f"nnunet_mutual pseudo_label {int(self.dataset[7:10])} --from FOLDER"
        if not (given.folder / CSV).is_file():
            raise MutualError(
                f'setting "pseudo_labels.given" needs masks of another tool; make them pseudo labels: {anew}'
            )
        made_by = read_object(given.folder / IDENTITY)
        table = hashlib.sha256(table_fingerprint(content).encode()).hexdigest()
        if made_by.get("table") != table or made_by.get("labels") != content["labels"]:
            raise MutualError(
                f"{given.folder} was made with another annotation table or other labels (as before accept); make it "
                f"anew: {anew}"
            )
        return given


def _take(window: Window, fold: Fold, given: PseudoStore, store: PseudoStore, key: str) -> None:
    _, seg, _, properties = load_case(fold.open([key]), key)
    case, table = fold.table.case(key), fold.table
    codes = PseudoCodes.from_table(table)
    drawn = vouched(np.asarray(seg[0]), table, case)
    on_image = codes.decided_values(np.asarray(given.codes(key)[:])[0])
    if on_image.shape != tuple(properties["shape_before_cropping"][axis] for axis in window.plans.transpose_backward):
        raise MutualError(
            f"the image of case {key} has changed since {given.folder} was made; make it anew: nnunet_mutual "
            "pseudo_label"
        )
    decided = in_network_space(window.plans, on_image, properties, drawn.shape)
    decided = np.where(codes.fits(drawn, decided, table, case), decided, UNDECIDED).astype(np.int16)
    decisions = given.decisions([key])
    found = locations(table, window.labels, case, np.where(decided == UNDECIDED, drawn, decided), decisions)
    store.write(key, codes.encode(drawn, decided)[None], found, decisions, like=seg)
