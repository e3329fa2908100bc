"""Losses of preference and reward optimisation: pure functions, tensors in, tensors out, one row at a time.

Letters: B prompts, K candidates of one prompt, N rows of any kind. Log-likelihoods enter with whatever reduction the
caller's likelihood has (diffusion and flow: MEAN over latent dimensions; tokens: SUM), and a `beta` is only meaningful
together with that reduction. Everything is float32, or float64 if the input is. Nothing is averaged over rows:
callers add up sums and divide once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palate.paths import full

_LOG_RATIO_MAX = 20.0  # exp(20) is far beyond any clip range and far from overflow


# --- preferences ------------------------------------------------------------------------------------------------------


def _mixed(wins: Tensor, loses: Tensor, prefer: Tensor) -> Tensor:
    """prefer wins + (1 - prefer) loses, of any one shape, and 0 where prefer is NaN."""
    p = prefer.to(wins.dtype).nan_to_num(0.5)
    return torch.where(prefer.isnan(), torch.zeros_like(wins), p * wins + (1 - p) * loses)


def bradley_terry(margin: Tensor, prefer: Tensor) -> Tensor:
    """-p log sigma(m) - (1 - p) log sigma(-m): the likelihood of soft labels (Bradley & Terry 1952; 2305.18290, eq. 1).

    margin: any shape, reward of the first less reward of the second, in nats. prefer: same shape, P(first preferred);
    .5 a tie, NaN unknown. Result: same shape; 0, with a gradient of 0, where prefer is NaN, whatever the margin there.
    """
    known = full(margin).masked_fill(prefer.isnan(), 0.0)  # before the sigmoid: a NaN times a gradient of 0 is NaN
    return _mixed(-logsigmoid(known), -logsigmoid(-known), prefer)


def pair_margins(rewards: Tensor) -> Tensor:
    """rewards [B, K] -> [B, K, K], entry (i, j) = reward of i less reward of j."""
    return rewards.unsqueeze(-1) - rewards.unsqueeze(-2)


def implicit_reward(logps: Tensor, ref_logps: Tensor | None, beta: float) -> Tensor:
    """beta (log policy - log reference), the reward a policy stands for up to a constant per prompt (DPO, eq. 5).

    logps, ref_logps: same shape and same reduction; None for methods without a reference. Result: that shape.
    """
    log_ratio = full(logps) if ref_logps is None else full(logps) - full(ref_logps).detach()
    return beta * log_ratio


def known_pairs(prefer: Tensor, mask: Tensor | None = None) -> Tensor:
    """prefer [B, K, K] on unordered pairs: [B, K, K], NaN on and below the diagonal and where nothing is known.

    Both triangles speak: one fills the other's gaps, and where they disagree they are averaged, so that the order of
    the candidates carries no meaning. mask: [B, K], true where a candidate exists.
    """
    mirrored = 1 - prefer.transpose(-1, -2)
    p = torch.where(prefer.isnan(), mirrored, torch.where(mirrored.isnan(), prefer, (prefer + mirrored) / 2))
    keep = torch.ones_like(p, dtype=torch.bool).triu(1)
    if mask is not None:
        keep = keep & mask.unsqueeze(-1) & mask.unsqueeze(-2)
    return p.masked_fill(~keep, math.nan)


def dpo(
    logps: Tensor,
    ref_logps: Tensor | None,
    prefer: Tensor,
    beta: float,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation over all pairs of K candidates -> loss [B], number of known pairs [B] (float).

    logps, ref_logps: [B, K]. prefer: [B, K, K]. mask: [B, K]. With m = beta ((lp_i - ref_i) - (lp_j - ref_j)) the loss
    is the mean over a prompt's known unordered pairs, 0 for a prompt that has none, of

        sigmoid  -log sigma(m)                     DPO, Rafailov et al. 2023, 2305.18290, eq. 7; ln 2 at the reference
        hinge    max(0, 1 - m)                     SLiC, Zhao et al. 2023, 2305.10425; 1 at the reference
        ipo      (m / beta - 1 / (2 beta))^2       IPO, Azar et al. 2023, 2310.12036, eq. 17, beta is its tau

    mixed over both orders by prefer. label_smoothing: a label is wrong with that probability (cDPO).
    beta multiplies log-likelihoods: with MEAN over dimensions it is larger than with SUM by their number.
    Raises ValueError for an unknown loss, beta <= 0, or a smoothing not in [0, 0.5).
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo needs beta > 0 and label_smoothing in [0, 0.5), got {beta} and {label_smoothing}")
    p = known_pairs(full(prefer), mask)
    margin = pair_margins(implicit_reward(logps, ref_logps, beta)).masked_fill(p.isnan(), 0.0)
    pairs = (~p.isnan()).sum((-1, -2)).to(margin.dtype)
    p = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    if loss == "sigmoid":
        each = bradley_terry(margin, p)
    elif loss == "hinge":
        each = _mixed((1 - margin).relu(), (1 + margin).relu(), p)
    elif loss == "ipo":
        log_ratio, goal = margin / beta, 1 / (2 * beta)
        each = _mixed((log_ratio - goal) ** 2, (log_ratio + goal) ** 2, p)
    else:
        raise ValueError(f"unknown loss {loss!r}; known: sigmoid, hinge, ipo")
    return each.sum((-1, -2)) / pairs.clamp(min=1), pairs


def reward_accuracy(margin: Tensor, prefer: Tensor) -> tuple[Tensor, Tensor]:
    """How often the margin's sign agrees with the preference -> (sum, count), both scalars; the quotient is accuracy.

    margin, prefer: any one shape. A margin of exactly 0 counts one half, so that an untrained policy scores .5.
    Ties (.5) and unknowns (NaN) have no right answer and do not count.
    """
    margin = full(margin.detach())
    counts = ~prefer.isnan() & (prefer != 0.5)
    right = torch.where(margin == 0, 0.5, ((margin > 0) == (prefer > 0.5)).to(margin.dtype))
    return (right * counts).sum().to(margin.dtype), counts.sum().to(margin.dtype)


def ratio_clamped_preference(log_ratio: Tensor, label: Tensor, beta: float, eps: float | None = None) -> Tensor:
    """D3PO's loss of one denoising step (Yang et al. 2023, 2311.13231, eq. 14 and algorithm 1) -> [N].

    -log sigma(beta (h_0 l_0 + h_1 l_1)), l = log clamp(exp(log_ratio), 1 - eps, 1 + eps).

    log_ratio: [N, 2], log policy - log reference of each image's step, MEAN over latent dimensions (the authors' code;
    beta .1 and eps .1 belong to it). label: [N, 2], (1, -1), (-1, 1), or (0, 0) for a tie. eps: None for no clamp.
    Beyond the clamp the gradient is 0 on both sides: unlike PPO's, it does not pull a drifted sample back.
    The log-ratio is clamped, not its exponential, which overflows into NaN gradients.
    """
    log_ratio = full(log_ratio)
    if eps is not None:
        if not 0 < eps < 1:
            raise ValueError(f"eps must lie between 0 and 1, or be None for no clamp; got {eps}")
        log_ratio = log_ratio.clamp(math.log1p(-eps), math.log1p(eps))
    return -logsigmoid(beta * (label * log_ratio).sum(-1))


# --- rewards ----------------------------------------------------------------------------------------------------------


def clipped_surrogate(ratio_log: Tensor, advantage: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's loss (Schulman et al. 2017, 1707.06347, eq. 7; DDPO, 2305.13301) -> loss [N], whether clipped [N] (0 or 1).

    max(-A r, -A clamp(r, 1 - clip_range, 1 + clip_range)), r = exp(ratio_log).

    ratio_log: [N], log policy - log of the policy that sampled. advantage: [N], a constant. The mean of the second
    result is the clip fraction, of ratios outside the range whether or not the loss took that branch.
    |ratio_log| beyond 20 is cut off, where the exponential would overflow.
    """
    ratio = full(ratio_log).clamp(-_LOG_RATIO_MAX, _LOG_RATIO_MAX).exp()
    advantage = advantage.detach().to(ratio.dtype)
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))
    return loss, ((ratio.detach() - 1).abs() > clip_range).to(ratio.dtype)


def standardised(rewards: Tensor, among: Tensor) -> Tensor:
    """(reward - mean) / (std + 1e-8) with the mean and the population's std of `among` -> [n], float64.

    rewards: [n], and among: [m], of any number type, the rewards they are measured by: those of their group (GRPO, Shao
    et al. 2024, 2402.03300), of their round, or of their prompt's past (DDPO, 2305.13301).
    Where all of `among` are equal they teach nothing: exactly 0, and no rounding noise blown up. A reward that is not
    finite (the scorer could not judge) gets 0, and is not counted in `among`.
    """
    values, measure = rewards.detach().double(), among.detach().double()
    measure = measure[measure.isfinite()]
    if not len(measure) or bool(measure.min() == measure.max()):
        return torch.zeros_like(values)
    advantage = (values - measure.mean()) / (measure.std(correction=0) + 1e-8)
    return advantage.masked_fill(~values.isfinite(), 0.0)


def reward_weights(rewards: Tensor, temperature: float) -> Tensor:
    """Weights of reward-weighted regression, with mean 1 over the known rewards of the last axis -> [..., n].

    exp((r - mean) / temperature), divided by their mean (RWR, 2302.12192; Flow-RWR, 2501.13918, whose plain exp(r) is
    temperature 1 without the normalisation).
    rewards: [..., n]; one that is not finite gets weight 0. Raises ValueError for a temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    values = full(rewards.detach())
    known = values.isfinite()
    # A softmax is the same quotient without the overflow; the finite floor keeps "none known" from dividing 0 by 0.
    share = torch.softmax((values / temperature).masked_fill(~known, torch.finfo(values.dtype).min), -1)
    return torch.where(known, share * known.sum(-1, keepdim=True), 0.0)
