"""A scheduler that samples stochastically and writes down what it does, for the length of one pipeline call.

It is the path's own scheduler class, made `from_config` of the model's, so that spacings, shifts and the arguments of
`set_timesteps` are kept; only `step` is another: the Gaussian transition of `palate.transitions`, with one generator
per row, so that a sample does not depend on its batch.

Shapes: n rows, T steps, latents [n, ...] in the path's coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition, Kernel
from palate.models.probe import Stepped, by_prompt, override_step
from palate.transitions import gaussian_log_prob


@dataclass(frozen=True)
class Record:
    """What happened in a call. x: [n, T+1, ...] fp32. t: [T+1]. logps: [n, T], MEAN over latent dimensions, 0 where
    std is 0 and there is no likelihood. std: [T]. cond: n rows. kernel: the transitions'."""

    x: Tensor
    t: Tensor
    logps: Tensor
    std: Tensor
    cond: Condition
    kernel: Kernel
    guidance_scale: float | None


def joined(records: Sequence[Record]) -> Record:
    """One record of all rows, of calls along the same times."""
    first = records[0]
    if len(records) == 1:
        return first
    return replace(
        first,
        x=torch.cat([record.x for record in records]),
        logps=torch.cat([record.logps for record in records]),
        cond=Condition.cat([record.cond for record in records]),
    )


@dataclass
class Tape:
    """The growing record of one call. Copies of a scheduler write on the same tape."""

    kernel: Kernel
    generators: Sequence[torch.Generator]
    deterministic: bool
    times: Callable[[Any], Tensor]
    sign: int = 1  # of the scheduler's predictions in the path's direction
    t: Tensor = field(default_factory=lambda: torch.empty(0))
    std: list[float] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tape:
        return self

    def start(self, scheduler: Any, sample: Tensor) -> None:
        """Read the schedule, and each step's std once, so that no step has to ask the accelerator for it."""
        self.t = self.times(scheduler).to(sample.device)
        self.std = [0.0] * (len(self.t) - 1)
        if not self.deterministic:
            self.std = transition_std(self.kernel, self.t.cpu()).tolist()
        self.x.append(sample.float().clone())  # some pipelines write the next one into it

    def noise(self, like: Tensor) -> Tensor:
        """[n, ...], row r from its own generator."""
        rows = [torch.randn(like.shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(rows).to(like.device)

    def advance(self, prediction: Tensor, sample: Tensor) -> Tensor:
        """The next x [n, ...] by the kernel, written down with its log-probability."""
        i, n = len(self.x) - 1, len(sample)
        t, t_prev = self.t[i].expand(n), self.t[i + 1].expand(n)
        mean, std = self.kernel.mean_std(prediction, sample, t, t_prev)
        if self.std[i] == 0:
            x = mean.to(sample.dtype)
            self.logps.append(torch.zeros(n, device=x.device))
        else:
            x = (mean + std.view(-1, *[1] * (mean.dim() - 1)) * self.noise(mean)).to(sample.dtype)
            self.logps.append(gaussian_log_prob(x, mean, std, check=False))
        return x


def transition_std(kernel: Kernel, times: Tensor) -> Tensor:
    """The std [T] of every transition between times [T+1]; it does not depend on the latents."""
    nothing = torch.zeros(len(times) - 1, 1)
    return kernel.mean_std(nothing, nothing, times[:-1], times[1:])[1]


def recording(scheduler: Any, tape: Tape) -> Any:
    """The scheduler with a `step` that moves by the tape's kernel, or by its own formula if that is deterministic."""
    own = type(scheduler).step

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        return_dict: bool = True,
        **rest: Any,
    ) -> Any:
        shape, n = sample.shape, len(tape.generators)
        if not tape.x:
            tape.start(self, by_prompt(sample, n))
        if tape.deterministic:
            rest = {name: value for name, value in rest.items() if name not in ("eta", "generator")}
            x = own(self, model_output, timestep, sample, **rest, return_dict=False)[0]
            tape.logps.append(torch.zeros(n, device=x.device))
        else:
            output = by_prompt(model_output if tape.sign > 0 else -model_output, n)
            x = tape.advance(output, by_prompt(sample, n)).view(shape)
            if hasattr(self, "_step_index"):
                self._step_index = len(tape.x)
        tape.x.append(by_prompt(x, n).float())
        return Stepped(x) if return_dict else (x, x)

    return override_step(scheduler, step)
