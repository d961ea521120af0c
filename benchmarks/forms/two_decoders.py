"""One encoder with two decoders that teach each other; the first one is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.engine.peers import Peers, unwrap
from nnunet_mutual.modules.attention import Interpolation
from nnunet_mutual.modules.ema import MovingAverage
from nnunet_mutual.modules.tap import FeatureTap
from nnunet_mutual.objectives import Objective, Output, Term
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer
from nnunet_mutual.trainers.unlabelled import ask_average


class TwoDecoders(FeatureTap):
    """A stock network; in training mode the levels of a second decoder come along, in place of features."""

    def __init__(self, network: nn.Module, second: nn.Module):
        super().__init__(network, {})
        self.decoders = (network.decoder, second)  # a tuple: the second one is trained and saved as heads

    def forward(self, data: Tensor) -> Any:
        if not self.training:
            return self.network(data)
        skips = self.network.encoder(data)  # type: ignore[operator]
        first, second = (decoder(skips) for decoder in self.decoders)
        return first, dict(enumerate(second))


class TwoDecodersObjective(MeanTeacherObjective):
    """Each decoder learns the labelled samples, and unlabelled ones from the average of the other decoder.

    Args:
        second: the other decoder, which upsamples by interpolation.
        decay: of its average.
        arguments, options: of :class:`MeanTeacherObjective`.

    Source: MC-Net of Wu et al., MICCAI 2021, arXiv 2103.02911; with averages as teachers [E].
    """

    def __init__(self, second: nn.Module, decay: float, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.teaching.teachers = [(1,), (0,)]
        self.heads = second
        self.average = MovingAverage(second, decay)

    def terms(self, peer: int, outputs: Sequence[Output], step: TaughtStep) -> dict[str, Term]:
        """The sum over both decoders."""
        found = []
        for n, levels in enumerate((outputs[peer].levels, list(outputs[peer].features.values()))):
            lessons = None if step.lessons is None else [step.lessons[n]]
            own = TaughtStep(step.batch, step.progress, lessons)
            found.append(super().terms(0, [Output(levels)], own))
        first, second = found
        return {name: Term(first[name].value + second[name].value, first[name].weight) for name in first}

    def update(self, outputs: Sequence[Output], step: TaughtStep) -> None:
        """Moves the average of the second decoder."""
        self.average.update(self.heads)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {**super().state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        super().load_state_dict(state)
        self.average.load_state_dict(state["average"])


class TwoDecodersTrainer(MeanTeacherTrainer):
    """One encoder and two decoders; what is exported is the encoder with the first one, averaged."""

    def build_taught(self, teaching: Teaching, **options: float) -> TwoDecodersObjective:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        second: Any = self.networks.new().decoder
        del second.encoder  # the decoder's own reference, which would be trained along
        second.transpconvs = nn.ModuleList(Interpolation(layer) for layer in second.transpconvs).to(self.device)
        return TwoDecodersObjective(second, self.decay, self.supervised, teaching, **options)

    def build_peers(self, objectives: Sequence[Objective]) -> Peers:
        """See :meth:`MutualTrainer.build_peers`."""
        peers = super().build_peers(objectives)
        if self.stream.unlabelled:
            peers.networks[0] = TwoDecoders(unwrap(peers.networks[0]), objectives[0].heads)
        return peers

    def ask_teacher(self, teacher: int, batch: Batch) -> Tensor:
        """The second decoder's average looks at what the average of the encoder found."""
        if teacher == 0:
            return ask_average(self, 0, batch.weak)
        averaged: Any = self.peers.averages[0].network
        return self.objectives[0].average.network(averaged.encoder(batch.weak))[0]
