"""A pipeline without its weights: built from its configs alone, to see what it would take.

    pipeline = placed(hollow("stabilityai/stable-diffusion-xl-base-1.0", torch.bfloat16), mode := fake_mode())
    asked = denoiser_call(pipeline, ["a cat"] * 8, {})          # what its own call gives its denoiser
    peak, flops = followed(lambda: pipeline.unet(**asked.arguments), list(pipeline.unet.parameters()), mode)

Weights are fake tensors: they have shapes, dtypes and devices, and take no memory; every operation on them is followed
and none is computed.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palate.models.loading import quietly
from palate.models.probe import Enough, Pass, call, listening


class NotHere(LookupError):
    """A model's configs are not on this disk, or cannot be built without its weights; the message says what to do."""


def fake_mode() -> Any:
    """In which tensors are made without memory; shared by all that are to meet."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def on_disk(source: str) -> bool:
    """Whether a folder, a world or a hub id has its configs here."""
    from huggingface_hub import try_to_load_from_cache

    local = source.startswith("world:") or Path(source).is_dir()
    return local or isinstance(try_to_load_from_cache(source, "model_index.json"), str)


def hollow(source: str, dtype: torch.dtype) -> Any:
    """The pipeline in a folder or of a hub id, its modules on the `meta` device, its tokenizers and scheduler whole.

    Raises NotHere if the files of a hub id are not on this disk, or a part cannot be built from its config.
    """
    import diffusers

    if not on_disk(source):
        raise NotHere(f"{source} is not on this disk")
    with quietly():
        index = diffusers.DiffusionPipeline.load_config(source, local_files_only=True)
        kind = getattr(diffusers, index["_class_name"])
        parts: dict[str, Any] = {name: value for name, value in index.items() if not name.startswith("_")}
        for name, value in parts.items():
            if isinstance(value, list | tuple):
                parts[name] = _part(source, name, value, dtype) if value[0] is not None else None
        return kind(**parts)


def _part(source: str, name: str, where: Sequence[str], dtype: torch.dtype) -> Any:
    library, kind_name = where
    try:
        try:
            module = importlib.import_module(library)
        except ModuleNotFoundError:
            module = importlib.import_module(f"diffusers.pipelines.{library}")
        kind = getattr(module, kind_name)
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(source, subfolder=name, local_files_only=True)
        with torch.device("meta"):
            if hasattr(kind, "load_config"):
                made = kind.from_config(kind.load_config(source, subfolder=name, local_files_only=True))
            else:
                made = kind(kind.config_class.from_pretrained(source, subfolder=name, local_files_only=True))
        return made.to(dtype).eval().requires_grad_(False)
    except (OSError, ImportError, AttributeError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotHere(f"{source}: {name} cannot be built from its config ({reason})") from None


def placed(pipeline: Any, mode: Any) -> Any:
    """The pipeline with its weights as fake tensors of the processor, on which its own call can be followed."""
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            with mode:
                for layer in module.modules():
                    _place(layer)
    return pipeline


def _place(layer: nn.Module) -> None:
    for name, weight in layer._parameters.items():
        if weight is not None and weight.is_meta:
            like = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="cpu")
            layer._parameters[name] = nn.Parameter(like, requires_grad=weight.requires_grad)
    for name, value in layer._buffers.items():
        if value is not None and value.is_meta:
            layer._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cpu")


def denoiser_call(pipeline: Any, prompts: Sequence[str], settings: Mapping[str, Any]) -> Pass:
    """What the pipeline's own call gives its denoiser for these prompts, at its first step.

    Raises NotHere where its code looks at values, which hollow encoders do not have.
    """
    heard: list[Pass] = []

    def stop(asked: Pass) -> Any:
        heard.append(asked)
        raise Enough

    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    pipeline.set_progress_bar_config(disable=True)
    try:
        with suppress(Enough), listening(pipeline, lambda _: None, stop):
            call(pipeline, prompts, generators, num_inference_steps=2, **settings)
    except Exception as error:  # of code that is not ours, given what it does not expect
        reason = str(error).strip().partition("\n")[0]
        raise NotHere(f"{type(pipeline).__name__} cannot be followed without its weights ({reason})") from None
    if not heard:
        raise NotHere(f"{type(pipeline).__name__} never called its denoiser")
    return heard[0]


class Peak(TorchDispatchMode):
    """Bytes of the tensors made within the block that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def know(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that were there before: they are not counted."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self._seen.pop(key, None)
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def followed(work: Callable[[], Any], known: Sequence[Tensor], mode: Any) -> tuple[int, int]:
    """Most bytes alive beside `known`, and floating-point operations, of what is done to hollow tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    peak = Peak()
    peak.know(known)
    with mode, FlopCounterMode(display=False) as counter, peak:
        work()
    return peak.most, counter.get_total_flops()
