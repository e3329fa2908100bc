"""Autoencoder and text encoders leave while nobody asks them, and what comes back is what left."""

from __future__ import annotations

import shutil

import pytest
import torch

from palate.models.diffusion import DiffusionPolicy
from palate.models.residency import ResidencyError
from tests import zoo

PROMPTS = ["a red fish", "a blue bird"]
PARTS = {"vae", "text_encoder", "text_encoder_2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "sdxl"
    zoo.build("sdxl").save_pretrained(path)
    return path


def alive(policy) -> int:
    """Weights of the parts beside the denoiser that there are."""
    return sum(weight.numel() for name in PARTS for weight in getattr(policy.pipeline, name).parameters())


def drawn(policy):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return policy.generate(PROMPTS, generators, num_inference_steps=2, guidance_scale=2.0, eta=0.0)[0]


def test_parts_leave_and_come_for_the_length_of_a_call(folder):
    whole, policy = DiffusionPolicy.load(folder), DiffusionPolicy.load(folder)
    before = alive(policy)
    policy.residency.leave()
    assert policy.residency.away == PARTS and alive(policy) == 0 < before
    pictures = drawn(policy)
    assert alive(policy) == 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(pictures, drawn(whole), strict=True))
    x0 = policy.encode(pictures)
    assert torch.equal(x0, whole.encode(pictures)) and alive(policy) == 0
    assert [p.tobytes() for p in policy.decode(x0)] == [p.tobytes() for p in whole.decode(x0)]
    cond, expected = policy.condition(["a word never heard"]), whole.condition(["a word never heard"])
    assert all(torch.equal(cond.rows[name], expected.rows[name]) for name in expected.rows)
    assert alive(policy) == 0 and policy.pipeline.vae.device == torch.device("cpu")


def test_a_prompt_met_before_brings_no_text_encoder(folder, monkeypatch):
    policy = DiffusionPolicy.load(folder)
    drawn(policy)  # once, by which the way the encoding carries the batch is learned
    policy.settle(PROMPTS, guided=True)
    read, real = [], policy.residency._read
    monkeypatch.setattr(policy.residency, "_read", lambda name, gone: (read.append(name), real(name, gone))[1])
    drawn(policy)
    assert read == ["vae"]
    with policy.residency.visit():  # which brings it once for two calls
        policy.decode(torch.zeros(1, *policy.latent_shape))
        policy.decode(torch.zeros(1, *policy.latent_shape))
        assert policy.residency.away == PARTS - {"vae"}
    assert read == ["vae", "vae"] and policy.residency.away == PARTS


def test_all_is_there_to_be_written(folder, tmp_path):
    policy = DiffusionPolicy.load(folder)
    policy.settle([])
    with policy.residency.whole():
        assert not policy.residency.away
        policy.pipeline.save_pretrained(tmp_path)
    assert policy.residency.away == PARTS
    again, whole = DiffusionPolicy.load(tmp_path), DiffusionPolicy.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(all_weights(again), all_weights(whole), strict=True))


def all_weights(policy):
    return [weight for name in sorted(PARTS) for weight in getattr(policy.pipeline, name).parameters()]


def test_the_denoiser_is_trained_with_nothing_else_there(folder):
    policy = DiffusionPolicy.load(folder)
    cond = policy.condition(PROMPTS)
    policy.residency.leave()
    policy.module.requires_grad_(True)
    x_t = torch.randn(2, *policy.latent_shape)
    policy.predict(x_t, torch.tensor([10, 500]), cond).square().mean().backward()
    assert alive(policy) == 0 and next(policy.module.parameters()).grad is not None


def test_files_that_changed_meanwhile_are_refused(folder, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    policy = DiffusionPolicy.load(copied)
    policy.residency.leave()
    vae = zoo.build("sdxl").vae
    with torch.no_grad():
        held = vae.post_quant_conv.weight.clone()
        vae.post_quant_conv.weight += 1e-3
        vae.save_pretrained(copied / "vae")
        vae.post_quant_conv.weight.copy_(held)
    with pytest.raises(ResidencyError, match=r"vae is not in .* as it was loaded"):
        policy.decode(torch.zeros(1, *policy.latent_shape))


def test_what_cannot_be_read_again_stays_on_a_cpu():
    policy = DiffusionPolicy(zoo.build("sdxl"))
    policy.residency.leave()
    assert not policy.residency.away
