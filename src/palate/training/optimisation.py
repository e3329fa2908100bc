"""The optimiser's side of a step: learning rate, precision, AdamW and its state by parameter name."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from palate.config import TrainingSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Of optimiser step `step`, counted from 1: linear warm-up, then constant, or down to 0 after the last step."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    done = (step - 1 - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.learning_rate * factor[settings.lr_schedule]


def autocast(settings: TrainingSettings, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of the model's passes, in rollouts as in training.

    Without autocast's cache: it goes by the tensor object, and a reference is the same object with other numbers.
    """
    if settings.mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _DTYPES[settings.mixed_precision], cache_enabled=False)


class LossScale:
    """Keeps half-precision gradients from vanishing: halved when they overflow, doubled after long peace."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.on = settings.mixed_precision == "fp16"
        self.value, self._good, self._patience = (2.0**16 if self.on else 1.0), 0, 2000

    def update(self, finite: bool) -> bool:
        """Returns whether a gradient that was not finite is explained by the scale."""
        if not self.on:
            return False
        self._good = self._good + 1 if finite else 0
        if finite and self._good == self._patience:
            self.value, self._good = self.value * 2, 0
        elif not finite and self.value > 1:
            self.value /= 2
            return True
        return False

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "good": self._good}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value, self._good = state["value"], state["good"]


def optimiser_of(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over the weights, in one fused kernel, or with its averages in 8 bits.

    Raises ImportError, naming the extra, where the library of the latter is not installed.
    """
    weights = list(parameters.values())
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimiser == "adamw_8bit":
        for weight in weights:  # its kernels walk over weights and averages in plain order
            weight.data = weight.data.contiguous()
        made: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(weights, **options)
        return made
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.AdamW(weights, **options, fused=fused)


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            "training.optimiser: adamw_8bit needs the library bitsandbytes: pip install 'palate[bnb]', "
            f"or set training.optimiser=adamw ({error})"
        ) from None


def optimiser_state(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What the optimiser remembers of each weight, by name: its averages and the number of steps."""
    return {name: dict(optimiser.state[weight]) for name, weight in parameters.items() if weight in optimiser.state}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Puts back what `optimiser_state` gave. Raises KeyError for a weight that has none, if others do."""
    if state:
        for name, weight in parameters.items():
            optimiser.state[weight] = {key: _laid_out(value, weight) for key, value in state[name].items()}


def _laid_out(value: Any, weight: Tensor) -> Any:
    """The value on the weight's device and in its order in memory, in which an optimiser walks over both."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != weight.shape:
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)


def fill_missing(parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """All gradients, zeros where no loss reached a weight: every process then has the same ones."""
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
