"""Simulated people: frequencies follow the formula, votes follow the pair and nothing else."""

import numpy as np
import pytest

from palate.worlds.shapes.annotators import Annotator, panel, preference

N = 20_000
PAIRS = [f"pair-{i}" for i in range(N)]


def _scores(value):
    return {"alignment": np.full(N, value)}


def _close(share, expected):
    return abs(share - expected) < 4 * np.sqrt(max(expected * (1 - expected), 1e-4) / N)


@pytest.mark.parametrize("gap", [-0.3, 0.0, 0.12, 0.5])
@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize("lapse", [0.0, 0.3])
def test_frequencies_match_the_formula(gap, bias, lapse):
    someone = Annotator(
        {"alignment": 2.0}, temperature=0.4, tie_threshold=0.1, lapse_rate=lapse, side_bias=bias, seed=3
    )
    votes = someone.vote(_scores(0.5 + gap), _scores(0.5), PAIRS)
    tie = abs(2 * gap) < 0.1
    prefers = 1 / (1 + np.exp(-(2 * gap + bias) / 0.4))
    assert _close((votes == "tie").mean(), (1 - lapse) * tie + lapse / 3)
    assert _close((votes == "a").mean(), (1 - lapse) * (1 - tie) * prefers + lapse / 3)
    expected = someone.probabilities(_scores(0.5 + gap), _scores(0.5))
    np.testing.assert_allclose(expected.sum(axis=1), 1)


def test_a_vote_depends_on_annotator_and_pair_alone():
    rng = np.random.default_rng(0)
    a, b = {"alignment": rng.random(500)}, {"alignment": rng.random(500)}
    someone = Annotator({"alignment": 1.0}, seed=1)
    votes = someone.vote(a, b, PAIRS[:500])
    order = rng.permutation(500)
    turned = someone.vote(
        {"alignment": a["alignment"][order]}, {"alignment": b["alignment"][order]}, np.array(PAIRS)[order]
    )
    assert (turned == votes[order]).all()
    one = someone.vote({"alignment": a["alignment"][7:8]}, {"alignment": b["alignment"][7:8]}, PAIRS[7:8])
    assert one[0] == votes[7]
    other = Annotator({"alignment": 1.0}, seed=2).vote(a, b, PAIRS[:500])
    assert (other != votes).any()


def test_temperature_zero_always_prefers_the_better():
    better, worse = _scores(0.8), _scores(0.2)
    judge = Annotator({"alignment": 1.0}, temperature=0.0)
    assert (judge.vote(better, worse, PAIRS) == "a").all()
    assert (judge.vote(worse, better, PAIRS) == "b").all()


def test_panel_votes_and_preference():
    people = panel(5, {"alignment": 1.0}, disagreement=0.0, seed=4, temperature=0.3, tie_threshold=0.0)
    votes = people.votes(_scores(0.7), _scores(0.5), PAIRS, k=3)
    assert votes.shape == (N, 3)
    share, counts = preference(votes)
    assert (counts == 3).all()
    assert _close(share.mean(), 1 / (1 + np.exp(-0.2 / 0.3)))
    assert set(np.unique(share.round(3))) == {0.0, 0.333, 0.667, 1.0}  # votes of one pair are independent
    seats = people.seats(PAIRS[:2000])[:, :3]
    assert all(len(set(row)) == 3 for row in seats)
    assert np.bincount(seats.ravel(), minlength=5).min() > 1000
    with pytest.raises(ValueError, match="6 votes"):
        people.votes(_scores(0.7), _scores(0.5), PAIRS, k=6)


def test_ties_count_one_half():
    share, counts = preference(np.array([["a", "tie"], ["b", "tie"], ["tie", "tie"]]))
    assert share.tolist() == [0.75, 0.25, 0.5] and counts.tolist() == [2, 2, 2]


def test_members_of_a_panel_disagree_about_weights():
    weights = [a.weights["alignment"] for a in panel(8, seed=1).annotators]
    assert len(set(weights)) == 8 and 0.3 < np.mean(weights) < 3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="lapse_rate"):
        Annotator(lapse_rate=1.5)
    with pytest.raises(ValueError, match="negative"):
        Annotator(temperature=-1)
    with pytest.raises(ValueError, match="lack wholeness"):
        Annotator({"wholeness": 1.0}).utility({"alignment": np.zeros(2)})
