"""Pictures changed by a prompt: what strength means, on noise tables and on flows, and what the oracle sees of it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from palate import editing, randomness, sampling
from palate.models.diffusion import DiffusionPolicy
from tests import zoo

PROMPTS = ["a red hat", "a blue cat"]
IDS = ["one", "two"]
STEPS = {"num_inference_steps": 4, "guidance_scale": None, "seed": 3}


@pytest.fixture(scope="module", params=["sd15", "sd3"])
def policy(request):
    return DiffusionPolicy(zoo.build(request.param), call=zoo.CALLS[request.param])


@pytest.fixture(scope="module")
def media(policy):
    return sampling.sample(policy, PROMPTS, ["a", "b"], **{**STEPS, "seed": 9})


def edited(policy, media, ids=IDS, **how):
    return editing.edit(policy, media, PROMPTS, ids, **{**STEPS, "strength": 0.5, **how})


def same(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_whole_strength_is_sampling_and_none_of_it_the_picture(policy, media, eta):
    assert same(edited(policy, media, strength=1, eta=eta), sampling.sample(policy, PROMPTS, IDS, **STEPS, eta=eta))
    assert same(edited(policy, media, strength=0.1, eta=eta), policy.decode(policy.encode(media)))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_seed_fixes_the_picture_alone_and_in_a_batch(policy, media, eta):
    once = edited(policy, media, eta=eta)
    assert same(once, edited(policy, media, eta=eta)) and not same(once, edited(policy, media, eta=eta, seed=4))
    alone = edited(policy, media, eta=eta, batch_size=1)
    far = [np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(once, alone, strict=True)]
    assert max(far) <= 1


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("guidance_scale", [None, 3.0])
def test_it_is_the_rest_of_the_sampler_from_the_noisy_picture(policy, media, eta, guidance_scale, monkeypatch):
    """By hand: the picture's noise at t*, then the steps that are left, one by one."""
    records, generate = [], DiffusionPolicy.generate

    def heard(self, *args, **kwargs):
        media, record = generate(self, *args, **kwargs)
        records.append(record)
        return media, record

    monkeypatch.setattr(DiffusionPolicy, "generate", heard)
    edited(policy, media, eta=eta, guidance_scale=guidance_scale)
    (record,) = records
    x0, t = policy.encode(media), record.t
    noise = randomness.normal(x0.shape[1:], randomness.generators(STEPS["seed"], IDS, "edit"))
    torch.testing.assert_close(record.x[:, 2], policy.path.add_noise(x0, noise, t[2].expand(2)))
    assert not record.std[:2].any() and not record.logps[:, :2].any()
    cond, kernel = policy.condition(PROMPTS, guided=guidance_scale is not None), policy.kernel(eta)
    for i in (2, 3):
        x = record.x[:, i]
        with torch.no_grad():
            prediction = policy.predict(x, t[i].expand(2), cond, guidance_scale)
        mean, std = kernel.mean_std(prediction, x, t[i].expand(2), t[i + 1].expand(2))
        far = (record.x[:, i + 1] - mean).abs().flatten(1).max(1).values
        assert (far < 6 * std + 1e-4).all() and (far >= 0.5 * std).all()


def test_no_pass_is_made_for_steps_that_are_left_out(policy, media, monkeypatch):
    made, forward = [], policy.module.forward

    @functools.wraps(forward)
    def counting(*args, **kwargs):
        made.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setitem(vars(policy.module), "forward", counting)
    edited(policy, media, strength=0.25)
    assert len(made) == 1 and vars(policy.module)["forward"] is counting


def test_a_pipeline_of_one_prompt_at_a_time_is_asked_so(policy, media, monkeypatch):
    together = edited(policy, media)
    monkeypatch.setattr(policy.capture, "single", dataclasses.replace(policy.capture.single, singly=True))
    alone = edited(policy, media)
    far = [np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(together, alone, strict=True)]
    assert max(far) <= 1


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan")])
def test_a_strength_that_cannot_be_is_refused(policy, media, strength):
    with pytest.raises(ValueError, match=r"strength is .*; give one above 0"):
        edited(policy, media, strength=strength)


def test_a_picture_of_another_size_is_refused(policy, media):
    large = [picture.resize((2 * picture.width, 2 * picture.height)) for picture in media]
    with pytest.raises(ValueError, match=r"bring them to the size the model draws"):
        edited(policy, large)


def test_the_worlds_pictures_follow_the_prompt():
    """The more strength, the more of the new caption and the less of the picture."""
    from palate.worlds import shapes

    policy = DiffusionPolicy.load("world:shapes")
    old = ["a small yellow square on grey", "a large green star on white"] * 8
    new = ["a small blue square on grey", "a large purple star on white"] * 8
    ids = [str(row) for row in range(len(old))]
    how = {"seed": 0, **shapes.sampling_defaults()}
    media = sampling.sample(policy, old, ids, **how)
    oracle, before = shapes.scorer(), np.stack([np.asarray(picture, float) for picture in media])
    aligned, moved = [oracle(new, media)["alignment"].mean()], [0.0]
    for strength in (0.25, 0.75, 1.0):
        out = editing.edit(policy, media, new, ids, strength=strength, **how)
        aligned.append(oracle(new, out)["alignment"].mean())
        moved.append(np.abs(np.stack([np.asarray(picture, float) for picture in out]) - before).mean())
    assert aligned[2] > aligned[0] + 0.2 and moved == sorted(moved) and moved[1] < 0.5 * moved[3], (aligned, moved)
