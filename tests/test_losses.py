"""Losses against numbers worked by hand, plain-Python references and the limits every such loss must meet."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate import losses

NAN = math.nan
LN2 = math.log(2)


def pair(p: float = 1.0) -> Tensor:
    """Preference of the first of two candidates over the second, [1, 2, 2]."""
    return torch.tensor([[[NAN, p], [1 - p, NAN]]])


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# --- preferences ------------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    margin = torch.tensor([0.0, 1.0, 1.0, 1.0, -2.0], dtype=torch.float64)
    prefer = torch.tensor([0.3, 1.0, 0.0, 0.25, 0.5], dtype=torch.float64)
    log1p = [math.log1p(math.exp(-m)) for m in margin.tolist()]  # -log sigma(m)
    other = [math.log1p(math.exp(m)) for m in margin.tolist()]
    wanted = [p * a + (1 - p) * b for p, a, b in zip(prefer.tolist(), log1p, other, strict=True)]
    torch.testing.assert_close(losses.bradley_terry(margin, prefer), torch.tensor(wanted, dtype=torch.float64))
    assert losses.bradley_terry(margin, prefer)[0].item() == pytest.approx(LN2)


def test_bradley_terry_extremes_and_unknowns() -> None:
    margin = torch.tensor([500.0, -500.0, NAN, math.inf, 3.0], requires_grad=True)
    prefer = torch.tensor([1.0, 1.0, NAN, NAN, NAN])
    loss = losses.bradley_terry(margin, prefer)
    assert loss.tolist() == [0.0, 500.0, 0.0, 0.0, 0.0]
    loss.sum().backward()
    assert margin.grad is not None and margin.grad.tolist() == [0.0, -1.0, 0.0, 0.0, 0.0]
    half = losses.bradley_terry(torch.tensor([10.0], dtype=torch.bfloat16), torch.ones(1))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(4.54e-5, rel=1e-3)


@pytest.mark.parametrize(("loss", "start"), [("sigmoid", LN2), ("hinge", 1.0), ("ipo", 1 / (4 * 0.1**2))])
@pytest.mark.parametrize("p", [1.0, 0.5, 0.2])
def test_dpo_where_policy_is_reference(loss: str, start: float, p: float) -> None:
    logps = torch.randn(1, 2) * 50
    got, pairs = losses.dpo(logps, logps, pair(p), 0.1, loss=loss)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(start, rel=1e-6) and pairs.item() == 1
    if loss == "sigmoid" and p == 1:
        assert got.item() == torch.tensor(2.0).log().item()  # exactly


def test_dpo_by_hand() -> None:
    """beta .5, log-ratios 1 and -1: margin 1; -log sigma(1) = .31326, hinge 0, ipo (2 - 1)^2 = 1."""
    logps, ref = torch.tensor([[-3.0, -5.0]]), torch.tensor([[-4.0, -4.0]])

    def value(**extra: object) -> float:
        return losses.dpo(logps, ref, pair(), 0.5, **extra)[0].item()  # type: ignore[arg-type]

    assert value() == pytest.approx(0.313262, abs=1e-6)
    assert value(loss="hinge") == 0
    assert value(loss="ipo") == pytest.approx(1)
    assert value(label_smoothing=0.1) == pytest.approx(0.9 * 0.313262 + 0.1 * 1.313262, abs=1e-6)
    assert losses.dpo(logps, None, pair(), 0.5)[0].item() == pytest.approx(0.313262, abs=1e-6)  # -3 + 5 = 2, too


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_dpo_does_not_care_for_order(loss: str) -> None:
    logps, ref = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prefer = torch.rand(6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prefer[0, 1, 2] = NAN
    order = torch.tensor([2, 0, 3, 1])
    one = losses.dpo(logps, ref, prefer, 0.3, loss=loss)  # type: ignore[arg-type]
    other = losses.dpo(logps[:, order], ref[:, order], prefer[:, order][:, :, order], 0.3, loss=loss)  # type: ignore[arg-type]
    torch.testing.assert_close(one, other)


def test_dpo_gradients_are_those_of_the_errors() -> None:
    """maths.md 0: with logps = -err the gradient is +kappa sigma(-z) on the chosen error, - on the rejected."""
    kappa = 7.0
    error = torch.tensor([[0.30, 0.20]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[0.25, 0.25]], dtype=torch.float64)
    losses.dpo(-error, -ref, pair(), kappa)[0].sum().backward()
    z = -kappa * ((0.30 - 0.25) - (0.20 - 0.25))
    assert error.grad is not None
    assert error.grad.tolist()[0] == pytest.approx([kappa * sigmoid(-z), -kappa * sigmoid(-z)])
    swapped = error.detach().clone().requires_grad_()
    losses.dpo(-swapped, -ref, pair(0.0), kappa)[0].sum().backward()
    assert swapped.grad is not None
    assert swapped.grad.tolist()[0] == pytest.approx([-kappa * sigmoid(z), kappa * sigmoid(z)])


def test_dpo_of_one_sample_twice_cancels() -> None:
    shared = torch.tensor(0.4, requires_grad=True)
    loss, _ = losses.dpo(-torch.stack([shared, shared])[None], torch.zeros(1, 2), pair(), 100.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(LN2) and shared.grad is not None and shared.grad.item() == 0


def test_flipped_labels_cost_what_clean_ones_do_on_average() -> None:
    """rDPO: over flips of probability e the loss has the clean loss as its mean; cDPO mixes both losses."""
    margin, e = torch.tensor([0.7, -2.0, 0.0], dtype=torch.float64), 0.3
    robust = [losses.bradley_terry(margin, losses.smoothed(torch.full((3,), p), e, robust=True)) for p in (1.0, 0.0)]
    torch.testing.assert_close((1 - e) * robust[0] + e * robust[1], losses.bradley_terry(margin, torch.ones(3)))
    soft = losses.bradley_terry(margin, losses.smoothed(torch.ones(3), e))
    mixed = 0.7 * -torch.nn.functional.logsigmoid(margin) + 0.3 * -torch.nn.functional.logsigmoid(-margin)
    torch.testing.assert_close(soft, mixed)
    assert losses.smoothed(torch.tensor([0.5, NAN]), e, robust=True)[0].item() == pytest.approx(0.5)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("robust", [False, True])
def test_the_start_is_known_whatever_the_labels(loss: str, robust: bool) -> None:
    same = torch.zeros(1, 2)
    got, _ = losses.dpo(same, same, pair(0.8), 250.0, label_smoothing=0.2, loss=loss, robust=robust)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(losses.start_of(loss, 250.0), rel=1e-6)  # type: ignore[arg-type]


def test_of_chosen() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0]] * 3)
    prefer = torch.full((3, 3, 3), NAN)
    prefer[0, 0, 1], prefer[0, 2, 1] = 1.0, 0.75  # (1 + (.75 x 4 + .25 x 2)) / 2
    prefer[1, 0, 1] = 0.5
    assert losses.of_chosen(values, prefer).tolist() == [2.25, 1.5, 0.0]
    hidden = torch.tensor([[True, True, False]]).expand(3, 3)
    values[:, 2] = NAN
    assert losses.of_chosen(values, prefer, hidden).tolist() == [1.0, 1.5, 0.0]


def test_dpo_averages_known_pairs_only() -> None:
    logps = torch.tensor([[2.0, 1.0, 0.0, NAN]] * 3, requires_grad=True)
    prefer = torch.full((3, 4, 4), NAN)
    prefer[0, 0, 1], prefer[0, 2, 0] = 1.0, 0.5  # one triangle each; the other says nothing
    prefer[1, :3, :3] = 0.5
    mask = torch.tensor([[True, True, True, False]] * 3)
    loss, pairs = losses.dpo(logps, torch.zeros(3, 4), prefer, 1.0, mask)
    assert pairs.tolist() == [2, 3, 0]

    def soft(m: float, p: float) -> float:
        return -p * math.log(sigmoid(m)) - (1 - p) * math.log(sigmoid(-m))

    assert loss[0].item() == pytest.approx((soft(1, 1) + soft(2, 0.5)) / 2)
    assert loss[1].item() == pytest.approx((soft(1, 0.5) * 2 + soft(2, 0.5)) / 3)
    assert loss[2].item() == 0
    loss.sum().backward()
    assert logps.grad is not None and logps.grad.isfinite().all() and logps.grad[2].eq(0).all()


def test_dpo_masks_candidates_that_do_not_exist() -> None:
    logps, prefer = torch.randn(1, 3), torch.full((1, 3, 3), 1.0)
    prefer = prefer.triu(1)
    loss, pairs = losses.dpo(logps, None, prefer, 1.0, torch.tensor([[True, False, True]]))
    wanted, _ = losses.dpo(logps[:, [0, 2]], None, pair(), 1.0)
    assert pairs.item() == 1
    torch.testing.assert_close(loss, wanted)


def test_dpo_does_not_train_the_reference() -> None:
    ref = torch.zeros(1, 2, requires_grad=True)
    logps = torch.zeros(1, 2, requires_grad=True)
    losses.dpo(logps, ref, pair(), 1.0)[0].sum().backward()
    assert ref.grad is None and logps.grad is not None and logps.grad.tolist() == [[-0.5, 0.5]]


def test_dpo_refuses() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="beta"):
        losses.dpo(x, x, pair(), 0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.dpo(x, x, pair(), 1.0, label_smoothing=0.5)
    with pytest.raises(ValueError, match="sigmoid, hinge, ipo"):
        losses.dpo(x, x, pair(), 1.0, loss="simpo")  # type: ignore[arg-type]


def test_pair_margins_and_implicit_reward() -> None:
    assert losses.pair_margins(torch.tensor([[1.0, 3.0]])).tolist() == [[[0.0, -2.0], [2.0, 0.0]]]
    reward = losses.implicit_reward(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]]), 0.5)
    assert reward.tolist() == [[0.5, 0.0]]


def test_known_pairs_average_what_disagrees() -> None:
    prefer = torch.tensor([[[0.5, 0.9, NAN], [0.3, 0.5, NAN], [0.0, NAN, 0.5]]])
    got = losses.known_pairs(prefer)[0]
    assert got[0, 1].item() == pytest.approx(0.8) and got[0, 2].item() == 1 and got[1, 2].isnan()
    assert got.isnan().sum() == 7


def test_reward_accuracy() -> None:
    margin = torch.tensor([1.0, -1.0, 0.0, -0.5, 2.0, 2.0])
    prefer = torch.tensor([1.0, 1.0, 1.0, 0.4, 0.5, NAN])
    total, count = losses.reward_accuracy(margin, prefer)
    assert total.item() == 2.5 and count.item() == 4
    total, count = losses.reward_accuracy(torch.zeros(3, 2, 2), pair().expand(3, 2, 2))
    assert (total / count).item() == 0.5


def test_d3po() -> None:
    def value(log_ratio: list[float], label: list[float], eps: float | None = 0.1) -> float:
        got = losses.ratio_clamped_preference(torch.tensor([log_ratio]), torch.tensor([label]), 0.1, eps)
        return got.item()

    assert value([0, 0], [1, -1]) == pytest.approx(LN2)
    assert value([5, -5], [0, 0]) == pytest.approx(LN2)  # a tie says nothing
    # maths.md 1.2: with beta .1 and eps .1 the loss lives in [.6832, .7032]
    assert value([9, -9], [1, -1]) == pytest.approx(0.6832, abs=5e-5)
    assert value([9, -9], [-1, 1]) == pytest.approx(0.7032, abs=5e-5)
    assert value([0.05, -0.02], [1, -1]) == pytest.approx(math.log1p(math.exp(-0.1 * 0.07)))
    assert value([9, -9], [1, -1], None) == pytest.approx(math.log1p(math.exp(-1.8)))
    with pytest.raises(ValueError, match="eps"):
        value([0, 0], [1, -1], 1.0)


def test_d3po_gradients() -> None:
    beta, label = 0.1, torch.tensor([[1.0, -1.0]])
    for flip in (1, -1):
        log_ratio = torch.zeros(1, 2, requires_grad=True)
        losses.ratio_clamped_preference(log_ratio, flip * label, beta, 0.1).sum().backward()
        assert log_ratio.grad is not None
        torch.testing.assert_close(log_ratio.grad, -flip * beta / 2 * label)
    drifted = torch.tensor([[0.3, 100.0]], requires_grad=True)  # exp(100) overflows; its gradient must not be NaN
    losses.ratio_clamped_preference(drifted, label, beta, 0.1).sum().backward()
    assert drifted.grad is not None and drifted.grad.tolist() == [[0.0, 0.0]]


# --- without a reference ----------------------------------------------------------------------------------------------


def phi(error: float) -> float:
    return error / math.expm1(error) if error else 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mapo_score_is_exact_everywhere(dtype: torch.dtype) -> None:
    errors = [0.0, 1e-30, 1e-8, 1e-5, 1e-3, 0.05, 0.2499, 0.25, 0.2501, 1.0, 5.0, 30.0]
    x = torch.tensor(errors, dtype=dtype, requires_grad=True)
    score = losses.mapo_score(x)
    single = dtype == torch.float32
    assert score.tolist() == pytest.approx([phi(e) for e in errors], rel=3e-6 if single else 1e-12)
    score.sum().backward()
    assert x.grad is not None

    def slope(e: float) -> float:
        if e < 0.01:
            return -0.5 + e / 6 - e**3 / 180
        return (math.expm1(e) - e * math.exp(e)) / math.expm1(e) ** 2

    assert x.grad.tolist() == pytest.approx([slope(e) for e in errors], rel=2e-6 if single else 1e-11)
    assert slope(1.0) == pytest.approx(-0.339, abs=1e-3)  # maths.md 3.6, where the paper's supplement has -.243
    far = torch.tensor([200.0, 1e4], dtype=dtype, requires_grad=True)
    losses.mapo_score(far).sum().backward()
    assert far.grad is not None and far.grad.abs().max() < 1e-30 and far.grad.isfinite().all()


def test_mapo_gradients_of_both_forms() -> None:
    """maths.md 3: at equal errors the margin pulls 12.5 (code) and 1/4 (paper) times as hard as fine-tuning."""
    for (weight, scale, slope), pull in (
        ((0.1, 1000.0, 0.5), 12.5),
        ((1 / 8, 8.0, 1.0), 0.25),
        ((1.0, 1.0, 1.0), 0.25),
    ):
        error = torch.full((1, 2), 1e-6, dtype=torch.float64, requires_grad=True)
        loss, pairs = losses.mapo(-error, pair(), weight, scale, slope)
        loss.sum().backward()
        assert loss.item() == pytest.approx(1e-6 + weight * LN2) and pairs.item() == 1
        assert error.grad is not None and error.grad.tolist()[0] == pytest.approx([1 + pull, -pull], rel=1e-5)


def test_mapo_keeps_its_margin_at_small_errors_in_float32() -> None:
    """The official quotient is off by 10 here."""
    loss, _ = losses.mapo(-torch.tensor([[1e-5, 3e-5]]), pair(), 1.0, 1000.0, 0.5)
    assert loss.item() == pytest.approx(1e-5 + math.log1p(math.exp(-1000 * 0.25 * 2e-5)), abs=1e-4)


# --- rankings ---------------------------------------------------------------------------------------------------------


def weights_of(shares: list[float], which: str = "both") -> list[float]:
    phi_ = torch.tensor([shares], dtype=torch.float64)
    full = losses.lambda_weights(phi_, losses.ranks(phi_), which)  # type: ignore[arg-type]
    torch.testing.assert_close(full, full.mT)
    i, j = torch.triu_indices(len(shares), len(shares), 1)
    return [round(w, 3) for w in full[0, i, j].tolist()]


def test_lambda_weights_by_hand() -> None:
    """maths.md 5.2, natural logarithm."""
    assert weights_of([1.0, 2 / 3, 1 / 3, 0.0]) == [0.220, 0.534, 0.821, 0.062, 0.170, 0.026]
    assert weights_of([0.98, 0.95, 0.89, 0.59]) == [0.022, 0.086, 0.384, 0.015, 0.123, 0.035]
    assert weights_of([1.0, 0.0]) == [0.532]
    assert weights_of([1.0, 0.0], "gain") == [1.0] and weights_of([0.3, 0.1], "discount") == [0.532]
    assert weights_of([0.4, 0.4, 0.1], "none") == [0.0, 1.0, 1.0]
    assert weights_of([0.4, NAN, 0.1]) == [0.0, weights_of([0.4, 0.1])[0], 0.0]


def test_ranks_share_what_is_equal() -> None:
    assert losses.ranks(torch.tensor([3.0, 1.0, 3.0, NAN, 2.0])).tolist()[:3] == [1.5, 4.0, 1.5]
    assert losses.ranks(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])).tolist() == [[2, 2, 2], [3, 2, 1]]
    settled = losses.ranks(torch.tensor([0.0, 0.0, 5.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 1.0]))
    assert settled.tolist() == [3.5, 2.0, 1.0, 3.5]


def test_win_shares_over_an_ensemble() -> None:
    """Three candidates by two scorers: strict wins of n (K - 1) = 4 comparisons each."""
    scores = torch.tensor([[[3.0, 1.0], [2.0, 1.0], [1.0, 5.0]]])
    assert losses.win_shares(scores, torch.ones(1, 3).bool()).tolist() == [[0.5, 0.25, 0.5]]
    gone = losses.win_shares(scores, torch.tensor([[True, True, False]]))[0]
    assert gone[:2].tolist() == [0.5, 0.0] and gone[2].isnan()
    scores[0, 0, 1] = NAN
    assert losses.win_shares(scores, torch.ones(1, 3).bool())[0].tolist() == pytest.approx([1.0, 1 / 3, 1 / 3])
    assert losses.win_shares(torch.zeros(1, 3, 0), torch.ones(1, 3).bool()).isnan().all()


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_clipped_surrogate() -> None:
    """Ratios 1, 1.5 and .5 with a range of .2, for both signs of the advantage."""
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.0, 1.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    loss, clipped = losses.clipped_surrogate(ratio, advantage, 0.2)
    assert loss.tolist() == pytest.approx([-2.0, -2.4, -1.0, 2.0, 3.0, 1.6])
    assert clipped.tolist() == [0, 1, 1, 0, 1, 1]
    loss.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-2.0, 0.0, -1.0, 2.0, 3.0, 0.0])


def test_clipped_surrogate_does_not_overflow() -> None:
    ratio = torch.tensor([1000.0, -1000.0, 1000.0], requires_grad=True)
    loss, clipped = losses.clipped_surrogate(ratio, torch.tensor([-1.0, 1.0, 0.0]), 1e-4)
    loss.sum().backward()
    assert loss.isfinite().all() and clipped.tolist() == [1, 1, 1]
    assert ratio.grad is not None and ratio.grad.isfinite().all()


def test_standardised() -> None:
    root = math.sqrt(8 / 3)  # 1, 3, 5: mean 3
    rewards = torch.tensor([1.0, 3.0, NAN, 5.0, math.inf])
    got = losses.standardised(rewards, rewards)
    assert got.tolist() == pytest.approx([-2 / root, 0, 0, 2 / root, 0])
    assert got.dtype == torch.float64
    past = torch.tensor([1.0, 3.0, 5.0, NAN])
    assert losses.standardised(torch.tensor([7.0]), past).tolist() == pytest.approx([4 / root])


@pytest.mark.parametrize("number", [3, 64])
@pytest.mark.parametrize("value", [0.1, 2.05, 1e8, -3.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_are_no_signal(value: float, number: int, dtype: torch.dtype) -> None:
    """Three times .1 has not the mean .1, nor 64 times 2.05 the mean 2.05: what is left must not be blown up."""
    same = torch.full((number,), value, dtype=dtype)
    assert losses.standardised(same, same).eq(0).all()


def test_standardised_edges() -> None:
    wanted = pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-4)
    ints = torch.tensor([1, 2, 3, 4])  # integers must not truncate
    assert losses.standardised(ints, ints).tolist() == wanted
    far = ints + 1e6  # float32 sums of squares would lose this
    assert losses.standardised(far, far).tolist() == wanted
    unknown = torch.full((4,), NAN)
    assert losses.standardised(unknown, unknown).eq(0).all() and losses.standardised(ints, unknown).eq(0).all()
    assert losses.standardised(torch.empty(0), torch.empty(0)).shape == (0,)


def test_reward_weights() -> None:
    rewards = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    plain = torch.tensor([math.exp(-2), 1.0, math.exp(2)], dtype=torch.float64)
    torch.testing.assert_close(losses.reward_weights(rewards, 0.5), plain / plain.mean())
    rows = torch.stack([rewards, rewards + 5, 2 * rewards])
    torch.testing.assert_close(
        losses.reward_weights(rows, 0.5), torch.stack([losses.reward_weights(r, 0.5) for r in rows])
    )
    assert losses.reward_weights(rewards - 7, 1e9).tolist() == pytest.approx([1, 1, 1])
    with_gap = losses.reward_weights(torch.tensor([0.0, NAN, 1000.0, math.inf]), 1.0)
    assert with_gap.tolist() == pytest.approx([0, 0, 2, 0])
    assert losses.reward_weights(torch.tensor([NAN, NAN]), 1.0).eq(0).all()
    with pytest.raises(ValueError, match="positive"):
        losses.reward_weights(rewards, 0.0)


def test_weighted_sum() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, NAN], [math.inf, 1.0]])
    assert losses.weighted_sum(scores)[0].item() == 3 and losses.weighted_sum(scores)[1:].isnan().all()
    assert losses.weighted_sum(scores, {0: -2.0})[:2].tolist() == [-2.0, -6.0]
    assert losses.weighted_sum(scores, {2: 1.0}).isnan().all() and losses.weighted_sum(scores, {}).isnan().all()
    assert losses.weighted_sum(torch.zeros(2, 0)).isnan().all()
