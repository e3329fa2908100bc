"""Finding and reading a model: a hub id, a folder, or the one a world ships."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palate import plugins


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


def call_defaults(name: str | Path) -> dict[str, Any]:
    """Arguments of every call of the pipeline that a world's model is to be used with; none for another model."""
    if not str(name).startswith("world:"):
        return {}
    return getattr(plugins.world(str(name)), "call_defaults", dict)()


def absent_components(index: Mapping[str, Any]) -> dict[str, None]:
    """Parts a `model_index.json` says are not there, as arguments that say so: Stable Diffusion 3 without its T5 does
    not load unless it is told, in its folder and again in the call."""
    return {name: None for name, kind in index.items() if kind in ([None, None], (None, None))}


def resolve_model(name: str | Path) -> str:
    """A folder or a hub id for a model's name; `world:<name>` is the model a world ships.

    Raises FileNotFoundError, naming the folder or world and the mend.
    """
    text = str(name)
    if text.startswith("world:"):
        try:
            folder: Path = plugins.world(text).weights_dir()
        except plugins.PluginError as error:
            raise FileNotFoundError(f"{text}: there is no such world ({error}); `world:shapes` is one") from None
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{text}: its weights are not in {folder}; reinstall the package, or pretrain it")
        return str(folder)
    looks_local = isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    folder = Path(text).expanduser()
    parent = text.partition("/")[0]
    if folder.exists():
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{folder}: has no model_index.json; give the folder `save_pretrained` wrote")
        return str(folder)
    if looks_local:
        raise FileNotFoundError(f"{folder}: no such folder; give a pipeline's folder, a hub id, or world:shapes")
    if Path(parent).is_dir():  # a slip in a local path must not go to the network
        raise FileNotFoundError(
            f"{folder}: no such folder in {parent}/; mend the path (or, if it is a hub id, call from another folder)"
        )
    return text
