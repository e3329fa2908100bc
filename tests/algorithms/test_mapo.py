"""MaPO in its two forms, written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from palate.algorithms import mapo
from palate.randomness import generator
from tests.algorithms.test_preference import draw_for, errors, moved, run
from tests.toys import ToyDenoiser, preferences


def phi(error: torch.Tensor) -> torch.Tensor:
    return error / torch.expm1(error)


FORMS = {
    "code": lambda a, b: a - 0.1 * logsigmoid(1000 * (phi(0.5 * a) - phi(0.5 * b))),
    "paper": lambda a, b: a - logsigmoid(32 * phi(a) - 32 * phi(b)) / 32,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_both_forms(form, kind):
    policy = ToyDenoiser(kind)
    batch, draw = preferences(policy, 5), draw_for(policy, 5)
    out = run("mapo", policy, None, batch, draw, form=form, beta=32.0)
    error = errors(policy, batch, draw)
    expected = FORMS[form](error[:, 0], error[:, 1])
    assert out.loss_sum.item() == pytest.approx(expected.sum().item(), rel=1e-4)
    assert out.weight.item() == 5
    scale, inner = (1000, 0.5) if form == "code" else (32, 1.0)
    margin = scale * (phi(inner * error[:, 0]) - phi(inner * error[:, 1]))
    assert out.metrics["reward/margin"][0].item() == pytest.approx(margin.sum().item(), rel=1e-3, abs=1e-2)
    assert out.metrics["error/chosen"][0].item() == pytest.approx(error[:, 0].sum().item(), rel=1e-5)
    assert out.metrics["error/rejected"][0].item() == pytest.approx(error[:, 1].sum().item(), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_three_candidates_are_three_pairs(form):
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 3, k=3), draw_for(policy, 3)
    error = errors(policy, batch, draw)
    pairs = [FORMS[form](error[:, i], error[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    out = run("mapo", policy, None, batch, draw, form=form, beta=32.0)
    assert out.loss_sum.item() == pytest.approx(torch.stack(pairs).mean(0).sum().item(), rel=1e-4)


def test_ties_are_left_out_and_soft_labels_mix():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 4), draw_for(policy, 4)
    prefer = batch.prefer.clone()
    prefer[0, 0, 1] = prefer[0, 1, 0] = 0.5
    prefer[1, 0, 1], prefer[1, 1, 0] = 0.75, 0.25
    out = run("mapo", policy, None, replace(batch, prefer=prefer), draw)
    first, second = errors(policy, batch, draw).T
    rows = FORMS["code"](first, second)
    rows[1] = 0.75 * rows[1] + 0.25 * FORMS["code"](second, first)[1]
    assert out.weight.item() == 3 and out.loss_sum.item() == pytest.approx(rows[1:].sum().item(), rel=1e-4)


def test_twins_are_only_learnt():
    """Equal candidates have a margin of 0 whose gradient cancels: what is left is fine-tuning."""
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 4), draw_for(policy, 4)
    twins = replace(batch, x0=batch.x0[:, :1].expand(-1, 2, -1, -1, -1).contiguous())
    out = run("mapo", policy, None, twins, draw)
    out.loss_sum.backward()
    gradient = policy.module.weight.grad.clone()
    policy.module.zero_grad()
    tuned = run("sft", policy, None, twins, draw)
    tuned.loss_sum.backward()
    torch.testing.assert_close(gradient, policy.module.weight.grad, rtol=1e-3, atol=1e-3)
    assert out.loss_sum.item() == pytest.approx(tuned.loss_sum.item() + 4 * 0.1 * math.log(2), rel=1e-5)
    assert out.metrics["reward/accuracy"][0].item() == 2


def test_swapping_the_preference_flips_the_margin():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 4), draw_for(policy, 4)
    margin = [
        run("mapo", moved(policy), None, replace(batch, prefer=p), draw).metrics["reward/margin"][0].item()
        for p in (batch.prefer, 1 - batch.prefer)
    ]
    assert margin[0] == pytest.approx(-margin[1]) and margin[0] != 0


def test_no_reference_anywhere():
    assert mapo.NEEDS.reference == "none" and mapo.NEEDS.start_loss is None and not hasattr(mapo, "start_loss")
    assert "reference" not in mapo.Config.model_fields
    policy = ToyDenoiser()
    policy.module.weight.data.mul_(1 + 1e-6 * torch.randn(4, 8, generator=generator("x")))
    assert run("mapo", policy, None, preferences(policy), draw_for(policy, 4)).loss_sum.isfinite()
