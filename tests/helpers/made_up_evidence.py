"""Evidence of benchmarks that was made up, and where benchmarks lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def length(updates: int, mean: float | None, spread: float | None) -> dict[str, Any]:
    return {"updates": updates, "mean": mean, "range": spread}


def evidence(arm: str, seed: int, dice: float, updates: int = 500, networks: int = 1) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "updates_of_each_network": updates,
        "total_updates": updates * networks,
        "networks_deployed": networks,
        "training_seconds": [60.0] * networks,
        "schedule": {"updates": updates, "rate": 0.01},
        "dice": {
            "a": {"Anterior": dice + 0.1, "Posterior": dice - 0.1},
            "b": {"Anterior": None, "Posterior": dice - 0.1},
        },
    }
