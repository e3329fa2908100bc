"""Gaussian transitions of stochastic samplers: the mean and spread of x_{t_prev} given x_t, and its log-density.

Shapes: N rows, latents [N, ...], t and t_prev [N]; rows may stand at different times. float32, or float64 if a
latent is. Log-densities are MEANS over latent dimensions, as in the code of DDPO (2305.13301) and D3PO (2311.13231):
a ratio of 1.1 is one per dimension, and the clip ranges and betas of those papers mean that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from palate.paths import CosinePath, DDPMPath, FlowPath, full, over

_END = 0.1  # a flow step begins "at" pure noise if what is left above it is less than this part of the step


@dataclass(frozen=True)
class DDIM:
    """The step of DDIM (Song et al. 2020, 2010.02502, eq. 12 and 16); eta = 1 has the variance of DDPM, 0 is an ODE.

    mean = sqrt(a_prev) x0 + sqrt(1 - a_prev - std^2) noise,
    std = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev), with a = alphas_cumprod.
    The same as diffusers' DDIMScheduler without clipping or thresholding.

    final_alpha_cumprod: a_prev where t_prev < 0: 1 for `set_alpha_to_one=True`, whose last step has std 0 and so no
        likelihood; alphas_cumprod[0] otherwise.
    """

    path: DDPMPath | CosinePath
    eta: float = 1.0
    final_alpha_cumprod: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta must not be negative, got {self.eta}")

    def mean_std(self, prediction: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N, ...] and std [N] of x_{t_prev} given x_t, prediction [N, ...]. t, t_prev: [N], t_prev < 0 the end.

        Raises ValueError for a prediction of noise at zero terminal SNR.
        """
        now = self.path.cumprod(t)
        before = self.path.cumprod(t_prev.clamp(min=0)).where(t_prev >= 0, self.final_alpha_cumprod)
        # The clamps matter at the ends: rounding takes these differences below 0 at zero terminal SNR, and
        # 1 - now is 0 in a table that begins with 1.
        variance = (1 - before) / (1 - now).clamp(min=1e-20) * (1 - now / before).clamp(min=0)
        std = self.eta * variance.sqrt()
        direction = (1 - before - std**2).clamp(min=0).sqrt()
        x0, noise = self.path.to_x0(prediction, x_t, t), self.path.to_noise(prediction, x_t, t)
        mean = over(before.sqrt().to(x0.dtype), x0) * x0 + over(direction.to(x0.dtype), x0) * noise
        return mean, std.to(x0.dtype)


@dataclass(frozen=True)
class FlowSDE:
    """The stochastic step of a flow model with unchanged marginals (Flow-GRPO, Liu et al. 2025, 2505.05470).

    With dt = t_prev - t < 0 and g = noise_level sqrt(t / (1 - t)):
    mean = x + (v + g^2 / (2 t) (x + (1 - t) v)) dt, std = g sqrt(-dt).
    noise_level = 0 is the Euler step of the ODE, exactly, and has no likelihood.

    g is infinite at t = 1. There 1 - t is replaced by 1 - t_prev, as in the authors' code (the schedule's second
    sigma); but for every step that begins within a tenth of its own length of t = 1, not only where t == 1: a schedule
    that begins at 0.9999 would have a std of tens. Any g keeps the marginals, so this changes noise, not correctness.
    """

    path: FlowPath
    noise_level: float = 0.7

    def __post_init__(self) -> None:
        if self.noise_level < 0:
            raise ValueError(f"noise_level must not be negative, got {self.noise_level}")

    def mean_std(self, prediction: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N, ...] and std [N] of x_{t_prev} given x_t, prediction [N, ...] = velocity. t > t_prev, both [N]."""
        velocity, x_t = full(prediction), full(x_t)
        t, t_prev = t.to(x_t.dtype), t_prev.to(x_t.dtype)
        dt = t_prev - t
        rest = torch.where(1 - t < _END * -dt, 1 - t_prev, 1 - t)
        pull = self.noise_level**2 / (2 * rest)  # g^2 / (2 t), in which t cancels
        noise = self.path.to_noise(velocity, x_t, t)
        mean = x_t + (velocity + over(pull, x_t) * noise) * over(dt, x_t)
        return mean, self.noise_level * (t / rest).sqrt() * (-dt).clamp(min=0).sqrt()


def has_likelihood(std: Tensor) -> Tensor:
    """Which transitions have a density: bool of std's shape, false for a deterministic step (often the last)."""
    return std > 0


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor, *, check: bool = True) -> Tensor:
    """Log-density of x under N(mean, std^2 I), MEAN over latent dimensions, in nats per dimension.

    x, mean: [N, ...]. std: [N] (or [N, K] for latents [N, K, ...]). Result: std's shape. x is data: an x that was
    sampled as mean + std noise must be detached, or its gradient cancels the mean's.
    Raises ValueError where std is 0 or NaN; `check=False` skips that, as it waits for the accelerator.
    """
    if check and not bool(has_likelihood(std).all()):
        raise ValueError(
            "a step with std = 0 (eta = 0 or noise level 0, or a last step that ends at the clean latent) has no "
            "likelihood: use eta > 0, and leave such steps out with `has_likelihood`"
        )
    x, mean, std = full(x), full(mean), full(std)
    if x.shape != mean.shape or x.shape[: std.dim()] != std.shape or x.dim() <= std.dim():
        raise ValueError(f"shapes do not agree: x {tuple(x.shape)}, mean {tuple(mean.shape)}, std {tuple(std.shape)}")
    square = ((x - mean) ** 2).flatten(std.dim()).mean(-1)
    return -square / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
