"""Flow-RWR: self-normalised weights of the whole step, what is usual in the data, the cap."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palate.algorithms import flow_rwr
from palate.models.contracts import Draw, State, select
from tests.algorithms.test_preference import draw_for, errors, run
from tests.toys import ToyDenoiser, preferences


def parts(n: int = 6, k: int = 2):
    policy = ToyDenoiser("velocity")
    return policy, preferences(policy, n, k), draw_for(policy, n)


def measured(batches, config, policy) -> State:
    state = flow_rwr.init(policy, config)
    flow_rwr.measure(policy, None, ((batch, None) for batch in batches), state, config)
    return state


def test_the_formula():
    policy, batch, draw = parts()
    out = run("flow_rwr", policy, None, batch, draw, temperature=0.5, max_weight=1e9)
    weights = torch.exp(batch.scores.double().sum(-1) / 0.5)
    expected = (weights * errors(policy, batch, draw)).sum() / weights.sum()
    assert (out.loss_sum / out.weight).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_constant_added_to_all_rewards_changes_nothing():
    policy, batch, draw = parts()
    config = flow_rwr.Config(standardise=False, temperature=0.7)
    losses = []
    for shift in (0.0, 300.0):  # exp(300 / .7) overflows
        other = replace(batch, scores=batch.scores + shift)
        out = flow_rwr.step(policy, None, other, draw, measured([other], config, policy), config)
        losses.append((out.loss_sum / out.weight).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_dimensions_are_measured_in_their_own_deviations():
    policy, batch, _ = parts()
    config = flow_rwr.Config()
    scaled = replace(batch, scores=batch.scores * torch.tensor([1.0, 1000.0]) + torch.tensor([0.0, 7.0]))
    z = (batch.scores - batch.scores.mean((0, 1))) / batch.scores.flatten(0, 1).std(0, correction=0)
    state = measured([select(scaled, torch.tensor([0, 1])), select(scaled, torch.arange(2, 6))], config, policy)
    torch.testing.assert_close(flow_rwr.rewards(scaled, state, config), z.sum(-1), rtol=1e-3, atol=1e-4)
    assert state.values["reward"] == pytest.approx(0.0, abs=1e-5)
    flat = replace(batch, scores=torch.full_like(batch.scores, 5.0))
    assert flow_rwr.rewards(flat, measured([flat], config, policy), config).eq(0).all()


def test_no_sample_takes_over():
    policy, batch, draw = parts(4, 2)
    scores = torch.zeros_like(batch.scores)
    scores[0, 0, 0] = 50.0
    config = flow_rwr.Config(standardise=False, max_weight=3.0)
    out = run("flow_rwr", policy, None, replace(batch, scores=scores), draw, standardise=False, max_weight=3.0)
    assert out.weight.item() == pytest.approx(3.0 + 7.0)
    assert out.metrics["weight/capped"][0].item() == 1 and config.max_weight == 3


def test_unknown_rewards_weigh_nothing():
    policy, batch, draw = parts(4)
    scores = batch.scores.clone()
    scores[1, 1, 0], scores[2] = torch.nan, torch.inf
    holes = replace(batch, scores=scores)
    config = flow_rwr.Config()
    state = measured([holes], config, policy)
    out = flow_rwr.step(policy, None, holes, draw, state, config)
    assert out.loss_sum.isfinite() and out.metrics["reward"][1].item() == 5
    bare = replace(batch, scores=torch.zeros(4, 2, 0))
    assert flow_rwr.step(policy, None, bare, draw, measured([bare], config, policy), config).weight == 0
    assert "no candidate has a score" in flow_rwr.lacking(bare, config)


def test_micro_batches_divide_by_the_step_s_weights():
    policy, batch, draw = parts()
    config = flow_rwr.Config()
    state = measured([batch], config, policy)
    whole = flow_rwr.step(policy, None, batch, draw, state, config)
    pieces = []
    for row in torch.arange(6).split(2):
        one = Draw(draw.t[row], draw.noise[row], draw.drop[row])
        pieces.append(flow_rwr.step(policy, None, select(batch, row), one, state, config))
    quotient = sum(p.loss_sum for p in pieces) / sum(p.weight for p in pieces)
    assert quotient.item() == pytest.approx((whole.loss_sum / whole.weight).item(), rel=1e-5)
