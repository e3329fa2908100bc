"""Improving Video Generation with Human Feedback (VideoAlign; Liu et al., arXiv:2501.13918), section 4.2: Flow-RWR.

    L = E_{(c, x), t, e} w(x) err(x) / E w,    w = min( exp((r(x) - m) / temperature), max_weight )

with err = MEAN over latent dimensions of the squared error of the velocity, at a uniform time t. The reward r is a
weighted sum of the stored scores' dimensions and m its mean over the data, which only the cap depends on. No reference.

Departures from the paper, whose weight is exp(r):
1. Weights are divided by their sum over the whole optimiser step, over all micro-batches and processes, so that the
   learning rate means what it means for `sft`, and a constant added to all rewards changes nothing.
2. A cap, so that no sample takes over a step.
3. `standardise`: each dimension less its mean over its deviation in the data before they are added up; the paper's
   scores are standardised by its reward model. It undoes weights that scores were multiplied by before, as those of
   `data.relabel`: state them in `dimensions`.
4. Dimensions are added up, where the paper takes the mean of three: its temperature of 1 is 3 here.
Weights are not normalised within a prompt, unlike `rwr`: the paper's videos come one a prompt, and there a prompt's
own mean would leave nothing to learn. So easy prompts weigh more than hard ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from palate import feedback, likelihood, losses, metrics, paths
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, Path, PreferenceBatch, State


class Config(Strict):
    temperature: float = Field(1.0, gt=0, description="In units of the reward; small is greedy.")
    max_weight: float = Field(20.0, gt=0, description="The cap; 1 is the weight of a mean reward.")
    standardise: bool = Field(True, description="Measure each dimension in its own deviations.")
    dimensions: Mapping[int, float] | None = Field(None, description="Weight by score column; None adds all up.")
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="Share of the prompts emptied.")


NEEDS = Needs(source="offline", reference="none", k=None)


def init(policy: Denoiser, config: Config) -> State:
    """Scores are taken as they are until `measure` has seen the data. Raises ValueError for another kind of model."""
    paths.check_velocity(policy.path, "flow_rwr", "rwr")
    return State(values={"mean": [], "std": [], "reward": 0.0})


def sample_t(path: Path, config: Config, n: int, generator: torch.Generator) -> Tensor:
    """Uniform, as the paper has it, whatever the model's own density."""
    return paths.uniform(n, generator)


def measure(
    policy: Denoiser, reference: None, micros: Iterable[tuple[PreferenceBatch, Draw]], state: State, config: Config
) -> None:
    """Of rows of the data: each score's mean and deviation [D], and the mean reward, into the state."""
    batches = [batch for batch, _ in micros]
    if config.standardise:
        scores = torch.cat([batch.scores[batch.mask].cpu() for batch in batches]).double()
        known = [column[column.isfinite()] for column in scores.T]
        state.values["mean"] = [float(column.mean()) if len(column) else 0.0 for column in known]
        state.values["std"] = [float(column.std(correction=0)) if len(column) else 0.0 for column in known]
    seen = torch.cat([rewards(batch, state, config).flatten() for batch in batches])
    state.values["reward"] = float(seen.nanmean().nan_to_num(0.0))


def rewards(batch: PreferenceBatch, state: State, config: Config) -> Tensor:
    """[B, K], NaN for a candidate without one or that does not exist. A dimension that never varies says nothing."""
    scores = losses.full(batch.scores)
    if state.values["std"]:
        mean, std = (scores.new_tensor(state.values[name]) for name in ("mean", "std"))
        scores = torch.where(std > 1e-8 * mean.abs(), (scores - mean) / std, scores - scores)
    return feedback.rewards(replace(batch, scores=scores), config.dimensions)


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.unscored(batch, config.dimensions)


def step(
    policy: Denoiser, reference: None, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """Weighted errors of all candidates with a known reward; the sum of their weights is what the step divides by."""
    reward = rewards(batch, state, config)
    known = reward.isfinite()
    ceiling = math.log(config.max_weight)
    exponent = ((reward - state.values["reward"]) / config.temperature).clamp(max=ceiling)
    weights = torch.where(known, exponent.exp(), 0.0) * batch.weight[:, None]

    cond = batch.cond.where(draw.drop, batch.null)
    error = -likelihood.denoising(policy, batch.x0, cond, draw)
    return LossOutput(
        loss_sum=(error * weights).sum(),
        weight=weights.sum(),
        metrics={
            "error/weighted": ((error.detach() * weights).sum(), weights.sum()),
            "reward": metrics.mean(reward[known]),
            "weight/capped": metrics.mean((exponent >= ceiling)[known]),
        },
    )
