"""Explaining a recorded run from its values: the part each argument of the denoiser plays, and the guidance formula.

Per argument: what holds every element of `scheduler.step`'s sample is the noisy input; what follows the timestep is the
clock; what grows with the number of prompts is a row of the conditioning; what stays is shared. The prediction is
looked for in the same way in what the scheduler is handed, and guidance is the formula that rebuilds it bit for bit.
What cannot be explained raises `Unlearned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from palate.models.forms import CLOCKS, COMBINATIONS, Clock, Layout, Moment, Rows
from palate.models.probe import DENOISERS, Pass, Ragged, Step, gathered, leaves, rebuild
from palate.models.replay import Recipe, Slot, split


class Unlearned(Exception):
    """Why a trace could not be explained; becomes an `UnsupportedPipeline`."""


# --- finding one tensor in another ------------------------------------------------------------------------------------


def fingerprint(rows: Tensor) -> Tensor:
    """[R, ...] -> [elements of a row] int64: equal where all R values of an element are equal, bit for bit."""
    bits = (rows.float() + 0.0).contiguous().flatten(1).view(torch.int32).long()
    weights = torch.randint(-(2**62), 2**62, (len(bits), 1), generator=torch.Generator().manual_seed(0)) | 1
    return (bits * weights.to(bits.device)).sum(0)


def find(source: Tensor, target: Tensor, *, whole: bool) -> Layout | None:
    """Where source's elements [R, ...] lie in target [R, ...]: all of them (`whole`), or all that target has."""
    have, want = fingerprint(source), fingerprint(target)
    order = have.argsort()
    place = torch.searchsorted(have[order], want).clamp(max=len(have) - 1)
    hit = have[order][place] == want
    index = torch.where(hit, order[place], -1)
    missing = len(index[hit].unique()) < len(have) if whole else not bool(hit.all())
    if missing or not bool(hit.any()):
        return None
    order = torch.arange(len(index), device=index.device)
    if len(index) == len(have) and torch.equal(index, order):
        return Layout(tuple(target.shape[1:]))
    short = min(len(index), len(have))  # the last elements of the longer one, whatever comes before them
    tail = torch.cat([torch.full_like(order[short:], -1), order[:short]]) if whole else order + len(have) - short
    return Layout(tuple(target.shape[1:]), index, torch.equal(index, tail))


# --- learning one step's passes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A recorded run of n prompts: its steps, and when they were, as the path's clock gives it."""

    n: int
    steps: list[Step]
    moments: list[Moment]
    lists: frozenset[str] = frozenset()  # of the arguments, gathered
    output_lists: frozenset[str] = frozenset()

    def rows(self, order: list[int]) -> Run:
        """The run of these rows alone, as far as latents and predictions go."""
        steps = [replace(s, sample=s.sample[order], model_output=s.model_output[order]) for s in self.steps]
        return Run(len(order), steps, self.moments)

    @property
    def samples(self) -> Tensor:
        return torch.cat([step.sample for step in self.steps])

    def values(self, slot: int, path: str) -> list[Any]:
        """One argument of one pass, over the steps."""
        return [dict(leaves(self.arguments(step, slot))).get(path) for step in self.steps]

    def arguments(self, step: Step, slot: int) -> Any:
        """What a pass was given, with lists of rows as one leaf."""
        try:
            return gathered(step.passes[slot].arguments, self.lists)
        except ValueError as error:
            raise Unlearned(f"the denoiser's argument {error}") from None

    def output(self, heard: Pass) -> Any:
        return gathered(heard.output, self.output_lists)

    def outputs(self, slot: int, path: str) -> list[Tensor]:
        return [dict(leaves(self.output(step.passes[slot])))[path] for step in self.steps]


def predictions_per_step(run: Run) -> int:
    """How many predictions of a row the denoiser makes in a step, over all passes."""
    if not run.steps or not run.steps[0].passes:
        raise Unlearned(f"no denoiser was called before the first step; looked for {', '.join(DENOISERS)}")
    counts = [rows_returned(heard.output) for heard in run.steps[0].passes]
    return sum(counts) // run.n


def rows_returned(output: Any) -> int:
    """How many rows a pass returns: the length of its tensor, or of its list of tensors."""
    while isinstance(output, Mapping | tuple):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    if isinstance(output, Tensor | list):
        return len(output)
    raise Unlearned("the denoiser returns no tensor")


def batch_lists(two: Any, three: Any, n: tuple[int, int], path: str = "") -> frozenset[str]:
    """Paths of lists that grow with the number of prompts, from runs of n[0] and n[1]."""
    if isinstance(two, list | tuple) and isinstance(three, list | tuple) and len(two) != len(three):
        return frozenset([path]) if len(two) * n[1] == len(three) * n[0] else frozenset()
    if isinstance(two, Mapping) and isinstance(three, Mapping):
        pairs = [(str(k), two[k], three[k]) for k in two if k in three]
    elif isinstance(two, list | tuple) and isinstance(three, list | tuple):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(two, three, strict=True))]
    else:
        return frozenset()
    return frozenset().union(*(batch_lists(a, b, n, f"{path}.{key}" if path else key) for key, a, b in pairs))


def with_lists(two: Run, three: Run) -> tuple[Run, Run]:
    """Both runs, told which lists hold one entry per row."""
    sizes = (two.n, three.n)
    lists, output_lists = frozenset[str](), frozenset[str]()
    for a, b in zip(two.steps[0].passes, three.steps[0].passes, strict=False):
        lists |= batch_lists(a.arguments, b.arguments, sizes)
        output_lists |= batch_lists(a.output, b.output, sizes)
    return (
        replace(two, lists=lists, output_lists=output_lists),
        replace(three, lists=lists, output_lists=output_lists),
    )


def constant(values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, Tensor):
        return all(isinstance(v, Tensor) and v.shape == first.shape and torch.equal(v, first) for v in values[1:])
    return all(type(v) is type(first) and v == first for v in values[1:])


def learn_latent(values: Sequence[Any], run: Run) -> tuple[Layout, int, bool] | None:
    """The layout of the noisy input in an argument, how many copies of it, and whether these are interleaved."""
    if not all(isinstance(v, Tensor) and v.dim() > 0 and v.numel() >= run.samples[0].numel() for v in values):
        return None
    parts, remainder = divmod(len(values[0]), run.n)
    if remainder or parts == 0:
        return None
    samples = run.samples.to(values[0].dtype)
    for interleaved in (False, True) if parts > 1 else (False,):
        copies = [torch.cat(list(part)) for part in zip(*(split(v, parts, interleaved) for v in values), strict=True)]
        layouts = [find(samples, copy, whole=True) for copy in copies]
        first = layouts[0]
        if first is not None and all(o is not None and same_layout(o, first) for o in layouts):
            return first, parts, interleaved
    return None


def same_layout(a: Layout, b: Layout) -> bool:
    if a.index is None or b.index is None:
        return a.index is b.index and a.shape == b.shape
    return a.shape == b.shape and torch.equal(a.index, b.index)


def learn_clock(values: Sequence[Any], moments: Sequence[Moment], total: int) -> Clock | None:
    """The form, among `CLOCKS`, that gives an argument's value at every step, bit for bit."""
    tensors = [v if isinstance(v, Tensor) else torch.tensor(v) for v in values if isinstance(v, Tensor | int | float)]
    if len(tensors) < len(values) or any(v.numel() == 0 for v in tensors):
        return None
    tokens = None
    if tensors[0].dim() > 1:  # a time per token: the row's own where it is not zero
        tokens = tensors[0][0] != 0
        if any(v.shape[1:] != tokens.shape for v in tensors):
            return None
    for form in CLOCKS:
        for cast_first in (True, False):
            clock = Clock(form, tensors[0].dtype, cast_first, total, tokens)
            made = [clock(at.of(v.view(-1)[:1])) for at, v in zip(moments, tensors, strict=True)]
            if all(bool((m == v).all()) for m, v in zip(made, tensors, strict=True)):
                return clock
    return None


def learn_slot(slot: int, two: Run, three: Run, total: int) -> Slot:
    """The part every argument of one pass plays. The branches are named later, by the guidance formula.

    two, three: runs of different numbers of prompts; or of one prompt each, where a pipeline takes no more.
    """
    first = two.steps[0].passes[slot]
    latents: dict[str, Layout] = {}
    dtypes: dict[str, torch.dtype] = {}
    clocks: dict[str, Clock] = {}
    parts, interleaved = 0, False
    steady: list[str] = []
    times = two.moments + three.moments
    given = two.arguments(two.steps[0], slot)
    for path, _ in leaves(given):
        values = two.values(slot, path)
        if constant(values):
            steady.append(path)
        elif (latent := learn_latent(values, two)) is not None:
            latents[path], parts, interleaved = latent
            dtypes[path] = values[0].dtype
        elif (clock := learn_clock(values + three.values(slot, path), times, total)) is not None:
            clocks[path] = clock
        else:
            raise Unlearned(f"the denoiser's argument `{path}` changes from step to step, and is neither its noisy "
                            "input nor a known clock")  # fmt: skip
    if not latents:
        raise Unlearned("no argument of the denoiser holds the sample that the scheduler steps from")
    if not clocks:
        raise Unlearned("no argument of the denoiser follows the scheduler's timesteps")
    for path, clock in clocks.items():
        told = two.values(slot, path)[0]
        if isinstance(told, Tensor) and told.dim() == 1 and len(told) < parts * two.n:
            clocks[path] = replace(clock, once=True)
    found = {path: rows_in(slot, path, parts, two, three) for path in steady}
    rows = {path: how for path, how in found.items() if how is not None}
    template = rebuild(given, lambda _, value: None if value is None else True)
    return Slot(first.name, template, latents, dtypes, clocks, rows, ("cond",) * parts, interleaved, two.lists)


def rows_in(slot: int, path: str, parts: int, two: Run, three: Run) -> Rows | None:
    """How an argument carries the batch, by its sizes in runs of two and of three prompts; None if it does not."""
    a, b = two.values(slot, path)[0], three.values(slot, path)[0]
    if two.n == three.n:  # prompts one at a time: what could be a row is kept as one
        return Rows() if isinstance(a, Tensor) and a.dim() > 0 and len(a) == parts * two.n else None
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return Rows() if (len(a.items), len(b.items)) == (parts * two.n, parts * three.n) else None
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape == b.shape:
        return None
    for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)):
        entries = m // (parts * two.n)
        rest = (*a.shape[:axis], *a.shape[axis + 1 :]) == (*b.shape[:axis], *b.shape[axis + 1 :])
        if entries and rest and (m, n) == (entries * parts * two.n, entries * parts * three.n):
            return Rows(entries, axis)
    raise Unlearned(f"the denoiser's argument `{path}` is {tuple(a.shape)} for {two.n} prompts and {tuple(b.shape)} "
                    f"for {three.n}: it carries the batch in a way that is not known")  # fmt: skip


def check_alike(two: Run, three: Run) -> None:
    """All steps of both runs make the same passes with the same arguments."""
    first = two.steps[0]
    for run, step in [(two, step) for step in two.steps] + [(three, step) for step in three.steps]:
        if [p.name for p in step.passes] != [p.name for p in first.passes]:
            raise Unlearned("the passes of the denoiser differ from step to step, or from batch to batch")
        for slot, heard in enumerate(step.passes):
            theirs = [path for path, _ in leaves(two.arguments(first, slot))]
            if [path for path, _ in leaves(run.arguments(step, slot))] != theirs:
                raise Unlearned(f"the arguments of `{heard.name}` differ from step to step, or with the batch size")


def learn_single(two: Run, three: Run, total: int) -> Recipe:
    """The recipe of a run without guidance: one pass, one prediction."""
    two, three = with_lists(two, three)
    check_alike(two, three)
    if predictions_per_step(two) != 1 or len(two.steps[0].passes) != 1:
        raise Unlearned(f"{predictions_per_step(two)} predictions are made where guidance should be off")
    slot = learn_slot(0, two, three, total)
    found = find_prediction(two, [slot])
    if found is None:
        raise Unlearned("what the scheduler is handed is not the denoiser's output, nor a part of it: the pipeline "
                        "alters the prediction afterwards")  # fmt: skip
    return found[1]


def find_prediction(run: Run, slots: Sequence[Slot]) -> tuple[int, Recipe] | None:
    """Which of a step's predictions the scheduler is handed as it is, and the recipe of that one; None if none.

    The number counts branches, through the passes in order.
    """
    handed = torch.cat([step.model_output for step in run.steps])
    if not bool(handed.any()):
        raise Unlearned("every prediction is zero, so that nothing can be proven (a zero-initialised output layer?)")
    place = 0
    for index, slot in enumerate(slots):
        first = list(leaves(run.output(run.steps[0].passes[index])))
        for path, value in first:
            if not isinstance(value, Tensor) or len(value) != run.n * len(slot.branches):
                continue
            parts = zip(*(slot.split(output) for output in run.outputs(index, path)), strict=True)
            for branch, output in enumerate(torch.cat(part) for part in parts):
                for sign in (1, -1):
                    layout = find(output, sign * handed.to(output.dtype), whole=False)
                    if layout is not None:
                        alone = (replace(slot, branches=("cond",)),)
                        return place + branch, Recipe(alone, path, layout, sign, lists=run.output_lists)
        place += len(slot.branches)
    return None


def learn_always_guided(two: Run, three: Run, total: int) -> Recipe:
    """The recipe of one branch, of a run that makes two predictions and hands one of them on as it is."""
    two, three = with_lists(two, three)
    check_alike(two, three)
    slots = [learn_slot(i, two, three, total) for i in range(len(two.steps[0].passes))]
    found = find_prediction(two, slots)
    if found is None:
        raise Unlearned("guidance cannot be turned off: two predictions are combined at guidance_scale 1 and 0 too")
    return found[1]


def learn_guided(single: Recipe, two: Run, three: Run, total: int, scale: float) -> Recipe:
    """The recipe of a run with guidance: two predictions, in one pass or two, and the formula that combines them."""
    two, three = with_lists(two, three)
    check_alike(two, three)
    if predictions_per_step(two) != 2:
        raise Unlearned(f"guidance takes {predictions_per_step(two)} predictions per step, not two")
    slots = [learn_slot(i, two, three, total) for i in range(len(two.steps[0].passes))]
    for names in (("uncond", "cond"), ("cond", "uncond")):
        branches = iter(names)
        named = tuple(replace(s, branches=tuple(next(branches) for _ in s.branches)) for s in slots)
        for combination, widened in product(COMBINATIONS, (False, True)):
            recipe = replace(single, slots=named, combination=combination, widened=widened)
            if all(explains(recipe, step, scale) for step in two.steps):
                return recipe
    raise Unlearned("no known guidance formula rebuilds what the scheduler is handed from the two predictions "
                    f"(tried {', '.join(COMBINATIONS)})")  # fmt: skip


def explains(recipe: Recipe, step: Step, scale: float) -> bool:
    found: dict[str, Tensor] = {}
    for slot, heard in zip(recipe.slots, step.passes, strict=True):
        found |= recipe.predictions(slot, heard.output)
    if torch.equal(found["uncond"], found["cond"]):
        raise Unlearned("both guidance branches predict the same, so that nothing can be proven about guidance")
    try:
        made = recipe.combine(found, scale)
    except (RuntimeError, IndexError):  # a formula for other shapes
        return False
    return made.dtype == step.model_output.dtype and torch.equal(made, step.model_output)
