"""Online algorithms: what they make of a rollout, and their loss on it, against formulas written out by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from palate import likelihood, sampling
from palate.algorithms import d3po, ddpo
from palate.models.contracts import select
from tests.toys import ToyDenoiser, roll_out

PROMPTS = ["a", "a", "a", "b", "b", "b"]
SCORES = {"good": torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 5.0])}


def nudged(policy: ToyDenoiser, by: float = 1e-3) -> ToyDenoiser:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.module.weight.add_(by)
    return other


@pytest.mark.parametrize("kind", ["epsilon", "v", "velocity"])
def test_the_ratio_of_a_fresh_rollout_is_one(kind):
    policy = ToyDenoiser(kind)
    rollout = roll_out(policy, PROMPTS)
    config = d3po.Config()
    batch = d3po.prepare(rollout, SCORES, d3po.init(policy, config), config)
    assert (likelihood.transition(policy, batch) - batch.logps).abs().max() <= 1e-5


def test_d3po_labels_are_pareto_dominance():
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [torch.nan, 9.0]])
    h = d3po.labels(scores)
    assert h[0].tolist() == [0, 1, 0, 0, 0]  # dominates 1; trades off against 2; equals 3; 4 is unknown
    assert torch.equal(h, -h.T)


def test_d3po_loss_is_equation_14_over_all_pairs():
    policy, config = ToyDenoiser(), d3po.Config(beta=0.3, clip=0.05)
    rollout = roll_out(policy, PROMPTS)
    batch = d3po.prepare(rollout, SCORES, d3po.init(policy, config), config)
    trained = nudged(policy, 0.02)
    out = d3po.step(trained, None, batch, None, d3po.init(policy, config), config)

    expected, pairs = 0.0, 0
    logps = likelihood.transition(trained, batch)
    for row in range(len(batch)):
        for i, j in combinations(range(3), 2):
            a, b = batch.candidate[row, i], batch.candidate[row, j]
            difference = SCORES["good"][a] - SCORES["good"][b]
            if difference == 0:
                continue
            h = 1.0 if difference > 0 else -1.0
            step = batch.step[row]
            l_a = (logps[row, i] - rollout.logps[a, step]).exp().clamp(0.95, 1.05).log()
            l_b = (logps[row, j] - rollout.logps[b, step]).exp().clamp(0.95, 1.05).log()
            expected += -torch.nn.functional.logsigmoid(0.3 * h * (l_a - l_b)).item()
            pairs += 1
    assert out.weight.item() == pairs == 5 * (3 + 2)
    assert out.loss_sum.item() == pytest.approx(expected, rel=1e-5)


def test_d3po_starts_at_ln_2_and_moves_towards_the_preferred():
    policy, config = ToyDenoiser(), d3po.Config()
    batch = d3po.prepare(roll_out(policy, PROMPTS), SCORES, d3po.init(policy, config), config)
    out = d3po.step(policy, None, batch, None, d3po.init(policy, config), config)
    assert (out.loss_sum / out.weight).item() == pytest.approx(math.log(2), abs=1e-6)
    out.loss_sum.backward()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter -= 1e-5 * parameter.grad
    margin, _ = d3po.step(policy, None, batch, None, d3po.init(policy, config), config).metrics["reward/margin"]
    assert margin > 0


def test_d3po_with_a_fixed_reference_equals_stored_log_densities_of_it():
    policy, config = ToyDenoiser(), d3po.Config()
    batch = d3po.prepare(roll_out(policy, PROMPTS), SCORES, d3po.init(policy, config), config)
    trained = nudged(policy)
    rolling = d3po.step(trained, None, batch, None, d3po.init(policy, config), config)
    fixed = d3po.step(trained, policy, batch, None, d3po.init(policy, config), config)
    torch.testing.assert_close(rolling.loss_sum, fixed.loss_sum, rtol=1e-4, atol=1e-4)


def test_d3po_best_and_worst_only():
    policy, config = ToyDenoiser(), d3po.Config(pairs="best_worst")
    batch = d3po.prepare(roll_out(policy, PROMPTS), SCORES, d3po.init(policy, config), config)
    pairs = {(tuple(row.tolist())) for row in batch.candidate}
    assert pairs == {(0, 2), (5, 3)}
    assert (batch.signal[:, 0, 1] == 1).all()


def test_d3po_with_nothing_decided_has_no_rows_and_uneven_rounds_are_refused():
    policy, config = ToyDenoiser(), d3po.Config()
    same = {"good": torch.zeros(6)}
    assert len(d3po.prepare(roll_out(policy, PROMPTS), same, d3po.init(policy, config), config)) == 0
    with pytest.raises(ValueError, match="equally often"):
        d3po.prepare(roll_out(policy, ["a", "a", "b"]), {"good": torch.zeros(3)}, d3po.init(policy, config), config)


def test_ddpo_advantages_use_a_prompts_own_history_once_it_is_long_enough():
    config = ddpo.Config(buffer_size=4, min_count=3)
    history: dict[str, list[float]] = {}
    first = ddpo.advantages(torch.tensor([1.0, 2.0, 9.0]), ["a", "a", "b"], history, config)
    whole = torch.tensor([1.0, 2.0, 9.0]).double()
    torch.testing.assert_close(first, ((whole - 4.0) / whole.std(correction=0)).clamp(-5, 5).to(first.dtype))
    second = ddpo.advantages(torch.tensor([3.0, 4.0, 9.0]), ["a", "a", "b"], history, config)
    assert history["a"] == [1.0, 2.0, 3.0, 4.0]
    assert second[1].item() == pytest.approx(
        (4 - 2.5) / torch.tensor([1.0, 2, 3, 4]).std(correction=0).item(), rel=1e-5
    )


def test_ddpo_ignores_rewards_that_are_not_numbers_and_prompts_that_are_all_equal():
    history: dict[str, list[float]] = {}
    out = ddpo.advantages(torch.tensor([torch.nan, 1.0, 1.0]), ["a", "a", "a"], history, ddpo.Config())
    assert out.tolist() == [0, 0, 0] and history == {"a": [1.0, 1.0]}


@pytest.mark.parametrize(("value", "number"), [(0.1, 3), (2.05, 64), (-7.3, 10)])
@pytest.mark.parametrize("min_count", [1, 1000])
def test_ddpo_learns_nothing_from_equal_rewards(value, number, min_count):
    """Of the prompt's own past or of the whole round: rounding noise of their mean is no advantage, however small."""
    config = ddpo.Config(min_count=min_count, buffer_size=64)
    same = torch.full((number,), value, dtype=torch.double)
    assert ddpo.advantages(same, ["a"] * number, {}, config).count_nonzero() == 0
    rollout = roll_out(ToyDenoiser(), ["a"] * number)
    assert len(ddpo.prepare(rollout, {"good": same}, ddpo.init(None, config), config)) == 0


def test_ddpo_learns_from_the_prompts_that_differ():
    config = ddpo.Config(min_count=2)
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 2.0, 3.0], dtype=torch.double)
    out = ddpo.advantages(rewards, ["a"] * 3 + ["b"] * 3, {}, config)
    assert out[:3].tolist() == [0, 0, 0] and out[3:].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_ddpo_loss_is_the_clipped_surrogate():
    policy, config = ToyDenoiser(), ddpo.Config(clip_range=1e-3)
    rollout = roll_out(policy, PROMPTS)
    state = ddpo.init(policy, config)
    batch = ddpo.prepare(rollout, SCORES, state, config)
    assert len(batch) == 6 * 5
    trained = nudged(policy, 0.01)
    out = ddpo.step(trained, None, batch, None, state, config)
    ratio = (likelihood.transition(trained, batch) - batch.logps).exp().double()
    expected = -torch.minimum(ratio * batch.signal, ratio.clamp(1 - 1e-3, 1 + 1e-3) * batch.signal)
    assert out.loss_sum.item() == pytest.approx(expected.sum().item(), rel=1e-4)


@pytest.mark.parametrize("algorithm", [d3po, ddpo])
def test_the_divergence_is_from_what_the_ratio_is_to(algorithm):
    policy, config = ToyDenoiser(), algorithm.Config()
    state = algorithm.init(policy, config)
    batch = algorithm.prepare(roll_out(policy, PROMPTS), SCORES, state, config)
    start, _ = algorithm.step(policy, None, batch, None, state, config).metrics["kl"]
    assert start.item() == pytest.approx(0, abs=1e-6)
    trained = nudged(policy, 0.02)
    total, count = algorithm.step(trained, None, batch, None, state, config).metrics["kl"]
    log_ratio = likelihood.transition(trained, batch) - batch.logps
    assert (total / count).item() == pytest.approx(0.5 * log_ratio.square().mean().item(), rel=1e-5)
    if algorithm is d3po:
        held, _ = d3po.step(trained, trained, batch, None, state, config).metrics["kl"]
        assert held == 0


def test_transitions_can_be_split_freely():
    policy, config = ToyDenoiser(), d3po.Config()
    batch = d3po.prepare(roll_out(policy, PROMPTS), SCORES, d3po.init(policy, config), config)
    trained, state = nudged(policy), d3po.init(policy, config)
    whole = d3po.step(trained, None, batch, None, state, config)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    parts = [d3po.step(trained, None, select(batch, rows), None, state, config) for rows in order.split(3)]
    assert sum(p.loss_sum.item() for p in parts) == pytest.approx(whole.loss_sum.item(), rel=1e-5)


def test_a_broken_sample_is_counted_and_never_trained_on():
    policy, config = ToyDenoiser(), d3po.Config()
    rollout = roll_out(policy, PROMPTS)
    x = rollout.x.clone()
    x[1, 3] = torch.nan
    scores = {"good": SCORES["good"].clone()}
    scores["good"][5] = torch.inf
    clean, feedback, bad = sampling.usable(replace(rollout, x=x), scores)
    assert bad == 2
    batch = d3po.prepare(clean, feedback, d3po.init(policy, config), config)
    out = d3po.step(policy, None, batch, None, d3po.init(policy, config), config)
    out.loss_sum.backward()
    assert all(p.grad.isfinite().all() for p in policy.module.parameters())
    assert out.weight.item() == 5  # only the pair (0, 2) is left, at five steps
    advantage_rows = ddpo.prepare(clean, feedback, ddpo.init(policy, ddpo.Config()), ddpo.Config()).candidate
    assert not {1, 5} & set(advantage_rows.flatten().tolist())


def test_a_deterministic_rollout_is_refused():
    with pytest.raises(ValueError, match="eta"):
        sampling.rollout(None, ["a"], ["0"], seed=0, num_inference_steps=2, guidance_scale=None, eta=0.0)
