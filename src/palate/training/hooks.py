"""What an algorithm may offer beside `init` and `step`, and the loop asks for where it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Path, State
from palate.training.sources import Source


def times(algorithm: Any, config: Any, path: Path) -> Callable[[int, torch.Generator], Tensor] | None:
    """The algorithm's own density of training times, `(n, generator) -> t [n]`; None for the path's."""
    own = getattr(algorithm, "sample_t", None)
    return partial(own, path, config) if own else None


def start_loss(algorithm: Any, config: Any) -> float | None:
    """The loss while the policy is its reference: by the options where they change it, else as `NEEDS` has it."""
    known: float | None = algorithm.NEEDS.start_loss
    return algorithm.start_loss(config) if hasattr(algorithm, "start_loss") else known


@torch.no_grad()
def measure(algorithm: Any, policy: Any, reference: Any, source: Source, state: State, config: Any) -> None:
    """Before the first step, the algorithm looks at some of the data, the same on every process, for its state."""
    if hasattr(algorithm, "measure") and hasattr(source, "survey"):
        algorithm.measure(policy, reference, source.survey(), state, config)


def observe(algorithm: Any, metrics: Mapping[str, float], state: State, config: Any) -> None:
    """After a step, the algorithm hears its metrics, added up over all processes, for its state."""
    if hasattr(algorithm, "observe"):
        algorithm.observe(metrics, state, config)
