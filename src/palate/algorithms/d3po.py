"""Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model (D3PO; Yang et al., arXiv:2311.13231),
equation 14 and algorithm 1.

A sample preferred as a whole is taken to be better at every denoising step, so each step has its own loss:

    L_i = -E log sigma( beta * h_w * l_w + beta * h_l * l_l ),    l = log clamp( p_theta(x_prev | x_t, c) / p_ref(...) )

h = (1, -1) for a preferred pair. The log-densities are MEANS over latent dimensions and the ratio is clamped to
1 +- eps, as in the authors' code; within the clamp the update is close to a policy gradient with advantages of +-1,
and beta only scales it. Guidance is part of the policy.

Departures from the authors' code:
1. One pass over the k candidates of a prompt at a step serves all of their pairs; there four passes serve a pair.
2. The default `reference: sampling` (a rolling reference, the paper's section 5.2) needs no reference pass at all: the
   sampling policy's log-densities were stored. The authors' reward-model script keeps the base fixed instead:
   `reference: base`.
3. `reduce: sum` and a PPO-like one-sided clamp are not offered; `clip: null` turns the clamp off.
4. The last step of a schedule that ends without noise has no density and is left out.
5. The steps of all pairs of a round are shuffled together into optimiser steps of `batch_size` transitions; there an
   update takes all T steps of its pairs.
6. Ties and incomparable candidates are left out of the mean; there they count in its denominator, with a loss of ln 2
   that has no gradient, so that an update is the smaller the more of them there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from palate import likelihood, losses, metrics, sampling
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, Rollout, State, TransitionBatch
from palate.prompts import rows_by_prompt


class Config(Strict):
    """Defaults are the paper's (table 2) and the authors' code's."""

    beta: float = Field(0.1, gt=0, description="Multiplies log ratios of MEAN log-densities.")
    clip: float | None = Field(0.1, gt=0, lt=1, description="Half-width of the ratio's clamp; null for none.")
    pairs: Literal["all", "best_worst"] = Field("all", description="Which of a prompt's k candidates meet.")
    reference: Literal["sampling", "base"] = Field("sampling", description="Rolling with the rounds, or fixed.")
    shared_noise: bool = Field(True, description="Whether a prompt's candidates start from one x_T.")
    rewards: list[str] = Field(default_factory=list, description="Dimensions that are compared; empty: all.")
    compare: Literal["pareto", "sum"] = Field("pareto", description="Several dimensions by dominance, or added up.")


NEEDS = Needs(source="online", reference="sampling", k=None, start_loss=math.log(2))


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps."""
    return State()


def labels(scores: Tensor) -> Tensor:
    """h [k, k] of scores [k, D]: 1 where row dominates column (no worse anywhere, better somewhere), -1 the reverse,
    0 for ties, incomparable candidates and unknown scores."""
    a, b = scores[:, None], scores[None]
    known = torch.isfinite(scores).all(1)
    wins = ((a >= b).all(-1) & (a > b).any(-1)).float()
    return (wins - wins.T) * (known[:, None] & known[None])


def best_and_worst(h: Tensor) -> Tensor:
    """Rows [2] of the candidate that wins most and the one that loses most, by h [k, k]."""
    balance = h.sum(1)
    return torch.stack([balance.argmax(), balance.argmin()])


def grouped(prompts: list[str]) -> list[list[int]]:
    """Rows of each prompt. Raises ValueError unless every prompt has the same number of candidates, two at least."""
    groups = rows_by_prompt(prompts)
    sizes = {len(rows) for rows in groups.values()}
    if len(sizes) != 1 or sizes == {1}:
        raise ValueError(f"a round must sample each of its prompts equally often, twice at least; got {sorted(sizes)}")
    return list(groups.values())


def prepare(rollout: Rollout, feedback: Mapping[str, Tensor], state: State, config: Config) -> TransitionBatch:
    """For each prompt with a decided pair, its candidates at every step with noise, and their labels h."""
    names = config.rewards or sorted(feedback)
    scores = torch.stack([torch.as_tensor(feedback[name]).double() for name in names], dim=1)
    if config.compare == "sum":
        scores = scores.sum(1, keepdim=True)
    candidate = torch.tensor(grouped(rollout.prompts))
    h = torch.stack([labels(scores[rows]) for rows in candidate])
    if config.pairs == "best_worst":
        pick = torch.stack([best_and_worst(signs) for signs in h])
        candidate = candidate.gather(1, pick)
        h = torch.stack([signs[rows][:, rows] for signs, rows in zip(h, pick, strict=True)])
    decided = h.flatten(1).any(1).nonzero().flatten()
    group, step_index = sampling.transitions_of(rollout, decided)
    return sampling.transition_batch(rollout, candidate[group], step_index, h[group].float())


def step(
    policy: Denoiser,
    reference: Denoiser | None,
    batch: TransitionBatch,
    draw: Draw | None,
    state: State,
    config: Config,
) -> LossOutput:
    """Mean over the decided pairs of N groups at one step each. `reference` None is the sampling policy."""
    logps, ref_logps = likelihood.transition(policy, batch), batch.logps
    if reference is not None:
        with torch.no_grad():
            ref_logps = likelihood.transition(reference, batch)
    log_ratio = logps - ref_logps

    i, j = torch.tensor(list(combinations(range(log_ratio.shape[1]), 2))).T
    h = batch.signal[:, i, j].flatten()
    pair_ratio = torch.stack([log_ratio[:, i].flatten(), log_ratio[:, j].flatten()], dim=1)
    pair_weight = batch.weight[:, None].expand(-1, len(i)).flatten() * h.abs()
    loss = losses.ratio_clamped_preference(pair_ratio, torch.stack([h, -h], dim=1), config.beta, config.clip)

    prefer = torch.where(batch.signal == 0, torch.nan, (batch.signal + 1) / 2)
    clipped = torch.zeros_like(log_ratio) if config.clip is None else (log_ratio.exp() - 1).abs() > config.clip
    return LossOutput(
        loss_sum=(loss * pair_weight).sum(),
        weight=pair_weight.sum(),
        metrics=metrics.preference(config.beta * log_ratio, prefer)
        | {"clip_fraction": metrics.mean(clipped), "kl": metrics.kl(log_ratio)},
    )
