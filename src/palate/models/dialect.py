"""How a pipeline is asked for guidance: which argument holds the scale, or which component, and what turns it off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from palate.models.probe import call_parameters, swapped

GUIDER = "guider"  # a component that guides, in newer pipelines: its scale is its own, not the call's


@dataclass(frozen=True)
class Dialect:
    """How a pipeline's call is asked for guidance: `settings(None, n)` turns it off, a scale on, for n prompts.

    off: arguments that turn it off. scale: the argument that holds the scale; `guider` for the component's own; None
    if there is no guidance. negative: whether it also needs a negative prompt. always: arguments of every call (other
    kinds of guidance, kept off). stand_in: a scale for calls that must be made without one, where guidance cannot be
    turned off.
    """

    off: Mapping[str, Any] = field(default_factory=dict)
    scale: str | None = None
    negative: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)
    stand_in: float | None = None

    def settings(self, scale: float | None, n: int) -> dict[str, Any]:
        """Arguments of the call; n is 0 where it takes a text and no list."""
        if scale is None and self.stand_in is None:
            return {**self.always, **self.off}
        assert self.scale is not None
        own = {} if self.scale == GUIDER else {self.scale: self.stand_in if scale is None else scale}
        return {**self.always, **own, **({"negative_prompt": [""] * n if n else ""} if self.negative else {})}

    def in_place(self, pipeline: Any, scale: float | None) -> AbstractContextManager[None]:
        """What must stand in the pipeline for the length of a call."""
        guider = getattr(pipeline, GUIDER, None)
        if guider is None or not hasattr(guider, "new"):
            return nullcontext()
        return swapped(pipeline, **{GUIDER: guider.new(guidance_scale=1.0 if scale is None else scale)})


def ways_off(pipeline: Any) -> Iterator[Dialect]:
    """Dialects without guidance, the plainest first."""
    known = call_parameters(pipeline)
    scales: list[dict[str, Any]] = [{}]
    if "guidance_scale" in known:
        scales += [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}]
    for always in [{}, {"pag_scale": 0.0}] if "pag_scale" in known else [{}]:
        yield from (Dialect(off, always=always) for off in scales)


def ways_on(pipeline: Any, without: Dialect) -> Iterator[Dialect]:
    """Dialects with guidance: a scale, by the usual names first, with an empty negative prompt if that is needed."""
    known = call_parameters(pipeline)
    usual = ["guidance_scale", "true_cfg_scale"]
    other = [name for name in known if name.endswith(("guidance_scale", "cfg_scale")) and name not in usual]
    names = [name for name in (*usual, *other) if name in known]
    if hasattr(getattr(pipeline, GUIDER, None), "new"):
        names.insert(0, GUIDER)
    for negative in (False, True) if "negative_prompt" in known else (False,):
        yield from (Dialect(without.off, name, negative, without.always) for name in names)
