"""Margin-aware Preference Optimization for Aligning Diffusion Models without Reference (MaPO; Hong et al.,
arXiv:2406.06424).

    paper  L = E err_w + (1 / beta) * -log sigma( beta [ phi(err_w) - phi(err_l) ] ),    phi(l) = l / (e^l - 1)
    code   L = E err_w + beta_mapo * -log sigma( 1000 [ phi(err_w / 2) - phi(err_l / 2) ] )

with err = MEAN over latent dimensions of the squared denoising error, at a time and a noise shared by the pair: the
chosen is learnt as in supervised fine-tuning, and told apart from the rejected, with no reference anywhere, no second
pass and no second model. phi falls from 1 at an error of 0, with a slope of -1/2.

The two forms are not one: at equal errors the margin's pull on the chosen is 1/4 of the fine-tuning's in the paper's,
whatever beta, and 12.5 times it in the official code, which in the paper's notation is beta = 500 with a weight of 0.1
instead of 1/500. `form` says which; the default is the code's, with which the released model was trained.

Departures from the official code:
1. Errors are float32 and phi is computed without cancellation; there a logit is off by up to 10 at small errors.
2. A pair is never augmented.
3. Any number of candidates K: the loss of a prompt is the mean over its decided pairs, of the chosen's error, too.
4. Ties are left out, as there; a soft label mixes both orders of the pair.
Nothing anchors the rejected's error: watch `error/rejected`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from palate import feedback, likelihood, losses, metrics, paths
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, PreferenceBatch, State

_SCALE, _SLOPE = 1000.0, 0.5  # the official code's: its number of training timesteps, and its `snr_value`


class Config(Strict):
    """Defaults are the official code's, and for the paper's form its beta for general preferences (table 4)."""

    form: Literal["code", "paper"] = Field("code", description="Which of the two losses.")
    beta_mapo: float = Field(0.1, gt=0, description="The code's form: weight of the margin; MEAN errors.")
    beta: float = Field(8.0, gt=0, description="The paper's form: slope of the margin, whose weight is 1 / beta.")
    prompt_dropout: float = Field(0.0, ge=0, le=1, description="Share of the prompts emptied.")


NEEDS = Needs(source="offline", reference="none", k=None)


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps. Raises ValueError for a model whose errors compare nothing at some time."""
    paths.check_times(policy.path)
    return State()


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.undecided(batch)


def margin_of(config: Config) -> tuple[float, float, float]:
    """Weight, scale and slope of the margin, as in `losses.mapo`."""
    return (config.beta_mapo, _SCALE, _SLOPE) if config.form == "code" else (1 / config.beta, config.beta, 1.0)


def step(
    policy: Denoiser, reference: None, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """One loss over B prompts, weighted by `batch.weight`; prompts without a decided pair weigh nothing."""
    cond = batch.cond.where(draw.drop, batch.null)
    logps = likelihood.denoising(policy, batch.x0, cond, draw)
    prefer = feedback.without_ties(batch.prefer)
    margin, scale, slope = margin_of(config)
    loss, decided = losses.mapo(logps, prefer, margin, scale, slope, batch.mask)
    weight = batch.weight * (decided > 0)
    return LossOutput(
        loss_sum=(loss * weight).sum(),
        weight=weight.sum(),
        metrics=metrics.preference(scale * losses.mapo_score(-slope * logps), prefer, batch.mask)
        | metrics.errors(logps, prefer, batch.mask),
    )
