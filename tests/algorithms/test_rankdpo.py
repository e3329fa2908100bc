"""RankDPO: algorithm 2 in float64, its weights' normalisation, ranks of the moment, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn.functional import logsigmoid

from palate.algorithms import rankdpo
from palate.models.contracts import Draw
from palate.randomness import generator
from tests.algorithms.test_preference import draw_for, errors, moved, run
from tests.toys import ToyDenoiser, preferences

WORKED = {(0, 1): 0.220, (0, 2): 0.534, (0, 3): 0.821, (1, 2): 0.062, (1, 3): 0.170, (2, 3): 0.026}  # maths.md 5.2


def ranked(policy: ToyDenoiser, n: int = 5, k: int = 4):
    """A batch whose candidate i has the i-th greatest score by each of two scorers: phi = 1, 2/3, 1/3, 0."""
    scores = torch.arange(k, 0, -1).float()[None, :, None] * torch.tensor([1.0, 10.0])
    return replace(preferences(policy, n, k), scores=scores.expand(n, k, 2).clone())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_algorithm_2(normalise, kind):
    policy = ToyDenoiser(kind)
    trained, batch, draw = moved(policy), ranked(policy), draw_for(policy, 5)
    out = run("rankdpo", trained, policy, batch, draw, beta=9.0, normalise=normalise)
    s = errors(trained, batch, draw) - errors(policy, batch, draw)
    total = -sum(w * logsigmoid(-9.0 * (s[:, i] - s[:, j])).sum() for (i, j), w in WORKED.items())
    assert out.loss_sum.item() == pytest.approx(total.item(), rel=3e-3)
    assert out.weight.item() == pytest.approx(5 * sum(WORKED.values()) if normalise else 5, rel=2e-3)


@pytest.mark.parametrize("weights", ["both", "gain", "discount", "none"])
@pytest.mark.parametrize("rank_source", ["true", "predicted"])
def test_at_the_reference_the_loss_is_ln_2_and_ranks_are_true(weights, rank_source):
    policy = ToyDenoiser()
    batch, draw = ranked(policy), draw_for(policy, 5)
    out = run("rankdpo", policy, policy, batch, draw, weights=weights, rank_source=rank_source)
    assert out.loss_sum.item() / out.weight.item() == pytest.approx(math.log(2), rel=1e-6)
    assert out.weight.item() == run("rankdpo", policy, policy, batch, draw, weights=weights).weight.item() > 0


def test_predicted_ranks_are_those_of_the_implicit_reward():
    policy = ToyDenoiser()
    trained, batch, draw = moved(policy), ranked(policy), draw_for(policy, 5)
    out = run("rankdpo", trained, policy, batch, draw, beta=9.0, rank_source="predicted")
    s = errors(trained, batch, draw) - errors(policy, batch, draw)
    rank = 1 + s.argsort(1).argsort(1).double()
    phi, total, weights = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0]).double(), 0.0, 0.0
    for i, j in combinations(range(4), 2):
        weight = (2 ** phi[i] - 2 ** phi[j]) * (1 / torch.log1p(rank[:, i]) - 1 / torch.log1p(rank[:, j])).abs()
        total -= (weight * logsigmoid(-9.0 * (s[:, i] - s[:, j]))).sum().item()
        weights += weight.sum().item()
    assert out.loss_sum.item() == pytest.approx(total, rel=1e-4)
    assert out.weight.item() == pytest.approx(weights, rel=1e-5)


def test_without_weights_it_is_dpo_over_all_pairs():
    policy = ToyDenoiser()
    trained, batch, draw = moved(policy), ranked(policy), draw_for(policy, 5)
    plain = run("rankdpo", trained, policy, batch, draw, beta=20.0, weights="none")
    dpo = run("diffusion_dpo", trained, policy, batch, draw, beta_dpo=40.0)
    assert (plain.loss_sum / plain.weight).item() == pytest.approx((dpo.loss_sum / dpo.weight).item(), rel=1e-5)
    pair = replace(preferences(policy, 5), scores=torch.zeros(5, 2, 0))
    both, none = (run("rankdpo", trained, policy, pair, draw, beta=20.0, weights=w) for w in ("both", "none"))
    assert (both.loss_sum / both.weight).item() == pytest.approx((none.loss_sum / none.weight).item(), rel=1e-6)


def test_candidates_may_have_a_noise_each():
    policy = ToyDenoiser()
    trained, batch, draw = moved(policy), ranked(policy, 3), draw_for(policy, 3)
    own = Draw(draw.t, torch.randn(batch.x0.shape, generator=generator("own")), draw.drop)
    s = errors(trained, batch, own) - errors(policy, batch, own)
    total = -sum(w * logsigmoid(-9.0 * (s[:, i] - s[:, j])).sum() for (i, j), w in WORKED.items())
    out = run("rankdpo", trained, policy, batch, own, beta=9.0)
    assert out.loss_sum.item() == pytest.approx(total.item(), rel=3e-3)


def test_the_worse_pushes_back_when_labels_are_swapped():
    policy = ToyDenoiser()
    batch, draw = ranked(policy), draw_for(policy, 5)

    def gradient(scores):
        policy.module.zero_grad()
        reference = ToyDenoiser()
        run("rankdpo", policy, reference, replace(batch, scores=scores), draw).loss_sum.backward()
        return policy.module.weight.grad.clone()

    forward, backward = gradient(batch.scores), gradient(-batch.scores)
    assert forward.norm() > 0 and (forward * backward).sum() < 0


def test_phi_comes_from_scores_or_else_from_preferences():
    policy = ToyDenoiser()
    batch = ranked(policy, 3)
    batch.scores[1] = torch.nan
    batch.prefer[2] = torch.nan
    got = rankdpo.shares(batch)
    for row in range(3):  # the preferences of row 1 say the same, and row 2 does not need them
        assert got[row].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    votes = replace(preferences(policy, 1, 3), scores=torch.zeros(1, 3, 0))
    votes.prefer[0, 0, 1], votes.prefer[0, 1, 0] = 0.5, 0.5
    assert rankdpo.shares(votes)[0].tolist() == pytest.approx([0.75, 0.75, 0.0])


def test_equals_are_no_pair():
    policy = ToyDenoiser()
    batch = ranked(policy, 4)
    same = replace(batch, scores=torch.ones_like(batch.scores))
    out = run("rankdpo", moved(policy), policy, same, draw_for(policy, 4))
    assert out.weight == 0 and out.loss_sum == 0 and out.metrics["reward/accuracy"][1] == 0
    assert "no candidate fares better" in rankdpo.lacking(same, rankdpo.Config())
    unknown = replace(same, scores=torch.full_like(same.scores, torch.nan), prefer=same.prefer * torch.nan)
    assert rankdpo.lacking(unknown, rankdpo.Config())
    assert run("rankdpo", moved(policy), policy, unknown, draw_for(policy, 4)).loss_sum == 0


def test_the_start_is_known_where_weights_are_normalised():
    assert rankdpo.start_loss(rankdpo.Config()) == math.log(2)
    assert rankdpo.start_loss(rankdpo.Config(normalise=False)) is None
    assert rankdpo.start_loss(rankdpo.Config(loss="ipo", beta=2.0)) == 1 / 16
