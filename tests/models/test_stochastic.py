"""Rollouts: the record explains itself, rows do not know their batch, and eta = 0 is the pipeline's own sampler."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from palate.models.diffusion import DiffusionPolicy, UnsupportedPipeline
from palate.models.probe import swapped
from palate.models.stochastic import Record, Tape, recording
from palate.transitions import gaussian_log_prob, has_likelihood
from tests import zoo

NAMES = sorted(zoo.CALLS)
PROMPTS = ["a cat on a mat", "blue", "three small boats"]


@cache
def policy(name: str) -> DiffusionPolicy:
    return DiffusionPolicy(zoo.build(name), call=zoo.CALLS[name])


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


def rollout(name: str, scale: float | None = 3.0, eta: float = 0.7, prompts: list[str] | None = None) -> Any:
    prompts = prompts or PROMPTS
    return policy(name).generate(
        prompts, seeds(*range(len(prompts))), num_inference_steps=4, guidance_scale=scale, eta=eta
    )


def log_ratios(held: DiffusionPolicy, record: Record, rows: slice) -> Tensor:
    """New minus recorded log-probability of every step that has one, for some rows."""
    found = []
    for i in has_likelihood(record.std).nonzero()[:, 0].tolist():
        x, after = record.x[rows, i], record.x[rows, i + 1]
        t, t_prev = record.t[i].expand(len(x)), record.t[i + 1].expand(len(x))
        prediction = held.predict(x, t, record.cond[rows], record.guidance_scale)
        mean, std = record.kernel.mean_std(prediction, x, t, t_prev)
        found.append(gaussian_log_prob(after, mean, std) - record.logps[rows, i])
    return torch.stack(found)


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_recomputed_log_probabilities_have_ratio_one(name: str, scale: float | None) -> None:
    media, record = rollout(name, scale)
    assert len(media) == 3
    assert record.x.shape == (3, 5, *policy(name).latent_shape)
    assert record.x.dtype == torch.float32
    assert record.logps.shape == (3, 4)
    assert int(has_likelihood(record.std).sum()) >= 3
    assert torch.equal(log_ratios(policy(name), record, slice(None)), torch.zeros(len(record.std.nonzero()), 3))
    assert float(log_ratios(policy(name), record, slice(1, 2)).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_record_ends_in_the_media(name: str) -> None:
    media, record = rollout(name)
    for mine, theirs in zip(policy(name).decode(record.x[:, -1]), media, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_conditions_of_the_record_are_those_of_the_prompts(name: str) -> None:
    _, record = rollout(name)
    cond = policy(name).condition(PROMPTS, guided=True)
    assert cond.key == record.cond.key
    assert all(torch.equal(value, record.cond.rows[key]) for key, value in cond.rows.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    _, together = rollout(name)
    for row in range(3):
        _, alone = policy(name).generate(
            PROMPTS[row : row + 1], seeds(row), num_inference_steps=4, guidance_scale=3.0, eta=0.7
        )
        assert torch.equal(alone.x[0, 0], together.x[row, 0])
        assert torch.allclose(alone.x[0], together.x[row], rtol=1e-4, atol=1e-4)


def own_sampler(held: DiffusionPolicy) -> Any:
    """diffusers' own deterministic scheduler of that model's config, made without Palate."""
    config = dict(held.pipeline.scheduler.config)
    if held.path.kind == "velocity":
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    wanted = inspect.signature(DDIMScheduler).parameters
    kept = {k: v for k, v in config.items() if k in wanted}
    return DDIMScheduler(**{**kept, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_eta_zero_is_the_pipelines_own_deterministic_sampler(name: str, scale: float | None) -> None:
    held, steps = policy(name), 5
    media, record = held.generate(PROMPTS, seeds(0, 1, 2), num_inference_steps=steps, guidance_scale=scale, eta=0.0)
    seen: list[Tensor] = []

    def keep(pipeline: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return {}

    settings = held.call | held.capture.dialect.settings(scale, 3) | {"output_type": "pil"}
    with swapped(held.pipeline, scheduler=own_sampler(held)), held._encoding():
        theirs = held.pipeline(
            prompt=PROMPTS,
            generator=seeds(0, 1, 2),
            num_inference_steps=steps,
            callback_on_step_end=keep,
            **settings,
        ).images
    assert torch.equal(record.x[:, 1:], torch.stack(seen, 1))
    for mine, other in zip(media, theirs, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(other))
    assert not bool(has_likelihood(record.std).any())
    assert not bool(record.logps.any())


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_noise_is_that_of_the_rows_generators(name: str) -> None:
    """Row r draws its first latent and then one normal per latent and step, from its own generator alone."""
    held = policy(name)
    _, record = rollout(name)
    fresh = seeds(1)[0]
    assert torch.equal(torch.randn(1, *held.latent_shape, generator=fresh)[0], record.x[1, 0])
    cond, t = record.cond[1], record.t
    with torch.no_grad():
        prediction = held.predict(record.x[1:2, 0], t[:1], cond, 3.0)
    mean, std = record.kernel.mean_std(prediction, record.x[1:2, 0], t[:1], t[1:2])
    noise = torch.randn(held.latent_shape, generator=fresh)
    assert torch.allclose(mean[0] + std[0] * noise, record.x[1, 1], atol=1e-5)


def test_steps_may_have_generators_of_their_own() -> None:
    held, run = policy("sd15"), {"num_inference_steps": 4, "guidance_scale": None, "eta": 0.7}
    records = [held.generate(["a"], seeds(0), step_generators=seeds(9 + i), **run)[1] for i in (0, 0, 1)]
    assert torch.equal(records[0].x, records[1].x)
    assert torch.equal(records[0].x[:, 0], records[2].x[:, 0])
    assert not torch.equal(records[0].x[:, 1], records[2].x[:, 1])


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
@torch.no_grad()
def test_half_precision_rolls_out_and_explains_itself(name: str) -> None:
    held = DiffusionPolicy(copy.deepcopy(zoo.build(name)).to(torch.bfloat16), call=zoo.CALLS[name])
    media, record = held.generate(PROMPTS, seeds(0, 1, 2), num_inference_steps=4, guidance_scale=3.0, eta=0.7)
    assert len(media) == 3
    assert record.x.dtype == record.logps.dtype == torch.float32
    assert torch.equal(log_ratios(held, record, slice(None)), torch.zeros(len(record.std.nonzero()), 3))


def test_larger_eta_is_noisier_and_stays_near_the_marginal() -> None:
    _, calm = rollout("sd15", eta=0.3)
    _, wild = rollout("sd15", eta=1.0)
    assert bool((wild.std > calm.std).all())
    assert torch.equal(calm.x[:, 0], wild.x[:, 0])


def test_the_pipeline_is_left_as_it_was() -> None:
    held = policy("sd15")
    before = {name: value for name, value in vars(held.pipeline).items() if not name.startswith("_")}
    rollout("sd15")
    held.decode(torch.zeros(1, *held.latent_shape))
    assert {name: value for name, value in vars(held.pipeline).items() if not name.startswith("_")} == before
    assert "forward" not in vars(held.module)


def test_the_step_keeps_its_signature_and_survives_copying() -> None:
    held = policy("sd15")
    tape = Tape(held.kernel(1.0), seeds(0), False, held.schedule.times)
    scheduler = recording(held.schedule.scheduler(), tape)
    assert {"eta", "generator"} <= set(inspect.signature(scheduler.step).parameters)
    twin = copy.deepcopy(scheduler)
    twin.set_timesteps(4)
    twin.step(torch.zeros(1, 4, 2, 2), twin.timesteps[0], torch.ones(1, 4, 2, 2))
    assert len(tape.x) == 2


def test_noise_prediction_at_zero_terminal_snr_is_refused_with_the_mend() -> None:
    pipeline = copy.copy(zoo.build("sd_v_zero_snr"))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon")
    with pytest.raises(UnsupportedPipeline, match="prediction_type to v_prediction"):
        DiffusionPolicy(pipeline)
