"""The seam: three kinds of evidence, one shape of log-likelihood, one loss above them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from palate import likelihood, losses, sampling
from palate.models.causal_lm import CausalLM
from palate.models.contracts import Draw, PreferenceBatch
from palate.randomness import generator
from tests import toys, zoo

PREFER = torch.tensor([[torch.nan, 1.0], [0.0, torch.nan]])


def denoising_pair(policy: toys.ToyDenoiser) -> tuple[torch.Tensor, PreferenceBatch, Draw]:
    batch = toys.preferences(policy, 3)
    source = generator("likelihood")
    draw = Draw(policy.path.sample_t(3, source), torch.randn(3, *toys.SHAPE, generator=source), torch.zeros(3) > 0)
    return likelihood.denoising(policy, batch.x0, batch.cond, draw), batch, draw


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample", "velocity"])
def test_denoising_is_minus_the_mean_squared_error(kind):
    policy = toys.ToyDenoiser(kind)
    logps, batch, draw = denoising_pair(policy)
    for b in range(3):
        for k in range(2):
            x0, noise, t = batch.x0[b, k, None], draw.noise[b, None], draw.t[b, None]
            prediction = policy.predict(policy.path.add_noise(x0, noise, t), t, batch.cond[b])
            expected = -(prediction - policy.path.target(x0, noise, t)).double().pow(2).mean()
            assert logps[b, k].item() == pytest.approx(expected.item(), rel=1e-5)


def test_candidates_may_have_a_noise_each():
    policy = toys.ToyDenoiser()
    _, batch, draw = denoising_pair(policy)
    own = torch.randn(batch.x0.shape, generator=generator("own noise"))
    logps = likelihood.denoising(policy, batch.x0, batch.cond, replace(draw, noise=own))
    for k in range(2):
        alone = likelihood.denoising(policy, batch.x0[:, k, None], batch.cond, replace(draw, noise=own[:, k]))
        torch.testing.assert_close(logps[:, k, None], alone)


def test_stored_log_likelihoods_stand_in_for_a_reference():
    policy, reference = toys.ToyDenoiser(), toys.ToyDenoiser("v")
    _, batch, draw = denoising_pair(policy)
    draw = replace(draw, drop=torch.tensor([True, False, True]))
    logps, live = likelihood.with_reference(policy, reference, batch, draw)
    assert logps.requires_grad and not live.requires_grad
    torch.testing.assert_close(
        live, likelihood.denoising(reference, batch.x0, batch.cond.where(draw.drop, batch.null), draw)
    )
    stored = likelihood.with_reference(policy, None, replace(batch, ref_logps=live), draw)
    assert torch.equal(stored[0], logps) and torch.equal(stored[1], live)


def test_a_model_in_half_precision_still_gives_float32():
    policy = toys.ToyDenoiser()
    full = policy.predict
    policy.predict = lambda *a, **k: full(*a, **k).bfloat16()
    assert denoising_pair(policy)[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_transition_is_a_gaussian_log_density_per_dimension(kind):
    policy = toys.ToyDenoiser(kind)
    rollout = toys.roll_out(policy, ["a", "b"])
    candidate, step = torch.tensor([[0, 1], [1, 0]]), torch.tensor([1, 3])
    batch = sampling.transition_batch(rollout, candidate, step, torch.zeros(2, 2))
    logps = likelihood.transition(policy, batch)
    for n in range(2):
        for k in range(2):
            row, i = candidate[n, k], step[n]
            t, t_prev = rollout.t[i][None], rollout.t[i + 1][None]
            x_t, x_prev = rollout.x[row, i][None], rollout.x[row, i + 1][None]
            with torch.no_grad():
                mean, std = rollout.kernel.mean_std(
                    policy.predict(x_t, t, rollout.cond[row : row + 1], 2.0), x_t, t, t_prev
                )
            normal = torch.distributions.Normal(mean.double(), std.double())
            assert logps[n, k].item() == pytest.approx(normal.log_prob(x_prev.double()).mean().item(), rel=1e-4)


def test_tokens_add_up_over_the_completion_only():
    model = CausalLM(*zoo.causal_lm())
    prompts, completions = ["ab", "a"], ["ba", "bbab"]
    logps = likelihood.token(model, prompts, completions)
    assert logps.shape == (2,) and logps.dtype == torch.float32
    for row in range(2):
        tokens, mask, completion = model.encode(prompts[row : row + 1], completions[row : row + 1])
        with torch.no_grad():
            log_softmax = F.log_softmax(model.logits(tokens, mask)[0].double(), -1)
        where = completion[0].nonzero().flatten().tolist()
        expected = sum(log_softmax[i - 1, tokens[0, i]].item() for i in where)
        assert logps[row].item() == pytest.approx(expected, rel=1e-4)


def test_one_dpo_runs_on_all_three():
    """Denoising errors, stored transitions and tokens: at the reference ln 2, and a gradient to the weights."""
    toy = toys.ToyDenoiser()
    rollout = toys.roll_out(toy, ["a", "a"])
    batch = sampling.transition_batch(rollout, torch.tensor([[0, 1]]), torch.tensor([2]), torch.zeros(1, 2))
    lm = CausalLM(*zoo.causal_lm())
    lm.module.requires_grad_(True)
    evidence = {
        "denoising": (denoising_pair(toy)[0], toy.module),
        "transition": (likelihood.transition(toy, batch), toy.module),
        "token": (likelihood.token(lm, ["ab", "ab"], ["ba", "bb"]).view(1, 2), lm.module),
    }
    for name, (logps, module) in evidence.items():
        prefer = PREFER.expand(len(logps), 2, 2)
        loss, pairs = losses.dpo(logps, logps.detach(), prefer, beta=1.0)
        assert loss.mean().item() == pytest.approx(math.log(2), rel=1e-6), name
        assert pairs.eq(1).all()
        module.zero_grad()
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), name


def test_the_draw_is_shared_by_all_candidates():
    policy = toys.ToyDenoiser()
    logps, batch, draw = denoising_pair(policy)
    twin = replace(batch, x0=batch.x0[:, :1].expand(-1, 2, -1, -1, -1).contiguous())
    same = likelihood.denoising(policy, twin.x0, batch.cond, draw)
    torch.testing.assert_close(same[:, 0], same[:, 1])
    torch.testing.assert_close(same[:, 0], logps[:, 0])
