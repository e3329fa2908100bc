"""From a model's scheduler config to the path it was trained on, and to the schedulers that walk that path.

Whatever solver a folder names (PNDM, Euler, DPM++, UniPC ...), the network was trained on one of two paths: a DDPM
noise table, walked here by DDIM, or rectified flow, walked by Euler. `from_config` keeps spacing, shift, terminal SNR.

Shapes: T steps; the policy's clock t as in `palate.paths`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from palate.models.contracts import Kernel, PredictionKind
from palate.models.probe import Stepped, override
from palate.paths import CosinePath, DDPMPath, FlowPath
from palate.transitions import DDIM, FlowSDE

_WHOLE = 1e-2  # of a timestep
_SAME_TABLE = 1e-6  # the last entry of a table at zero terminal SNR is 0 or next to it
KINDS: dict[str, PredictionKind] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


class Schedule(Protocol):
    """How a path is walked: a scheduler for it, and the two clocks."""

    @property
    def path(self) -> Any: ...

    @property
    def total(self) -> int:
        """Training timesteps."""
        ...

    def scheduler(self) -> Any:
        """A fresh deterministic scheduler of the path."""
        ...

    def times(self, scheduler: Any) -> Tensor:
        """The policy's clock [T+1] along a scheduler after its `set_timesteps`, the end included."""
        ...

    def timestep(self, t: Tensor) -> Tensor:
        """The scheduler's timestep [N] at the policy's clock t [N]."""
        ...

    def kernel(self, eta: float) -> Kernel: ...


@dataclass(frozen=True)
class TableSchedule:
    """A DDPM noise table, walked by DDIM. t is the training timestep."""

    config: dict[str, Any]
    alphas_cumprod: Tensor | None = None  # where the model's own are not what DDIM makes of its config

    @cached_property
    def _model(self) -> DDIMScheduler:
        return self.scheduler()

    @cached_property
    def path(self) -> DDPMPath:
        return DDPMPath(self._model.alphas_cumprod, KINDS[self._model.config.prediction_type])

    @property
    def total(self) -> int:
        return int(self._model.config.num_train_timesteps)

    def scheduler(self) -> DDIMScheduler:
        made = _build(DDIMScheduler, self.config)
        if self.alphas_cumprod is not None:
            made.alphas_cumprod = self.alphas_cumprod
            if not made.config.set_alpha_to_one:
                made.final_alpha_cumprod = self.alphas_cumprod[0]
        return made

    def times(self, scheduler: DDIMScheduler) -> Tensor:
        # Each step arrives where the next begins; the last as far on as DDIM itself goes, below 0 for the end.
        last = scheduler.timesteps[-1:] - self.total // scheduler.num_inference_steps
        return torch.cat([scheduler.timesteps, last])

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def kernel(self, eta: float) -> DDIM:
        return DDIM(self.path, eta, float(self._model.final_alpha_cumprod))


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow, walked by Euler. t is sigma.

    warp: None where the timestep is sigma times the number of training timesteps. Else a pipeline tells its denoiser
    the time before it was shifted: tau with sigma = warp tau / (1 + (warp - 1) tau).
    """

    config: dict[str, Any]
    warp: float | None = None

    @cached_property
    def path(self) -> FlowPath:
        return FlowPath()

    @cached_property
    def total(self) -> int:
        return int(self.scheduler().config.num_train_timesteps)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return _build(FlowMatchEulerDiscreteScheduler, self.config)

    @cached_property
    def _rising(self) -> bool:
        """Whether the scheduler's own clock counts from noise at 0 to data at 1."""
        return bool(self.config.get("invert_sigmas"))

    def times(self, scheduler: FlowMatchEulerDiscreteScheduler) -> Tensor:
        return 1 - scheduler.sigmas if self._rising else scheduler.sigmas

    def timestep(self, t: Tensor) -> Tensor:
        if self.warp is None:
            return (1 - t if self._rising else t) * self.total
        sigma = t.to("cpu", torch.float64)
        time = self.total * sigma / (sigma + self.warp * (1 - sigma))
        whole = time.round()  # such pipelines count in whole steps, which rounding must not move
        return torch.where((time - whole).abs() < _WHOLE, whole, time).float().to(t.device)

    def kernel(self, eta: float) -> FlowSDE:
        return FlowSDE(self.path, eta)


@dataclass(frozen=True)
class CosineSchedule:
    """EDM's noise levels s as angles, t = 2 atan(s) / pi, walked by DDIM in variance-preserving coordinates.

    model: the folder's scheduler, whose noise levels are kept; it need not be able to step.
    """

    model: Any

    @cached_property
    def path(self) -> CosinePath:
        return CosinePath()

    @property
    def total(self) -> int:
        return 1

    def scheduler(self) -> Any:
        kernel = self.kernel(0.0)

        def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True,
                 **__: Any) -> Any:  # fmt: skip
            times = torch.cat([self.timesteps, self.timesteps.new_zeros(1)])
            place = int((times == timestep).nonzero()[0])
            t, t_prev = (times[i].expand(len(sample)) for i in (place, place + 1))
            x = kernel.mean_std(model_output, sample, t, t_prev)[0].to(sample.dtype)
            return Stepped(x) if return_dict else (x, x)

        def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Tensor:
            return sample

        step = functools.wraps(type(self.model).step)(step)
        return override(copy.deepcopy(self.model), step=step, scale_model_input=scale_model_input, init_noise_sigma=1.0)

    def times(self, scheduler: Any) -> Tensor:
        return torch.cat([scheduler.timesteps, scheduler.timesteps.new_zeros(1)])

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def kernel(self, eta: float) -> DDIM:
        return DDIM(self.path, eta)


def _is_cosine(scheduler: Any) -> bool:
    """Whether a solver's preconditioning is prediction of v on the cosine path, for data of variance 1."""
    if not all(hasattr(scheduler, f"precondition_{what}") for what in ("inputs", "noise", "outputs")):
        return False
    for s in torch.tensor([0.3, 1.0, 4.0, 90.0]):
        t = 2 * s.atan() / math.pi
        alpha, sigma = CosinePath().alpha_sigma(t)
        x, v = torch.tensor([0.7, -2.0]), torch.tensor([1.3, 0.4])
        made = (
            scheduler.precondition_inputs(x, s),
            scheduler.precondition_noise(s),
            scheduler.precondition_outputs(x, v, s),
        )
        wanted = (alpha * x, t, alpha * alpha * x - sigma * v)
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(made, wanted, strict=True)):
            return False
    return True


def told(schedule: Schedule, scheduler: Any) -> Schedule:
    """The schedule as a pipeline walks it: it may give its scheduler times that are not those of its noise levels.

    scheduler: after the pipeline's `set_timesteps`. Raises ValueError for times in no known relation to them.
    """
    if not isinstance(schedule, FlowSchedule):
        return schedule
    sigma = schedule.times(scheduler)[:-1].double().cpu()
    times = scheduler.timesteps.double().cpu()
    if len(times) != len(sigma) or torch.allclose(times, schedule.timestep(sigma.float()).double(), rtol=1e-5):
        return schedule
    tau = times / schedule.total
    inner = (sigma > 0) & (sigma < 1) & (tau > 0) & (tau < 1)
    warps = (sigma * (1 - tau) / ((1 - sigma) * tau))[inner]
    if len(warps) == 0 or float(warps.std(correction=0)) > 1e-4 * float(warps.mean()):
        raise ValueError("the times its denoiser is told do not follow from its noise levels in a known way")
    return FlowSchedule(schedule.config, float(warps.mean()))


def _build(kind: Any, config: dict[str, Any]) -> Any:
    known = inspect.signature(kind.__init__).parameters
    made = kind.from_config({name: value for name, value in config.items() if name in known})
    made.register_to_config(**{name: value for name, value in config.items() if name not in known})  # pipelines look
    return made


def schedule_of(scheduler: Any) -> Schedule:
    """The path of a model's scheduler. Raises ValueError, naming the scheduler, for what is neither of the two."""
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    if _is_cosine(scheduler):
        return CosineSchedule(copy.deepcopy(scheduler))
    name, kind = type(scheduler).__name__, config.get("prediction_type", "epsilon")
    if config.get("thresholding") or (config.get("clip_sample") and hasattr(scheduler, "alphas_cumprod")):
        raise ValueError(
            f"{name} clips the predicted picture at every step, which has no Gaussian transition: "
            "set clip_sample and thresholding to false in scheduler/scheduler_config.json if the model allows it"
        )
    if config.get("timestep_scaling") is not None and hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{name} walks a consistency model, which jumps to clean latents and back: its steps are no Gaussian "
            "transitions of a noise path; use the model it was distilled from"
        )
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or kind == "flow_prediction":
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return FlowSchedule({**config, "shift": shift, "stochastic_sampling": False})
    if hasattr(scheduler, "alphas_cumprod") and kind in KINDS:
        from_end = config.get("timestep_spacing") in ("trailing", "linspace")
        if kind == "epsilon" and from_end and config.get("rescale_betas_zero_snr"):
            raise ValueError(
                f"{name} says the model predicts noise and starts at zero terminal SNR, where that says nothing about "
                "the picture: set prediction_type to v_prediction, or rescale_betas_zero_snr to false, in "
                "scheduler/scheduler_config.json, as the model was trained"
            )
        made = TableSchedule({"set_alpha_to_one": False, "steps_offset": 1, **config, "clip_sample": False})
        own = scheduler.alphas_cumprod
        same = own.shape == made.scheduler().alphas_cumprod.shape
        if same and float((own - made.scheduler().alphas_cumprod).abs().max()) < _SAME_TABLE:
            return made
        return TableSchedule(made.config, own.detach().clone())
    raise ValueError(
        f"{name} with prediction_type {kind!r} is neither a DDPM noise table (epsilon, v_prediction, sample) nor "
        "rectified flow, nor EDM's v on a cosine path; use a model of one of these"
    )
