"""The forms in which a denoiser may be given its latent, its clock and its rows, and in which its predictions combine.

One of each is found for every argument by listening to a pipeline (`explain.py`); `replay.py` puts them together.

Shapes: N rows; x in the path's coordinates [N, ...]; t [N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor, float], Tensor]


def _plain(u: Tensor, c: Tensor, g: float) -> Tensor:
    return u + g * (c - u)


def _as_long_as(u: Tensor, c: Tensor, g: float) -> Tensor:
    """Of the conditional prediction's length, along the last axis."""
    guided = _plain(u, c, g)
    return guided * (torch.norm(c, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))


def _no_longer_than(u: Tensor, c: Tensor, g: float) -> Tensor:
    guided = _plain(u, c, g)
    share = torch.norm(c, dim=-1, keepdim=True) / (torch.norm(guided, dim=-1, keepdim=True) + 1e-8)
    return guided * share.clamp(min=0.0, max=1.0)


def _first_channels(u: Tensor, c: Tensor, g: float) -> Tensor:
    """Guidance of three channels; the others are the conditional branch's."""
    return torch.cat([_plain(u[:, :3], c[:, :3], g), c[:, 3:]], 1)


# How pipelines combine the unconditional (u) and conditional (c) predictions; equal on paper, not in floating point.
COMBINATIONS: dict[str, Combine] = {
    "u + g (c - u)": _plain,
    "c + g (c - u)": lambda u, c, g: c + g * (c - u),
    "c + (g - 1) (c - u)": lambda u, c, g: c + (g - 1) * (c - u),
    "(1 + g) c - g u": lambda u, c, g: (1 + g) * c - g * u,
    "g c + (1 - g) u": lambda u, c, g: g * c + (1 - g) * u,
    "g c + (1 - g) u, g in float32": lambda u, c, g: g * c + (1 - torch.tensor(g, device=c.device)) * u,
    "lerp(u, c, g)": lambda u, c, g: torch.lerp(u, c, g),
    "u + g (c - u), as long as c": _as_long_as,
    "u + g (c - u), no longer than c": _no_longer_than,
    "u + g (c - u), 3 channels": _first_channels,
}

# How a denoiser may be told the time, from the scheduler's timestep t of T and the path's own clock s.
CLOCKS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "t": lambda t, T, s: t,
    "t / T": lambda t, T, s: t / T,
    "sigma": lambda t, T, s: s,
    "1 - t / T": lambda t, T, s: 1 - t / T,
    "(T - t) / T": lambda t, T, s: (T - t) / T,
    "t - 1": lambda t, T, s: t - 1,
}


@dataclass(frozen=True)
class Moment:
    """Where rows stand: the scheduler's timestep [N], and the path's clock t [N] that it is made of."""

    timestep: Tensor
    t: Tensor

    def __getitem__(self, rows: Any) -> Moment:
        return Moment(self.timestep[rows], self.t[rows])

    def of(self, x: Tensor) -> Moment:
        """For all rows of x, on its device."""
        return Moment(*(value.to(x.device).expand(len(x)) for value in (self.timestep, self.t)))


@dataclass(frozen=True)
class Clock:
    """The denoiser's clock: a form of `CLOCKS`, its dtype, and whether it is cast before or after the formula.

    tokens: None for one time a row; else [...] bool, the tokens that stand at the row's time, the others at 0.
    once: whether it is given once for all rows of a pass, which matters to the last bit where there is one row.
    """

    form: str
    dtype: torch.dtype
    cast_first: bool
    steps: int
    tokens: Tensor | None = None
    once: bool = False

    def __call__(self, at: Moment) -> Tensor:
        """[N], or [N, ...] for a clock per token."""
        time = self._time(at.timestep, at.t)
        if self.tokens is None:
            return time
        tokens = self.tokens.to(time.device)
        return time.view(-1, *[1] * tokens.dim()) * tokens

    def _time(self, timestep: Tensor, t: Tensor) -> Tensor:
        form = CLOCKS[self.form]
        if not self.dtype.is_floating_point and timestep.is_floating_point():
            return form(timestep, self.steps, t)  # whole numbers given as floats, or times between them
        if self.cast_first:
            return form(timestep.to(self.dtype), self.steps, t.to(self.dtype))
        return form(timestep, self.steps, t).to(self.dtype)


@dataclass(frozen=True)
class Switch:
    """Two experts of one form: `early` predicts at scheduler timesteps of `at` and above, `late` below."""

    early: str
    late: str
    at: float

    def sides(self, timestep: Tensor) -> list[tuple[str, Tensor]]:
        """Each expert that is asked, and its rows [n]; timestep: [N]."""
        first = timestep >= self.at
        sides = [(self.early, first), (self.late, ~first)]
        return [(name, where.nonzero()[:, 0]) for name, where in sides if bool(where.any())]


@dataclass(frozen=True)
class Layout:
    """Where the elements of one row lie in another tensor's row of that shape.

    index: for each element of the target, which element of the source; -1 none of it; None for the same order.
    tail: the shorter of the two is the end of the longer one, whose length may vary with the prompt's.
    """

    shape: tuple[int, ...]
    index: Tensor | None = None
    tail: bool = False

    def __call__(self, rows: Tensor, rest: Tensor | None = None) -> Tensor:
        """rows [N, ...] -> [N, *shape]; what is not of the rows is taken from `rest` [N, *shape]."""
        if self.index is None:
            return rows.reshape(len(rows), *self.shape)
        if self.tail and rest is None:
            return rows.flatten(1)[:, -len(self.index) :].view(len(rows), *self.shape)
        if self.tail and rest is not None:
            flat = rows.flatten(1)
            return torch.cat([rest.flatten(1)[:, : -flat.shape[1]].to(flat.dtype), flat], 1).view_as(rest)
        index = self.index.to(rows.device)
        laid = rows.flatten(1)[:, index.clamp(min=0)].view(len(rows), *self.shape)
        return laid if rest is None else torch.where(index.view(self.shape) >= 0, laid, rest.to(laid.dtype))

    @cached_property
    def has_rest(self) -> bool:
        return self.index is not None and bool((self.index < 0).any())

    def blank(self, rows: Tensor) -> Tensor:
        """rows [N, *shape] without the source's elements: what `rest` needs to be."""
        assert self.index is not None
        if self.tail:
            held = int((self.index >= 0).sum())
            return torch.cat([rows.flatten(1)[:, :-held], torch.zeros_like(rows.flatten(1)[:, -held:])], 1).view_as(
                rows
            )
        return torch.where(self.index.view(self.shape).to(rows.device) >= 0, torch.zeros_like(rows), rows)


@dataclass(frozen=True)
class Rows:
    """How an argument carries the batch: entries a row (1; or one a frame), along which axis."""

    entries: int = 1
    axis: int = 0

    def read(self, value: Any) -> Any:
        """The argument with its batch in front."""
        return value if self.axis == 0 else value.movedim(self.axis, 0)

    def nest(self, rows: Any) -> Any:
        """[n * entries, ...] as [n, entries, ...]."""
        return rows if self.entries == 1 else rows.unflatten(0, (-1, self.entries))

    def write(self, rows: Tensor) -> Tensor:
        """The argument of all its rows."""
        return rows if self.axis == 0 else rows.movedim(0, self.axis).contiguous()
