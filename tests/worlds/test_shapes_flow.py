"""The flow model of the shapes world: a real StableDiffusion3Pipeline folder, by the same doors as any other model."""

import logging

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open

from palate import likelihood, sampling
from palate.doors import lookup
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind
from palate.worlds.shapes import data, flow, oracle
from palate.worlds.shapes.flow import build
from palate.worlds.shapes.pretrain import measure, text, transformer
from tests.worlds.test_shapes_oracle import agreement

SETTINGS = flow.sampling_defaults()


@pytest.fixture(scope="module")
def policy():
    """Loaded by its name; the replay is proven bit for bit, with guidance and without, or it would be refused."""
    return DiffusionPolicy.load("world:shapes-flow")


@pytest.fixture(scope="module")
def drawn(policy):
    """Held-out captions and what the model draws for them with the shipped settings."""
    prompts = data.captions(32, 21, "eval")
    return prompts, measure.draw(policy, prompts, seed=5, settings=SETTINGS)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_loads_with_plain_diffusers_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
            flow.weights_dir(), text_encoder_3=None, tokenizer_3=None
        )
    assert [record.getMessage() for record in caplog.records] == []
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        assert {p.dtype for p in part.parameters()} == {torch.float32} and not part.training
    assert 3e6 < sum(p.numel() for p in pipeline.transformer.parameters()) < 7e6
    assert max(len(pipeline.tokenizer(caption).input_ids) for caption in data.captions(500, 2)) + 4 <= build.TOKENS


def test_files_are_small_and_plain():
    files = [f for f in flow.weights_dir().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".txt"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                assert {weights.get_slice(k).get_dtype() for k in weights.keys()} == {"F16"}  # noqa: SIM118


def test_the_stated_base_leaves_room():
    base = flow.world()["base"]
    assert base["weights"] == measure.digest(flow.weights_dir()), "measure the base anew: its weights have changed"
    assert base["captions"] >= 1000
    assert 0.6 <= base["alignment"] <= 0.95
    assert 0.05 <= base["marked"] <= 0.30
    assert 0.10 <= base["deformed"] <= 0.75
    assert base["related"] >= 0.8  # chance is 1/4


# --- the same doors as any model --------------------------------------------------------------------------------------


def test_it_is_a_flow_of_captions_in_their_own_length(policy):
    assert policy.path.kind == "velocity" and policy.latent_shape == (16, 8, 8)
    cond = policy.condition(["a small red star on white", "a large blue circle above a small red star on grey"])
    assert cond.rows["cond/encoder_hidden_states"].shape == (2, build.TOKENS, build.CONTEXT)
    assert policy.pads


def test_it_is_found_by_its_name_wherever_a_world_is(drawn):
    prompts, pictures = drawn
    scores = lookup.find_scorer("world:shapes-flow")(prompts, pictures)
    assert (scores["alignment"] == oracle.score(prompts, pictures)["alignment"]).all()
    assert set(lookup.read_prompts("world:shapes-flow:eval")) == set(lookup.read_prompts("world:shapes:eval"))


def test_a_fresh_rollout_has_ratio_one(policy):
    prompts = data.captions(2, 3, "eval")
    rollout = sampling.rollout(policy, prompts, ["a", "b"], seed=1, **SETTINGS)
    group, step = sampling.transitions_of(rollout, torch.arange(1))
    assert len(step) == SETTINGS["num_inference_steps"] and (rollout.std > 0).all()  # every step has a density
    batch = sampling.transition_batch(rollout, torch.tensor([[0, 1]]).expand(len(step), 2), step, group[:, None])
    with torch.no_grad():
        logps = likelihood.transition(policy, batch)
    assert (logps - rollout.logps[:, step].T).abs().max() <= 1e-5


def test_its_config_says_what_it_was_trained_for(policy):
    scenes, pictures = data.dataset(6, 8)
    check_prediction_kind(policy, decode(pictures), [data.caption(scene) for scene in scenes])


def test_media_go_there_and_back(policy):
    scenes, pictures = data.dataset(40, 31, None)
    x0 = policy.encode(decode(pictures))
    assert 0.9 < x0.std() < 1.1
    restored = np.stack([np.asarray(picture) for picture in policy.decode(x0)])
    for name, share in agreement(scenes, restored).items():
        assert share >= 0.97, (name, share)


def decode(pictures):
    from PIL import Image

    return [Image.fromarray(picture) for picture in pictures]


# --- how it draws -----------------------------------------------------------------------------------------------------


def test_it_draws_what_is_asked_with_room_to_improve(drawn):
    prompts, pictures = drawn
    scores = oracle.score(prompts, pictures)
    assert 0.5 < scores["alignment"].mean() < 0.98
    assert scores["alignment"].mean() > oracle.score(prompts[1:] + prompts[:1], pictures)["alignment"].mean() + 0.25
    assert 0.05 < 1 - scores["wholeness"].mean() < 0.85
    assert np.std(scores["alignment"]) > 0.1


def test_the_pipelines_own_padding_does_no_harm(policy):
    """Plain diffusers pads the context with 256 zero tokens; the model has learned to look past them."""
    scenes, pictures = data.dataset(8, 9)
    cond = policy.condition([data.caption(scene) for scene in scenes])
    context, pooled = (cond.rows[f"cond/{name}"] for name in ("encoder_hidden_states", "pooled_projections"))
    noise = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 1, 8)
    x_t = policy.path.add_noise(policy.encode(decode(pictures)), noise, t)
    padded = torch.cat([context, context.new_zeros(8, transformer.PADDING, build.CONTEXT)], dim=1)
    with torch.no_grad():
        plain, other = (policy.module(x_t, c, pooled, 1000 * t).sample for c in (context, padded))
    assert 0 < (plain - other).square().mean() < 0.02 * plain.square().mean()


# --- how it was trained -----------------------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """Knows that every latent is 0, so that the velocity is the noise; notes the lengths of the contexts."""

    def __init__(self):
        super().__init__()
        self.lengths = []

    def forward(self, noisy, context, pooled, timestep):
        self.lengths.append((len(noisy), context.shape[1]))
        noise = noisy / (timestep / 1000)[:, None, None, None]
        return diffusers.models.modeling_outputs.Transformer2DModelOutput(sample=noise)


def test_the_loss_is_of_the_velocity_and_some_batches_are_padded():
    model, given = Exact(), (torch.randn(16, build.TOKENS, build.CONTEXT), torch.randn(16, build.CONTEXT))
    latents = torch.zeros(16, 16, 8, 8)
    for step in range(200):
        loss = transformer.loss(model, given, latents, np.random.default_rng([1, step]))
        assert loss.item() < 1e-6
    padded = (transformer.PADDED_ROWS, build.TOKENS + transformer.PADDING)
    assert set(model.lengths) == {(16, build.TOKENS), padded}
    assert 1 <= model.lengths.count(padded) <= 15
    shifted = transformer.loss(model, given, latents + 1, np.random.default_rng(0))
    assert shifted.item() > 0.5


def test_an_untrained_transformer_begins_as_zero():
    network = build.build_transformer()
    context, pooled = torch.randn(2, build.TOKENS, build.CONTEXT), torch.randn(2, build.CONTEXT)
    with torch.no_grad():
        out = network(torch.randn(2, 16, 8, 8), context, pooled, torch.tensor([1.0, 900.0])).sample
    assert out.shape == (2, 16, 8, 8) and (out == 0).all()


def test_the_text_models_say_the_layout_in_the_states_and_in_the_pooled_vector():
    reader = transformer.build_reader()
    asked = data.requests("train", 2)[:4]
    ids = text.build.tokenise([str(r) for r in asked], build.TOKENS)
    answers = reader(ids)
    assert len(answers) == 2
    for said, background in answers:
        assert [tuple(s.shape) for s in said] == [(4, 4, n) for n in text.CHOICES] and background.shape == (4, 3)
    loss = reader.loss(ids, torch.tensor([text.layout(r) for r in asked]))
    loss.backward()
    assert all(
        p.grad is not None for name, p in reader.named_parameters() if "models" in name and "final_layer" not in name
    )
