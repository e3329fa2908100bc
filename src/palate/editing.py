"""Pictures changed by a prompt: SDEdit (Meng et al. 2021, arXiv:2108.01073, section 3) on any model with a codec.

    media = edit(policy, pictures, prompts, ids, strength=0.6, seed=0, num_inference_steps=50, guidance_scale=7.5)

A picture x is encoded to x0, taken to the noise of a time t* on the model's own path,

    x_t* = alpha(t*) x0 + sigma(t*) noise,

and sampled from there to t = 0 under the prompt. What the noise has drowned is drawn anew, what has not stays.
`strength` s in (0, 1] says where: of N steps the last round(s N) are run, as in diffusers' image-to-image pipelines,
and t* is the time at which they begin. s = 1 is sampling from pure noise; s below 1 / 2N leaves nothing to run and
gives back what the codec makes of the picture.

No model is known by name: the pipeline's own call runs all of its N steps, its denoiser answered with blanks in those
that are left out, and the last of these arrives at x_t*, whatever it came from.

Shapes: n rows, T steps, latents [n, ...] in the path's coordinates.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palate import randomness, sampling
from palate.models.contracts import Kernel, Media
from palate.models.diffusion import DiffusionPolicy, unwrap
from palate.models.probe import Pass, Stub, override_step, swapped


def steps_run(strength: float, num_inference_steps: int) -> int:
    """How many of the steps, the last ones, are run. Raises ValueError for a strength outside of (0, 1]."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength:g}; give one above 0 (the picture itself) up to 1 (a new picture)")
    return round(strength * num_inference_steps)


@torch.no_grad()
def edit(
    policy: DiffusionPolicy,
    media: Sequence[Media],
    prompts: Sequence[str],
    ids: Sequence[str],
    *,
    strength: float,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float | None,
    eta: float = 0.0,
    batch_size: int = 32,
    progress: sampling.Progress | None = None,
) -> list[Media]:
    """One changed medium for each given one, by its prompt. ids name the samples and, with the seed, fix their noise.

    media: of the size that the model draws. Raises ValueError if their latents are not, for a strength outside of
    (0, 1], and for a model whose codec cannot be undone.
    """
    run = steps_run(strength, num_inference_steps)
    if policy.capture.recipe(sampling.guidance(guidance_scale) is not None).singly:
        batch_size = 1  # each row is a call of its own, with a schedule of its own
    out: list[Media] = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        draw = functools.partial(
            sampling.sample,
            prompts=prompts[rows],
            ids=ids[rows],
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
        )
        if run == num_inference_steps:
            made = draw(policy)
        else:
            x0 = _encoded(policy, media[rows])
            made = policy.decode(x0) if run == 0 else _edited(policy, x0, ids[rows], seed, run, draw)
        out.extend(made)
        if progress:
            progress(len(made))
    return out


def _encoded(policy: DiffusionPolicy, media: Sequence[Media]) -> Tensor:
    x0 = policy.encode(media)
    if tuple(x0.shape[1:]) != tuple(policy.latent_shape):
        raise ValueError(
            f"pictures of {sorted({medium.size for medium in media})} give latents {tuple(x0.shape[1:])}, but the "
            f"model draws {tuple(policy.latent_shape)}: bring them to the size the model draws"
        )
    return x0


def _edited(
    policy: DiffusionPolicy, x0: Tensor, ids: Sequence[str], seed: int, run: int, draw: Callable[..., list[Media]]
) -> list[Media]:
    """draw(policy) with a schedule that arrives at x_t* where the last `run` steps begin."""
    noise = randomness.normal(x0.shape[1:], randomness.generators(seed, ids, "edit")).to(x0)
    view, late = copy.copy(policy), _Late(policy.schedule, x0, noise, run)
    view.schedule = late
    with _blank_until(late, policy):
        return draw(view)


# --- a schedule that begins late --------------------------------------------------------------------------------------


@dataclass
class _Late:
    """A schedule whose first steps go nowhere and end at x_t*, for the length of one call; else the one it wraps.

    x0, noise: [n, ...]. run: how many of the steps are real. Deterministic steps are made by the call's scheduler,
    others by the kernel: both are held back.
    """

    schedule: Any
    x0: Tensor
    noise: Tensor
    run: int
    left: int | None = None  # steps to be left out still; None before the call has set its times
    begin: Tensor | None = None  # t*
    x: Tensor | None = None  # x_t* [n, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    @property
    def arrived(self) -> bool:
        return self.left == 0

    def times(self, scheduler: Any) -> Tensor:
        t: Tensor = self.schedule.times(scheduler)
        self.left = len(t) - 1 - self.run
        if self.left < 1:
            raise ValueError(f"the model makes {len(t) - 1} steps where more than {self.run} were asked for")
        self.begin = t[self.left].to(self.x0.device)
        self.x = self.schedule.path.add_noise(self.x0, self.noise, self.begin.expand(len(self.x0)))
        return t

    def held(self) -> Tensor:
        """x_t*, and one step less to be left out."""
        assert self.left and self.x is not None
        self.left -= 1
        return self.x

    def scheduler(self) -> Any:
        inner = self.schedule.scheduler()
        own = type(inner).step

        def step(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, **how: Any) -> Any:
            out = own(scheduler, model_output, timestep, sample, **how)  # at any rate, so that it counts its steps
            return out if self.arrived else (self.held().to(sample.dtype),)

        return override_step(inner, step)

    def kernel(self, eta: float) -> Kernel:
        return _LateKernel(self, self.schedule.kernel(eta))


@dataclass(frozen=True)
class _LateKernel:
    """The kernel's transitions, those before t* without noise."""

    schedule: _Late
    kernel: Kernel

    def mean_std(self, prediction: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.kernel.mean_std(prediction, x_t, t, t_prev)
        assert self.schedule.begin is not None
        std = std.masked_fill(t > self.schedule.begin.to(t.device), 0)
        if mean.shape == self.schedule.x0.shape and not self.schedule.arrived:  # a step, and no question about stds
            mean = self.schedule.held()
        return mean, std


@contextmanager
def _blank_until(late: _Late, policy: DiffusionPolicy) -> Iterator[None]:
    """The denoisers answer with blanks as long as the schedule has not arrived: nobody looks at what they say."""
    with ExitStack() as stack:
        for name, module in ((name, unwrap(module)) for name, module in policy.modules.items()):
            stack.enter_context(swapped(module, forward=_blank(name, module.forward, late, policy.capture.stub)))
        yield


def _blank(name: str, forward: Any, late: _Late, stub: Stub) -> Any:
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        if late.arrived:
            return forward(*args, **kwargs)
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        return stub(Pass(name, arguments | arguments.pop("kwargs", {}), None))

    return answer
