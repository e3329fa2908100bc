"""What preference algorithms read off a batch, and the pair loss that several of them share.

Letters: B prompts, K candidates of one prompt. An algorithm of pairs adds `PairOptions` to its Config, finds its
log-likelihoods and its beta, and hands them to `pair_output`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from palate import losses, metrics
from palate.config import Strict
from palate.models.contracts import LossOutput, PreferenceBatch, State

AUTO_SPREAD = 0.3  # of the logit, over pairs and the steps watched
Beta = Annotated[float, Field(gt=0)] | Literal["auto"]


class PairOptions(Strict):
    """Options of every loss of pairs held to a reference."""

    loss: losses.PairLoss = Field("sigmoid", description="Shape of the pair loss.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of the labels believed to be flipped.")
    robust: bool = Field(False, description="Undo such flips on average (rDPO) instead of softening labels (cDPO).")
    sft_weight: float = Field(0.0, ge=0, description="Weight of the chosen's own MEAN error, an anchor; 0 for none.")
    ties: Literal["drop", "soft"] = Field("drop", description="What a label of 1/2 does.")
    reference: Literal["base", "start"] = Field("base", description="The weights the policy is held to.")
    beta_steps: int = Field(20, ge=1, description="Steps an auto beta is found in; let them outlast the warm-up.")


def start_loss(options: PairOptions, beta: Beta) -> float | None:
    """The loss while the policy is its reference; None where it depends on the model. beta: as written in a recipe."""
    if options.sft_weight or (beta == "auto" and options.loss == "ipo"):
        return None
    return losses.start_of(options.loss, 1.0 if beta == "auto" else beta / 2)


# --- an automatic beta ------------------------------------------------------------------------------------------------


def beta_of(beta: Beta, state: State) -> float:
    """The recipe's, or what it is taken to be so far.

    Ours, no paper's. What a beta does depends on how far errors move, which no one knows of a new model: one that is
    too small lets the policy run, one too large holds it fast. `auto` watches the logit's log ratios over the first
    `beta_steps` steps and makes their root mean square `AUTO_SPREAD` once multiplied; from then on it stays. Until then
    the logit is small, where beta only scales the gradient, which Adam undoes. It follows the learning rate: twice the
    rate moves errors twice as far and halves it. So it is where to begin a sweep, and held-out losses of those first
    steps are not comparable with later ones.
    """
    return float(state.values.get("beta", 1.0)) if beta == "auto" else beta


def observe(metrics: Mapping[str, float], state: State, options: PairOptions, beta: Beta) -> None:
    """After a step, whose metrics are those of all processes: brings an automatic beta up to date.

    The statistics are in the state, so that a run that is resumed finds the same one.
    """
    seen, squares = state.values.get("steps", 0), state.values.get("squares", 0.0)
    gap = metrics.get("beta/gap_squared")
    if beta != "auto" or gap is None or seen >= options.beta_steps:
        return
    state.values |= {"steps": seen + 1, "squares": squares + gap}
    if squares + gap > 0:
        state.values["beta"] = 2 * AUTO_SPREAD / math.sqrt((squares + gap) / (seen + 1))


# --- pairs ------------------------------------------------------------------------------------------------------------


def pair_output(
    logps: Tensor,
    ref_logps: Tensor,
    batch: PreferenceBatch,
    beta: float,
    options: PairOptions,
    scale: Tensor | None = None,
) -> LossOutput:
    """One loss over B prompts, weighted by `batch.weight`; prompts without a judged pair weigh nothing.

    beta: multiplies MEAN errors, so half of what a recipe calls beta.
    logps, ref_logps: [B, K], denoising likelihoods. scale: [B], a factor of beta by row, such as one of its time.
    """
    prefer = without_ties(batch.prefer) if options.ties == "drop" else batch.prefer
    scaled, ref_scaled = (logps, ref_logps) if scale is None else (logps * scale[:, None], ref_logps * scale[:, None])
    loss, judged = losses.dpo(
        scaled,
        ref_scaled,
        prefer,
        beta,
        mask=batch.mask,
        label_smoothing=options.label_smoothing,
        loss=options.loss,
        robust=options.robust,
    )
    if options.sft_weight:
        loss = loss + options.sft_weight * losses.of_chosen(-logps, prefer, batch.mask)
    weight = batch.weight * (judged > 0)
    rewards = losses.implicit_reward(scaled, ref_scaled, beta)
    unknown = losses.known_pairs(prefer, batch.mask).isnan()
    gaps = losses.pair_margins(rewards.detach() / beta).masked_fill(unknown, math.nan)
    return LossOutput(
        loss_sum=(loss * weight).sum(),
        weight=weight.sum(),
        metrics=metrics.preference(rewards, prefer, batch.mask)
        | metrics.displacement(logps, ref_logps, prefer, batch.mask)
        | {"beta/value": metrics.mean(logps.new_tensor([2 * beta])), "beta/gap_squared": metrics.mean(gaps.square())},
    )


def without_ties(prefer: Tensor) -> Tensor:
    """prefer, of any shape, with NaN for 1/2."""
    return prefer.masked_fill(prefer == 0.5, math.nan)


def undecided(batch: PreferenceBatch) -> str:
    """Why comparisons in these rows teach nothing, and the mend; empty if one does. A tie moves nothing."""
    prefer = losses.known_pairs(batch.prefer, batch.mask)
    if bool((prefer.nan_to_num(0.5) != 0.5).any()):
        return ""
    return "no pair is decided, all are ties or unknown; collect more votes, or derive preferences from scores"


def rewards(batch: PreferenceBatch, dimensions: Mapping[int, float] | None) -> Tensor:
    """The weighted sum of a candidate's scores [B, K], NaN where one is unknown or there is no such candidate.

    dimensions: weight by score column; None adds all up.
    """
    return losses.weighted_sum(batch.scores, dimensions).masked_fill(~batch.mask, math.nan)


def unscored(batch: PreferenceBatch, dimensions: Mapping[int, float] | None) -> str:
    """Why rewards teach nothing in these rows, and the mend; empty if one candidate has one."""
    if bool(rewards(batch, dimensions).isfinite().any()):
        return ""
    held = batch.scores.shape[-1]
    if dimensions and not all(column in range(held) for column in dimensions):
        return f"the data has {held} columns of scores, and algorithm.dimensions names {sorted(dimensions)}"
    return "no candidate has a score; store scores with the data, or use a method that learns from comparisons"
