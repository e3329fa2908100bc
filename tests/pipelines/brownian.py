"""A stand-in for the package torchsde, which Stable Audio's own solver imports: Brownian increments from a seed.

Increments of different intervals are drawn apart, which is all that a solver of a few steps asks of them. Where
torchsde is installed it is used.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class BrownianInterval:
    """W(b) - W(a) of a Brownian motion of that size, the same for the same entropy and interval."""

    def __init__(self, *, size: tuple[int, ...], dtype: torch.dtype, device: Any, entropy: int, **_: Any):
        self._size, self._dtype, self._device, self._entropy = size, dtype, device, entropy

    def __call__(self, a: Any, b: Any) -> Tensor:
        seed = hash((int(self._entropy), float(a), float(b))) % 2**63
        drawn = torch.randn(self._size, generator=torch.Generator().manual_seed(seed))
        return (drawn * (float(b) - float(a)) ** 0.5).to(self._device, self._dtype)


def stand_in() -> None:
    """Makes `import torchsde` work."""
    if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
        module = ModuleType("torchsde")
        vars(module)["BrownianInterval"] = BrownianInterval
        sys.modules["torchsde"] = module
