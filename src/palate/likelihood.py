"""The seam: how likely candidates are under a policy, whatever they are made of.

Every algorithm above this file compares log-likelihoods `logps` of candidates under a policy and a reference; only the
evidence differs. Its reduction is part of its meaning and fixes the scale of each algorithm's `beta`:

    denoising    minus the MEAN squared denoising error over latent dimensions, at a drawn (t, noise)
    transition   the Gaussian log-density of a stored denoising step, MEAN over latent dimensions
    token        the log-probability of a completion, SUM over its tokens

All are float32 whatever the model computes in, and a gradient flows to the model unless the caller forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from palate import transitions
from palate.models.contracts import Condition, Denoiser, Draw, PreferenceBatch, TokenModel, TransitionBatch


def denoising(policy: Denoiser, x0: Tensor, cond: Condition, draw: Draw) -> Tensor:
    """logps [B, K] of x0 [B, K, ...]: minus the mean squared error of the prediction at the draw.

    The error is measured in the path's own kind (epsilon, v, velocity ...), so the same beta weighs time steps
    differently for models of different kinds. One batched pass over all B*K candidates.
    """
    batch, k = x0.shape[:2]
    row = torch.arange(batch, device=x0.device).repeat_interleave(k)
    flat, t = x0.flatten(0, 1), draw.t[row]
    noise = draw.noise[row] if draw.noise.dim() < x0.dim() else draw.noise.flatten(0, 1)
    x_t = policy.path.add_noise(flat, noise, t)
    prediction = policy.predict(x_t, t, cond if k == 1 else cond[row])
    error = (prediction.float() - policy.path.target(flat, noise, t).float()).pow(2)
    return -error.flatten(1).mean(1).view(batch, k)


def with_reference(
    policy: Denoiser, reference: Denoiser | None, batch: PreferenceBatch, draw: Draw
) -> tuple[Tensor, Tensor]:
    """`denoising` logps [B, K] under policy and reference, prompts emptied where the draw says so, for both alike.

    Where the batch brings the reference's along, no reference is asked; they carry no gradient either way.
    """
    cond = batch.cond.where(draw.drop, batch.null)
    logps = denoising(policy, batch.x0, cond, draw)
    if batch.ref_logps is not None:
        return logps, batch.ref_logps
    assert reference is not None
    with torch.no_grad():
        return logps, denoising(reference, batch.x0, cond, draw)


def transition(policy: Denoiser, batch: TransitionBatch) -> Tensor:
    """logps [N, K] of the stored steps x_t -> x_prev, guided as they were sampled.

    One batched pass over all N*K transitions (and their unconditional halves).
    Raises ValueError for steps without noise (eta = 0), which have no density.
    """
    n, k = batch.candidate.shape
    x_t, x_prev = batch.x_t.flatten(0, 1), batch.x_prev.flatten(0, 1)
    t, t_prev = batch.t.repeat_interleave(k), batch.t_prev.repeat_interleave(k)
    cond = batch.cond[batch.candidate.flatten()]
    prediction = policy.predict(x_t, t, cond, batch.guidance_scale)
    mean, std = batch.kernel.mean_std(prediction.float(), x_t, t, t_prev)
    return transitions.gaussian_log_prob(x_prev, mean, std).view(n, k)


def token(model: TokenModel, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
    """logps [N] of completions given their prompts: SUM of token log-probabilities, prompts left out."""
    tokens, mask, completion = model.encode(prompts, completions)
    logits = model.logits(tokens, mask)[:, :-1].float()
    logps = F.log_softmax(logits, dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (logps * completion[:, 1:]).sum(-1)
