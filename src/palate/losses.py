"""Losses of preference and reward optimisation: pure functions, tensors in, tensors out, one row at a time.

Letters: B prompts, K candidates of one prompt, N rows of any kind. Log-likelihoods enter with whatever reduction the
caller's likelihood has (diffusion and flow: MEAN over latent dimensions; tokens: SUM), and a `beta` is only meaningful
together with that reduction. Everything is float32, or float64 if the input is. Nothing is averaged over rows:
callers add up sums and divide once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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


PairLoss = Literal["sigmoid", "hinge", "ipo"]


def pair_loss(margin: Tensor, prefer: Tensor, beta: float, loss: PairLoss = "sigmoid") -> Tensor:
    """The loss of a pair, of any one shape, 0 where prefer is NaN; margin = beta ((lp_i - ref_i) - (lp_j - ref_j)).

        sigmoid  -log sigma(m)                     DPO, Rafailov et al. 2023, 2305.18290, eq. 7; ln 2 at the reference
        hinge    max(0, 1 - m)                     SLiC, Zhao et al. 2023, 2305.10425; 1 at the reference
        ipo      (m / beta - 1 / (2 beta))^2       IPO, Azar et al. 2023, 2310.12036, eq. 17, beta is its tau

    mixed over both orders by prefer = P(i over j). Raises ValueError for an unknown loss.
    """
    if loss == "sigmoid":
        return bradley_terry(margin, prefer)
    margin = full(margin).masked_fill(prefer.isnan(), 0.0)
    if loss == "hinge":
        return _mixed((1 - margin).relu(), (1 + margin).relu(), prefer)
    if loss == "ipo":
        log_ratio, goal = margin / beta, 1 / (2 * beta)
        return _mixed((log_ratio - goal) ** 2, (log_ratio + goal) ** 2, prefer)
    raise ValueError(f"unknown loss {loss!r}; known: sigmoid, hinge, ipo")


def start_of(loss: PairLoss, beta: float) -> float:
    """What `pair_loss` is where the policy is its reference, whatever the label and its smoothing."""
    return {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * beta) ** 2}[loss]


def smoothed(prefer: Tensor, noise: float, robust: bool = False) -> Tensor:
    """Labels of which a share `noise` is believed to be flipped, of any shape.

    p (1 - noise) + (1 - p) noise, as the conservative DPO mixes its two losses (cDPO, Mitchell 2023); or, robust,
    (p - noise) / (1 - 2 noise), beyond [0, 1], whose loss under such flips is that of clean labels on average (rDPO,
    Chowdhury et al. 2024, 2403.00409). Raises ValueError for a noise not in [0, 0.5).
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {noise}")
    return (prefer - noise) / (1 - 2 * noise) if robust else prefer * (1 - noise) + (1 - prefer) * noise


def dpo(
    logps: Tensor,
    ref_logps: Tensor | None,
    prefer: Tensor,
    beta: float,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    loss: PairLoss = "sigmoid",
    robust: bool = False,
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation over all pairs of K candidates -> loss [B], number of known pairs [B] (float).

    logps, ref_logps: [B, K]. prefer: [B, K, K]. mask: [B, K]. The loss is the mean of `pair_loss` over a prompt's known
    unordered pairs, 0 for a prompt that has none. label_smoothing, robust: see `smoothed`.
    beta multiplies log-likelihoods: with MEAN over dimensions it is larger than with SUM by their number.
    Raises ValueError for an unknown loss, beta <= 0, or a smoothing not in [0, 0.5).
    """
    if beta <= 0:
        raise ValueError(f"dpo needs beta > 0, got {beta}")
    p = known_pairs(full(prefer), mask)
    margin = pair_margins(implicit_reward(logps, ref_logps, beta)).masked_fill(p.isnan(), 0.0)
    each = pair_loss(margin, smoothed(p, label_smoothing, robust), beta, loss)
    return mean_of_pairs(each, p)


def mean_of_pairs(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """values [B, K, K], 0 where `known_pairs` says NaN -> their mean over a prompt's known pairs [B], and how many."""
    pairs = (~known.isnan()).sum((-1, -2)).to(values.dtype)
    return values.sum((-1, -2)) / pairs.clamp(min=1), pairs


def of_chosen(values: Tensor, prefer: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of a prompt's values [B, K] over what its known pairs prefer, by P(i over j) -> [B]; 0 without pairs."""
    p = known_pairs(full(prefer), mask)
    values = full(values) if mask is None else full(values).masked_fill(~mask, 0.0)
    first, second = values.unsqueeze(-1).expand_as(p), values.unsqueeze(-2).expand_as(p)
    return mean_of_pairs(_mixed(first, second, p), p)[0]


# --- without a reference ----------------------------------------------------------------------------------------------


def mapo_score(error: Tensor) -> Tensor:
    """phi(l) = l / (e^l - 1), of any shape: 1 at an error of 0, where its slope is -1/2, and 0 far away (MaPO).

    Exact to rounding, value and gradient, at every l >= 0: a series near 0, where the quotient is 0/0, and no overflow.
    """
    error = full(error)
    near = error.abs() < 0.25
    far = torch.where(near, 1.0, error)  # before the quotient: a NaN times a gradient of 0 is NaN
    square = torch.where(near, error, 0.0) ** 2
    series = square * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
    return torch.where(near, 1 - error / 2 + series, far * (-far).exp() / -torch.expm1(-far))


def mapo(
    logps: Tensor,
    prefer: Tensor,
    weight: float,
    scale: float,
    slope: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Margin-aware preference optimisation (MaPO, 2406.06424) -> loss [B], number of known pairs [B] (float).

    l_w - weight log sigma( scale [phi(slope l_w) - phi(slope l_l)] ),  the mean over a prompt's known pairs

    logps [B, K] = -l, l >= 0 a MEAN error or negative log-likelihood. prefer [B, K, K] mixes both orders.
    """
    p = known_pairs(full(prefer), mask)
    rewards = scale * mapo_score(-slope * logps)
    margin = pair_margins(rewards)
    apart, pairs = mean_of_pairs(bradley_terry(margin, p), p)
    return of_chosen(-logps, prefer, mask) + weight * apart, pairs


# --- rankings ---------------------------------------------------------------------------------------------------------


def win_shares(scores: Tensor, mask: Tensor) -> Tensor:
    """phi [B, K] of scores [B, K, D]: the share of a candidate's comparisons, over D scorers and the others, it wins.

    Strictly: a tie gives nothing to either (RankDPO, 2410.18013, section 3.2). A comparison with a score that is not
    finite, or with a candidate that does not exist (mask [B, K]), is none. NaN for a candidate without comparisons.
    """
    there = scores.isfinite() & mask.unsqueeze(-1)
    both = there.unsqueeze(2) & there.unsqueeze(1) & ~torch.eye(scores.shape[1], device=scores.device).bool()[..., None]
    wins = (scores.unsqueeze(2) > scores.unsqueeze(1)) & both
    return wins.sum((2, 3)) / both.sum((2, 3))


def ranks(values: Tensor, settle: Tensor | None = None) -> Tensor:
    """Ranks from 1, the best, of values [..., K] -> [..., K]; NaN for NaN. Equals share the mean of their ranks.

    settle: [..., K], decides between equal values.
    """
    known = ~values.isnan()
    both = known.unsqueeze(-1) & known.unsqueeze(-2)
    above = values.unsqueeze(-2) > values.unsqueeze(-1)
    equal = values.unsqueeze(-2) == values.unsqueeze(-1)
    if settle is not None:
        above = above | (equal & (settle.unsqueeze(-2) > settle.unsqueeze(-1)))
        equal = equal & (settle.unsqueeze(-2) == settle.unsqueeze(-1))
    better, even = ((above & both).sum(-1), (equal & both).sum(-1))
    return (1 + better + (even - 1) / 2).to(full(values).dtype).masked_fill(~known, math.nan)


def lambda_weights(
    shares: Tensor, rank: Tensor, weights: Literal["both", "gain", "discount", "none"] = "both"
) -> Tensor:
    """|G_i - G_j| |1 / D(rank_i) - 1 / D(rank_j)| of RankDPO (2410.18013, section 3.3) -> [..., K, K].

    G = 2^phi - 1 and D = ln(1 + rank), the natural logarithm, whose base is a factor common to all.
    shares: phi [..., K]. rank: [..., K], from 1. 0 where either phi is NaN, and for equal phi, which order nothing.
    weights: which factors are kept; `none` gives 1 to every pair of different phi.
    """
    gain = (2**shares - 1).unsqueeze(-1) - (2**shares - 1).unsqueeze(-2)
    discount = 1 / torch.log1p(rank)
    apart = discount.unsqueeze(-1) - discount.unsqueeze(-2)
    factors = {"both": gain * apart, "gain": gain, "discount": apart, "none": torch.ones_like(gain)}
    return factors[weights].abs().masked_fill((gain == 0) | gain.isnan(), 0.0)


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


def weighted_sum(scores: Tensor, weights: Mapping[int, float] | None = None) -> Tensor:
    """One reward [...] of scores [..., D]: each column times its weight, all alike if None.

    NaN where a column that counts is not finite or is not there, and where none counts.
    """
    there = range(scores.shape[-1])
    weights = dict.fromkeys(there, 1.0) if weights is None else weights
    if not weights or any(column not in there for column in weights):
        return scores.new_full(scores.shape[:-1], math.nan)
    total = torch.stack([weight * scores[..., column] for column, weight in weights.items()]).sum(0)
    return total.masked_fill(~total.isfinite(), math.nan)


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
