"""Finding and reading a model: a hub id, a folder, or the one a world ships."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from palate.models.naming import call_defaults as call_defaults
from palate.models.naming import resolve_model as resolve_model


class Sparing(logging.Filter):
    """Lets a library say the same thing once, and things that begin alike a few times: a long prompt is told, and
    thousands of them are not."""

    ALIKE, BEGINNING = 3, 40

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        beginning = text[: self.BEGINNING]
        told = self._said.get(beginning, 0)
        if told >= self.ALIKE or text in self._said:
            return False
        self._said[beginning] = told + 1
        self._said[text] = 1
        if told + 1 == self.ALIKE:
            record.msg, record.args = f"{text} (more like it are not told)", ()
        return True


def sparingly() -> None:
    """From now on what diffusers and transformers say comes through a `Sparing` filter."""
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            if not any(isinstance(held, Sparing) for held in handler.filters):
                handler.addFilter(Sparing())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' own loading bars and notes on optional packages; errors still come through."""
    import transformers
    from diffusers.utils import logging as diffusers_logging

    libraries = (transformers.utils.logging, diffusers_logging)
    held = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, held, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()


def lay_out(module: nn.Module) -> None:
    """Puts a module's two-dimensional convolutions into the layout of `channels_last`, whatever stands beside them."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def channels_last(pipeline: Any) -> Any:
    """Weights of two-dimensional convolutions in the layout that CPUs and GPUs compute them fastest in: on a CPU a
    step of training takes two thirds of the time. Values are the same; only their order in memory is not."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            lay_out(component)
    return pipeline


def absent_components(index: Mapping[str, Any]) -> dict[str, None]:
    """Parts a `model_index.json` says are not there, as arguments that say so: Stable Diffusion 3 without its T5 does
    not load unless it is told, in its folder and again in the call."""
    return {name: None for name, kind in index.items() if kind in ([None, None], (None, None))}
