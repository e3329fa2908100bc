"""Listening to a pipeline: what its own `__call__` gives its denoiser and hands to its scheduler.

A run is recorded as steps; a step is the denoiser's passes since the last one, and the arguments of `scheduler.step`.
Nothing of the pipeline is changed for good: the denoiser's `forward` and the scheduler are put back afterwards.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

DENOISERS = ("unet", "transformer", "transformer_2", "unconditional_transformer", "unet_2", "prior", "decoder", "dit")


class Enough(Exception):
    """Raised inside a pipeline's call to end it early."""


@dataclass(frozen=True)
class Pass:
    """One call of a denoiser: its name, its arguments by name, and what it returned."""

    name: str
    arguments: dict[str, Any]
    output: Any

    def kept(self) -> Pass:
        """With copies of its tensors: pipelines write into them as they go on."""

        def copied(_: str, value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else value

        return Pass(self.name, rebuild(self.arguments, copied), rebuild(self.output, copied))


@dataclass(frozen=True)
class Step:
    """One call of `scheduler.step`, the denoiser's passes before it, and where it went (None for the last one)."""

    passes: list[Pass]
    model_output: Tensor
    timestep: Any
    sample: Tensor
    after: Tensor | None = None


@dataclass
class Recording:
    """The steps of a call, and the scheduler that made them: a copy, if the pipeline copied it."""

    steps: list[Step]
    scheduler: Any


Stub = Callable[[Pass], Any]  # an answer in the denoiser's stead


# --- trees of arguments -----------------------------------------------------------------------------------------------


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts, lists and tuples that is not one of these, with its dotted path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}.{i}" if path else str(i))
    else:
        yield path, tree


def rebuild(tree: Any, leaf: Callable[[str, Any], Any], path: str = "") -> Any:
    """The same tree with every leaf replaced by `leaf(path, value)`."""
    if isinstance(tree, Mapping):
        items = {k: rebuild(v, leaf, f"{path}.{k}" if path else str(k)) for k, v in tree.items()}
        return items if type(tree) is dict else type(tree)(**items)
    if isinstance(tree, list | tuple):
        return type(tree)(rebuild(v, leaf, f"{path}.{i}" if path else str(i)) for i, v in enumerate(tree))
    return leaf(path, tree)


@dataclass(frozen=True)
class Repeated:
    """A list that holds the same thing for every row."""

    item: Any


@dataclass(frozen=True, eq=False)
class Ragged:
    """A list of rows [L, ...] whose lengths differ, as an unconditional branch's may from a conditional one's."""

    items: list[Tensor]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ragged) or len(self.items) != len(other.items):
            return False
        return all(torch.equal(a, b) for a, b in zip(self.items, other.items, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice) -> Tensor | Ragged:
        return Ragged(self.items[rows]).stacked()

    def stacked(self) -> Tensor | Ragged:
        """One tensor [n, L, ...] if the lengths agree."""
        return torch.stack(self.items) if len({item.shape for item in self.items}) == 1 else self


def gathered(tree: Any, lists: Collection[str], path: str = "") -> Any:
    """The tree with every list in `lists`, one entry per row, as one leaf: a tensor of rows, `Ragged` or `Repeated`.

    Raises ValueError if the entries are neither tensors or numbers nor equal.
    """
    if not lists:
        return tree
    if path in lists:
        items = list(tree)
        if all(isinstance(item, Tensor) for item in items):
            return Ragged(items).stacked()
        if all(isinstance(item, int | float) for item in items):
            return torch.tensor(items)
        if any(item != items[0] for item in items):
            raise ValueError(f"`{path}` holds rows that cannot be told apart by numbers")
        return Repeated(items[0])
    if isinstance(tree, Mapping):
        parts = {k: gathered(v, lists, f"{path}.{k}" if path else str(k)) for k, v in tree.items()}
        return parts if type(tree) is dict else type(tree)(**parts)
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(v, lists, f"{path}.{i}" if path else str(i)) for i, v in enumerate(tree))
    return tree


# --- putting things in place for the length of a call -----------------------------------------------------------------


@contextmanager
def swapped(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object replaced for the length of a `with`, past any `__setattr__` of its own."""
    kept = {name: vars(owner)[name] for name in values if name in vars(owner)}
    vars(owner).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(owner).pop(name, None)
        vars(owner).update(kept)


def override_step(scheduler: Any, step: Callable[..., Any]) -> Any:
    """The scheduler with `step(self, ...)` in place of its class's own, under the same name and signature."""
    return override(scheduler, step=functools.wraps(type(scheduler).step)(step))


def override(scheduler: Any, **methods: Any) -> Any:
    """The scheduler with these methods (or values of properties) in place of its class's own.

    A class of its own rather than attributes: pipelines copy schedulers, and look at `inspect.signature(step)` to see
    whether they may pass `eta` and `generator`.
    """
    kind = type(scheduler)
    scheduler.__class__ = _Like(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})
    return scheduler


class _Like(type):
    """A class that counts as the one it derives from, also where a pipeline compares types."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__base__ is other or (isinstance(cls.__base__, _Like) and cls.__base__ == other)

    def __hash__(cls) -> int:
        return hash(cls.__base__)


@dataclass(frozen=True)
class Stepped:
    """What a scheduler's `step` returns."""

    prev_sample: Tensor


def denoisers(pipeline: Any) -> dict[str, nn.Module]:
    """The pipeline's parts that may be its denoiser, by name."""
    found = {name: getattr(pipeline, name, None) for name in DENOISERS}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def call_parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The arguments of the pipeline's `__call__`; of its parents' too, as far as it passes anything on."""
    found: dict[str, inspect.Parameter] = {}
    for kind in type(pipeline).__mro__:
        if "__call__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__call__"]).parameters
            found = {**parameters, **found}
            if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                break
    return {name: p for name, p in found.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}


@contextmanager
def listening(pipeline: Any, heard: Callable[[Pass], None], stub: Stub | None = None) -> Iterator[None]:
    """Calls `heard` after every pass of a denoiser; with a `stub`, its answer stands for the pass."""
    with ExitStack() as stack:
        for name, module in denoisers(pipeline).items():
            stack.callback(_put_back, [(layer, layer.processor) for layer in module.modules() if _has_processor(layer)])
            stack.enter_context(swapped(module, forward=_listener(name, module.forward, heard, stub)))
        yield


def _has_processor(layer: nn.Module) -> bool:
    return "processor" in vars(layer) or "processor" in layer._modules


def _put_back(processors: Sequence[tuple[Any, Any]]) -> None:
    """Attention processors that a pipeline exchanges for the length of its call, and keeps if that ends early."""
    for layer, processor in processors:
        if layer.processor is not processor:
            layer.set_processor(processor)


def _listener(name: str, forward: Any, heard: Callable[[Pass], None], stub: Stub | None) -> Any:
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def listen(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        asked = Pass(name, arguments, None)
        output = forward(*args, **kwargs) if stub is None else stub(asked)
        heard(Pass(name, arguments, output))
        return output

    return listen


# --- recording --------------------------------------------------------------------------------------------------------


def by_prompt(rows: Tensor, n: int) -> Tensor:
    """Rows [n, ...] of n prompts; the frames [n * F, ...] that some schedulers are given as rows, as [n, F, ...]."""
    return rows if len(rows) == n or len(rows) % n else rows.unflatten(0, (n, -1))


def call(pipeline: Any, prompts: Sequence[str] | str, generators: Sequence[torch.Generator], **settings: Any) -> Any:
    """The pipeline's own call, without gradients and without warnings of its libraries about each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = prompts if isinstance(prompts, str) else list(prompts)
        seeds = generators[0] if isinstance(prompts, str) else list(generators)
        return pipeline(prompt=asked, generator=seeds, **settings)


def record(
    pipeline: Any,
    scheduler: Any,
    prompts: Sequence[str] | str,
    *,
    seed: int,
    steps: int,
    stub: Stub | None = None,
    beyond: bool = False,
    **settings: Any,
) -> Recording:
    """The first `steps` steps of the pipeline's own call with that scheduler in place; row r is seeded `seed + r`.

    prompts: a text alone for calls that take no list. beyond: whether to go on to see if there is another step, past
    whatever may go wrong after the last.
    """
    passes: list[Pass] = []
    trace = Recording([], scheduler)
    original = type(scheduler).step
    signature = inspect.signature(original)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        trace.scheduler = self
        output, sample = by_prompt(given["model_output"], count), by_prompt(given["sample"], count).clone()
        trace.steps.append(Step(list(passes), output, given["timestep"], sample))
        passes.clear()
        if len(trace.steps) == steps + beyond:
            raise Enough
        out = original(self, *args, **kwargs)
        after = out[0] if isinstance(out, tuple) else out.prev_sample
        trace.steps[-1] = replace(trace.steps[-1], after=by_prompt(after, count).clone())
        return out

    count = 1 if isinstance(prompts, str) else len(prompts)
    device = pipeline._execution_device
    generators = [torch.Generator(device).manual_seed(seed + row) for row in range(count)]
    in_place = swapped(pipeline, scheduler=override_step(scheduler, step))
    with in_place, listening(pipeline, lambda heard: passes.append(heard.kept()), stub), suppress(Enough):
        try:
            call(pipeline, prompts, generators, **settings)
        except Exception as error:
            if isinstance(error, Enough) or not beyond or len(trace.steps) < steps:
                raise
    return trace
