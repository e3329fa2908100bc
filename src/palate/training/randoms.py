"""The process's own random states, for what might draw from them; the loop itself never does."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Torch's generators as uint8 tensors, Python's and NumPy's as numbers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],  # type: ignore[union-attr]
    }


def restore(saved: Mapping[str, Any]) -> None:
    """Puts back what `state` gave; accelerators that are not there any more are left out."""
    torch.set_rng_state(saved["torch"])
    for device, generator in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)
    random.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def seed(number: int) -> None:
    """Starts all generators of the process from one number."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
