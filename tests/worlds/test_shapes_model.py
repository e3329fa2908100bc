"""The shipped model: it loads with plain diffusers, its autoencoder keeps what the oracle reads, it leaves room."""

import json
import logging

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open

from palate.worlds import shapes
from palate.worlds.shapes import build, data, oracle, pretrain
from tests.worlds.test_shapes_oracle import agreement


@pytest.fixture(scope="module")
def loaded():
    """The pipeline as plain diffusers loads it, and what was logged as a warning or worse meanwhile."""
    complaints = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(shapes.weights_dir())
    for logger in loggers:
        logger.removeHandler(handler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, complaints


@pytest.fixture(scope="module")
def drawn(loaded):
    """Held-out captions and what the model draws for them with the shipped settings."""
    prompts = data.captions(40, 21, "eval")
    return prompts, pretrain.sample(loaded[0], prompts, seed=5, **shapes.sampling_defaults())


def test_loads_with_plain_diffusers_without_a_warning(loaded):
    pipeline, complaints = loaded
    assert complaints == []
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32} and not part.training
    assert pipeline.unet.config.sample_size * 8 == pipeline.vae.config.sample_size == data.SIDE
    assert 3e6 < sum(p.numel() for p in pipeline.unet.parameters()) < 6e6


def test_files_are_small_and_plain():
    files = [f for f in shapes.weights_dir().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".txt"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                assert {weights.get_slice(k).get_dtype() for k in weights.keys()} == {"F16"}  # noqa: SIM118


def test_every_word_is_one_token(loaded):
    tokenizer = loaded[0].tokenizer
    for text in data.captions(300, 2):
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2
    assert build.build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_oracle_reads_through_the_autoencoder_and_noise(loaded):
    scenes, pictures = data.dataset(300, 31, None)
    vae, rng, back = loaded[0].vae, np.random.default_rng(0), []
    with torch.no_grad():
        for part in pretrain.to_tensor(pictures).split(50):
            back.append(vae.decode(vae.encode(part).latent_dist.mean).sample)
    restored = pretrain.to_pictures(torch.cat(back))
    noisy = (restored + rng.normal(0, 4, restored.shape)).clip(0, 255).astype(np.uint8)
    for name, share in agreement(scenes, noisy).items():
        assert share >= 0.97, (name, share)


def test_latents_are_of_unit_scale(loaded):
    vae = loaded[0].vae
    with torch.no_grad():
        latents = vae.encode(pretrain.to_tensor(data.dataset(64, 3)[1])).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape[1:] == (build.LATENT_CHANNELS, build.LATENT_SIDE, build.LATENT_SIDE)
    assert 0.9 < latents.std() < 1.1


def test_every_stochastic_step_has_noise(loaded):
    scheduler = loaded[0].scheduler
    scheduler.set_timesteps(shapes.sampling_defaults()["num_inference_steps"])
    stride = scheduler.config.num_train_timesteps // len(scheduler.timesteps)
    assert shapes.sampling_defaults()["eta"] > 0
    assert all(scheduler._get_variance(int(t), int(t) - stride) > 1e-6 for t in scheduler.timesteps)


def test_it_draws_what_is_asked_with_room_to_improve(drawn):
    prompts, pictures = drawn
    scores = oracle.score(prompts, pictures)
    assert 0.35 < scores["alignment"].mean() < 0.92
    assert scores["alignment"].mean() > oracle.score(prompts[1:] + prompts[:1], pictures)["alignment"].mean() + 0.25
    assert np.std(scores["alignment"]) > 0.1
    assert 0.02 < 1 - scores["safety"].mean() < 0.40


def test_sampling_is_a_function_of_the_seed(loaded):
    prompts, settings = data.captions(3, 22), {**shapes.sampling_defaults(), "num_inference_steps": 4}
    first, same, other = (pretrain.sample(loaded[0], prompts, seed=seed, **settings) for seed in (5, 5, 6))
    assert (first == same).all() and (first != other).any()


def test_the_stated_base_leaves_room():
    base = shapes.world()["base"]
    assert base["captions"] >= 1000
    assert 0.45 <= base["alignment"] <= 0.85
    assert 0.10 <= base["marked"] <= 0.30
    assert 0.10 <= base["deformed"] <= 0.40


def test_a_stage_resumes_where_it_stopped(tmp_path):
    """Interrupted and resumed, a stage ends on the weights of an unbroken run, bit for bit."""

    def course(plan):
        torch.manual_seed(0)
        return pretrain.Course("toy", plan, {"toy": torch.nn.Linear(4, 4)}, tmp_path, weight_decay=0.1)

    def train(run, until):
        for rng in run.steps():
            x = torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32))
            run.update(run.modules["toy"](x).square().mean())
            if run.step == until - 1:
                run.step += 1
                run.save()
                return

    plan = pretrain.Plan(steps=9, minutes=1e9, batch=8, peak_rate=0.1, pictures=0, seed=1)
    unbroken, first, second = course(plan), course(plan), course(plan)
    train(unbroken, 99)
    train(first, 5)
    assert second.resume() and second.step == 5
    train(second, 99)
    for a, b in zip(unbroken.parameters.values(), second.parameters.values(), strict=True):
        assert torch.equal(a, b)


def test_the_record_is_plain_json():
    world = json.loads((shapes.weights_dir() / "world.json").read_text())
    assert set(world) == {"sampling", "training", "base"}
