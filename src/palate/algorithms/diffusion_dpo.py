"""Diffusion Model Alignment Using Direct Preference Optimization (Wallace et al., arXiv:2311.12908), equation 14.

    L = -E_{(c, x_w, x_l), t, e} log sigma( -beta/2 * [ (err_w - err_w_ref) - (err_l - err_l_ref) ] )

with err = MEAN over latent dimensions of the squared denoising error, at a time t and a noise e shared by the pair.

`beta_dpo` follows the official code: the logit is beta_dpo/2 times the difference of MEAN errors, so the paper's
beta = 5000 for SDXL is `beta_dpo: 5000`. The research script of diffusers leaves out the half: double its value here
(2500 there is 5000 here). A small model's latents are few and its errors large: `world:shapes` wants far less.

The error is that of what the model predicts. An error of v is 1 / alpha(t)^2 times that of the noise, so that the same
beta weighs noisy times more in a v model than in an epsilon model, and those of a velocity likewise, 1 / (1 - t)^2.
`error_space: epsilon` measures all of them as errors of the noise, the paper's, which makes betas comparable.

For a student distilled to few steps (SDXL-Turbo) give those it has as `timesteps`, [249, 499, 749, 999], and
`prompt_dropout: 0`: elsewhere it was never trained.

Departures from the official code:
1. Both errors are float32; there the reference's is half precision, which jitters the logit by about 0.1 at 5000.
2. A pair is never augmented (there each picture is flipped independently of the other).
3. Any number of candidates K: the loss of a prompt is the mean over its judged pairs.
4. Ties are left out by default, as there; `ties: soft` keeps them with target 1/2.
5. A pair judged by several people keeps their share as a soft label; there each pair has one hard label.
6. Models of v, sample or velocity are trained too; there only epsilon. Where nothing is left of the data (zero terminal
   SNR) an epsilon model is refused; for Turbo the official code rescales the noise to it, here the model's own table
   stands.
7. `ipo`, `hinge`, `robust`, `label_smoothing` and `sft_weight` are later papers', not this one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from palate import feedback, likelihood, paths
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, Path, PreferenceBatch, State


class Config(feedback.PairOptions):
    """Defaults are the official code's for SDXL."""

    beta_dpo: feedback.Beta = Field(5000.0, description="The leash; half of it multiplies MEAN errors; or auto.")
    error_space: Literal["prediction", "epsilon"] = Field("prediction", description="What the errors are errors of.")
    timesteps: list[int] | None = Field(None, min_length=1, description="Only these training steps; null for all.")
    prompt_dropout: float = Field(0.2, ge=0, le=1, description="Share of the prompts emptied, for both of a pair.")


NEEDS = Needs(source="offline", reference="frozen", k=None, start_loss=math.log(2))


def start_loss(config: Config) -> float | None:
    """Known while the policy is its reference, unless an anchor is added."""
    return feedback.start_loss(config, config.beta_dpo)


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps. Raises ValueError for timesteps that the model does not have or learn from."""
    paths.check_times(policy.path, config.timesteps)
    return State()


def sample_t(path: Path, config: Config, n: int, generator: torch.Generator) -> Tensor:
    """Uniform over all training times, or over the student's."""
    return path.sample_t(n, generator) if config.timesteps is None else paths.among(config.timesteps, n, generator)


def observe(metrics: Mapping[str, float], state: State, config: Config) -> None:
    """Brings an automatic beta up to date."""
    feedback.observe(metrics, state, config, config.beta_dpo)


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.undecided(batch)


def step(
    policy: Denoiser, reference: Denoiser, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """One loss over B prompts, weighted by `batch.weight`; prompts without a judged pair weigh nothing."""
    logps, ref_logps = likelihood.with_reference(policy, reference, batch, draw)
    scale = paths.noise_error_weight(policy.path, draw.t) if config.error_space == "epsilon" else None
    beta = feedback.beta_of(config.beta_dpo, state)
    return feedback.pair_output(logps, ref_logps, batch, beta / 2, config, scale)
