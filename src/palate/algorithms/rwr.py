"""Reward-weighted regression on scored samples: a baseline in D3PO (arXiv:2311.13231, table 1; after Lee et al.,
arXiv:2302.12192) and in DDPO (arXiv:2305.13301, section 4.1).

    L = E_{(c, x), t, e} w(x) err(x),    w = softmax_k( r / temperature ) * K over the K candidates of a prompt

err is the MEAN squared denoising error. The reward is a weighted sum of the stored scores' dimensions. Weights are
normalised within a prompt, where the papers do it over a batch or not at all: it takes out how hard the prompt is, and
a row's loss does not depend on which others it is batched with. They have mean 1, so the learning rate means what it
means for `sft`. No reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from palate import likelihood, losses, metrics
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, PreferenceBatch, State


class Config(Strict):
    temperature: float = Field(1.0, gt=0, description="In units of the reward; small is greedy.")
    dimensions: Mapping[int, float] | None = Field(None, description="Weight by score column; None adds all up.")
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="Share of the prompts emptied.")


NEEDS = Needs(source="offline", reference="none", k=None)


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps."""
    return State()


def reward(scores: Tensor, config: Config) -> Tensor:
    """[B, K] from scores [B, K, D]; NaN where any dimension that counts is unknown, or none is there at all."""
    there = range(scores.shape[-1])
    weights = dict.fromkeys(there, 1.0) if config.dimensions is None else config.dimensions
    if not weights or any(column not in there for column in weights):
        return scores.new_full(scores.shape[:-1], torch.nan)
    if config.dimensions is None:
        return scores.sum(-1)
    return sum(weight * scores[..., column] for column, weight in weights.items())  # type: ignore[return-value]


def known_reward(batch: PreferenceBatch, config: Config) -> Tensor:
    """[B, K], NaN for a candidate without one or that does not exist."""
    rewards = reward(batch.scores, config)
    return rewards.masked_fill(~(rewards.isfinite() & batch.mask), torch.nan)


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    if bool(known_reward(batch, config).isfinite().any()):
        return ""
    held = batch.scores.shape[-1]
    if config.dimensions and not all(column in range(held) for column in config.dimensions):
        return f"the data has {held} columns of scores, and algorithm.dimensions names {sorted(config.dimensions)}"
    return "no candidate has a score; store scores with the data, or use a method that learns from comparisons"


def step(
    policy: Denoiser, reference: None, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """Weighted denoising errors of all candidates with a known reward."""
    rewards = known_reward(batch, config)
    known = rewards.isfinite()
    weights = losses.reward_weights(rewards, config.temperature)

    cond = batch.cond.where(draw.drop, batch.null)
    error = -likelihood.denoising(policy, batch.x0, cond, draw)
    return LossOutput(
        loss_sum=(error * weights * batch.weight[:, None]).sum(),
        weight=(known * batch.weight[:, None]).sum(),
        metrics={"error/weighted": metrics.mean((error * weights)[known]), "reward": metrics.mean(rewards[known])},
    )
