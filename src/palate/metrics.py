"""What a preference algorithm reports of a step, as (sum, count) so that micro-batches and ranks add up.

The keys are the same for every algorithm. `reward/*` is the implicit reward beta * (logps - ref_logps); with a
denoising likelihood `displacement/*` is how much the policy's error exceeds the reference's: if both rise, the pairs
are being told apart by damage, whatever the accuracy says. `kl` is the divergence from what the loss compares with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palate import losses

Sums = dict[str, tuple[Tensor, Tensor]]


def decided(prefer: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, K, K] float: 1 where candidate i is preferred over j and both exist."""
    wins = (prefer > 0.5).float()
    if mask is not None:
        wins = wins * (mask[:, :, None] & mask[:, None, :])
    return wins


def preference(rewards: Tensor, prefer: Tensor, mask: Tensor | None = None) -> Sums:
    """Implicit rewards [B, K] of chosen and rejected, their margin, and how often the margin has the right sign.

    A margin of exactly zero counts as half right.
    """
    rewards = rewards.detach()
    wins = decided(prefer, mask)
    count = wins.sum()
    margin = losses.pair_margins(rewards)
    return {
        "reward/chosen": ((wins.sum(2) * rewards).sum(), count),
        "reward/rejected": ((wins.sum(1) * rewards).sum(), count),
        "reward/margin": ((wins * margin).sum(), count),
        "reward/accuracy": losses.reward_accuracy(margin, torch.where(wins > 0, 1.0, torch.nan)),
    }


def displacement(logps: Tensor, ref_logps: Tensor, prefer: Tensor, mask: Tensor | None = None) -> Sums:
    """By how much the denoising errors [B, K] of chosen and rejected rose above the reference's (0 at the start)."""
    rise = (ref_logps - logps).detach()
    wins = decided(prefer, mask)
    return {
        "displacement/chosen": ((wins.sum(2) * rise).sum(), wins.sum()),
        "displacement/rejected": ((wins.sum(1) * rise).sum(), wins.sum()),
    }


def errors(logps: Tensor, prefer: Tensor, mask: Tensor | None = None) -> Sums:
    """The errors [B, K] of chosen and rejected themselves, where there is no reference to measure them by."""
    error = -logps.detach()
    wins = decided(prefer, mask)
    return {
        "error/chosen": ((wins.sum(2) * error).sum(), wins.sum()),
        "error/rejected": ((wins.sum(1) * error).sum(), wins.sum()),
    }


def kl(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) of (log ratio)^2 / 2: how far the policy is from what the ratio is to, a latent dimension, in nats.

    That is the policy that sampled, or a fixed reference where the algorithm asks for one. log_ratio: of MEAN
    log-densities. An estimate, near the divergence while that is small, and never negative.
    """
    return mean(0.5 * log_ratio.pow(2))


def mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) of plain values, those that are not finite left out."""
    values = values.detach().float()
    finite = torch.isfinite(values)
    return values[finite].sum(), finite.sum()
