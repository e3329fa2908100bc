"""Diffusion-DPO's options and Flow-DPO: formulas in float64, refusals, the automatic beta."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from palate import feedback, plugins
from palate.algorithms import diffusion_dpo, flow_dpo
from palate.models.contracts import State
from palate.paths import DDPMPath
from palate.randomness import generator
from tests.algorithms.test_preference import draw_for, errors, moved, run
from tests.toys import ToyDenoiser, betas_to_alphas_cumprod, preferences


def gaps(kind: str = "epsilon", n: int = 5):
    """A policy and its reference, a batch and a draw, and (err_w - ref) - (err_l - ref) [n] in float64."""
    policy = ToyDenoiser(kind)
    trained, batch, draw = moved(policy), preferences(policy, n), draw_for(policy, n)
    difference = errors(trained, batch, draw) - errors(policy, batch, draw)
    return trained, policy, batch, draw, difference[:, 0] - difference[:, 1]


@pytest.mark.parametrize(("weighting", "power"), [("constant", 0), ("one_minus_t_squared", 2)])
def test_flow_dpo(weighting, power):
    trained, policy, batch, draw, gap = gaps("velocity")
    out = run("flow_dpo", trained, policy, batch, draw, beta=60.0, weighting=weighting)
    z = -30.0 * (1 - draw.t.double()) ** power * gap
    assert out.loss_sum.item() == pytest.approx(-logsigmoid(z).sum().item(), rel=1e-4)
    assert out.metrics["reward/margin"][0].item() == pytest.approx(z.sum().item(), rel=1e-3)
    start = run("flow_dpo", policy, policy, batch, draw, weighting=weighting)
    assert start.loss_sum.item() / 5 == pytest.approx(math.log(2), rel=1e-7)


@pytest.mark.parametrize(("name", "mend"), [("flow_dpo", "diffusion_dpo"), ("flow_rwr", "rwr")])
def test_flow_methods_refuse_other_models(name, mend):
    module = plugins.find("algorithms", name)
    with pytest.raises(ValueError, match=f"{name} is for models that predict a velocity.*predicts v: use {mend}"):
        module.init(ToyDenoiser("v"), module.Config())


def test_flow_dpo_draws_times_as_asked():
    policy = ToyDenoiser("velocity")
    for density, squared in (("uniform", 1 / 3), ("logit_normal", 0.29)):
        t = flow_dpo.sample_t(policy.path, flow_dpo.Config(time_density=density), 4000, generator("times"))
        assert ((1 - t) ** 2).mean().item() == pytest.approx(squared, abs=0.02)
        options = flow_dpo.Config(time_density=density, time_shift=3.0)
        shifted = flow_dpo.sample_t(policy.path, options, 4000, generator("times"))
        torch.testing.assert_close(shifted.logit(), t.logit() + math.log(3), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample", "velocity"])
def test_errors_of_any_kind_as_errors_of_the_noise(kind):
    trained, policy, batch, draw, gap = gaps(kind)
    alpha, sigma = policy.path.alpha_sigma(draw.t, torch.double)
    squared = {"epsilon": 1, "v": alpha**2, "sample": (alpha / sigma) ** 2, "velocity": alpha**2}[kind]
    out = run("diffusion_dpo", trained, policy, batch, draw, beta_dpo=40.0, error_space="epsilon")
    assert out.loss_sum.item() == pytest.approx(-logsigmoid(-20.0 * squared * gap).sum().item(), rel=1e-4)
    difference = errors(trained, batch, draw) - errors(policy, batch, draw)
    assert out.metrics["displacement/chosen"][0].item() == pytest.approx(difference[:, 0].sum().item(), rel=1e-3)


def test_turbo_sees_its_own_timesteps_only():
    config, policy = diffusion_dpo.Config(timesteps=[249, 499, 749, 999], prompt_dropout=0), ToyDenoiser()
    diffusion_dpo.init(policy, config)
    t = diffusion_dpo.sample_t(policy.path, config, 200, generator("turbo"))
    assert set(t.tolist()) == {249, 499, 749, 999}
    whole = diffusion_dpo.sample_t(policy.path, diffusion_dpo.Config(), 200, generator("turbo"))
    assert torch.equal(whole, policy.path.sample_t(200, generator("turbo")))


@pytest.mark.parametrize("name", ["diffusion_dpo", "mapo", "rankdpo"])
def test_zero_terminal_snr_needs_another_kind_than_epsilon(name):
    module, table = plugins.find("algorithms", name), betas_to_alphas_cumprod()
    table[-1] = 0
    policy = ToyDenoiser()
    policy.path = DDPMPath(table, "epsilon")
    with pytest.raises(ValueError, match="zero terminal SNR"):
        module.init(policy, module.Config())
    fine = ToyDenoiser("v")
    fine.path = DDPMPath(table, "v")
    state, config = module.init(fine, module.Config()), module.Config()
    batch, last = preferences(fine, 3), replace(draw_for(fine, 3), t=torch.full((3,), 999))
    out = module.step(moved(fine), fine, batch, last, state, config)
    out.loss_sum.backward()
    assert out.loss_sum.isfinite()


def test_an_anchor_of_the_chosen():
    trained, policy, batch, draw, gap = gaps()
    out = run("diffusion_dpo", trained, policy, batch, draw, beta_dpo=40.0, sft_weight=0.5)
    own = errors(trained, batch, draw)[:, 0]
    assert out.loss_sum.item() == pytest.approx((-logsigmoid(-20.0 * gap) + 0.5 * own).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "ipo", "label_smoothing": 0.1, "robust": True}, 1 / 5000.0**2),
        ({"sft_weight": 0.1}, None),
        ({"beta_dpo": "auto"}, math.log(2)),
        ({"beta_dpo": "auto", "loss": "ipo"}, None),
    ],
)
def test_where_the_loss_starts(options, start):
    policy = ToyDenoiser()
    known = diffusion_dpo.start_loss(diffusion_dpo.Config(**options))
    assert known == pytest.approx(start) if start else known is None
    if start:
        out = run("diffusion_dpo", policy, policy, preferences(policy), draw_for(policy, 4), **options)
        assert out.loss_sum.item() / out.weight.item() == pytest.approx(start, rel=1e-6)


@pytest.mark.parametrize("beta", [0, -1, "automatic"])
def test_a_beta_is_positive_or_auto(beta):
    with pytest.raises(ValueError, match="beta"):
        flow_dpo.Config(beta=beta)


def test_an_automatic_beta_brings_the_logits_to_a_stated_size():
    trained, policy, batch, draw, gap = gaps()
    config, state = diffusion_dpo.Config(beta_dpo="auto", beta_steps=2), State()

    def logits() -> float:
        out = diffusion_dpo.step(trained, policy, batch, draw, state, config)
        squares, count = out.metrics["beta/gap_squared"]
        diffusion_dpo.observe({"beta/gap_squared": (squares / count).item()}, state, config)
        return out.metrics["reward/margin"][0].item()

    first, second = logits(), logits()
    assert first == pytest.approx(-0.5 * gap.sum().item(), rel=1e-3)  # 1 until something is known
    beta = 2 * feedback.AUTO_SPREAD / gap.square().mean().sqrt().item()
    assert state.values["beta"] == pytest.approx(beta, rel=1e-3)
    assert second == pytest.approx(-beta / 2 * gap.sum().item(), rel=1e-3)
    diffusion_dpo.observe({"beta/gap_squared": 1e9}, state, config)  # no longer watched
    assert state.values["beta"] == pytest.approx(beta, rel=1e-3)


def test_an_automatic_beta_waits_for_errors_to_move():
    config, state = flow_dpo.Config(beta="auto", beta_steps=3), State()
    for gap, beta in ((0.0, 1.0), (2e-8, 0.6e4), (4e-8, 0.6 / math.sqrt(2e-8))):
        flow_dpo.observe({"beta/gap_squared": gap}, state, config)
        assert feedback.beta_of("auto", state) == pytest.approx(beta)
    flow_dpo.observe({}, state, config)  # a step without a judged pair
    fixed = State()
    flow_dpo.observe({"beta/gap_squared": 1.0}, fixed, flow_dpo.Config())
    assert not fixed.values
