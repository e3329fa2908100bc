"""Where a pipeline's parts are: autoencoder and text encoders leave when they are not needed, and come when they are.

    policy.residency.leave()            # all but the denoiser; their memory is free
    policy.decode(x0)                   # the autoencoder comes for the call, and leaves again

A part that is away keeps its place in the pipeline, its config, dtypes and device; only its weights are empty. They are
put back by the first of its layers that is called, and taken out again when the outermost `visit` ends. Weights that
can be read again from the model's own files are freed; others wait in main memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from palate.models.identity import digest_of, encodes_media, parts
from palate.models.loading import lay_out, quietly
from palate.models.probe import denoisers


class ResidencyError(RuntimeError):
    """A part cannot be brought back as it was; the message says why and what to do."""


@dataclass
class _Away:
    """A part that has left. weights: in main memory; None where they are read again, as these dtypes, and must have
    this digest.
    """

    weights: dict[str, Tensor] | None
    dtypes: dict[str, torch.dtype]
    digest: str
    hooks: list[Any] = field(default_factory=list)


class Residency:
    """The parts of a pipeline beside its denoisers. source: the folder or hub id it was loaded from, if any.
    altered: names of parts that are not as they are there.
    """

    def __init__(self, pipeline: Any, source: str | None = None) -> None:
        self._pipeline, self.source = pipeline, source
        self.altered: frozenset[str] = frozenset()
        self._away: dict[str, _Away] = {}
        self._left: dict[str, _Away] = {}  # all that have once left: they leave again after a visit
        self._visits = 0

    @property
    def away(self) -> frozenset[str]:
        """Names of the parts whose weights are not there now."""
        return frozenset(self._away)

    def leave(self, *, readable: bool = True) -> None:
        """All parts but the denoisers leave, as far as that frees anything: on a CPU only what can be read again.

        readable: False if none is to be read again, because all are asked too often; they then wait in main memory.
        """
        for name in parts(self._pipeline):
            if name not in self._away:
                self._leave(name, readable and self._readable(name))

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Within the block parts come as they are called; at its end those that had left leave again."""
        self._visits += 1
        try:
            yield
        finally:
            self._visits -= 1
            if self._visits == 0:
                for name in self._left.keys() - self._away.keys():
                    self._empty(name, self._left[name])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block all parts are there, to be written or copied."""
        with self.visit():
            for name in list(self._away):
                self._come(name)
            yield

    def _leave(self, name: str, readable: bool) -> None:
        module = self._module(name)
        weights = dict(module.named_parameters())
        on_cpu = all(weight.device.type == "cpu" for weight in weights.values())
        if not weights or (on_cpu and not readable) or self._shares(weights):
            return
        dtypes = {key: weight.dtype for key, weight in weights.items()}
        if readable and (on_cpu or not encodes_media(module)):
            gone = _Away(None, dtypes, digest_of(weights))
        else:  # an autoencoder is small and comes often
            gone = _Away({key: weight.detach().to("cpu") for key, weight in weights.items()}, dtypes, "")
        self._left[name] = gone
        self._empty(name, gone)

    def _empty(self, name: str, gone: _Away) -> None:
        module = self._module(name)
        for weight in module.parameters():
            weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
        gone.hooks = [layer.register_forward_pre_hook(lambda *_: self._come(name)) for layer in module.modules()]
        self._away[name] = gone

    def _come(self, name: str) -> None:
        gone = self._away.pop(name, None)
        if gone is None:
            return
        for hook in gone.hooks:
            hook.remove()
        module = self._module(name)
        weights = gone.weights if gone.weights is not None else self._read(name, gone)
        for key, weight in module.named_parameters():
            weight.data = weights[key].to(weight.device, weight.dtype)

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = getattr(self._pipeline, name)
        return module

    def _shares(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether some of the weights are a denoiser's too."""
        own = {id(weight) for module in denoisers(self._pipeline).values() for weight in module.parameters()}
        return any(id(weight) in own for weight in weights.values())

    def _readable(self, name: str) -> bool:
        """Whether a part is as its files have it: it has a loader, and no adapter was put or added into it."""
        module = self._module(name)
        adapted = any("lora_" in key or "base_layer" in key for key, _ in module.named_parameters())
        known = self.source is not None and hasattr(type(module), "from_pretrained")
        return known and not adapted and name not in self.altered

    def _read(self, name: str, gone: _Away) -> dict[str, Tensor]:
        """A part's weights from its files. Raises ResidencyError if they are not those that left."""
        module = self._module(name)
        kind: Any = type(module)
        with quietly():
            fresh = kind.from_pretrained(
                self.source,
                subfolder=name,
                dtype=next(iter(gone.dtypes.values())),
                use_safetensors=True,
                local_files_only=True,
            )
        lay_out(fresh)
        found = {
            key: weight.detach().to(gone.dtypes[key]) for key, weight in fresh.named_parameters() if key in gone.dtypes
        }
        if digest_of(found) != gone.digest:
            raise ResidencyError(
                f"{name} is not in {self.source} as it was loaded: put the files back, and run the same command again"
            )
        return found
