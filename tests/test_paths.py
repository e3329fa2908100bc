"""Paths against formulas written out again in float64, round trips, and both ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate.models.contracts import Path
from palate.paths import (
    CosinePath,
    DDPMPath,
    FlowPath,
    PredictionKind,
    among,
    check_times,
    convert,
    logit_normal,
    noise_error_weight,
    target,
    uniform,
)

KINDS: list[PredictionKind] = ["epsilon", "v", "sample", "velocity"]


def table(steps: int = 1000, *, zero: bool = False) -> Tensor:
    """Stable Diffusion's scaled-linear table, optionally with zero terminal SNR."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    cumprod = (1 - betas).cumprod(0)
    if zero:
        root = cumprod.sqrt()
        cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return cumprod


def latents(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, n, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x0, noise


def paths() -> list[tuple[DDPMPath | FlowPath, Tensor]]:
    t = torch.tensor([1, 250, 500, 999])
    ddpm = [(DDPMPath(table(), kind), t) for kind in KINDS[:3]]
    return [*ddpm, (FlowPath(), torch.tensor([0.01, 0.25, 0.5, 0.999], dtype=torch.float64))]


@pytest.mark.parametrize(("path", "t"), paths(), ids=lambda p: getattr(p, "kind", ""))
def test_formulas_and_round_trips(path: DDPMPath | FlowPath, t: Tensor) -> None:
    assert isinstance(path, Path)
    x0, noise = latents(4)
    for i in range(4):  # an independent reference, row by row in plain floats
        if isinstance(path, DDPMPath):
            cumprod = float(table()[int(t[i])])
            alpha, sigma = math.sqrt(cumprod), math.sqrt(1 - cumprod)
        else:
            alpha, sigma = 1 - float(t[i]), float(t[i])
        wanted = {
            "epsilon": noise[i],
            "sample": x0[i],
            "v": alpha * noise[i] - sigma * x0[i],
            "velocity": noise[i] - x0[i],
        }
        row = slice(i, i + 1)
        x_t = path.add_noise(x0[row], noise[row], t[row])
        torch.testing.assert_close(x_t[0], alpha * x0[i] + sigma * noise[i])
        prediction = path.target(x0[row], noise[row], t[row])
        torch.testing.assert_close(prediction[0], wanted[path.kind])
        torch.testing.assert_close(path.to_x0(prediction, x_t, t[row])[0], x0[i])
        torch.testing.assert_close(path.to_noise(prediction, x_t, t[row])[0], noise[i])
        torch.testing.assert_close(path.snr(t[row].double())[0].item(), (alpha / sigma) ** 2)
        for kind in KINDS:
            torch.testing.assert_close(convert(path, prediction, x_t, t[row], kind)[0], wanted[kind])
            torch.testing.assert_close(target(path, x0[row], noise[row], t[row], kind)[0], wanted[kind])


def test_epsilon_to_v_to_sample_and_back() -> None:
    x0, noise = latents(5)
    t = torch.tensor([0, 3, 400, 900, 999])
    alphas = table()
    x_t = DDPMPath(alphas).add_noise(x0, noise, t)
    v = convert(DDPMPath(alphas, "epsilon"), noise, x_t, t, "v")
    sample = convert(DDPMPath(alphas, "v"), v, x_t, t, "sample")
    torch.testing.assert_close(sample, x0)
    torch.testing.assert_close(convert(DDPMPath(alphas, "sample"), sample, x_t, t, "epsilon"), noise)


def test_errors_convert_as_the_maths_says() -> None:
    """maths.md 0: an epsilon error d is an x0 error of -(s/a) d and a v error of d/a."""
    x0, noise = latents(1)
    t = torch.tensor([600])
    path = DDPMPath(table())
    (alpha,), (sigma,) = path.alpha_sigma(t, torch.float64)
    x_t, d = path.add_noise(x0, noise, t), torch.randn_like(noise) * 0.1
    torch.testing.assert_close(path.to_x0(noise + d, x_t, t) - x0, -(sigma / alpha) * d)
    v_error = convert(path, noise + d, x_t, t, "v") - convert(path, noise, x_t, t, "v")
    torch.testing.assert_close(v_error, d / alpha)
    flow, time = FlowPath(), torch.tensor([0.3], dtype=torch.float64)
    x_t = flow.add_noise(x0, noise, time)
    torch.testing.assert_close(flow.to_noise(noise - x0 + d, x_t, time) - noise, 0.7 * d)


def test_zero_terminal_snr() -> None:
    x0, noise = latents(2)
    t = torch.tensor([10, 999])
    for kind in ("v", "sample"):
        path = DDPMPath(table(zero=True), kind)
        x_t = path.add_noise(x0, noise, t)
        torch.testing.assert_close(x_t[1], noise[1])
        prediction = path.target(x0, noise, t)
        torch.testing.assert_close(path.to_x0(prediction, x_t, t), x0)
        torch.testing.assert_close(path.to_noise(prediction, x_t, t), noise)
        assert path.snr(t)[1] == 0
    path = DDPMPath(table(zero=True), "epsilon")
    for call in (lambda: path.to_x0(noise, noise, t), lambda: convert(path, noise, noise, t, "v")):
        with pytest.raises(ValueError, match="v or sample prediction"):
            call()
    assert torch.equal(path.to_noise(noise, noise, t), noise)
    path.to_x0(noise[:1], noise[:1], t[:1])  # the other steps of such a table are sound


def test_where_nothing_is_noisy() -> None:
    path = DDPMPath(torch.tensor([1.0, 0.5]), "sample")
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="epsilon or v prediction"):
        path.to_noise(x, x, torch.tensor([0]))
    assert path.snr(torch.tensor([0])).item() == math.inf


def test_flow_is_exact_at_both_ends() -> None:
    x0, noise = latents(2, torch.float32)
    path, t = FlowPath(), torch.tensor([0.0, 1.0])
    x_t = path.add_noise(x0, noise, t)
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[1], noise[1])
    v = path.target(x0, noise, t)
    assert torch.equal(path.to_x0(v, x_t, t)[0], x0[0])
    assert torch.equal(path.to_noise(v, x_t, t)[1], noise[1])
    torch.testing.assert_close(path.to_x0(v, x_t, t), x0)
    torch.testing.assert_close(path.to_noise(v, x_t, t), noise)
    assert path.snr(t).tolist() == [math.inf, 0.0]


def test_dtypes_and_the_clean_end() -> None:
    x0, noise = latents(2, torch.bfloat16)
    for path, t in ((DDPMPath(table()), torch.tensor([5.0, 9.0])), (FlowPath(), torch.tensor([0.5, 0.9]))):
        assert path.add_noise(x0, noise, t).dtype == torch.float32
        assert path.to_x0(noise, x0, t).dtype == torch.float32
        assert path.add_noise(x0.double(), noise.double(), t).dtype == torch.float64
        assert path.snr(t).dtype == torch.float32
    # 1 - alphas_cumprod in float32 would be 0 here.
    path = DDPMPath(torch.tensor([1 - 1e-10], dtype=torch.float64))
    assert path.alpha_sigma(torch.tensor([0]))[1].item() == pytest.approx(1e-5, rel=1e-6)


def test_candidates_share_their_prompts_time() -> None:
    x0 = torch.randn(2, 3, 4, 5, 5)
    t = torch.tensor([100, 900])
    for path in (DDPMPath(table()), FlowPath()):
        times = t if isinstance(path, DDPMPath) else t / 1000
        together = path.add_noise(x0, torch.ones_like(x0), times)
        for k in range(3):
            assert torch.equal(together[:, k], path.add_noise(x0[:, k], torch.ones_like(x0[:, k]), times))


@pytest.mark.parametrize("bad", [[0.5], [-1.0], [1000.0]])
def test_times_off_the_table_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="0 to 999"):
        DDPMPath(table()).alpha_sigma(torch.tensor(bad))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="table"):
        DDPMPath(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="epsilon, v or sample"):
        DDPMPath(table(), "velocity")
    with pytest.raises(ValueError, match="velocity"):
        FlowPath("epsilon")
    with pytest.raises(ValueError, match="logit_normal"):
        FlowPath(sampling="cosine")  # type: ignore[arg-type]
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="one per row"):
        FlowPath().add_noise(x, x, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="unknown kind"):
        target(FlowPath(), x, x, torch.tensor([0.5, 0.5]), "noise")  # type: ignore[arg-type]


def test_sampled_times() -> None:
    def drawn(path: DDPMPath | FlowPath, n: int = 20_000) -> Tensor:
        return path.sample_t(n, torch.Generator().manual_seed(1))

    t = drawn(DDPMPath(table(10)))
    assert t.dtype == torch.long and t.unique().tolist() == list(range(10))
    t = drawn(FlowPath())
    assert t.min() >= 0 and t.max() < 1 and abs(t.mean() - 0.5) < 0.01 and abs(t.var() - 1 / 12) < 0.005
    t = drawn(FlowPath(sampling="logit_normal"))
    assert abs(t.logit().mean()) < 0.03 and abs(t.logit().std() - 1) < 0.03
    assert abs(((1 - t) ** 2).mean() - 0.293) < 0.01  # maths.md 6.2: about .29 for logit-normal(0, 1)
    assert torch.equal(drawn(FlowPath()), drawn(FlowPath()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_any_kind_as_an_error_of_the_noise(kind: PredictionKind) -> None:
    """maths.md 0: v errors are 1 / alpha^2 times the noise's, velocity ones 1 / (1 - t)^2, x0 (sigma / alpha)^2."""
    path = FlowPath() if kind == "velocity" else DDPMPath(table(), kind)
    t = torch.tensor([0.1, 0.5, 0.9]) if kind == "velocity" else torch.tensor([10, 400, 900])
    x0, noise, off = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    x_t = path.add_noise(x0, noise, t)
    prediction = path.target(x0, noise, t) + off
    implied = (path.to_noise(prediction, x_t, t) - noise).square().mean(1)
    got = noise_error_weight(path, t.double() if kind == "velocity" else t)
    torch.testing.assert_close(got.double() * off.square().mean(1), implied, rtol=1e-5, atol=0)


def test_where_nothing_is_left_of_the_data() -> None:
    """An epsilon model is given the noise it is to predict; v, and a table that ends before, are fine."""
    with pytest.raises(ValueError, match=r"timestep 999 nothing is left.*v or sample"):
        check_times(DDPMPath(table(zero=True)))
    with pytest.raises(ValueError, match="timestep 999"):
        check_times(DDPMPath(table(zero=True)), [249, 999])
    for path in (DDPMPath(table(zero=True), "v"), DDPMPath(table(zero=True), "sample"), DDPMPath(table()), FlowPath()):
        check_times(path)
    check_times(DDPMPath(table(zero=True)), [249, 499])
    with pytest.raises(ValueError, match="holds 1000; this model's lie from 0 to 999"):
        check_times(DDPMPath(table()), [1000])
    for path in (FlowPath(), CosinePath()):  # one of them is no flow's
        with pytest.raises(ValueError, match="times are all those from 0 to 1, with no training timesteps"):
            check_times(path, [1])
    assert noise_error_weight(DDPMPath(table(zero=True), "v"), torch.tensor([999])).item() == 0


def test_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = among([249, 999], 4000, generator)
    assert steps.dtype == torch.long and set(steps.tolist()) == {249, 999}
    assert (steps == 999).float().mean().item() == pytest.approx(0.5, abs=0.05)
    even, middle = uniform(4000, generator), logit_normal(4000, generator)
    assert ((1 - even) ** 2).mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert ((1 - middle) ** 2).mean().item() == pytest.approx(0.29, abs=0.02)  # maths.md 6.2


def test_the_cosine_path_is_variance_preserving_and_undoes_itself():
    path, t = CosinePath(), torch.tensor([0.1, 0.5, 0.9])
    alpha, sigma = path.alpha_sigma(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(3))
    assert torch.allclose(path.cumprod(t).float(), alpha**2)
    x0, noise = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    x_t, v = path.add_noise(x0, noise, t), path.target(x0, noise, t)
    assert torch.allclose(path.to_x0(v, x_t, t), x0, atol=1e-5)
    assert torch.allclose(path.to_noise(v, x_t, t), noise, atol=1e-5)
    # EDM: x0 + s noise, scaled by 1 / sqrt(1 + s^2), is at s = tan(pi t / 2).
    s = (t * torch.pi / 2).tan().view(3, 1, 1)
    assert torch.allclose((x0 + s * noise) / (1 + s**2).sqrt(), x_t, atol=1e-5)
