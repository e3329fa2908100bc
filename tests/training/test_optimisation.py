"""The optimiser in 8 bits: asked for where it is there, and its memory survives a checkpoint."""

from __future__ import annotations

import importlib

import pytest
import torch

from palate.training import optimisation
from tests.training import tiny


def test_without_its_library_the_error_names_the_extra(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'palate\[bnb\]', or set training.optimiser=adamw"):
        optimisation.optimiser_of({}, tiny.settings(optimiser="adamw_8bit"))


def steps(weights, optimiser, count):
    for _ in range(count):
        sum((weight * weight).sum() for weight in weights.values()).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_its_memory_survives_a_checkpoint(kind):
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    settings = tiny.settings(optimiser=kind)

    def made():
        generator = torch.Generator().manual_seed(0)
        conv = torch.randn(64, 16, 3, 3, generator=generator).to(memory_format=torch.channels_last)
        weights = {"conv": torch.nn.Parameter(conv), "bias": torch.nn.Parameter(torch.ones(7))}
        return weights, optimisation.optimiser_of(weights, settings)

    weights, optimiser = made()
    steps(weights, optimiser, 3)
    state = optimisation.optimiser_state(optimiser, weights)
    plain = {name: {k: v.clone() if torch.is_tensor(v) else v for k, v in of.items()} for name, of in state.items()}
    others, again = made()
    with torch.no_grad():
        for name, weight in others.items():
            weight.copy_(weights[name])
    optimisation.restore_optimiser(again, others, plain)
    steps(weights, optimiser, 2)
    steps(others, again, 2)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
