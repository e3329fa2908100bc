"""What is trained, by name and shape, and a hash of all the rest: a run goes on only with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from palate.training.adapters import AdapterError, modules_of, some, trainable


def take(policy: Any) -> dict[str, Any]:
    """Which weights are trained (names and shapes, their count) and a hash of all the others."""
    weights = trainable(policy)
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _states(policy):
        if name not in weights:
            raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(raw.numpy().data)
    return {
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "count": sum(weight.numel() for weight in weights.values()),
        "base": digest.hexdigest(),
    }


def _states(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of all modules, named as in `weights_of`, in the order of their names."""
    modules = modules_of(policy)
    for part, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            yield (name if len(modules) == 1 else f"{part}.{name}"), tensor


def check(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises AdapterError, with the difference, unless the same weights are trained on the same base."""
    before, after = saved["shapes"], now["shapes"]
    changes = [f"{name} is no longer trained" for name in before if name not in after]
    changes += [f"{name} was not trained before" for name in after if name not in before]
    changes += [f"{n} was {before[n]}, is {after[n]}" for n in before if n in after and before[n] != after[n]]
    if saved["base"] != now["base"]:
        changes.append("the frozen weights are not the same")
    if changes:
        raise AdapterError(f"the checkpoint belongs to another model or adapter: {some(changes)}")
