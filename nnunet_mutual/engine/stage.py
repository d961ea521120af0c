"""What is learnt for some epochs, the networks that learn it, and the one training step of this package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.engine.checkpoints import plain
from nnunet_mutual.engine.log import EpochTerms, FiniteGuard, Forecast
from nnunet_mutual.engine.parts import part
from nnunet_mutual.engine.peers import Autocast, Peers
from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective, Output, Progress, Step, ask_all, collect_terms

SKIPPED_STEPS_TOLERATED = 10


class Stage:
    """Objectives, the networks that learn them, and what is watched of every step.

    Args:
        objectives: what is learnt.
        peers: the networks.
        device: of the networks.
        autocast: makes the context of mixed precision.
        settle: is told before every step what each network is going to see; see
            :func:`~nnunet_mutual.engine.networks.settle`.
        steps: of the stage that are left.

    Raises:
        MutualError: two objectives give a term the same name.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        peers: Peers,
        *,
        device: torch.device,
        autocast: Autocast,
        settle: Callable[[Peers, list[Tensor]], None],
        steps: int,
    ):
        self.objectives = list(objectives)
        self.peers = peers
        self.device = device
        self.autocast = autocast
        self.settle = settle
        self.forecast = Forecast(steps)
        names = [name for objective in objectives for name in objective.term_names]
        if len(set(names)) != len(names):
            raise MutualError(f"two objectives give a term the same name: {names}; rename one")
        number = len(peers.networks)
        self.term_names = names if number == 1 else [f"{name}[{n}]" for n in range(number) for name in names]
        gradients = [f"gradient of network {n}" for n in range(number)]
        heads = [] if peers.heads is None else ["gradient of the heads"]
        tolerated = 0 if peers.scaler is None else SKIPPED_STEPS_TOLERATED
        self.guard = FiniteGuard([*self.term_names, *gradients, *heads, "sum of all terms"], tolerated)

    def step(self, batch: Batch, progress: Progress, see: Callable[[int, Tensor], Tensor], place: str) -> dict:
        """One forward, one backward, one optimiser step of all networks on all objectives.

        Args:
            batch: on the device.
            progress: where the training is.
            see: what a network sees of images.
            place: epoch and iteration, for a sentence.

        Returns:
            The loss, the values of all terms and their weights, on the host.

        Raises:
            MutualError: the loss became non-finite.
        """
        peers, number = self.peers, len(self.peers.networks)
        rows = torch.zeros(number, len(self.term_names) // number + 1, device=self.device)  # terms and their sum
        weights = np.full((number, rows.shape[1] - 1), np.nan, np.float32)  # of networks that are trained elsewhere
        recorded: list[Output] = []
        steps: list[Step] = []
        peers.zero_grad()
        with part("losses"), self.autocast():
            said = ask_all(self.objectives if peers.own else [], batch, progress)
        with part("views"):
            seen = [see(n, batch.seen_by(n)) for n in range(number)]
        self.settle(peers, seen)
        for peer, outputs, recorded in peers.passes(seen, self.autocast):
            with part("losses"), self.autocast():
                if peer == peers.own[0]:
                    steps = [objective.prepare(recorded, batch, progress, said) for objective in self.objectives]
                    torch.clear_autocast_cache()  # weights that were cast without a graph would get no gradient
                terms = collect_terms(self.objectives, peer, outputs, steps).values()
                weights[peer] = [term.weight for term in terms]
                weighted = [term.value.float() * term.weight for term in terms]
                total = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
            peers.backward(total)
            rows[peer] = torch.stack([*(term.value.detach().float() for term in terms), total.detach()])
        rows = peers.ranks.total(rows)
        with part("optimiser"):
            norms = peers.clip()
        record = torch.cat([rows[:, :-1].flatten(), norms.float(), rows[:, -1].mean(0, keepdim=True)])
        record = self._stepped(record, recorded, steps, f"{place} (cases {', '.join(batch.keys)})")
        return {
            "loss": record[-1].numpy(),
            "terms": record[: len(self.term_names)].numpy(),
            "weights": weights.ravel(),
        }

    def _stepped(self, record: Tensor, recorded: Sequence[Output], steps: Sequence[Step], place: str) -> Tensor:
        """Lets optimisers and objectives step, and returns what is logged, on the host: the step's one transfer."""
        before = self.peers.scaler is None  # a scaler skips non-finite steps by itself, so the host need not wait
        if before:
            record = _on_host(record)
            self.guard.check(record.tolist(), place)
        with part("optimiser"):
            self.peers.step()
        with part("losses"), torch.no_grad():
            for objective, step in zip(self.objectives, steps, strict=False):  # no steps, where no network runs here
                objective.update(recorded, step)
        record = _on_host(record)
        if not before:
            self.guard.check(record.tolist(), place)
        return record

    def epoch(self, outputs: list[dict], *, samples_differ: bool) -> EpochTerms:
        """Returns means of all terms over an epoch and all processes, and what the objectives report.

        Args:
            outputs: of each step, the loss, the values of all terms and, if known, their weights.
            samples_differ: whether each process has samples of its own.
        """
        collated = collate_outputs(outputs)
        columns = np.column_stack([np.asarray(collated["loss"]).reshape(-1, 1), collated["terms"]])
        if samples_differ:
            columns = np.concatenate(self.peers.ranks.gather(columns))
        # A step that the gradient scaler skipped has no loss to speak of.
        loss, *terms = (float(value) for value in np.nanmean(np.where(np.isfinite(columns), columns, np.nan), 0))
        means = np.mean(collated.get("weights", np.empty((1, 0))), 0).tolist()
        pairs = zip(self.term_names, means, strict=False)
        weights = {name: round(value, 6) for name, value in pairs if not math.isnan(value)}
        diagnostics: dict[str, float] = {}
        warnings: list[str] = []
        for objective in self.objectives:
            numbers, said = objective.diagnose()
            diagnostics.update(numbers)
            warnings += said
        return EpochTerms(loss, dict(zip(self.term_names, terms, strict=True)), weights, diagnostics, warnings)

    def collect(self) -> None:
        """Brings up to date what other processes train, before networks predict whole cases."""
        self.peers.collect()
        self.peers.ranks.remind(self.objectives)

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and builtins for a checkpoint; all processes must call it."""
        return {
            "peers": self.peers.state_dict(),
            "objectives": [plain(objective.state_dict()) for objective in self.objectives],
            "skipped_steps": self.guard.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.peers.load_state_dict(state["peers"])
        for objective, values in zip(self.objectives, state["objectives"], strict=True):
            objective.load_state_dict(values)
        self.guard.skipped = state["skipped_steps"]


def _on_host(record: Tensor) -> Tensor:
    with part("host waits"):
        return record.cpu()
