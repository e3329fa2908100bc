"""Diffusion Model Alignment Using Direct Preference Optimization (Wallace et al., arXiv:2311.12908), equation 14.

    L = -E_{(c, x_w, x_l), t, e} log sigma( -beta/2 * [ (err_w - err_w_ref) - (err_l - err_l_ref) ] )

with err = MEAN over latent dimensions of the squared denoising error, at a time t and a noise e shared by the pair.

`beta_dpo` follows the official code: the logit is beta_dpo/2 times the difference of MEAN errors, so the paper's
beta = 5000 for SDXL is `beta_dpo: 5000`. The research script of diffusers leaves out the half: double its value here
(2500 there is 5000 here). A small model's latents are few and its errors large: `world:shapes` wants far less.

Departures from the official code:
1. Both errors are float32; there the reference's is half precision, which jitters the logit by about 0.1 at 5000.
2. A pair is never augmented (there each picture is flipped independently of the other).
3. Any number of candidates K: the loss of a prompt is the mean over its judged pairs.
4. Ties are left out by default, as there; `ties: soft` keeps them with target 1/2.
5. A pair judged by several people keeps their share as a soft label; there each pair has one hard label.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from palate import likelihood, losses, metrics
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, PreferenceBatch, State


class Config(Strict):
    """Defaults are the official code's for SDXL."""

    beta_dpo: float = Field(5000.0, gt=0, description="Strength of the leash; half of it multiplies MEAN errors.")
    loss: Literal["sigmoid", "hinge", "ipo"] = Field("sigmoid", description="Shape of the pair loss.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of the labels believed to be flipped.")
    prompt_dropout: float = Field(0.2, ge=0, le=1, description="Share of the prompts emptied, for both of a pair.")
    ties: Literal["drop", "soft"] = Field("drop", description="What a label of 1/2 does.")
    reference: Literal["base", "start"] = Field("base", description="The weights the policy is held to.")


NEEDS = Needs(source="offline", reference="frozen", k=None, start_loss=math.log(2))


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps."""
    return State()


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does. A tie, kept or not, moves nothing."""
    prefer = losses.known_pairs(batch.prefer, batch.mask)
    if bool((prefer.nan_to_num(0.5) != 0.5).any()):
        return ""
    return "no pair is decided, all are ties or unknown; collect more votes, or derive preferences from scores"


def step(
    policy: Denoiser, reference: Denoiser, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """One loss over B prompts, weighted by `batch.weight`; prompts without a judged pair weigh nothing."""
    logps, ref_logps = likelihood.with_reference(policy, reference, batch, draw)
    prefer = batch.prefer
    if config.ties == "drop":
        prefer = prefer.masked_fill(prefer == 0.5, math.nan)
    beta = config.beta_dpo / 2
    loss, judged = losses.dpo(
        logps, ref_logps, prefer, beta, mask=batch.mask, label_smoothing=config.label_smoothing, loss=config.loss
    )
    weight = batch.weight * (judged > 0)
    rewards = losses.implicit_reward(logps, ref_logps, beta)
    return LossOutput(
        loss_sum=(loss * weight).sum(),
        weight=weight.sum(),
        metrics=metrics.preference(rewards, prefer, batch.mask)
        | metrics.displacement(logps, ref_logps, prefer, batch.mask),
    )
