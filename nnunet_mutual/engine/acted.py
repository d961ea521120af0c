"""What of a method is at work in a training: its trainer says it once, and log, report and model card repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.streams import Stream
from nnunet_mutual.errors import MutualError

KEY = "acted"  # of the state in checkpoints
PARTIAL = "PartialTrainer"  # whose supervision every trainer has


@dataclass(frozen=True)
class Acted:
    """What of a method is at work.

    Attributes:
        trained: what was trained on what, a sentence.
        methods: trainers whose methods were at work; none where stock nnU-Net does the same.
        unlabelled: images without any drawing that were learnt from.
        idle: why the trainer's own method did nothing, and what to do about it; empty if some of it was at work.
    """

    trained: str
    methods: tuple[str, ...] = ()
    unlabelled: int = 0
    idle: str = ""

    def as_state(self) -> dict[str, Any]:
        """Returns builtins for a checkpoint."""
        return {**asdict(self), "methods": list(self.methods)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Acted | None:
        """Reads the state of a checkpoint; None of one that was written before it held this.

        Raises:
            MutualError: the entry is of another shape.
        """
        found = state.get(KEY)
        if found is None:
            return None
        try:
            acted = cls(**{**found, "methods": (*found["methods"],)})
            texts = (acted.trained, acted.idle, *acted.methods)
            if not all(isinstance(text, str) for text in texts) or type(acted.unlabelled) is not int:
                raise TypeError
            return acted
        except (TypeError, KeyError):
            raise MutualError(f'"{KEY}" in the checkpoint is of another form; take an unchanged checkpoint') from None


def of_stream(
    trainer: str, table: AnnotationTable, training: Sequence[str], stream: Stream, networks: int, averaged: bool = False
) -> Acted:
    """Returns what is at work in a training whose method needs what its stream holds and no more.

    Args:
        trainer: its name.
        table: who drew what.
        training: cases of the fold.
        stream: the data.
        networks: that learn.
        averaged: whether moving averages of their weights are validated and deployed.
    """
    labelled = [case for case in map(table.case, training) if case.drawn]
    incomplete = sum(case.annotated != frozenset(table.labels) for case in labelled)
    methods = (PARTIAL,) if incomplete else ()
    number = len(stream.unlabelled_keys)
    drawn = f"{incomplete} of which leave labels open" if incomplete else "which annotate every label"
    cases = f"{'one network' if networks == 1 else f'{networks} networks'} on {len(labelled)} cases, {drawn}"
    if stream.idle:
        like = (PARTIAL if incomplete else "stock nnU-Net") + (", with averaged weights" if averaged else "")
        alone = "" if networks == 1 else "; they did not learn from each other"
        idle = f"{trainer} had nothing to be mutual about and trained as {like}: {stream.idle}"
        return Acted(f"{cases}, as by {like}{alone}", methods, idle=idle)
    own = () if trainer == PARTIAL else (trainer,)
    more = "" if own or incomplete else ", as by stock nnU-Net"
    if number or stream.again:
        more = f", and on {number} unlabelled images" if number else ", seen a second time for the loss of the method"
    return Acted(cases + more, (*methods, *own), number)


def in_stages(
    supervised: Acted, trainer: str, decisions: Sequence[Decision] | None, *, networks: int, asked: bool
) -> Acted:
    """Returns what is at work in a training of two stages around pseudo labels.

    Args:
        supervised: what is at work without pseudo labels and other networks.
        trainer: its name.
        decisions: about pseudo labels; None before they are made, none where there is nothing to decide.
        networks: that learn from each other in a stage; 1 where none does.
        asked: whether the settings ask for several.
    """
    methods = tuple(name for name in supervised.methods if name != trainer)
    if networks > 1:
        methods = (*methods, trainer)
    teach = "the networks learn from each other" if networks > 1 else "no networks learn from each other"
    if decisions is None:
        return replace(supervised, methods=methods, trained=f"{supervised.trained}; pseudo labels are not made yet")
    accepted = sum(one.accepted for one in decisions)
    like = PARTIAL if methods else "stock nnU-Net"
    if not decisions:
        idle = (
            f"{trainer} had nothing to be mutual about and trained as {like}: every case annotates every label; train "
            "nnUNetTrainer, or put further images into imagesUn and train MeanTeacherTrainer"
        )
        return replace(supervised, methods=methods, idle=idle)
    trained = f"{supervised.trained}; {accepted} of {len(decisions)} pseudo labels were learnt from; {teach}"
    idle = ""
    if not accepted:
        idle = (
            f"None of {len(decisions)} pseudo labels was accepted, so the second stage learnt what the first one had "
            "learnt: look at them (nnunet_mutual review), accept what is right, and train anew, longer if they are poor"
        )
    elif asked and networks == 1:
        idle = (
            f"{trainer} was asked for several networks and had one: a single annotated set covers all labels, so there "
            "are no groups to learn from each other"
        )
    return replace(supervised, trained=trained, methods=methods, idle=idle)
