"""Whether a model predicts what its config says, judged on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from palate.models.contracts import Media, PredictionKind
from palate.paths import target

SURE = 0.5  # of what there is to predict: a kind whose error is more is not seen to fit
CLEAR = 2.0  # times the best kind's error that the stated kind's must be


def check_prediction_kind(policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0) -> str:
    """On a trained base, the stated kind of prediction must fit data best of all kinds. Raises ValueError if it plainly
    does not. Returns what to warn of where that cannot be told, "" where all is well.

    A config that says epsilon over weights trained for v makes noise of every sample, and training would go on.
    Pictures unlike all that a model knows tell nothing, though: no kind fits them.
    """
    errors = prediction_kind_errors(policy, media, prompts, seed=seed)
    stated = policy.path.kind
    best = min(errors, key=lambda kind: errors[kind])
    if best == stated:
        return ""
    listed = ", ".join(f"{kind} {error:.3g}" for kind, error in sorted(errors.items(), key=lambda e: e[1]))
    if errors[best] <= SURE and errors[stated] >= CLEAR * errors[best]:
        raise ValueError(
            f"the model's config says it predicts {stated}, but its outputs on data are nearest to {best} (squared "
            f"errors as shares of what there is to predict: {listed}): correct prediction_type in "
            "scheduler/scheduler_config.json, or go without this check: model.check_kind: false"
        )
    return (
        f"whether the model predicts {stated}, as its config says, cannot be told on these pictures, which are unlike "
        f"those it was trained on (squared errors as shares of what there is to predict: {listed}); if it draws well "
        "all is right, and model.check_kind: false leaves this check out"
    )


@torch.no_grad()
def prediction_kind_errors(
    policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0
) -> dict[PredictionKind, float]:
    """Mean squared error of the network's output against what each kind of prediction would have been, as a share of
    that one's mean square: 1 is what an output of zeros has."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[PredictionKind, float] = dict.fromkeys(get_args(PredictionKind), 0.0)
    squares = dict(sums)
    for rows in _alike(policy, prompts):
        x0, cond = policy.encode([media[row] for row in rows]), policy.condition([prompts[row] for row in rows])
        for _ in range(8):
            noise = torch.randn(x0.shape, generator=generator).to(x0.device)
            t = policy.path.sample_t(len(x0), generator).to(x0.device)
            output = policy.predict(policy.path.add_noise(x0, noise, t), t, cond)
            for kind in sums:
                wanted = target(policy.path, x0, noise, t, kind)
                sums[kind] += float((output - wanted).square().flatten(1).mean(1).sum())
                squares[kind] += float(wanted.square().flatten(1).mean(1).sum())
    return {kind: total / max(squares[kind], 1e-12) for kind, total in sums.items()}


def _alike(policy: Any, prompts: Sequence[str], most: int = 4) -> Iterator[list[int]]:
    """Rows whose conditions stack, at most so many at a time: a look at a model must not need more memory than it."""
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(policy.condition([prompt]).key, []).append(row)
    for rows in groups.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
