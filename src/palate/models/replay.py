"""Calling a denoiser as its pipeline would: where the latent, the clock and the conditioning go, and what comes back.

Nothing here knows a model; `capture.py` finds every number by listening to a pipeline, and proves the result.

Shapes: N rows; x in the path's coordinates [N, ...]; t [N]. A pass holds `parts` copies of the rows, one per guidance
branch, one after the other or row by row; with one branch per pass there are as many passes as branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.forms import COMBINATIONS, Clock, Layout, Moment, Rows, Switch
from palate.models.probe import Pass, Ragged, Repeated, gathered, leaves, rebuild


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
