"""Win rates by hand, against scipy, and by simulation of what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from palate.evaluation.win_rate import compare, mean, mean_difference, outcomes, wilson, win_rate, win_rate_of

NAN = math.nan


def test_by_hand() -> None:
    a, b = [3.0, 1.0, 2.0, NAN, 5.0], [1.0, 2.0, 2.0, 0.0, 4.0]
    np.testing.assert_equal(outcomes(a, b), [1, 0, 0.5, NAN, 1])
    got = win_rate(a, b, ["p", "p", "q", "q", "r"])
    assert (got.rate, got.ties, got.n, got.n_prompts) == (2.5 / 4, 0.25, 4, 3)
    assert 0 <= got.ci95[0] <= got.rate <= got.ci95[1] <= 1
    difference = mean_difference(a, b, ["p", "p", "q", "q", "r"])
    assert (difference.mean, difference.n, difference.n_prompts) == (0.5, 4, 3)


def test_swapping_the_two_mirrors_everything() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    prompts = list(np.arange(300) // 3)
    one, other = win_rate(a, b, prompts), win_rate(b, a, prompts)
    assert one.rate == pytest.approx(1 - other.rate)
    assert one.ci95 == pytest.approx((1 - other.ci95[1], 1 - other.ci95[0]))


def test_seeded_and_blind_to_how_prompts_are_called() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 360))
    names = [i // 3 for i in range(360)]
    assert win_rate(a, b, names) == win_rate(a, b, [f"prompt {i}" for i in names])
    assert mean(a, names) == mean(a, names)
    assert mean(a, names).ci95 != mean(a, names, seed=1).ci95


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (10, 10), (7, 10), (350, 1000), (1, 1)])
def test_wilson_is_that_of_scipy(wins: int, n: int) -> None:
    theirs = binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson(wins, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(ValueError, match="wins"):
        wilson(n + 1, n)


def test_independent_pairs_agree_with_wilson() -> None:
    won = np.repeat([1.0, 0.0], [600, 400])
    got = win_rate_of(won, list(range(1000)))
    assert got.ci95 == pytest.approx(wilson(600, 1000), abs=0.004)


def test_prompts_of_unequal_size_against_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 12, 60)
    names = np.repeat(np.arange(60), sizes)
    won = (rng.random(len(names)) < np.where(sizes > 6, 0.9, 0.2)[names]).astype(float)
    draws = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(names == prompt) for prompt in rng.integers(0, 60, 60)])
        draws.append(won[rows].mean())
    got = win_rate_of(won, list(names))
    assert got.ci95 == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)
    assert (got.n, got.n_prompts) == (len(names), 60)


def test_unanimous_prompts_still_have_an_interval() -> None:
    assert win_rate_of([1.0] * 12, [i // 3 for i in range(12)]).ci95 == pytest.approx(wilson(4, 4))
    assert win_rate_of([1.0], ["p"]).ci95[0] < 0.3
    single = mean([1.0, 2.0], ["p", "p"])
    assert single.mean == 1.5 and single.ci95 == (-math.inf, math.inf)


def test_intervals_cover_the_truth() -> None:
    """A wins a prompt with a chance of its own, Beta(3, 2), mean .6; 4 pairs each. Wilson, blind to it, is too sure."""
    rng = np.random.default_rng(7)
    trials, prompts, pairs = 300, 120, 4
    names = list(np.repeat(np.arange(prompts), pairs))
    covered = np.zeros(3)
    for _ in range(trials):
        chance = rng.beta(3, 2, prompts).repeat(pairs)
        won = (rng.random(prompts * pairs) < chance).astype(float)
        low, high = win_rate_of(won, names, resamples=500).ci95
        narrow = wilson(won.sum(), len(won))
        scores = mean(won * 2 - 1, names, resamples=500).ci95
        covered += [low <= 0.6 <= high, narrow[0] <= 0.6 <= narrow[1], scores[0] <= 0.2 <= scores[1]]
    share = covered / trials
    assert 0.90 <= share[0] <= 0.99 and 0.90 <= share[2] <= 0.99
    assert share[1] < 0.92 and share[1] < share[0]


@pytest.mark.parametrize("prompts", [10, 20, 40, 100])
def test_intervals_of_few_prompts_cover(prompts: int) -> None:
    """Four pairs of a prompt with a chance of its own, Beta(3, 2); the mean of what is normal. By percentiles: 90%."""
    rng = np.random.default_rng(prompts)
    names = list(np.repeat(np.arange(prompts), 4))
    covered, trials = np.zeros(2), 1500
    for _ in range(trials):
        won = (rng.random(prompts * 4) < rng.beta(3, 2, prompts).repeat(4)).astype(float)
        low, high = win_rate_of(won, names).ci95
        scores = mean(rng.normal(size=prompts).repeat(4) + rng.normal(size=prompts * 4), names).ci95
        covered += [low <= 0.6 <= high, scores[0] <= 0 <= scores[1]]
    assert (covered / trials >= 0.93).all() and (covered / trials <= 0.97).all()


@pytest.mark.parametrize("prompts", [10, 20, 40, 100])
def test_intervals_of_few_single_pairs_cover(prompts: int) -> None:
    """Exactly, over all numbers of wins: on average over chances; single ones hop, since wins are whole."""
    found = [
        win_rate_of([1.0] * wins + [0.0] * (prompts - wins), list(range(prompts))).ci95 for wins in range(prompts + 1)
    ]
    chances = np.linspace(0.2, 0.8, 61)
    inside = np.array([[low <= chance <= high for low, high in found] for chance in chances])
    share = (binom.pmf(np.arange(prompts + 1), prompts, chances[:, None]) * inside).sum(1)
    assert 0.93 <= share.mean() <= 0.97 and share.min() > 0.9


def test_compare_by_dimension() -> None:
    rng = np.random.default_rng(3)
    prompts = [i // 4 for i in range(400)]
    base = rng.normal(size=400)
    a = {"style": base + 0.5, "match": base + 0.0, "only a": base}
    b = {"match": base.copy(), "style": base + 0.1 * rng.normal(size=400)}
    b["match"][3] = NAN
    found = compare(a, b, prompts, resamples=500)
    assert list(found) == ["style", "match"]
    style, match = found["style"], found["match"]
    assert style.wins.rate > 0.95 and style.difference.ci95[0] > 0.45
    assert style.a.mean - style.b.mean == pytest.approx(style.difference.mean)
    # Paired: the difference is known far better than either mean.
    assert np.diff(style.difference.ci95) < 0.3 * np.diff(style.a.ci95)
    assert match.wins.rate == 0.5 and match.wins.ties == 1 and match.wins.n == 399 == match.a.n


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one length"):
        win_rate([1.0], [1.0, 2.0], ["p"])
    with pytest.raises(ValueError, match="one prompt per value"):
        win_rate([1.0, 2.0], [1.0, 2.0], ["p"])
    with pytest.raises(ValueError, match="no judged pair"):
        win_rate([NAN], [1.0], ["p"])
    with pytest.raises(ValueError, match="from 0"):
        win_rate_of([1.5], ["p"])
    with pytest.raises(ValueError, match="no dimension in common"):
        compare({"a": [1.0]}, {"b": [1.0]}, ["p"])
