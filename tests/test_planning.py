"""Plans keep their word: what they promise is what simulated votes give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palate.evaluation.win_rate import win_rate_of
from palate.planning import PlanError, plan
from palate.views import majority


def test_by_hand():
    # one vote a pair, no ties: n = .25 * (1.96 / .05)^2 = 384.1, and two more by Student's t
    one = plan(0.05, ties=0, votes_per_pair=1, known_share=0, repeat_share=0)
    assert 385 <= one.pairs <= 388 and one.votes == one.pairs == one.prompts
    assert one.half_width <= 0.05
    assert one.hours == pytest.approx(one.votes * 8 / 3600)
    # raters who always agree add nothing by being more; who never do, as much as other pairs would
    assert plan(0.05, ties=0, votes_per_pair=5, agreement=1).pairs == one.pairs
    assert plan(0.05, ties=0, votes_per_pair=5, agreement=0).pairs == pytest.approx(one.pairs / 5, abs=3)
    # a tie is half a win and tells half the variance less
    assert plan(0.05, ties=0.4, votes_per_pair=1).pairs == pytest.approx(one.pairs * 0.6, abs=3)
    assert "384" not in str(one) and "plus or minus 5.0 points" in str(one)
    # of one vote the majority is the vote; of five it is a coin at an even rate, however much they agree
    assert one.majority_half_width == pytest.approx(one.half_width)
    assert plan(0.05, ties=0, agreement=1).majority_half_width == pytest.approx(0.05, rel=0.01)
    even = [plan(0.05, ties=0, agreement=alpha) for alpha in (0, 0.4)]
    assert all(p.majority_half_width == pytest.approx(0.98 / math.sqrt(p.pairs), rel=0.02) for p in even)
    assert "of the majority" in str(even[0])


def test_known_and_repeated_pairs_cost_votes_and_prompts_have_company():
    few = plan(0.05, known_share=0, repeat_share=0)
    assert plan(0.05).votes == math.ceil(few.votes / 0.9)
    four = plan(0.05, pairs_per_prompt=4, prompt_correlation=0.3)
    assert four.pairs == 4 * four.prompts > few.pairs > four.prompts
    assert plan(0.02).raters >= plan(0.02).votes / 400


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"half_width": 0}, "half_width"),
        ({"half_width": 3}, "0.03"),
        ({"rate": 1}, "rate"),
        ({"ties": 0.5, "rate": 0.9}, "ties"),
        ({"votes_per_pair": 0}, "votes_per_pair"),
        ({"agreement": 2}, "agreement"),
        ({"seconds_per_vote": 0}, "seconds"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt"),
        ({"known_share": 1}, "known_share"),
    ],
)
def test_what_cannot_be_planned(arguments, says):
    with pytest.raises(PlanError, match=says):
        plan(**{"half_width": 0.05, **arguments})


def simulated(rng, rate, k, agreement, prompts, m, within):
    """Votes [prompts * m] as means of k, from chances that prompts and pairs share, without ties.

    A pair's chance is Beta with the intraclass correlation `agreement`; pairs of one prompt share it with chance such
    that they correlate by `within` of the variance of a pair's mean.
    """
    share = within * (agreement + (1 - agreement) / k) / agreement  # of the chances' variance, for that of the means
    a, b = rate * (1 - agreement) / agreement, (1 - rate) * (1 - agreement) / agreement
    common, own = rng.beta(a, b, (prompts, 1)), rng.beta(a, b, (prompts, m))
    chances = np.where(rng.random((prompts, m)) < math.sqrt(share), common, own)
    return (rng.binomial(k, chances) / k).ravel()


@pytest.mark.parametrize(("rate", "k", "agreement", "m", "within"), [(0.5, 5, 0.4, 1, 0.0), (0.7, 3, 0.5, 3, 0.2)])
def test_simulated_votes_give_the_interval_that_was_planned(rate, k, agreement, m, within):
    got = plan(0.06, rate, ties=0, votes_per_pair=k, agreement=agreement, pairs_per_prompt=m, prompt_correlation=within)
    rng = np.random.default_rng(0)
    prompts = [i // m for i in range(got.pairs)]
    widths, majorities, inside = [], [], 0
    for seed in range(150):
        votes = simulated(rng, rate, k, agreement, got.prompts, m, within)
        found = win_rate_of(votes, prompts, seed=seed, resamples=500)
        low, high = win_rate_of(majority(votes), prompts, seed=seed, resamples=500).ci95
        majorities.append((high - low) / 2)
        widths.append((found.ci95[1] - found.ci95[0]) / 2)
        inside += found.ci95[0] <= rate <= found.ci95[1]
    assert np.mean(widths) == pytest.approx(got.half_width, rel=0.06)
    assert np.mean(majorities) == pytest.approx(got.majority_half_width, rel=0.1)
    assert inside / 150 >= 0.9
