"""Forms of learning from what was not drawn that were only tried: trainers of arms, not part of the package."""

from __future__ import annotations

from forms.agreeing import AgreeingCorrelationTrainer
from forms.calibrated import CalibratedPrototypeTrainer
from forms.debiased import DebiasedCorrelationTrainer
from forms.deep import DeepTeacherTrainer
from forms.memory import MemoryFilterTrainer, MemoryVoteTrainer
from forms.modalities import (
    ContrastedModalTrainer,
    EnsembleRelearningTrainer,
    SteepModalTrainer,
    WeightedModalTrainer,
)
from forms.one_piece import InnerPieceTrainer, OnePieceCorrelationTrainer, OnePieceTaughtTrainer, OnePieceTrainer
from forms.posed import PosedCorrelationTrainer
from forms.prototypes import PrototypeVoteTrainer
from forms.same_view import SameViewTrainer
from forms.turned import TurnedTrainer
from forms.two_decoders import TwoDecodersTrainer
from forms.unimatch import UniMatchTrainer
from forms.warm_up import WarmUpTrainer

__all__ = [
    "AgreeingCorrelationTrainer",
    "CalibratedPrototypeTrainer",
    "ContrastedModalTrainer",
    "DebiasedCorrelationTrainer",
    "DeepTeacherTrainer",
    "EnsembleRelearningTrainer",
    "InnerPieceTrainer",
    "MemoryFilterTrainer",
    "MemoryVoteTrainer",
    "OnePieceCorrelationTrainer",
    "OnePieceTaughtTrainer",
    "OnePieceTrainer",
    "PosedCorrelationTrainer",
    "PrototypeVoteTrainer",
    "SameViewTrainer",
    "SteepModalTrainer",
    "TurnedTrainer",
    "TwoDecodersTrainer",
    "UniMatchTrainer",
    "WarmUpTrainer",
    "WeightedModalTrainer",
]
