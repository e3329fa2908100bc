"""What is found by value: experts, directions, noise tables, codecs, the order of branches, rows of any lengths."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from palate import sampling
from palate.models.codecs import find_codec
from palate.models.condition import Condition
from palate.models.diffusion import DiffusionPolicy, prediction_kind_errors
from palate.models.embeds import Memo, memoised_encoding
from palate.models.experts import find_switch
from palate.models.explain import Unlearned, learn_clock
from palate.models.forms import Moment, Switch
from palate.models.probe import record
from palate.models.schedules import FlowSchedule, told
from palate.transitions import gaussian_log_prob, has_likelihood
from tests import pipelines


@cache
def policy(name: str) -> DiffusionPolicy:
    pipeline, call = pipelines.build(name)
    return DiffusionPolicy(pipeline, call=call)


# --- experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", [875.0, 417.5, 900.0])
def test_the_time_at_which_experts_change_is_found(boundary: float) -> None:
    def walk(times: Tensor) -> list[str]:
        return ["early" if t >= boundary else "late" for t in times.tolist()]

    found = find_switch(walk, 1000)
    assert found == Switch("early", "late", boundary)
    assert [(name, rows.tolist()) for name, rows in found.sides(torch.tensor([999.0, 3.0, boundary]))] == [
        ("early", [0, 2]),
        ("late", [1]),
    ]


def test_one_denoiser_has_no_switch_and_a_muddle_is_refused() -> None:
    assert find_switch(lambda times: ["unet"] * len(times), 1000) is None
    with pytest.raises(Unlearned, match="not decided by one time"):
        find_switch(lambda times: ["a" if int(t) % 2 else "b" for t in times.tolist()], 1000)


@torch.no_grad()
def test_rows_at_both_sides_of_the_boundary_go_to_their_expert() -> None:
    held = policy("WanPipeline (two experts)")
    assert list(held.modules) == ["transformer", "transformer_2"]
    switch = held.capture.single.switch
    assert switch is not None
    t = torch.tensor([switch.at / 1000 + 1e-3, switch.at / 1000 - 1e-3])
    x = torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = held.condition(["a", "b"], guided=True)
    together = held.predict(x, t, cond, 3.0)
    for row, name in enumerate(held.modules):
        alone = held.with_modules(dict.fromkeys(held.modules, held.modules[name]))
        assert torch.allclose(
            together[row : row + 1], alone.predict(x[row : row + 1], t[row : row + 1], cond[row], 3.0)
        )


# --- times and directions ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", ["MochiPipeline", "LongCatAudioDiTPipeline", "LTXConditionPipeline"])
@torch.no_grad()
def test_without_noise_a_step_is_the_schedulers_own(name: str) -> None:
    """Whatever way the scheduler counts: the kernel moves from noise to data as the pipeline's own solver does."""
    held = policy(name)
    generators = [torch.Generator().manual_seed(0)]
    _, made = held.generate(["a red fish"], generators, num_inference_steps=4, guidance_scale=None, eta=0.0)
    assert float(made.t[0]) > 0.9
    assert float(made.t[-1]) == 0
    for i in range(4):
        x, t, t_prev = made.x[:, i], made.t[i, None], made.t[i + 1, None]
        mean, _ = made.kernel.mean_std(held.predict(x, t, made.cond), x, t, t_prev)
        assert torch.allclose(mean, made.x[:, i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "StableDiffusionPipeline", "StableDiffusionPipeline (v)"])
def test_the_noise_table_is_the_folders_own(name: str) -> None:
    held = policy(name)
    own = held.pipeline.scheduler.alphas_cumprod.double()
    assert float((held.path.alphas_cumprod - own).abs().max()) < 1e-6
    assert float((held.schedule.scheduler().alphas_cumprod - own).abs().max()) < 1e-6


def test_times_before_shifting_are_understood_and_others_refused() -> None:
    schedule, tau = FlowSchedule({}), torch.tensor([1.0, 0.667, 0.334, 0.001])
    sigma = 3.5 * tau / (1 + 2.5 * tau)
    walked = SimpleNamespace(sigmas=torch.cat([sigma, torch.zeros(1)]), timesteps=1000 * tau)
    known = told(schedule, walked)
    assert torch.equal(known.timestep(sigma), torch.tensor([1000.0, 667.0, 334.0, 1.0]))
    assert told(schedule, SimpleNamespace(sigmas=walked.sigmas, timesteps=1000 * sigma)) is schedule
    walked.timesteps = torch.tensor([1000.0, 900.0, 100.0, 50.0])
    with pytest.raises(ValueError, match="do not follow from its noise levels"):
        told(schedule, walked)


def test_a_clock_per_token_keeps_its_shape_and_its_zeros() -> None:
    moments = [Moment(t, t / 1000) for t in torch.tensor([900.0, 500.0, 20.0]).split(1)]
    values = [torch.tensor([[0.0, 1.0, 1.0]] * 2) * moment.timestep / 1000 for moment in moments]
    clock = learn_clock(values, moments, 1000)
    assert clock is not None
    told_ = clock(Moment(torch.tensor([400.0, 800.0]), torch.tensor([0.4, 0.8])))
    assert torch.equal(told_, torch.tensor([[0.0, 0.4, 0.4], [0.0, 0.8, 0.8]]))


# --- prompts of any lengths, one prompt at a time ---------------------------------------------------------------------


@torch.no_grad()
def test_prompts_that_are_not_padded_are_rolled_out_together() -> None:
    """Z-Image takes prompts of any lengths; each is sampled among its own length, and all are one rollout."""
    held = policy("ZImagePipeline")
    assert not held.pads
    prompts, ids = ["a big bird", "a very big red bird", "a red fish"], ["0", "1", "2"]
    how = {"seed": 0, "num_inference_steps": 3, "guidance_scale": 3.0, "eta": 0.5}
    made = sampling.rollout(held, prompts, ids, **how)
    alone = sampling.rollout(held, prompts[1:2], ids[1:2], **how)
    assert torch.equal(made.x[1], alone.x[0])
    for i in has_likelihood(made.std).nonzero()[:, 0].tolist():
        x, t, t_prev = made.x[:, i], made.t[i].expand(3), made.t[i + 1].expand(3)
        mean, std = made.kernel.mean_std(held.predict(x, t, made.cond, 3.0), x, t, t_prev)
        assert torch.equal(gaussian_log_prob(made.x[:, i + 1], mean, std), made.logps[:, i])
    kinds = prediction_kind_errors(held, held.decode(torch.zeros(2, *held.latent_shape)), prompts[:2])
    assert all(np.isfinite(error) for error in kinds.values())


@torch.no_grad()
def test_one_call_with_prompts_of_several_lengths_explains_itself() -> None:
    held = policy("ZImagePipeline")
    prompts = ["a big bird", "a very big red bird"]
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    _, made = held.generate(prompts, generators, num_inference_steps=2, guidance_scale=None, eta=0.5)
    assert made.cond.parts
    assert len(made.cond) == 2
    own = held.condition(prompts)
    for row in range(2):
        for name, value in own[row].rows.items():
            assert torch.equal(made.cond[row].rows[name], value)


@torch.no_grad()
def test_a_pipeline_that_cannot_do_without_guidance_says_so() -> None:
    held = policy("DreamLitePipeline")
    with pytest.raises(ValueError, match=r"cannot sample without guidance\. Give a guidance scale"):
        held.generate(["a"], [torch.Generator()], num_inference_steps=2, guidance_scale=None, eta=0.0)
    x, t = torch.randn(2, *held.latent_shape), torch.full((2,), 0.5)
    assert held.predict(x, t, held.condition(["a", "b"])).shape == x.shape


@torch.no_grad()
def test_guidance_by_a_component_is_asked_for_as_any_other() -> None:
    """HunyuanVideo 1.5 holds its scale in a guider, which is put back as it was."""
    held = policy("HunyuanVideo15Pipeline")
    guider = held.pipeline.guider
    assert held.default_settings["guidance_scale"] == guider.guidance_scale
    x, t = torch.randn(1, *held.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    cond = held.condition(["a"], guided=True)
    assert not torch.allclose(held.predict(x, t, cond, 2.0), held.predict(x, t, cond, 5.0))
    assert held.pipeline.guider is guider


# --- encoders ---------------------------------------------------------------------------------------------------------


class Encoding:
    """Encoders as pipelines write them: [negative; positive] one after the other, or prompt by prompt."""

    def __init__(self, interleaved: bool):
        self.interleaved, self.calls = interleaved, 0

    def encode_prompt(self, prompt: list[str], negative_prompt: list[str], batch_size: int) -> tuple[Tensor, None]:
        assert batch_size == len(prompt) == len(negative_prompt)
        self.calls += 1
        both = [torch.tensor([[float(len(text))] for text in some]) for some in (negative_prompt, prompt)]
        return (torch.stack(both, 1).flatten(0, 1) if self.interleaved else torch.cat(both)), None


@pytest.mark.parametrize("interleaved", [False, True])
def test_memoised_branches_keep_the_order_of_the_call(interleaved: bool) -> None:
    own = Encoding(interleaved)
    encode = memoised_encoding(own, Memo())
    assert encode is not None
    prompts, negative = ["a", "bbb", "cc"], ["", "xxxxx", "yyyy"]
    asked = own.encode_prompt(prompts, negative, batch_size=3)[0]
    assert torch.equal(encode(prompts, negative, batch_size=3)[0], asked)
    calls = own.calls
    assert torch.equal(encode(prompts, negative, batch_size=3)[0], asked)
    assert own.calls == calls


# --- codecs -----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """An autoencoder that loses nothing, and counts what it is asked."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, x: Tensor) -> tuple[Tensor]:
        return (x,)

    def decode(self, z: Tensor) -> tuple[Tensor]:
        return (z * 1,)


class Sounds:
    """A pipeline of waveforms whose latents are altered before they are decoded."""

    def __init__(self, alter: Any):
        self.vae, self.alter, self.components = Plain(), alter, {}

    def decode(self, x0: Tensor) -> Any:
        return self.vae.decode(self.alter(x0))


def test_a_codec_is_read_off_any_moving_scaling_and_shifting() -> None:
    scale = torch.tensor([2.0, 0.3, -1.5]).view(1, 3, 1)
    own = Sounds(lambda x0: x0.view(len(x0), 4, 3).transpose(1, 2).flip(2) * scale + 0.7)
    codec = find_codec(own, own.decode, (2, 6), torch.device("cpu"))
    x0 = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(codec.encode(list(own.alter(x0))), x0, atol=1e-5)


def test_a_large_packed_latent_is_read_too() -> None:
    own = Sounds(lambda x0: x0.flip(1) * 0.1)
    codec = find_codec(own, own.decode, (300, 260), torch.device("cpu"))
    assert codec.index is not None
    assert torch.equal(codec.index.view(300, 260), torch.arange(78000).view(300, 260).flip(0))


@pytest.mark.parametrize("alter", [torch.tanh, lambda x: x + x.roll(1, 2), lambda x: x[:, :1], torch.zeros_like])
def test_what_else_a_pipeline_does_to_latents_is_refused(alter: Any) -> None:
    own = Sounds(alter)
    with pytest.raises(ValueError, match=r"Sounds .*latents"):
        find_codec(own, own.decode, (2, 6), torch.device("cpu"))


# --- what a call leaves behind ----------------------------------------------------------------------------------------


def test_processors_are_put_back_after_a_call_that_ends_early() -> None:
    pipeline, call = pipelines.build("StableDiffusionPAGPipeline")
    before = dict(pipeline.unet.attn_processors)
    held = DiffusionPolicy(pipeline, call=call)
    assert held.capture.guided is not None
    generators = [torch.Generator().manual_seed(0)]
    record(pipeline, held.schedule.scheduler(), ["a"], seed=0, steps=1, num_inference_steps=4, **call)
    assert {name: id(p) for name, p in pipeline.unet.attn_processors.items()} == {n: id(p) for n, p in before.items()}
    assert held.generate(["a"], generators, num_inference_steps=2, guidance_scale=3.0, eta=1.0)[0]


def test_a_condition_of_several_lengths_survives_a_checkpoint() -> None:
    parts = [Condition({"cond/x": torch.full((1, n), float(n))}) for n in (2, 3, 2)]
    made = Condition.cat(parts)
    again = Condition.restored(made.state())
    assert [float(again[row].rows["cond/x"][0, 0]) for row in range(3)] == [2, 3, 2]
    assert again.key == made.key
    plain = Condition.restored(parts[0].state())
    assert plain.key == parts[0].key
