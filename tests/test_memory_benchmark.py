"""The memory benchmark's modes run, and its models of a real size can be built and asked."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks import memory
from palate.config import LoraSettings
from palate.training import adapters


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), [("sdxl", 2.567), ("sd35", 2.243)])
def test_models_of_a_real_size_are_built_without_memory(name, billions):
    bare = memory.built(name, "meta")
    assert sum(weight.numel() for weight in bare.module.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    adapters.add_lora(bare, LoraSettings())
    x_t, t = torch.empty(2, *bare.latent_shape, device="meta"), torch.empty(2, device="meta")
    assert bare.predict(x_t, t, bare.condition(["", ""])).shape == x_t.shape


@pytest.mark.slow
def test_a_mode_is_measured_in_a_process_of_its_own():
    # In this process an earlier test may have held more memory, and a high-water mark never falls.
    command = [sys.executable, "-m", "benchmarks.memory", "--pairs", "2", "--mode", "full, cached, reference draws"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) > 2**20


def test_a_table_of_modes_is_written():
    assert "| a | 1,024 |" in memory.table([{"mode": "a", "mib": 1024.2}], "title")


def test_every_mode_has_a_name_of_its_own():
    names = [mode.name for mode in memory.MODES]
    assert len(set(names)) == len(names)
