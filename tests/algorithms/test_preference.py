"""Algorithms against formulas written out by hand, and at their limits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from palate import likelihood, plugins
from palate.models.contracts import Draw, PreferenceBatch, select
from palate.randomness import generator
from tests.toys import SHAPE, ToyDenoiser, preferences

OFFLINE = [
    name for name in plugins.available("algorithms") if plugins.find("algorithms", name).NEEDS.source == "offline"
]


def draw_for(policy: ToyDenoiser, n: int, seed: int = 0, drop: float = 0.0) -> Draw:
    source = generator("draw", seed)
    return Draw(
        t=policy.path.sample_t(n, source),
        noise=torch.randn(n, *SHAPE, generator=source),
        drop=torch.rand(n, generator=source) < drop,
    )


KIND = {"flow_dpo": "velocity", "flow_rwr": "velocity"}  # what an algorithm's model predicts, if not the noise


def toy_for(name: str) -> ToyDenoiser:
    return ToyDenoiser(KIND.get(name, "epsilon"))


def run(name: str, policy, reference, batch: PreferenceBatch, draw: Draw, **options):
    module = plugins.find("algorithms", name)
    config = module.Config(**options)
    return module.step(policy, reference, batch, draw, module.init(policy, config), config)


def moved(policy: ToyDenoiser) -> ToyDenoiser:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.module.weight.add_(0.05 * torch.randn(other.module.weight.shape, generator=generator("moved")))
    return other


def errors(policy: ToyDenoiser, batch: PreferenceBatch, draw: Draw) -> torch.Tensor:
    """[B, K] MEAN squared errors in float64, one candidate at a time and without the seam."""
    policy = copy.deepcopy(policy)
    policy.module.double()
    out = torch.zeros(len(batch), batch.x0.shape[1], dtype=torch.double)
    for b in range(len(batch)):
        for k in range(batch.x0.shape[1]):
            x0, t = batch.x0[b, k, None].double(), draw.t[b, None]
            noise = (draw.noise[b] if draw.noise.dim() < batch.x0.dim() else draw.noise[b, k])[None].double()
            embedding = batch.cond.rows["cond/embedding"][b, None].double()
            x_t = policy.path.add_noise(x0, noise, t)
            clock = (t.double() / policy.scale)[:, None]
            with torch.no_grad():
                guess = policy.module(torch.cat([x_t.flatten(1), embedding, clock], 1)).view_as(x_t)
            out[b, k] = (guess - policy.path.target(x0, noise, t)).pow(2).mean()
    return out


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample", "velocity"])
def test_diffusion_dpo_is_equation_14(kind):
    policy = ToyDenoiser(kind)
    trained, batch, draw = moved(policy), preferences(policy, 5), draw_for(policy, 5)
    out = run("diffusion_dpo", trained, policy, batch, draw, beta_dpo=40.0)
    difference = errors(trained, batch, draw) - errors(policy, batch, draw)
    z = -20.0 * (difference[:, 0] - difference[:, 1])
    expected = -torch.nn.functional.logsigmoid(z).sum()
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.weight.item() == 5
    accuracy, count = out.metrics["reward/accuracy"]
    assert accuracy.item() == (z > 0).sum().item() and count.item() == 5
    chosen, count = out.metrics["displacement/chosen"]
    assert chosen.item() == pytest.approx(difference[:, 0].sum().item(), rel=1e-3, abs=1e-5)


def test_at_the_reference_the_loss_is_ln_2_and_accuracy_a_half():
    policy = ToyDenoiser()
    out = run("diffusion_dpo", policy, policy, preferences(policy), draw_for(policy, 4))
    assert out.loss_sum.item() / out.weight.item() == pytest.approx(math.log(2), rel=1e-7)
    accuracy, count = out.metrics["reward/accuracy"]
    assert accuracy / count == 0.5


def test_swapping_the_preference_flips_the_gradient():
    policy = ToyDenoiser()
    reference, draw, batch = copy.deepcopy(policy), draw_for(policy, 4), preferences(policy)
    flipped = replace(batch, prefer=1 - batch.prefer)

    def gradient(of: PreferenceBatch) -> torch.Tensor:
        policy.module.zero_grad()
        run("diffusion_dpo", policy, reference, of, draw).loss_sum.backward()
        return policy.module.weight.grad.clone()

    assert gradient(batch).norm() > 0
    torch.testing.assert_close(gradient(batch), -gradient(flipped))


def test_ties_are_dropped_or_kept_as_asked():
    policy = ToyDenoiser()
    batch = preferences(policy)
    tied = replace(batch, prefer=torch.full_like(batch.prefer, 0.5))
    draw = draw_for(policy, 4)
    dropped = run("diffusion_dpo", moved(policy), policy, tied, draw)
    assert dropped.weight == 0 and dropped.loss_sum == 0
    assert run("diffusion_dpo", moved(policy), policy, tied, draw, ties="soft").weight == 4


def test_a_dropped_prompt_is_seen_as_empty():
    policy = ToyDenoiser()
    batch, draw = preferences(policy), draw_for(policy, 4)
    dropped = replace(draw, drop=torch.tensor([True, False, False, True]))
    empty = replace(batch, cond=batch.cond.where(dropped.drop, batch.null))
    a = run("diffusion_dpo", moved(policy), policy, batch, dropped)
    b = run("diffusion_dpo", moved(policy), policy, empty, draw)
    assert torch.equal(a.loss_sum, b.loss_sum)


def test_sft_trains_on_winners_only():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 5, k=3), draw_for(policy, 5)
    out = run("sft", policy, None, batch, draw)
    assert out.loss_sum.item() == pytest.approx(errors(policy, batch, draw)[:, 0].sum().item(), rel=1e-5)
    nothing = replace(batch, prefer=torch.full_like(batch.prefer, 0.5))
    assert run("sft", policy, None, nothing, draw).weight == 0


def test_rwr_weighs_errors_by_the_reward():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 6), draw_for(policy, 6)
    out = run("rwr", policy, None, batch, draw, temperature=0.5)
    weight = torch.exp(batch.scores.double().sum(-1) / 0.5)
    expected = (errors(policy, batch, draw) * weight / weight.mean(1, keepdim=True)).sum()
    assert out.loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.weight.item() == 12


def test_rwr_leaves_unknown_rewards_out():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 4), draw_for(policy, 4)
    scores = batch.scores.clone()
    scores[1, 1, 0] = torch.nan
    out = run("rwr", policy, None, replace(batch, scores=scores), draw)
    assert out.weight == 7 and out.loss_sum.isfinite()


def lacking(name: str, batch: PreferenceBatch, **options) -> str:
    module = plugins.find("algorithms", name)
    return module.lacking(batch, module.Config(**options))


def test_rwr_does_not_take_data_without_scores_for_equal_rewards():
    policy = ToyDenoiser()
    batch, draw = preferences(policy, 4), draw_for(policy, 4)
    bare = replace(batch, scores=torch.zeros(4, 2, 0))
    assert run("rwr", policy, None, bare, draw).weight == 0
    assert "no candidate has a score; store scores" in lacking("rwr", bare)
    assert "no candidate has a score" in lacking("rwr", replace(batch, scores=batch.scores * torch.nan))
    other = "2 columns of scores, and algorithm.dimensions names [0, 2]"
    assert other in lacking("rwr", batch, dimensions={2: 1.0, 0: 1.0})
    assert run("rwr", policy, None, batch, draw, dimensions={2: 1.0}).weight == 0
    assert lacking("rwr", batch) == lacking("rwr", batch, dimensions={1: -1.0}) == ""


@pytest.mark.parametrize("name", OFFLINE)
def test_good_rows_lack_nothing(name):
    assert lacking(name, preferences(ToyDenoiser(), 4, k=3)) == ""


@pytest.mark.parametrize("name", ["diffusion_dpo", "flow_dpo", "mapo", "sft"])
def test_pairs_that_nobody_decided_teach_nothing(name):
    policy = toy_for(name)
    batch = preferences(policy, 4, k=3)
    for prefer in (0.5, torch.nan):
        nothing = replace(batch, prefer=torch.full_like(batch.prefer, prefer))
        assert (
            lacking(name, nothing).startswith("no pair is decided")
            and run(name, moved(policy), policy, nothing, draw_for(policy, 4)).weight == 0
        )
        one = nothing.prefer.clone()
        one[2, 0, 1], one[2, 1, 0] = 0.8, 0.2
        assert lacking(name, replace(batch, prefer=one)) == ""
    gone = batch.mask.clone()
    gone[:, 1:] = False
    assert lacking(name, replace(batch, mask=gone)).startswith("no pair")
    assert lacking(name, batch) == ""


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_ties_that_are_kept_hold_the_reference_still(loss):
    """So that all ties are refused whether or not they are dropped."""
    policy = ToyDenoiser()
    batch = preferences(policy)
    tied = replace(batch, prefer=torch.full_like(batch.prefer, 0.5))
    run(
        "diffusion_dpo", policy, copy.deepcopy(policy), tied, draw_for(policy, 4), ties="soft", loss=loss
    ).loss_sum.backward()
    assert policy.module.weight.grad.abs().max() < 1e-4
    assert lacking("diffusion_dpo", tied, ties="soft")


@pytest.mark.parametrize("name", OFFLINE)
def test_sums_add_up_over_any_split(name):
    """Micro-batches of one prompt each and one batch of all agree."""
    policy = toy_for(name)
    batch, draw = preferences(policy, 4, k=3), draw_for(policy, 4, drop=0.5)
    whole = run(name, moved(policy), policy, batch, draw)
    parts = []
    for row in range(4):
        index = torch.tensor([row])
        one = Draw(draw.t[index], draw.noise[index], draw.drop[index])
        parts.append(run(name, moved(policy), policy, select(batch, index), one))
    assert sum(p.loss_sum.item() for p in parts) == pytest.approx(whole.loss_sum.item(), rel=1e-5)
    assert sum(p.weight.item() for p in parts) == pytest.approx(whole.weight.item(), rel=1e-6)


@pytest.mark.parametrize("name", OFFLINE)
def test_order_carries_no_meaning(name):
    """Of prompts in a batch, and of candidates of a prompt."""
    policy = toy_for(name)
    batch, draw = preferences(policy, 4, k=3), draw_for(policy, 4, drop=0.5)
    whole = run(name, moved(policy), policy, batch, draw)
    order, k = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    other = select(batch, order)
    other = replace(other, x0=other.x0[:, k], prefer=other.prefer[:, k][:, :, k], scores=other.scores[:, k])
    again = run(name, moved(policy), policy, other, Draw(draw.t[order], draw.noise[order], draw.drop[order]))
    assert again.loss_sum.item() == pytest.approx(whole.loss_sum.item(), rel=1e-5)
    for key, (total, count) in whole.metrics.items():
        assert again.metrics[key][0].item() == pytest.approx(total.item(), rel=1e-4, abs=1e-6), key
        assert again.metrics[key][1].item() == pytest.approx(count.item(), rel=1e-5), key


@pytest.mark.parametrize("name", OFFLINE)
def test_rows_that_weigh_nothing_do_not_matter(name):
    policy = toy_for(name)
    batch, draw = preferences(policy, 4, k=3), draw_for(policy, 4)
    light = replace(batch, weight=torch.tensor([1.0, 0.0, 2.0, 0.0]))
    kept = torch.tensor([0, 2])
    rest = Draw(draw.t[kept], draw.noise[kept], draw.drop[kept])
    a = run(name, moved(policy), policy, light, draw)
    b = run(name, moved(policy), policy, select(light, kept), rest)
    assert a.loss_sum.item() == pytest.approx(b.loss_sum.item(), rel=1e-5)
    assert a.weight.item() == pytest.approx(b.weight.item())


@pytest.mark.parametrize("name", OFFLINE)
def test_masked_candidates_do_not_matter(name):
    policy = toy_for(name)
    batch, draw = preferences(policy, 4, k=3), draw_for(policy, 4)
    mask = batch.mask.clone()
    mask[:, 2] = False
    masked = replace(batch, mask=mask)
    other = replace(masked, x0=torch.cat([batch.x0[:, :2], batch.x0[:, 2:] * 9 + 1], 1))
    assert torch.equal(
        run(name, moved(policy), policy, masked, draw).loss_sum, run(name, moved(policy), policy, other, draw).loss_sum
    )


def test_one_dpo_loss_serves_every_kind_of_likelihood():
    from palate import losses

    policy = ToyDenoiser()
    batch, draw = preferences(policy), draw_for(policy, 4)
    logps = likelihood.denoising(moved(policy), batch.x0, batch.cond, draw)
    ref_logps = likelihood.denoising(policy, batch.x0, batch.cond, draw)
    loss, pairs = losses.dpo(logps, ref_logps, batch.prefer, beta=10.0)
    assert loss.shape == (4,) and pairs.eq(1).all()
