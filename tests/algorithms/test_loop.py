"""Every offline method in the loop: resumed to the same bits, and the same whatever the micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from palate import plugins
from palate.training import adapters
from palate.training.offline import Offline
from palate.training.sources import Drawing
from palate.training.trainer import Trainer
from tests.algorithms.test_preference import KIND, OFFLINE
from tests.training import tiny

RUNS = [*((name, {}) for name in OFFLINE), ("diffusion_dpo", {"beta_dpo": "auto", "beta_steps": 3})]
RUNS += [("rankdpo", {"rank_source": "predicted", "shared_noise": False})]


def trainer(folder: Path, name: str, options: dict, **changes) -> Trainer:
    algorithm = plugins.find("algorithms", name)
    policy, config = tiny.policy_with_adapter(KIND.get(name, "epsilon")), algorithm.Config(**options)
    settings = tiny.settings(max_steps=4, batch_size=8, **changes)
    own = getattr(algorithm, "sample_t", None)
    drawing = Drawing(
        0, policy.path, config.prompt_dropout, shared_noise=getattr(config, "shared_noise", True),
        times=own and (lambda n, generator: own(policy.path, config, n, generator)),
    )  # fmt: skip
    source = Offline(
        tiny.preference_rows(policy, n=10, k=3), policy.condition([""]), drawing,
        batch_size=8, micro_batch_size=settings.micro_batch_size,
    )  # fmt: skip
    wants = algorithm.NEEDS.reference
    reference = adapters.reference_of(policy, "none" if wants == "none" else "base")
    return Trainer(
        policy, algorithm, config, source, settings, folder, reference=reference, progress=False, tensorboard=False
    )


def stop_at(run: Trainer, step: int) -> None:
    advance = run._advance

    def stopping(stop) -> None:
        if run.step == step:
            raise KeyboardInterrupt
        advance(stop)

    run._advance = stopping


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_resumed_to_the_same_bits(name, options, tmp_path):
    whole = trainer(tmp_path / "whole", name, options)
    whole.run()
    half = trainer(tmp_path / "half", name, options)
    stop_at(half, 2)
    with pytest.raises(KeyboardInterrupt):
        half.run()
    resumed = trainer(tmp_path / "half", name, options)
    resumed.run()
    assert resumed.state.values == whole.state.values
    for weight, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[weight]), weight
    assert any(bool((p != 0).any()) for n, p in whole.parameters.items() if "lora_B" in n)  # something was learnt
    rows = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "half")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_8_x_1_is_1_x_8(name, options, tmp_path):
    """In rows; sums are added in another order, which Adam turns into differences of a rounding."""
    runs = [trainer(tmp_path / str(size), name, options, micro_batch_size=size) for size in (1, 8)]
    for run in runs:
        run.run()
    for weight, parameter in runs[0].parameters.items():
        torch.testing.assert_close(parameter, runs[1].parameters[weight], rtol=2e-3, atol=2e-4)
    for name_, value in runs[0]._last.items():
        assert value == pytest.approx(runs[1]._last[name_], rel=2e-2, abs=1e-4), name_
