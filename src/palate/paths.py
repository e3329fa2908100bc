"""Noise paths: how data becomes noise, and what a network predicts on the way.

Every path here is linear, x_t = alpha(t) x0 + sigma(t) noise, so that one pair of numbers per row says it all:

    path         t                       alpha                    sigma
    DDPMPath     0, 1, ..., T-1          sqrt(alphas_cumprod[t])  sqrt(1 - alphas_cumprod[t])
    FlowPath     [0, 1], 1 is noise      1 - t                    t
    CosinePath   [0, 1], 1 is noise      cos(pi t / 2)            sin(pi t / 2)

Kinds of prediction: `epsilon` = noise, `sample` = x0, `v` = alpha noise - sigma x0 (Salimans & Ho 2022, 2202.00512,
appendix D), `velocity` = noise - x0 (rectified flow, Liu et al. 2022, 2209.03003; time as in SD3, 2403.03206).

Shapes: N rows; latents [N, ...] of any rank (a second axis of K candidates included); t [N]. Results are float32, or
float64 if a latent is; half precision never is, because (1 - t) and 1 - alphas_cumprod do not survive it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

PredictionKind = Literal["epsilon", "v", "sample", "velocity"]


class _Path(Protocol):
    """What the functions of this module ask of any path."""

    @property
    def kind(self) -> PredictionKind: ...

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]: ...


class _Linear(_Path, Protocol):
    """What conversions ask of one."""

    @property
    def singular(self) -> bool: ...


def full(x: Tensor) -> Tensor:
    """x in float32, or as it is if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def over(rows: Tensor, x: Tensor) -> Tensor:
    """rows [N] shaped to multiply x [N, ...]. Raises ValueError if they are not one number per row of x."""
    if rows.dim() != 1 or x.dim() == 0 or len(rows) != len(x):
        raise ValueError(f"t must be [N], one per row of the latents; got {tuple(rows.shape)} for {tuple(x.shape)}")
    return rows.view(-1, *[1] * (x.dim() - 1))


def convert(path: _Linear, prediction: Tensor, x_t: Tensor, t: Tensor, to_kind: PredictionKind) -> Tensor:
    """The prediction [N, ...] of `path.kind` at x_t [N, ...], t [N], said as another kind.

    Raises ValueError where the two kinds do not determine each other: noise says nothing about x0 where alpha = 0, and
    x0 says nothing about the noise where sigma = 0.
    """
    if to_kind == path.kind:
        return full(prediction)
    if to_kind == "sample":
        return _x0(path, prediction, x_t, t)
    if to_kind == "epsilon":
        return _noise(path, prediction, x_t, t)
    return target(path, _x0(path, prediction, x_t, t), _noise(path, prediction, x_t, t), t, to_kind)


def target(path: _Linear, x0: Tensor, noise: Tensor, t: Tensor, kind: PredictionKind) -> Tensor:
    """What a network of that kind should predict [N, ...] for x0, noise [N, ...] at t [N]."""
    x0, noise = full(x0), full(noise)
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    if kind == "velocity":
        return noise - x0
    if kind == "v":
        alpha, sigma = _coefficients(path, t, x0)
        return alpha * noise - sigma * x0
    raise ValueError(f"unknown kind of prediction {kind!r}; known: epsilon, v, sample, velocity")


def _coefficients(path: _Linear, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = path.alpha_sigma(t, x.dtype)
    return over(alpha, x), over(sigma, x)


def _add_noise(path: _Linear, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    x0, noise = full(x0), full(noise)
    alpha, sigma = _coefficients(path, t, x0)
    return alpha * x0 + sigma * noise


def _x0(path: _Linear, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    prediction, x_t = full(prediction), full(x_t)
    alpha, sigma = _coefficients(path, t, x_t)
    if path.kind == "sample":
        return prediction
    if path.kind == "v":
        return alpha * x_t - sigma * prediction
    if path.kind == "velocity":  # exact where alpha + sigma = 1
        return x_t - sigma * prediction
    if path.singular and bool((alpha == 0).any()):
        raise ValueError(
            "at zero terminal SNR (alpha = 0) a prediction of the noise says nothing about x0: use a model with "
            "v or sample prediction, or leave that timestep out"
        )
    return (x_t - sigma * prediction) / alpha


def _noise(path: _Linear, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    prediction, x_t = full(prediction), full(x_t)
    alpha, sigma = _coefficients(path, t, x_t)
    if path.kind == "epsilon":
        return prediction
    if path.kind == "v":
        return sigma * x_t + alpha * prediction
    if path.kind == "velocity":
        return x_t + alpha * prediction
    if path.singular and bool((sigma == 0).any()):
        raise ValueError(
            "where nothing is noisy (sigma = 0) a prediction of x0 says nothing about the noise: use a model with "
            "epsilon or v prediction, or leave that timestep out"
        )
    return (x_t - alpha * prediction) / sigma


def noise_error_weight(path: _Path, t: Tensor) -> Tensor:
    """[N] by which a squared error of `path.kind` at t [N] becomes the squared error of the noise it implies.

    epsilon 1, v alpha^2, velocity alpha^2 = (1 - t)^2, sample (alpha / sigma)^2. At alpha = 0, where data leave no
    trace, it is 0 for all but epsilon.
    """
    alpha, sigma = path.alpha_sigma(t)
    if path.kind == "epsilon":
        return torch.ones_like(alpha)
    return (alpha / sigma) ** 2 if path.kind == "sample" else alpha**2


def check_times(path: _Path, times: Sequence[int] | None = None) -> None:
    """Raises ValueError for training timesteps (None for all) that the path has not, or where errors compare nothing.

    At zero terminal SNR the noise is the network's own input: its error tells candidates apart by nothing they are.
    """
    table: Tensor | None = getattr(path, "alphas_cumprod", None)
    if table is None:
        if times is not None:
            raise ValueError(
                "this model's times are all those from 0 to 1, with no training timesteps to choose among: leave "
                "algorithm.timesteps out"
            )
        return
    last = len(table) - 1
    beyond = [t for t in times or () if not 0 <= t <= last]
    if beyond:
        raise ValueError(f"algorithm.timesteps holds {beyond[0]}; this model's lie from 0 to {last}")
    bad = [t for t in (range(last + 1) if times is None else times) if table[t] == 0]
    if bad and path.kind == "epsilon":
        raise ValueError(
            f"at timestep {bad[0]} nothing is left of the data (zero terminal SNR), and this model predicts the noise, "
            "which it is given: use a model with v or sample prediction, or an algorithm.timesteps without it"
        )


def check_velocity(path: _Path, method: str, instead: str) -> None:
    """Raises ValueError for a model that does not predict the velocity of a flow."""
    if path.kind != "velocity":
        raise ValueError(
            f"{method} is for models that predict a velocity (SD3, Flux, Wan ...), and this one predicts {path.kind}: "
            f"use {instead}, or another model"
        )


# --- densities of t ---------------------------------------------------------------------------------------------------


def uniform(n: int, generator: torch.Generator) -> Tensor:
    """n times [n] in [0, 1), float32, on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device)


def logit_normal(n: int, generator: torch.Generator) -> Tensor:
    """n times [n], the sigmoid of a standard normal, float32 (SD3, 2403.03206, section 3.1)."""
    return torch.randn(n, generator=generator, device=generator.device).sigmoid()


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times t [n] of a flow moved towards noise, shift t / (1 + (shift - 1) t) (SD3, 2403.03206, section 5.3.2).

    The logit of t grows by ln(shift): a shift of 1 changes nothing, SD3's schedulers have 3.
    """
    return shift * t / (1 + (shift - 1) * t)


def among(times: Sequence[int], n: int, generator: torch.Generator) -> Tensor:
    """n of the given training timesteps [n] long, each as likely: all that a distilled student ever sees."""
    chosen = torch.randint(len(times), (n,), generator=generator, device=generator.device)
    return torch.tensor(times, device=generator.device)[chosen]


@dataclass(frozen=True, eq=False)
class DDPMPath:
    """The variance-preserving path of a discrete noise table (Ho et al. 2020, 2006.11239, eq. 4).

    alphas_cumprod: [T], each in [0, 1]; kept in float64 on the CPU and cast last, since 1 - alphas_cumprod is small
        at the clean end. A final 0 is zero terminal SNR (Lin et al. 2023, 2305.08891).
    kind: epsilon, v or sample.

    t: [N], integer-valued training timesteps, long or float. On the CPU values between or beyond them are refused; on
    an accelerator that check would stall it, so floats are rounded.
    """

    alphas_cumprod: Tensor
    kind: PredictionKind = "epsilon"
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod).detach().to("cpu", torch.float64)
        if table.dim() != 1 or len(table) == 0 or not bool(((table >= 0) & (table <= 1)).all()):
            raise ValueError("alphas_cumprod must be a table [T] of numbers from 0 to 1")
        if self.kind not in ("epsilon", "v", "sample"):
            raise ValueError(f"a DDPM path predicts epsilon, v or sample, not {self.kind!r}")
        object.__setattr__(self, "alphas_cumprod", table)

    @cached_property
    def singular(self) -> bool:
        """Whether the table holds a 0 or a 1, so that some conversions fail there."""
        return bool(((self.alphas_cumprod == 0) | (self.alphas_cumprod == 1)).any())

    def cumprod(self, t: Tensor) -> Tensor:
        """alphas_cumprod at t [N] -> [N] on t's device, float64 where the device has it."""
        if t.device not in self._tables:
            dtype = torch.float32 if t.device.type == "mps" else torch.float64
            self._tables[t.device] = self.alphas_cumprod.to(t.device, dtype)
        index = t if t.dtype == torch.long else t.round().long()
        last = len(self.alphas_cumprod) - 1
        if t.device.type == "cpu" and not bool(((index == t) & (index >= 0) & (index <= last)).all()):
            raise ValueError(f"t must hold whole training timesteps from 0 to {last}, got {t.tolist()}")
        return self._tables[t.device][index]

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """alpha, sigma [N] at t [N]; float32 unless `dtype` (or t's own, float64) says otherwise."""
        cumprod = self.cumprod(t)
        dtype = dtype or full(t).dtype
        return cumprod.sqrt().to(dtype), (1 - cumprod).sqrt().to(dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [N, ...] of x0, noise [N, ...] at t [N]."""
        return _add_noise(self, x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict [N, ...]."""
        return target(self, x0, noise, t, self.kind)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent [N, ...] a prediction implies. Raises ValueError for epsilon where alpha = 0."""
        return _x0(self, prediction, x_t, t)

    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise [N, ...] a prediction implies. Raises ValueError for sample where sigma = 0."""
        return _noise(self, prediction, x_t, t)

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2 [N]: 0 at zero terminal SNR, infinite where nothing is noisy."""
        cumprod = self.cumprod(t)
        return (cumprod / (1 - cumprod)).to(full(t).dtype)

    def sample_t(self, n: int, generator: torch.Generator) -> Tensor:
        """n training timesteps, uniform over the table: [n] long, on the generator's device."""
        return torch.randint(len(self.alphas_cumprod), (n,), generator=generator, device=generator.device)


@dataclass(frozen=True)
class CosinePath:
    """The variance-preserving path by its angle: alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1], 1 noise.

    EDM's x0 + s noise (Karras et al. 2022, 2206.00364), scaled by 1 / sqrt(1 + s^2), stands on it at s = tan(pi t / 2)
    (for data of variance 1), and its preconditioning then is prediction of v (2206.00364 eq. 7).
    """

    kind: PredictionKind = "v"

    @property
    def singular(self) -> bool:
        """False: v determines x0 and noise at every t."""
        return False

    def cumprod(self, t: Tensor) -> Tensor:
        """alpha^2 [N] at t [N], float64 where the device has it."""
        wide = t if t.device.type == "mps" else t.double()
        return (wide * (math.pi / 2)).cos() ** 2

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """alpha, sigma [N] at t [N]; float32 unless `dtype` (or t's own, float64) says otherwise."""
        dtype, angle = dtype or full(t).dtype, full(t) * (math.pi / 2)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [N, ...] of x0, noise [N, ...] at t [N]."""
        return _add_noise(self, x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict [N, ...]."""
        return target(self, x0, noise, t, self.kind)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent [N, ...] a prediction implies."""
        return _x0(self, prediction, x_t, t)

    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise [N, ...] a prediction implies."""
        return _noise(self, prediction, x_t, t)

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2 [N]: 0 at t = 1, infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma) ** 2

    def sample_t(self, n: int, generator: torch.Generator) -> Tensor:
        """n training times, uniform: [n] float32, on the generator's device."""
        return uniform(n, generator)


@dataclass(frozen=True)
class FlowPath:
    """The straight path of rectified flow, x_t = (1 - t) x0 + t noise, with t in [0, 1] and 1 noise.

    kind: velocity = noise - x0; x0 = x_t - t v and noise = x_t + (1 - t) v are exact at both ends.
    sampling: training times, uniform, or logit_normal = sigmoid of a standard normal (SD3, 2403.03206, section 3.1).
    """

    kind: PredictionKind = "velocity"
    sampling: Literal["uniform", "logit_normal"] = "uniform"

    def __post_init__(self) -> None:
        if self.kind != "velocity":
            raise ValueError(f"a flow path predicts velocity, not {self.kind!r}")
        if self.sampling not in ("uniform", "logit_normal"):
            raise ValueError(f"sampling must be uniform or logit_normal, not {self.sampling!r}")

    @property
    def singular(self) -> bool:
        """False: a velocity determines x0 and noise at every t."""
        return False

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """alpha, sigma [N] at t [N]; float32 unless `dtype` (or t's own, float64) says otherwise."""
        t = full(t) if dtype is None else t.to(dtype)
        return 1 - t, t

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [N, ...] of x0, noise [N, ...] at t [N]."""
        return _add_noise(self, x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict [N, ...]: noise - x0."""
        return target(self, x0, noise, t, self.kind)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent [N, ...] a prediction implies."""
        return _x0(self, prediction, x_t, t)

    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise [N, ...] a prediction implies."""
        return _noise(self, prediction, x_t, t)

    def snr(self, t: Tensor) -> Tensor:
        """(1 - t)^2 / t^2 [N]: 0 at t = 1, infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma) ** 2

    def sample_t(self, n: int, generator: torch.Generator) -> Tensor:
        """n training times [n] float32, on the generator's device."""
        return uniform(n, generator) if self.sampling == "uniform" else logit_normal(n, generator)
