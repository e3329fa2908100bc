"""The verdict's statistics by hand, against scipy and evalica, and in simulation of what they promise."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from evalica import Winner, bradley_terry
from scipy.stats import binomtest

from palate.evaluation import accuracy, best_of_n, clusters
from palate.evaluation.categories import by_category, holm
from palate.evaluation.strengths import fitted, strengths, table
from palate.evaluation.win_rate import ratio, sign_test, wilson, win_rate_of

NAN = math.nan


# --- ties, signs, many comparisons ------------------------------------------------------------------------------------


def test_ties_half_and_without():
    got = win_rate_of([1, 1, 0, 0.5, 0.5, NAN], ["p", "p", "q", "q", "r", "r"])
    assert (got.rate, got.ties, got.decided) == (3 / 5, 2 / 5, 2 / 3)
    assert got.wilson95 == wilson(3, 5)
    assert got.p == 1.0  # p ahead, q behind, r even
    ties = win_rate_of([0.5] * 4, list("pqrs"))
    assert (ties.rate, ties.p) == (0.5, 1.0) and math.isnan(ties.decided)


def test_the_sign_test_is_exact_and_of_prompts():
    won = [1, 1, 1, 0, 1, 0.5, 1, 1]  # prompts: a 1, b .5 (even), c .75, d 1
    assert sign_test(won, list("aabbccdd")) == pytest.approx(binomtest(3, 3).pvalue)
    won = np.repeat([1.0, 0.0], [14, 4])
    assert sign_test(won, list(range(18))) == pytest.approx(binomtest(14, 18).pvalue)
    assert sign_test([1.0] * 40, ["p"] * 40) == 1.0  # one prompt shows nothing


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, NAN, 0.4])[0] == 0.8 and math.isnan(holm([0.5, NAN, 0.4])[1])
    assert holm([]) == []


def test_a_table_by_category():
    won = [1, 1, 1, 1, 1, 1, 0.5, NAN, 0]
    names = ["colours"] * 6 + ["counting", "position", ""]
    rows = by_category(won, [f"p{i}" for i in range(9)], names)
    assert [(row.category, row.wins.rate, row.wins.n) for row in rows] == [("colours", 1.0, 6), ("counting", 0.5, 1)]
    assert rows[0].p == pytest.approx(2 * rows[0].wins.p) and rows[1].p == 1.0
    with pytest.raises(ValueError, match="as many"):
        by_category(won, ["p"], names)


def test_a_ratio_of_means():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, 60)
    share, (low, high) = ratio(0.5 * base, base)
    assert share == pytest.approx(0.5) and low == pytest.approx(0.5) and high == pytest.approx(0.5)
    share, (low, high) = ratio(base + rng.normal(0, 0.3, 60), base)
    assert low < 1 < high
    assert ratio([1.0], [2.0]) == (0.5, (-math.inf, math.inf)) and math.isnan(ratio([1.0], [0.0])[0])


# --- prompts and raters -----------------------------------------------------------------------------------------------


def crossed(rng, prompts, people, of_prompt, of_person):
    """Votes on every prompt by every person: chances share what prompts and persons bring; truth is .6."""
    logit = rng.normal(0, of_prompt, (prompts, 1)) + rng.normal(0, of_person, (1, people))
    chance = np.clip(0.6 + 0.1 * logit, 0, 1)
    won = (rng.random((prompts, people)) < chance).astype(float).ravel()
    return won, np.repeat(np.arange(prompts), people), np.tile(np.arange(people), prompts)


def coverage(repeats, **how):
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(repeats):
        won, prompts, people = crossed(rng, **how)
        _, (low, high) = clusters.two_way(won, prompts.tolist(), people.tolist())
        inside += low <= 0.6 <= high
    return inside / repeats


def test_two_way_intervals_cover():
    assert 0.91 <= coverage(300, prompts=60, people=12, of_prompt=1.2, of_person=1.0) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"prompts": 100, "people": 20, "of_prompt": 1.5, "of_person": 1.0},
        {"prompts": 200, "people": 10, "of_prompt": 1.5, "of_person": 0.0},
        {"prompts": 60, "people": 8, "of_prompt": 0.5, "of_person": 1.0},
    ],
)
def test_two_way_intervals_cover_at_length(how):
    assert 0.93 <= coverage(4000, **how) <= 0.97


def test_unanimous_votes_still_have_an_interval():
    """Six prompts, all won, by two raters: two people or six prompts, whichever are fewer."""
    prompts, people = np.repeat(np.arange(6), 2).tolist(), [0, 1] * 6
    assert clusters.two_way([1.0] * 12, prompts, people) == (1.0, pytest.approx(wilson(2, 2)))
    assert clusters.two_way([0.0] * 6, list(range(6)), [0] * 6) == (0.0, pytest.approx(wilson(0, 6)))
    assert clusters.two_way([7.0] * 6, list(range(6)), [0, 1] * 3)[1] == (-math.inf, math.inf)


def test_two_way_by_hand():
    # each prompt judged by people of its own: raters and prompts are the same clusters, and so is the variance
    won = np.array([1, 0, 1, 1, 0, 1.0])
    mean, (low, high) = clusters.two_way(won, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert mean == pytest.approx(4 / 6)
    half = 2.5706 * won.std(ddof=1) / math.sqrt(6)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert clusters.two_way([1, 0], ["p", "p"], ["x", "y"])[1] == (-math.inf, math.inf)
    alone = clusters.two_way(won, list(range(6)), ["x"] * 6)
    assert (alone[1][1] - alone[1][0]) / 2 == pytest.approx(half, rel=1e-3)


# --- several models ---------------------------------------------------------------------------------------------------


def tournament(rng, truth, prompts, ties=0.0, spread=0.0):
    """All pairs of models on each prompt; spread: of the strengths from prompt to prompt."""
    a, b, won, names = [], [], [], []
    for prompt in range(prompts):
        own = np.asarray(truth) + rng.normal(0, spread, len(truth))
        for i, j in combinations(range(len(truth)), 2):
            chance = 1 / (1 + math.exp(own[j] - own[i]))
            tie = rng.random() < ties
            a, b, names = [*a, i], [*b, j], [*names, prompt]
            won.append(0.5 if tie else float(rng.random() < chance))
    return a, b, won, names


def test_strengths_are_evalicas():
    rng = np.random.default_rng(0)
    a, b, won, prompts = tournament(rng, [0, 0.4, 1.0, -0.3], 60, ties=0.2)
    theirs = bradley_terry(
        a, b, [Winner.Draw if w == 0.5 else Winner.X if w else Winner.Y for w in won], tolerance=1e-10, limit=10000
    ).scores
    logs = np.log([theirs[k] for k in range(4)])
    np.testing.assert_allclose(fitted(table(4, a, b, won, prompts).sum(0)), logs - logs[0], atol=1e-4)


def test_two_models_have_the_log_odds():
    won = [1.0] * 30 + [0.0] * 10 + [0.5] * 4
    base, other = strengths(["base", "tuned"], [1] * 44, [0] * 44, won, list(range(44)), prior=0)
    assert other.strength == pytest.approx(math.log(32 / 12), abs=1e-5) and base.strength == 0
    assert other.elo == pytest.approx(400 * math.log10(32 / 12), abs=1e-2)
    assert other.ci95[0] < other.strength < other.ci95[1] and base.ci95 == (0, 0)


def test_what_never_loses_has_no_upper_end():
    a, b, won = [0, 0, 1] * 5, [1, 2, 2] * 5, [0.0, 1.0, 1.0] * 4 + [1.0, 1.0, 1.0]
    first, second, third = strengths(["x", "y", "z"], a, b, won, [i // 3 for i in range(15)])
    assert second.strength > first.strength > third.strength
    assert third.ci95[0] == -math.inf and math.isfinite(third.ci95[1])
    with pytest.raises(ValueError, match="z was not compared"):
        strengths(["x", "y", "z"], [0], [1], [1.0], ["p"])


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [12, 120])
def test_intervals_of_strengths_cover(prompts):
    """Strengths vary from prompt to prompt, so that pairs of one prompt go together; the truth is of a long run."""
    truth, spread = [0.0, 0.5, -0.5], 0.7
    rng = np.random.default_rng(1)
    long = tournament(rng, truth, 8000, spread=spread)
    expected = fitted(table(3, *long).sum(0))
    inside = []
    for seed in range(150):
        found = strengths(list("xyz"), *tournament(rng, truth, prompts, spread=spread), seed=seed)
        inside += [s.ci95[0] <= e <= s.ci95[1] for s, e in zip(found[1:], expected[1:], strict=True)]
    assert 0.91 <= np.mean(inside) <= 0.985


# --- best of n --------------------------------------------------------------------------------------------------------


def test_the_expected_best_by_hand():
    # 1, 2, 4: of two, the best is 2 once and 4 twice
    np.testing.assert_allclose(best_of_n.expected_best([4, 1, 2]), [7 / 3, 10 / 3, 4])


def test_a_model_that_is_the_best_of_three():
    """Tuned draws are made as the best of 3 base draws: both answers find 3."""
    rng = np.random.default_rng(5)
    prompts = np.repeat(np.arange(300), 8)
    level = np.repeat(rng.normal(0, 3, 300), 8)  # prompts are not alike
    base = level + rng.normal(size=2400)
    tuned = level + rng.normal(size=(3, 2400)).max(0)
    got = best_of_n.equivalence(base, tuned, prompts.tolist())
    assert got is not None and got.draws == 8
    assert got.wins == pytest.approx(0.75, abs=0.02)
    assert got.n_by_wins == pytest.approx(3, abs=0.25) and got.ci95[0] < 3 < got.ci95[1]
    assert got.n_by_reward == pytest.approx(3, abs=0.25)
    assert got.kl == pytest.approx(math.log(got.n_by_wins) - 1 + 1 / got.n_by_wins)


def test_best_of_n_at_its_ends():
    prompts = ["p", "p", "q", "q"]
    far = best_of_n.equivalence([0, 1, 0, 1], [9, 9, 9, 9], prompts)
    assert far is not None and far.n_by_wins == math.inf and far.n_by_reward == math.inf and far.kl == math.inf
    same = best_of_n.equivalence([1, 1, 1, 1], [1, 1, 1, 1], prompts)
    assert same is not None and (same.n_by_wins, same.n_by_reward, same.kl) == (1, 1, 0)
    assert best_of_n.equivalence([1, 2], [2, 3], ["p", "q"]) is None
    assert best_of_n.equivalence([NAN, NAN], [2, 3], ["p", "p"]) is None


# --- a scorer against people ------------------------------------------------------------------------------------------


def by_force(said, off):
    """The best accuracy with ties over all thresholds, one after another."""
    levels = [-1.0, *sorted(set(np.abs(off).tolist()))]
    return max(np.mean(np.where(np.abs(off) <= level, 0, np.sign(off)) == said) for level in levels)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_of_ties_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    off = rng.normal(size=60).round(1)
    said = np.sign(np.where(np.abs(off + rng.normal(0, 0.7, 60)) < 0.4, 0, off + rng.normal(0, 0.7, 60)))
    got = accuracy.pairwise(said / 2 + 0.5, off, list(range(60)))
    assert got.with_ties.mean == pytest.approx(by_force(said, off))
    assert got.without_ties is not None
    decided = said != 0
    right = np.where(off[decided] == 0, 0.5, np.sign(off[decided]) == said[decided])
    assert got.without_ties.mean == pytest.approx(right.mean())


def test_a_threshold_of_other_prompts_does_not_flatter():
    """A scorer that knows nothing: the best threshold of the same pairs looks better than it is."""
    rng = np.random.default_rng(0)
    own, other = [], []
    for _ in range(60):
        said, off = rng.choice([0.0, 0.5, 1.0], 20), rng.normal(size=20)
        own.append(accuracy.pairwise(said, off, list(range(20))).with_ties.mean)
        other.append(accuracy.pairwise(said, off, list(range(20)), crossed=True).with_ties.mean)
    assert np.mean(own) > 0.42 and np.mean(other) == pytest.approx(1 / 3, abs=0.04)


def test_accuracy_by_hand():
    people, off = [1, 0, 0.5, 1, NAN], [2.0, 1.0, 0.1, 0.3, 5.0]
    got = accuracy.pairwise(people, off, list("pqrst"))
    assert got.without_ties is not None and got.without_ties.mean == pytest.approx(2 / 3)
    assert (got.threshold, got.with_ties.mean, got.with_ties.n) == (0.1, 3 / 4, 4)
    given = accuracy.pairwise(people, off, list("pqrst"), threshold=0.5)
    assert given.with_ties.mean == 2 / 4
    with pytest.raises(ValueError, match="no pair"):
        accuracy.pairwise([NAN], [1.0], ["p"])
    ties = accuracy.pairwise([0.5, 0.5], [0.0, 3.0], ["p", "q"])
    assert ties.without_ties is None and ties.with_ties.mean == 1 and ties.threshold == 3
    assert accuracy.correlations([1, 0, 0.5], [1, -1, 0]) == (pytest.approx(1), pytest.approx(1))
    assert all(map(math.isnan, accuracy.correlations([1, 1], [1, 2])))
