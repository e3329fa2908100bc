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

from pydantic import Field

from palate import feedback, likelihood, losses, metrics
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


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.unscored(batch, config.dimensions)


def step(
    policy: Denoiser, reference: None, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """Weighted denoising errors of all candidates with a known reward."""
    rewards = feedback.rewards(batch, config.dimensions)
    known = rewards.isfinite()
    weights = losses.reward_weights(rewards, config.temperature)

    cond = batch.cond.where(draw.drop, batch.null)
    error = -likelihood.denoising(policy, batch.x0, cond, draw)
    return LossOutput(
        loss_sum=(error * weights * batch.weight[:, None]).sum(),
        weight=(known * batch.weight[:, None]).sum(),
        metrics={"error/weighted": metrics.mean((error * weights)[known]), "reward": metrics.mean(rewards[known])},
    )
