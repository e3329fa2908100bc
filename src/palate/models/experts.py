"""Which of a pipeline's denoisers predicts at which time, found by walking its own call along chosen times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palate.models.explain import Unlearned
from palate.models.forms import Switch
from palate.models.probe import Stepped, override

_POINTS, _ROUNDS = 33, 4  # a boundary to T / 32^4, finer than float32 tells times apart


def standing(scheduler: Any, times: Tensor) -> Any:
    """The scheduler with `times` [T] in place of its timesteps, and steps that go nowhere."""
    own = type(scheduler).set_timesteps

    @functools.wraps(own)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        self.timesteps = times.to(self.timesteps)

    @functools.wraps(type(scheduler).step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True,
             **__: Any) -> Any:  # fmt: skip
        return Stepped(sample) if return_dict else (sample,)

    return override(scheduler, set_timesteps=set_timesteps, step=step)


def find_switch(walk: Callable[[Tensor], list[str]], total: int) -> Switch | None:
    """Where the expert changes, None if one predicts at all times. `walk` tells who predicts at each of some times.

    Raises Unlearned if it is not one change, from one expert to another.
    """
    high, low = float(total), 0.0
    early, late = "", ""
    for _ in range(_ROUNDS):
        times = torch.linspace(high, low, _POINTS)
        names = walk(times)
        if len(names) != len(times):
            raise Unlearned("more than one denoiser predicts in a step")
        early, late = names[0], names[-1]
        if early == late and set(names) == {early} and low == 0.0 and high == total:
            return None
        first = next((i for i, name in enumerate(names) if name == late), 0)
        if first == 0 or names != [early] * first + [late] * (len(names) - first):
            raise Unlearned(f"which denoiser predicts ({', '.join(sorted(set(names)))}) is not decided by one time")
        high, low = float(times[first - 1]), float(times[first])
    return Switch(early, late, _plainest(low, high))


def _plainest(low: float, high: float) -> float:
    """The number in (low, high] with the fewest decimals."""
    for decimals in range(6):
        rounded = round(high, decimals)
        for number in (rounded, rounded - 10**-decimals):
            if low < number <= high:
                return number
    return high
