"""Transitions against diffusers' own step, against marginals known in closed form, and at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from palate.paths import DDPMPath, FlowPath
from palate.transitions import DDIM, FlowSDE, gaussian_log_prob, has_likelihood

KINDS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


def scheduler(kind: str, steps: int, to_one: bool = False, **extra: object) -> DDIMScheduler:
    made = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=to_one,
        prediction_type=KINDS[kind],
        **{"steps_offset": 1, **extra},
    )
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_is_the_scheduler_of_diffusers_at_every_step(kind: str, eta: float, to_one: bool) -> None:
    theirs = scheduler(kind, 20, to_one)
    final = theirs.final_alpha_cumprod.item()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        # The table of diffusers is float32; in float64 both start from the same numbers.
        theirs.alphas_cumprod = theirs.alphas_cumprod.to(dtype)
        theirs.final_alpha_cumprod = torch.tensor(final, dtype=dtype)
        ours = DDIM(DDPMPath(theirs.alphas_cumprod, kind), eta, final)  # type: ignore[arg-type]
        n = len(theirs.timesteps)
        x, prediction, noise = torch.randn(3, n, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        mean, std = ours.mean_std(prediction, x, theirs.timesteps, theirs.timesteps - 50)
        assert mean.dtype == std.dtype == dtype
        for i, t in enumerate(theirs.timesteps):
            extra = {"eta": eta, "variance_noise": noise[i]} if eta else {"eta": eta}
            wanted = theirs.step(prediction[i], t, x[i], **extra, return_dict=False)[0]
            got = mean[i] + std[i] * noise[i]
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_last_step_std() -> None:
    """maths.md 1.5 f and 12.8: SD1.5's schedule ends at t = 1 with std .0207, or 0 with set_alpha_to_one."""
    x, t, end = torch.zeros(1, 2), torch.tensor([1]), torch.tensor([-49])
    cumprod = scheduler("epsilon", 20).alphas_cumprod
    std = DDIM(DDPMPath(cumprod), 1.0, cumprod[0].item()).mean_std(x, x, t, end)[1]
    assert std.item() == pytest.approx(0.0207, abs=1e-4) and has_likelihood(std).all()
    mean, std = DDIM(DDPMPath(cumprod), 1.0, 1.0).mean_std(x + 1, x, t, end)
    assert std.item() == 0 and not has_likelihood(std).any()
    torch.testing.assert_close(mean, DDPMPath(cumprod).to_x0(x + 1, x, t))


def test_ddim_from_the_first_step_of_zero_terminal_snr() -> None:
    """maths.md 12.7: rounding takes 1 - a_prev - std^2 below 0 there with eta = 1."""
    for steps in range(2, 60):
        theirs = scheduler("v", steps, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        t = theirs.timesteps
        assert t[0] == 999
        x = torch.randn(steps, 4)
        mean, std = DDIM(DDPMPath(theirs.alphas_cumprod, "v")).mean_std(x, x, t, t - 1000 // steps)
        assert mean.isfinite().all() and std.isfinite().all() and has_likelihood(std[:-1]).all()
        with pytest.raises(ValueError, match="v or sample"):
            DDIM(DDPMPath(theirs.alphas_cumprod, "epsilon")).mean_std(x, x, t, t - 1)


def test_ddim_keeps_the_marginals() -> None:
    """With the exact denoiser of N(m, s^2), the chain's mean and variance follow the path's for every eta."""
    m, s = 0.7, 0.4
    path = DDPMPath(scheduler("epsilon", 10).alphas_cumprod.double())
    for eta in (0.0, 0.5, 1.0):
        kernel, mean, var = DDIM(path, eta), 0.0, 1.0
        for t in range(999, -1, -1):
            now, before = torch.tensor([t]), torch.tensor([t - 1])
            mean, var = push(kernel, path, now, before, mean, var, m, s)
        assert mean == pytest.approx(m, abs=0.03) and var == pytest.approx(s**2, abs=0.01)


def push(
    kernel: DDIM | FlowSDE,
    path: DDPMPath | FlowPath,
    t: Tensor,
    t_prev: Tensor,
    mean: float,
    var: float,
    m: float,
    s: float,
) -> tuple[float, float]:
    """Mean and variance after one step from N(mean, var), data N(m, s^2). Steps are affine: two points tell all."""
    (alpha,), (sigma,) = path.alpha_sigma(t, torch.float64)
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    total = alpha**2 * s**2 + sigma**2
    x0 = m + alpha * s**2 / total * (x - alpha * m)  # E[x0 | x_t]
    noise = sigma / total * (x - alpha * m)  # E[noise | x_t]
    after, std = kernel.mean_std(path.target(x0, noise, t), x, t, t_prev)
    offset, slope = after[0, 0].item(), (after[0, 1] - after[0, 0]).item()
    return offset + slope * mean, slope**2 * var + std.item() ** 2


def test_flow_sde_is_the_published_step() -> None:
    """Flow-GRPO's own arrangement of the step (maths.md 12.6), t = 1 included, where it takes the second sigma."""
    sigmas = torch.cat([torch.linspace(1, 0.1, 10, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    sigmas = 3 * sigmas / (1 + 2 * sigmas)  # SD3's shift
    level = 0.7
    x, v = torch.randn(2, 10, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mean, std = FlowSDE(FlowPath(), level).mean_std(v, x, sigmas[:-1], sigmas[1:])
    for i in range(10):
        sigma, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
        g = torch.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma))) * level
        wanted = x[i] * (1 + g**2 / (2 * sigma) * dt) + v[i] * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
        torch.testing.assert_close(mean[i], wanted)
        torch.testing.assert_close(std[i], g * torch.sqrt(-dt))


def test_flow_sde_by_hand() -> None:
    """t .5 -> .4, level 1: g = 1; mean = 2 + (3 + 1 (2 + .5 * 3)) (-.1) = 1.35; std = sqrt(.1)."""
    x, v = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    mean, std = FlowSDE(FlowPath(), 1.0).mean_std(v, x, torch.tensor([0.5]), torch.tensor([0.4]))
    assert mean.item() == pytest.approx(1.35, rel=1e-6) and std.item() == pytest.approx(math.sqrt(0.1), rel=1e-6)


def test_flow_sde_without_noise_is_euler_exactly() -> None:
    t = torch.linspace(1, 0, 8)
    x, v = torch.randn(2, 7, 5)
    mean, std = FlowSDE(FlowPath(), 0.0).mean_std(v, x, t[:-1], t[1:])
    assert torch.equal(mean, x + v * (t[1:] - t[:-1])[:, None]) and torch.equal(std, torch.zeros(7))


def test_flow_sde_near_pure_noise_is_tame() -> None:
    x = torch.ones(3, 2)
    t = torch.tensor([1.0, 0.9999, 0.999])
    mean, std = FlowSDE(FlowPath(), 0.7).mean_std(x, x, t, torch.full((3,), 0.95))
    assert (std - 0.7).abs().max() < 0.02  # not 15 at .9999
    assert (mean - mean[0]).abs().max() < 0.02


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7, 1.0])
def test_flow_sde_keeps_the_marginals(level: float) -> None:
    m, s, steps = -0.5, 0.6, 2000
    path, kernel = FlowPath(), FlowSDE(FlowPath(), level)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, var = 0.0, 1.0
    for i in range(steps):
        mean, var = push(kernel, path, times[i : i + 1], times[i + 1 : i + 2], mean, var, m, s)
        if i == steps // 2 - 1:  # half way, too: x_t ~ N(m / 2, s^2 / 4 + 1 / 4)
            assert mean == pytest.approx(m / 2, abs=5e-3) and var == pytest.approx((s**2 + 1) / 4, abs=5e-3)
    assert mean == pytest.approx(m, abs=5e-3) and var == pytest.approx(s**2, abs=5e-3)


def test_log_prob() -> None:
    x, mean = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    std = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    wanted = torch.distributions.Normal(mean, std.view(3, 1, 1, 1)).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), wanted)
    assert gaussian_log_prob(x.bfloat16(), mean.bfloat16(), std.bfloat16()).dtype == torch.float32
    by_candidate = gaussian_log_prob(x, mean, std[:, None].expand(3, 4))
    torch.testing.assert_close(by_candidate.mean(1), wanted)
    # by hand: one dimension, one std away: -1/2 - ln 2 - ln(2 pi) / 2
    one = gaussian_log_prob(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([2.0]))
    assert one.item() == pytest.approx(-0.5 - math.log(2) - 0.5 * math.log(2 * math.pi))


def test_log_prob_gradient_pulls_the_mean_to_the_data() -> None:
    mean = torch.zeros(1, 4, requires_grad=True)
    gaussian_log_prob(torch.full((1, 4), 2.0), mean, torch.tensor([0.5])).sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.full((1, 4), 2.0 / 0.25 / 4))


def test_log_prob_refuses_what_has_none() -> None:
    x = torch.randn(2, 4)
    t, t_prev = torch.tensor([500, 1]), torch.tensor([450, -49])
    path = DDPMPath(scheduler("epsilon", 20).alphas_cumprod)
    mean, std = DDIM(path, eta=0.0).mean_std(x, x, t, t_prev)
    with pytest.raises(ValueError, match=r"eta = 0 .* use eta > 0"):
        gaussian_log_prob(x, mean, std)
    mean, std = DDIM(path, eta=1.0).mean_std(x, x, t, t_prev)
    with pytest.raises(ValueError, match="has_likelihood"):
        gaussian_log_prob(x, mean, std)
    keep = has_likelihood(std)
    assert keep.tolist() == [True, False]
    assert gaussian_log_prob(x[keep], mean[keep], std[keep], check=False).isfinite().all()
    with pytest.raises(ValueError):
        gaussian_log_prob(x, mean, torch.tensor([math.nan, 1.0]))
    with pytest.raises(ValueError, match="shapes"):
        gaussian_log_prob(x, mean[:1], torch.ones(2))
    with pytest.raises(ValueError, match="negative"):
        DDIM(path, eta=-1.0)
    with pytest.raises(ValueError, match="negative"):
        FlowSDE(FlowPath(), -0.1)
