"""Training Diffusion Models with Reinforcement Learning (DDPO-IS; Black et al., arXiv:2305.13301), equation 6.

    L = -E_{c, k, step} min( rho A, clip(rho, 1 - eps, 1 + eps) A ),    rho = p_theta(x_prev | x_t, c) / p_old(...)

The transition log-densities are MEANS over latent dimensions, which is why eps is as small as 1e-4. Advantages are
rewards standardised per prompt over the last `buffer_size` samples of that prompt once there are `min_count`, else
over the whole round; where all of these are equal it is exactly 0; clipped to `advantage_clip`. Guidance is part of
the policy: rows are guided as they were sampled.

It needs the true reward, a number; D3PO gets by with comparisons. That makes it the yardstick of D3PO's claim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from palate import likelihood, losses, metrics, sampling
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, Rollout, State, TransitionBatch


class Config(Strict):
    """Defaults are those of the authors' code."""

    clip_range: float = Field(1e-4, gt=0, description="Half-width of the ratio's clip; MEAN log-densities.")
    advantage_clip: float = Field(5.0, gt=0, description="Largest advantage, in standard deviations.")
    buffer_size: int = Field(16, gt=0, description="Rewards remembered of each prompt.")
    min_count: int = Field(16, gt=0, description="Rewards of a prompt before its own statistics are used.")
    rewards: Mapping[str, float] = Field(default_factory=dict, description="Weight by dimension; empty adds all up.")


NEEDS = Needs(source="online", reference="sampling", k=1)


def init(policy: Denoiser, config: Config) -> State:
    """The rewards seen of each prompt."""
    return State(values={"rewards": {}})


def total(feedback: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """One reward [n] from `{dimension: [n]}`."""
    names = weights or dict.fromkeys(feedback, 1.0)
    return torch.stack([weight * torch.as_tensor(feedback[name]).double() for name, weight in names.items()]).sum(0)


def advantages(rewards: Tensor, prompts: list[str], history: dict[str, list[float]], config: Config) -> Tensor:
    """[n] float64, updating `history`; a reward that is not finite gets 0 and is not remembered."""
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        if reward - reward == 0:  # finite
            history[prompt] = [*history.get(prompt, []), reward][-config.buffer_size :]
    advantage = losses.standardised(rewards, rewards)
    for prompt in set(prompts):
        seen = torch.tensor(history.get(prompt, []), dtype=torch.double)
        if len(seen) >= config.min_count:
            rows = [row for row, name in enumerate(prompts) if name == prompt]
            advantage[rows] = losses.standardised(rewards[rows], seen)
    return advantage.clamp(-config.advantage_clip, config.advantage_clip)


def prepare(rollout: Rollout, feedback: Mapping[str, Tensor], state: State, config: Config) -> TransitionBatch:
    """Every transition of every sample with its sample's advantage; zero advantages are left out."""
    rewards = total(feedback, config.rewards)
    advantage = advantages(rewards, rollout.prompts, state.values["rewards"], config).float()
    candidate, step_index = sampling.transitions_of(rollout, advantage.nonzero().flatten())
    return sampling.transition_batch(rollout, candidate[:, None], step_index, advantage[candidate][:, None])


def step(
    policy: Denoiser, reference: None, batch: TransitionBatch, draw: Draw | None, state: State, config: Config
) -> LossOutput:
    """The clipped surrogate over N transitions, against the sampling policy's stored log-densities."""
    log_ratio = likelihood.transition(policy, batch) - batch.logps
    loss, clipped = losses.clipped_surrogate(log_ratio, batch.signal, config.clip_range)
    return LossOutput(
        loss_sum=(loss * batch.weight[:, None]).sum(),
        weight=batch.weight.sum(),
        metrics={
            "clip_fraction": metrics.mean(clipped),
            "kl": metrics.kl(log_ratio),
            "ratio": metrics.mean(log_ratio.exp()),
        },
    )
