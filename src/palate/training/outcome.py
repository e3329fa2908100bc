"""How a run ends: with its result, or an error that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """step: optimiser steps taken. reason: why it ended. exported: `best`, `ema` or `last`, the weights of which step,
    and where they lie. metrics: the last row written. warnings: what speaks against relying on them. loss: on held-out
    rows, of weights that are the best by it.
    """

    step: int
    reason: str
    exported: str
    exported_step: int
    folder: Path
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()
    loss: float | None = None
