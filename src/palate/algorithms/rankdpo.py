"""Scalable Ranked Preference Optimization for Text-to-Image Generation (RankDPO; Karthik et al., arXiv:2410.18013),
section 3.3 and algorithm 2.

    L = -E sum_{phi_i > phi_j} D_ij log sigma( -beta (s_i - s_j) ),    s = err - err_ref
    D_ij = |2^phi_i - 2^phi_j| |1 / ln(1 + rank_i) - 1 / ln(1 + rank_j)|

over all pairs of a prompt's K candidates, with err = MEAN over latent dimensions of the squared denoising error at a
time that they share. phi in [0, 1] is how well a candidate fares among its prompt's: the share of its comparisons that
it wins, over an ensemble of scorers (Syn-Pic), strictly. Mistaking the best for the worst costs most.

`beta` has no half: 2500 is Diffusion-DPO's `beta_dpo: 5000`. The paper names neither beta nor learning rate.

Departures from the paper:
1. `normalise`: the loss is divided by the sum of the weights over the whole optimiser step, so that they are 1 on
   average and a comparison with DPO is not one of learning rates; the weights themselves average 0.1 to 0.3.
2. `shared_noise`: one noise for a prompt's candidates, as in Diffusion-DPO, which is less noisy; algorithm 2 gives each
   its own (`false`).
3. Equal phi share a rank, the mean of theirs, and are no pair.
4. `rank_source: predicted` ranks by the implicit rewards of the moment, as figure 2 and LambdaLoss have it; algorithm 2
   ranks by phi. Where these are equal, as all are at the start, phi decides.
5. Data without scores: phi is the mean of P(i over j) over the others, so that a tie counts half.
6. `weights` leaves out a factor, for ablations: `gain` alone, `discount` alone, or `none`, DPO over all pairs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from palate import likelihood, losses, metrics, paths
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, PreferenceBatch, State


class Config(Strict):
    """The paper's loss with Diffusion-DPO's beta and dropout, which it does not state."""

    beta: float = Field(2500.0, gt=0, description="Strength of the leash; multiplies MEAN errors, with no half.")
    rank_source: Literal["true", "predicted"] = Field("true", description="Ranks by phi, or by the implicit rewards.")
    weights: Literal["both", "gain", "discount", "none"] = Field("both", description="Factors of a pair's weight.")
    normalise: bool = Field(True, description="Divide by the weights' sum: they are 1 on average.")
    shared_noise: bool = Field(True, description="One noise for a prompt's candidates, or one each.")
    loss: losses.PairLoss = Field("sigmoid", description="Shape of the pair loss.")
    prompt_dropout: float = Field(0.2, ge=0, le=1, description="Share of the prompts emptied.")
    reference: Literal["base", "start"] = Field("base", description="The weights the policy is held to.")


NEEDS = Needs(source="offline", reference="frozen", k=None, start_loss=math.log(2))


def start_loss(config: Config) -> float | None:
    """Known while the policy is its reference, if the weights are normalised."""
    return losses.start_of(config.loss, config.beta) if config.normalise else None


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps. Raises ValueError for a model whose errors compare nothing at some time."""
    paths.check_times(policy.path)
    return State()


def shares(batch: PreferenceBatch) -> Tensor:
    """phi [B, K], by the scores where a row has any, else by its preferences; NaN for who was never compared."""
    from_scores = losses.win_shares(batch.scores, batch.mask)
    wins = batch.prefer.masked_fill(~(batch.mask[:, :, None] & batch.mask[:, None]), math.nan)
    own = torch.eye(wins.shape[1], dtype=torch.bool, device=wins.device)
    from_prefer = wins.masked_fill(own, math.nan).nanmean(2).to(from_scores.dtype)
    return torch.where(from_scores.isnan().all(1, keepdim=True), from_prefer, from_scores)


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    phi = shares(batch)
    if bool((losses.pair_margins(phi).nan_to_num(0.0) != 0).any()):
        return ""
    return "no candidate fares better than another; score them by several scorers, or collect more votes"


def step(
    policy: Denoiser, reference: Denoiser, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """Weighted pairs of B prompts; what the step divides by is the sum of their weights, or the number of prompts."""
    logps, ref_logps = likelihood.with_reference(policy, reference, batch, draw)
    rewards = losses.implicit_reward(logps, ref_logps, config.beta)
    phi = shares(batch)
    prefer = torch.where(losses.pair_margins(phi) > 0, 1.0, 0.0)
    prefer = prefer.masked_fill(losses.pair_margins(phi).nan_to_num(0.0) == 0, math.nan)

    predicted = rewards.detach().masked_fill(phi.isnan(), math.nan)
    rank = losses.ranks(phi) if config.rank_source == "true" else losses.ranks(predicted, phi)
    weights = losses.lambda_weights(phi, rank, config.weights).triu(1) * batch.weight[:, None, None]
    each = losses.pair_loss(losses.pair_margins(rewards), prefer, config.beta, config.loss)
    judged = batch.weight * (weights.sum((1, 2)) > 0)
    return LossOutput(
        loss_sum=(each * weights).sum(),
        weight=weights.sum() if config.normalise else judged.sum(),
        metrics=metrics.preference(rewards, prefer, batch.mask)
        | metrics.displacement(logps, ref_logps, prefer, batch.mask)
        | {"weight": (weights.sum(), (weights > 0).sum())},
    )
