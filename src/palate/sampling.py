"""Media and rollouts from any policy, each sample from its own seed.

A sample is keyed by (seed, id): it comes out the same alone or in any batch (to rounding), in any order, on any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palate import randomness, transitions
from palate.models.contracts import Condition, Media, Rollout, TransitionBatch

Progress = Callable[[int], None]  # called with the number of samples just finished


def guidance(scale: float | None) -> float | None:
    """A guidance scale as a policy takes it: exactly 1 is guidance off, None."""
    return None if scale == 1.0 else scale


@torch.no_grad()
def sample(
    policy: Any,
    prompts: Sequence[str],
    ids: Sequence[str],
    *,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float | None,
    eta: float = 0.0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Media]:
    """One medium a prompt, by the pipeline's own call. ids name the samples and, with the seed, fix their noise.

    The same (seed, id, prompt) under two policies starts from the same noise and sees the same noise on the way: a
    paired comparison.
    """
    made: dict[int, Media] = {}
    for rows in batches(policy, prompts, batch_size, guided=guidance(guidance_scale) is not None):
        names = [ids[row] for row in rows]
        media, _ = policy.generate(
            [prompts[row] for row in rows],
            randomness.generators(seed, names, "x_T"),
            step_generators=randomness.generators(seed, names, "steps"),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance(guidance_scale),
            eta=eta,
        )
        made |= dict(zip(rows, media, strict=True))
        if progress:
            progress(len(rows))
    return [made[row] for row in range(len(prompts))]


def batches(policy: Any, prompts: Sequence[str], size: int, *, guided: bool) -> list[list[int]]:
    """Rows to be sampled together, at most `size`: any, where the model pads prompts to one length; else those of one
    length, so that no sample depends on how long its neighbours' prompts are."""
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        key = None if getattr(policy, "pads", True) else policy.condition([prompt], guided=guided).key
        groups.setdefault(key, []).append(row)
    return [rows[start : start + size] for rows in groups.values() for start in range(0, len(rows), size)]


@torch.no_grad()
def rollout(
    policy: Any,
    prompts: Sequence[str],
    ids: Sequence[str],
    *,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float | None,
    eta: float = 1.0,
    batch_size: int = 32,
    shared_noise: bool = False,
    progress: Progress | None = None,
) -> Rollout:
    """Samples with their stored denoising trajectories and the log-densities of every step under the policy.

    shared_noise: candidates of one prompt start from the same x_T (and part by the noise of the steps).
    Raises ValueError for eta = 0, which has no log-densities.
    """
    if eta <= 0:
        raise ValueError("eta = 0 is a deterministic sampler and has no log-probabilities: set eta > 0 to roll out")
    parts: list[tuple[list[Media], Any]] = []
    order: list[int] = []
    for rows in batches(policy, prompts, batch_size, guided=guidance(guidance_scale) is not None):
        names, asked = [ids[row] for row in rows], [prompts[row] for row in rows]
        parts.append(
            policy.generate(
                asked,
                randomness.generators(seed, asked if shared_noise else names, "x_T"),
                step_generators=randomness.generators(seed, names, "steps"),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance(guidance_scale),
                eta=eta,
            )
        )
        order += rows
        if progress:
            progress(len(rows))
    first, place = parts[0][1], torch.tensor(order).argsort()
    cond = Condition.cat([record.cond for _, record in parts])
    media = [medium for some, _ in parts for medium in some]
    return Rollout(
        ids=list(ids),
        prompts=list(prompts),
        x=_ordered([record.x for _, record in parts], place),
        t=first.t,
        logps=_ordered([record.logps for _, record in parts], place),
        std=first.std,
        cond=cond if order == list(range(len(ids))) else cond[place],
        media=[media[row] for row in place.tolist()],
        guidance_scale=guidance(guidance_scale),
        kernel=first.kernel,
    )


def _ordered(parts: list[Tensor], place: Tensor) -> Tensor:
    rows = torch.cat(parts)
    return rows[place.to(rows.device)]


def usable(made: Rollout, feedback: Mapping[str, Any]) -> tuple[Rollout, dict[str, Tensor], int]:
    """The rollout and its feedback with samples that went wrong made harmless, and how many there were.

    A sample whose trajectory, log-density or score is not finite keeps its place, with zeros for numbers and NaN for
    every score, so that no algorithm trains on it and no sum is spoilt by it.
    """
    scores = {name: torch.as_tensor(values, dtype=torch.double) for name, values in feedback.items()}
    moving = transitions.has_likelihood(made.std)
    good = made.x.flatten(1).isfinite().all(1) & made.logps[:, moving].isfinite().all(1)
    for values in scores.values():
        good = good & values.isfinite()
    scores = {name: values.masked_fill(~good, torch.nan) for name, values in scores.items()}
    if good.all():
        return made, scores, 0
    x = torch.where(good.view(-1, *[1] * (made.x.dim() - 1)), made.x, torch.zeros_like(made.x))
    logps = torch.where(good[:, None], made.logps, torch.zeros_like(made.logps))
    return replace(made, x=x, logps=logps), scores, int((~good).sum())


def transitions_of(made: Rollout, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Every (group, step) with a density: two tensors [N]. Steps without noise, often the last, are left out."""
    steps = transitions.has_likelihood(made.std).nonzero().flatten()
    group, step = torch.meshgrid(groups, steps, indexing="ij")
    return group.flatten(), step.flatten()


def transition_batch(made: Rollout, candidate: Tensor, step: Tensor, signal: Tensor) -> TransitionBatch:
    """Rows (candidate [N, K], step [N], signal [N, ...]) over a rollout's trajectories, each of weight 1."""
    return TransitionBatch(
        x=made.x,
        times=made.t,
        old_logps=made.logps,
        cond=made.cond,
        candidate=candidate,
        step=step,
        signal=signal,
        weight=torch.ones(len(step)),
        kernel=made.kernel,
        guidance_scale=made.guidance_scale,
    )
