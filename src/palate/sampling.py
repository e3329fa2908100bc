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
    media: list[Media] = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        out, _ = policy.generate(
            list(prompts[rows]),
            randomness.generators(seed, ids[rows], "x_T"),
            step_generators=randomness.generators(seed, ids[rows], "steps"),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance(guidance_scale),
            eta=eta,
        )
        media.extend(out)
        if progress:
            progress(len(out))
    return media


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
    Raises ValueError for eta = 0, which has no log-densities, and for prompts whose conditions do not stack.
    """
    if eta <= 0:
        raise ValueError("eta = 0 is a deterministic sampler and has no log-probabilities: set eta > 0 to roll out")
    parts: list[tuple[list[Media], Any]] = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        initial = prompts[rows] if shared_noise else ids[rows]
        parts.append(
            policy.generate(
                list(prompts[rows]),
                randomness.generators(seed, initial, "x_T"),
                step_generators=randomness.generators(seed, ids[rows], "steps"),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance(guidance_scale),
                eta=eta,
            )
        )
        _check_stacks(parts[0][1].cond, parts[-1][1].cond)  # now, not when the whole round is sampled
        if progress:
            progress(len(prompts[rows]))
    first = parts[0][1]
    return Rollout(
        ids=list(ids),
        prompts=list(prompts),
        x=torch.cat([record.x for _, record in parts]),
        t=first.t,
        logps=torch.cat([record.logps for _, record in parts]),
        std=first.std,
        cond=Condition.cat([record.cond for _, record in parts]),
        media=[medium for media, _ in parts for medium in media],
        guidance_scale=guidance(guidance_scale),
        kernel=first.kernel,
    )


def _check_stacks(first: Condition | None, other: Condition | None) -> None:
    if first is None or other is None or first.key != other.key:
        raise ValueError(
            "prompts of different lengths, which this model does not pad, cannot be trained on in one round: "
            "use prompts of one length (in the model's own tokens)"
        )


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
