"""Whether a model predicts what its config says, judged on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from palate.models.contracts import Media, PredictionKind
from palate.paths import target


def check_prediction_kind(policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0) -> None:
    """On a trained base, the stated kind of prediction must fit data best of all kinds. Raises ValueError if not.

    A config that says epsilon over weights trained for v makes noise of every sample, and training would go on.
    """
    errors = prediction_kind_errors(policy, media, prompts, seed=seed)
    best = min(errors, key=lambda kind: errors[kind])
    if best != policy.path.kind:
        listed = ", ".join(f"{kind} {error:.3g}" for kind, error in sorted(errors.items(), key=lambda e: e[1]))
        raise ValueError(
            f"the model's config says it predicts {policy.path.kind}, but its outputs on data are nearest to {best} "
            f"(mean squared errors: {listed}): correct prediction_type in scheduler/scheduler_config.json"
        )


@torch.no_grad()
def prediction_kind_errors(
    policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0
) -> dict[PredictionKind, float]:
    """Mean squared error of the network's output against what each kind of prediction would have been."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[PredictionKind, float] = dict.fromkeys(get_args(PredictionKind), 0.0)
    for rows in _alike(policy, prompts):
        x0, cond = policy.encode([media[row] for row in rows]), policy.condition([prompts[row] for row in rows])
        for _ in range(8):
            noise = torch.randn(x0.shape, generator=generator).to(x0.device)
            t = policy.path.sample_t(len(x0), generator).to(x0.device)
            output = policy.predict(policy.path.add_noise(x0, noise, t), t, cond)
            for kind in sums:
                error = (output - target(policy.path, x0, noise, t, kind)).square().flatten(1).mean(1)
                sums[kind] += float(error.sum())
    return {kind: total / (8 * len(prompts)) for kind, total in sums.items()}


def _alike(policy: Any, prompts: Sequence[str], most: int = 4) -> Iterator[list[int]]:
    """Rows whose conditions stack, at most so many at a time: a look at a model must not need more memory than it."""
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(policy.condition([prompt]).key, []).append(row)
    for rows in groups.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
