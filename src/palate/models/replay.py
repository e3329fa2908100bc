"""Calling a denoiser as its pipeline would: where the latent, the clock and the conditioning go, and what comes back.

Nothing here knows a model; `capture.py` finds every number by listening to a pipeline, and proves the result.

Shapes: N rows; x in the path's coordinates [N, ...]; t [N]. A pass holds `parts` copies of the rows, one per guidance
branch, one after the other or row by row; with one branch per pass there are as many passes as branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.probe import Pass, Ragged, Repeated, gathered, leaves, rebuild

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


@dataclass(frozen=True)
class Slot:
    """One pass of the denoiser within a step, and the part each of its arguments plays.

    template: the arguments' nesting. latents, clocks: argument path -> how to make it. rows: paths that carry the
    batch, and how; every other argument is the same for all rows. branches: of its parts, in order. lists: paths of
    arguments that are lists with one entry per row.
    """

    name: str
    template: dict[str, Any]
    latents: dict[str, Layout]
    dtypes: dict[str, torch.dtype]
    clocks: dict[str, Clock]
    rows: Mapping[str, Rows]
    branches: tuple[str, ...]
    interleaved: bool
    lists: frozenset[str] = frozenset()

    @property
    def owner(self) -> str:
        """The branch whose name the shared arguments are kept under."""
        return self.branches[0] if len(self.branches) == 1 else "cond"

    def split(self, tensor: Tensor | Ragged) -> list[Any]:
        """A pass's tensor [parts * N, ...] as one [N, ...] per branch, `Ragged` where lengths differ."""
        return split(tensor, len(self.branches), self.interleaved)

    def join(self, parts: list[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        return torch.stack(parts, 1).flatten(0, 1) if self.interleaved else torch.cat(parts)

    def condition(self, heard: Pass) -> tuple[dict[str, Tensor | Ragged], dict[str, Any]]:
        """Rows and shared entries of what the denoiser was given, less the noisy input and the clock."""
        rows: dict[str, Tensor | Ragged] = {}
        shared: dict[str, Any] = {}
        for path, value in leaves(gathered(heard.arguments, self.lists)):
            if path in self.rows:
                how = self.rows[path]
                parts = zip(self.branches, self.split(how.read(value)), strict=True)
                rows |= {f"{branch}/{path}": how.nest(part) for branch, part in parts}
            elif path in self.latents:
                layout = self.latents[path]
                if layout.has_rest:
                    parts = zip(self.branches, self.split(value), strict=True)
                    rows |= {f"{branch}/{path}": layout.blank(part) for branch, part in parts}
            elif path not in self.clocks and value is not None:
                shared[f"{self.owner}/{path}"] = value.item if isinstance(value, Repeated) else value
        return rows, shared

    def arguments(self, x: Tensor, at: Moment, cond: Condition) -> dict[str, Any]:
        """The denoiser's keyword arguments at x [N, ...]."""

        def fill(path: str, value: Any) -> Any:
            if value is None:
                return None
            if path in self.clocks and self.clocks[path].once and len(x) == 1:
                return self.clocks[path](at)
            parts = self._parts(path, x, at, cond)
            if parts is not None and path in self.lists:
                return self._list(parts)
            if parts is not None:
                return self.rows[path].write(self.join(parts)) if path in self.rows else self.join(parts)
            shared = cond.shared.get(f"{self.owner}/{path}", cond.shared.get(f"cond/{path}"))
            return [shared] * (len(x) * len(self.branches)) if path in self.lists else shared

        return rebuild(self.template, fill)

    def _parts(self, path: str, x: Tensor, at: Moment, cond: Condition) -> list[Tensor] | None:
        """An argument's rows [N, ...] per branch; None if it is the same for all rows."""
        if path in self.latents:
            layout, dtype = self.latents[path], self.dtypes[path]
            rest = [cond.rows[f"{b}/{path}"] if layout.has_rest else None for b in self.branches]
            return [layout(x.to(dtype), r) for r in rest]
        if path in self.clocks:
            return [self.clocks[path](at)] * len(self.branches)
        if path in self.rows:
            parts = [cond.rows[f"{branch}/{path}"] for branch in self.branches]
            return parts if self.rows[path].entries == 1 else [part.flatten(0, 1) for part in parts]
        return None

    def _list(self, parts: list[Tensor]) -> list[Any]:
        """Rows as a list, branch by branch or row by row; numbers as numbers."""
        lists = [part.tolist() if part.dim() == 1 else list(part.unbind()) for part in parts]
        ordered = zip(*lists, strict=True) if self.interleaved else lists
        return [row for some in ordered for row in some]


def split(tensor: Tensor | Ragged, parts: int, interleaved: bool) -> list[Any]:
    """[parts * N, ...] as `parts` tensors [N, ...], or `Ragged` where their rows differ in length."""
    if isinstance(tensor, Ragged):
        rows, n = tensor.items, len(tensor.items) // parts
        groups = [rows[i::parts] if interleaved else rows[i * n : (i + 1) * n] for i in range(parts)]
        return [Ragged(group).stacked() for group in groups]
    if parts == 1:
        return [tensor]
    if interleaved:
        return list(tensor.unflatten(0, (-1, parts)).unbind(1))
    return list(tensor.chunk(parts))


def same(a: Any, b: Any) -> bool:
    """Whether two shared arguments are equal in value."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True)
class Recipe:
    """All passes of a step, where the prediction lies in what they return, and how guidance combines the branches.

    sign: of the denoiser's output in what the scheduler is handed. combination: a key of `COMBINATIONS`, None for a
    single prediction. widened: branches are combined in float32. output: the path in what a pass returns. batched: two
    passes of one branch each may be made in one, where their arguments stack. lists: paths in what a pass returns that
    are lists with one entry per row. singly: the denoiser is asked for one row at a time, as the pipeline does it.
    switch: experts between which the time decides.
    """

    slots: tuple[Slot, ...]
    output: str
    layout: Layout
    sign: int
    combination: str | None = None
    widened: bool = False
    batched: bool = False
    lists: frozenset[str] = frozenset()
    singly: bool = False
    switch: Switch | None = None

    @property
    def names(self) -> list[str]:
        """The denoisers of the conditional branch: those that are trained."""
        own = [slot.name for slot in self.slots if "cond" in slot.branches]
        return [self.switch.early, self.switch.late] if self.switch else own

    def only_cond(self) -> Recipe:
        """The conditional branch alone."""
        slots = tuple(replace(slot, branches=("cond",)) for slot in self.slots if "cond" in slot.branches)
        return replace(self, slots=slots, combination=None, batched=False)

    def passes(self, cond: Condition) -> tuple[Slot, ...]:
        """The slots, or one that holds them all where they may be batched and these conditions allow it."""
        if not self.batched or any(name.startswith("uncond/") for name in cond.shared):
            return self.slots
        rows = {name.partition("/")[2]: value for name, value in cond.rows.items() if name.startswith("uncond/")}
        if any(value.shape != cond.rows[f"cond/{path}"].shape for path, value in rows.items()):
            return self.slots
        return (replace(self.slots[0], branches=tuple(slot.branches[0] for slot in self.slots)),)

    def condition(self, passes: list[Pass]) -> Condition:
        """The conditioning of one step's passes, n rows; of parts, where their lengths differ."""
        rows: dict[str, Tensor | Ragged] = {}
        shared: dict[str, Any] = {}
        for slot, heard in zip(self.slots, passes, strict=True):
            more_rows, more_shared = slot.condition(heard)
            rows |= more_rows
            shared |= more_shared
        for name in [name for name in shared if name.startswith("uncond/")]:
            if same(shared[name], shared.get("cond/" + name.removeprefix("uncond/"))):
                del shared[name]  # said once, where both branches are told the same
        if not any(isinstance(value, Ragged) for value in rows.values()):
            return Condition(rows, shared)  # type: ignore[arg-type]
        n = len(next(iter(rows.values())))
        alone = [{name: value[i : i + 1] for name, value in rows.items()} for i in range(n)]
        return Condition.cat([Condition(row, shared) for row in alone])  # type: ignore[arg-type]

    def predictions(self, slot: Slot, output: Any) -> dict[str, Tensor]:
        """A pass's output as one prediction [N, ...] per branch, in the path's coordinates."""
        raw = dict(leaves(gathered(output, self.lists)))[self.output]
        laid = [self.layout(part) for part in slot.split(raw)]
        return {b: part if self.sign > 0 else -part for b, part in zip(slot.branches, laid, strict=True)}

    def combine(self, found: Mapping[str, Tensor], scale: float | None) -> Tensor:
        """The prediction that the scheduler is handed, of one prediction per branch."""
        if self.combination is None:
            return found["cond"]
        assert scale is not None
        u, c = found["uncond"], found["cond"]
        return COMBINATIONS[self.combination](u.float() if self.widened else u, c.float() if self.widened else c, scale)

    def __call__(
        self, modules: Mapping[str, Any], x: Tensor, at: Moment, cond: Condition, scale: float | None = None
    ) -> Tensor:
        """The prediction [N, ...] at x [N, ...]; `scale` only if branches are combined."""
        if cond.parts:
            asked = [(where.to(x.device), part) for where, part in cond.groups()]
            return _scattered([(w, self(modules, x[w], at[w], part, scale)) for w, part in asked])
        if self.switch is not None:
            made = []
            for name, where in self.switch.sides(at.timestep):
                own = replace(self, switch=None)
                side = {**modules, self.switch.early: modules[name]}
                made.append((where, own(side, x[where], at[where], cond[where], scale)))
            return _scattered(made)
        if self.singly and len(x) > 1:
            rows = [slice(row, row + 1) for row in range(len(x))]
            return torch.cat([self(modules, x[row], at[row], cond[row], scale) for row in rows])
        found: dict[str, Tensor] = {}
        for slot in self.passes(cond):
            output = modules[slot.name](**slot.arguments(x, at, cond))
            found |= self.predictions(slot, output)
        return self.combine(found, scale)


def _scattered(made: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows [N, ...] of groups (which rows [n], [n, ...]) that make up all of them."""
    if len(made) == 1:
        return made[0][1]
    order = torch.cat([where for where, _ in made]).argsort()
    return torch.cat([rows for _, rows in made])[order]
