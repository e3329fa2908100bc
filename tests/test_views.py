"""Views of facts, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from palate import randomness, views
from palate.records import (
    Aspect,
    Choice,
    Comparison,
    Medium,
    Preference,
    Ranking,
    Retraction,
    Sample,
    Score,
    Vote,
)

NAN = math.nan
TIME = "2026-01-31T12:00:00+00:00"


def vote(name: str, a: str, b: str, choice: Choice, dimension: str = "overall") -> Vote:
    return Vote(name, a, b, choice, "ada", TIME, dimension)


VOTES = [
    vote("1", "x", "y", "a"),
    vote("2", "y", "x", "b"),  # the same opinion, shown the other way round
    vote("3", "x", "y", "tie"),
    vote("4", "x", "y", "b"),
    vote("4", "x", "y", "b"),  # sent twice
    vote("5", "y", "z", "both_bad"),
    vote("6", "x", "z", "skip"),
    vote("7", "x", "elsewhere", "a"),
    vote("8", "z", "x", "a", "style"),
]


def test_votes() -> None:
    prefer, votes = views.prefer_from_votes(["x", "y", "z"], VOTES)
    assert votes.tolist() == [[0, 4, 0], [4, 0, 0], [0, 0, 0]]
    np.testing.assert_equal(prefer, [[NAN, 2.5 / 4, NAN], [1.5 / 4, NAN, NAN], [NAN, NAN, NAN]])
    prefer, votes = views.prefer_from_votes(["x", "z"], VOTES, "style")
    np.testing.assert_equal(prefer, [[NAN, 0], [1, NAN]])


def test_scores() -> None:
    np.testing.assert_equal(
        views.prefer_from_scores([2.0, 1.0, 2.0, NAN]),
        [[NAN, 1, 0.5, NAN], [0, NAN, 0, NAN], [0.5, 1, NAN, NAN], [NAN] * 4],
    )


def test_shares_of_judges() -> None:
    prefer, votes = views.prefer_from_table([[3, 2, NAN], [1, 2, 0], [2, 2, 1]])
    np.testing.assert_equal(prefer, [[NAN, 0.5, 1], [0.5, NAN, 1], [0, 0, NAN]])
    np.testing.assert_equal(votes, [[0, 3, 2], [3, 0, 2], [2, 2, 0]])
    with pytest.raises(ValueError, match="N, K"):
        views.prefer_from_table([1.0, 2.0])


def test_one_dimension_of_a_row() -> None:
    row = Preference(
        "p",
        (Medium("image/png", b"x"), None, Medium("image/png", b"z")),
        [[NAN, NAN, 1], [NAN] * 3, [0, NAN, NAN]],
        mask=[True, False, True],
        scores=[[1, 5], [9, 9], [2, 5]],
        dimensions=["style", "match"],
        aspects=[Aspect("match", [[NAN, NAN, 0.25], [NAN] * 3, [0.75, NAN, NAN]], [[0, 0, 4], [0] * 3, [4, 0, 0]])],
    )
    assert views.preference_of(row) is row and views.preference_of(row, "motion") is None
    match, style = views.preference_of(row, "match"), views.preference_of(row, "style")
    assert match is not None and match.prefer[0][2] == 0.25 and match.votes[0][2] == 4 and match.id == row.id
    assert style is not None and style.prefer[0][2] == 0 and math.isnan(style.prefer[1][0]) and style.votes[0][2] == 1


def test_pareto() -> None:
    table = [[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [3.0, NAN]]
    np.testing.assert_equal(
        views.pareto(table),
        [
            [NAN, 0, 0, 0, NAN],
            [1, NAN, NAN, 0.5, NAN],
            [1, NAN, NAN, NAN, NAN],
            [1, 0.5, NAN, NAN, NAN],
            [NAN] * 5,
        ],
    )
    with pytest.raises(ValueError, match="K, D"):
        views.pareto([1.0, 2.0])


def test_split_by_prompt() -> None:
    prompts = [f"prompt {i % 500}" for i in range(2000)]
    train, held = views.held_out(prompts, 0.2)
    assert sorted(train + held) == list(range(2000)) and len(held) == 400
    aside = {prompts[i] for i in held}
    assert aside.isdisjoint(prompts[i] for i in train)
    assert {prompts[::-1][i] for i in views.held_out(prompts[::-1], 0.2)[1]} == aside  # order does not matter
    assert {prompts[i] for i in views.held_out(prompts, 0.4)[1]} > aside  # shares grow, nothing moves out
    assert {prompts[i] for i in views.held_out(prompts, 0.2, seed=1)[1]} != aside
    with pytest.raises(ValueError, match="share"):
        views.held_out(["p"], 1.5)


def test_a_split_never_moves_between_releases() -> None:
    """The hash of the prompts' order is `randomness.key`, which the lowest floor cannot import."""
    prompts = [f"prompt {i}" for i in range(40)]
    for seed in range(3):
        order = sorted(prompts, key=lambda prompt: randomness.key(seed, "held out", prompt))
        assert {prompts[i] for i in views.held_out(prompts, 0.3, seed)[1]} == set(order[:12])
    assert views.held_out(prompts[:5], 0.2) == ([0, 1, 2, 3], [4])


def test_the_least_and_the_most_that_are_held_out() -> None:
    assert views.held_out(["a", "b"], 0.0) == ([0, 1], [])
    assert [len(part) for part in views.held_out(["a", "b", "c"], 0.01)] == [2, 1]
    assert [len(part) for part in views.held_out(["a", "b", "c"], 1.0)] == [1, 2]
    assert views.held_out(["a"], 0.5) == ([0], []) and views.held_out([], 0.5) == ([], [])


def test_one_prompt_however_spelt() -> None:
    spelt = ["a red star", "A  red star ", "a blue star", "a Blue\nstar"]
    for seed in range(9):
        assert [sorted(part) for part in views.held_out(spelt, 0.5, seed)] in ([[0, 1], [2, 3]], [[2, 3], [0, 1]])
    assert views.overlap(["A red  STAR", "a star", "a blue star"], iter(spelt)) == ["A red  STAR", "a blue star"]
    assert views.overlap(spelt, []) == []


def sample(name: str, prompt: str) -> Sample:
    return Sample(name, prompt, Medium("image/png", name.encode()), "world:shapes", TIME, 5)


SAMPLES = [sample("x", "p"), sample("u", "q"), sample("y", "p"), sample("z", "p"), sample("x", "p")]


def score(name: str, dimension: str, value: float, time: str = TIME) -> Score:
    return Score(name, dimension, value, "oracle", time)


SCORES = [
    score("x", "style", 1.0, "2026-02-01T00:00:00+00:00"),
    score("x", "style", 9.0),  # older, though it comes later
    score("x", "match", 2.0),
    score("y", "style", 2.0),
    score("y", "match", 3.0),
]


def test_preferences_from_votes() -> None:
    (row,) = views.preferences(SAMPLES, VOTES, SCORES, dimensions=["match", "style"])  # "q" has one sample
    assert row.prompt == "p" and [m.bytes for m in row.media if m] == [b"x", b"y", b"z"]
    assert row.prefer[0][1] == 0.625 and row.votes[0][1] == 4
    np.testing.assert_equal(np.array(row.scores), [[2, 1], [3, 2], [NAN, NAN]])
    assert row.sources == ("world:shapes",) * 3 and row.seeds == (5, 5, 5)
    assert list(views.preferences(SAMPLES)) == []


def test_aspects_of_votes() -> None:
    (row,) = views.preferences(SAMPLES, VOTES, aspects=["style", "motion"])
    (style,) = row.aspects
    assert style.dimension == "style" and style.prefer[2][0] == 1 and style.votes[0][2] == 1
    only = [vote("9", "u", "v", "tie", "style")]
    (row,) = views.preferences([sample("u", "q"), sample("v", "q")], only, aspects=["style"])
    assert math.isnan(row.prefer[0][1]) and row.aspects[0].prefer[0][1] == 0.5


def test_preferences_from_scores() -> None:
    (row,) = views.preferences(SAMPLES, scores=SCORES, by="scores", dimension="style")
    assert row.prefer[1][0] == 1 and math.isnan(row.prefer[0][2]) and row.votes[0][1] == 1 and row.votes[0][2] == 0
    (row,) = views.preferences(SAMPLES, scores=SCORES, by="pareto", dimensions=["match", "style"])
    assert row.prefer[1][0] == 1 and row.dimensions == ("match", "style")


# --- judgements of people ---------------------------------------------------------------------------------------------


def ranked(name: str, *groups: str, **more: Any) -> Ranking:
    return Ranking(name, tuple(tuple(group) for group in groups), "ada", TIME, **more)


def test_rankings() -> None:
    told = [
        ranked("r1", "x", "yz"),
        ranked("r2", "y", "x"),
        ranked("r2", "y", "x"),
        ranked("r3", "z", "x", repeat=True),
    ]
    prefer, votes = views.prefer_from_votes(["x", "y", "z"], [], rankings=told)
    assert votes.tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    np.testing.assert_equal(prefer, [[NAN, 0.5, 1], [0.5, NAN, 0.5], [0, 0.5, NAN]])
    prefer, votes = views.prefer_from_votes(["x", "y"], VOTES, rankings=told)
    assert votes[0, 1] == 6 and prefer[0, 1] == 3.5 / 6


def test_a_majority_of_k() -> None:
    many = [vote(str(i), "x", "y", "a" if i < 3 else "b") for i in range(5)]
    even = [vote("e1", "x", "z", "a"), vote("e2", "x", "z", "b")]
    one = [vote("o", "y", "z", "b")]
    prefer, votes = views.prefer_from_votes(["x", "y", "z"], [*many, *even, *one], labels="majority")
    np.testing.assert_equal(prefer, [[NAN, 1, 0.5], [0, NAN, 0], [0.5, 1, NAN]])
    assert votes.tolist() == [[0, 5, 2], [5, 0, 1], [2, 1, 0]]
    prefer, votes = views.prefer_from_votes(["x", "y", "z"], [*many, *even, *one], at_least=2)
    np.testing.assert_equal(prefer, [[NAN, 0.6, 0.5], [0.4, NAN, NAN], [0.5, NAN, NAN]])
    assert votes[1, 2] == 0


def test_what_tests_raters_and_what_was_taken_back_is_not_counted() -> None:
    samples = [Sample(name, "p", Medium("image/png", name.encode()), "m", TIME) for name in "xyz"]
    given = [
        Vote("1", "x", "y", "a", "ada", TIME, comparison="c"),
        Vote("2", "x", "y", "b", "bo", TIME, comparison="c"),
        Vote("3", "x", "y", "b", "ada", TIME, comparison="c", repeat=True),
        Vote("4", "x", "z", "b", "ada", TIME, comparison="known"),
        Vote("5", "x", "y", "b", "ada", TIME, "style", comparison="c"),
    ]
    rows = views.preferences(
        samples,
        given,
        rankings=[ranked("6", "y", "x"), ranked("7", "z", "xy", comparison="known")],
        comparisons=[Comparison("c", "p", ("x", "y"), 2), Comparison("known", "p", ("x", "z"), 1, expected="x")],
        retractions=[Retraction("r", "2", "bo", TIME), Retraction("s", "6", "ada", TIME)],
        aspects=["style"],
    )
    (row,) = rows
    np.testing.assert_equal(row.prefer, [[NAN, 1, NAN], [0, NAN, NAN], [NAN] * 3])
    assert row.votes[0] == (0, 1, 0)
    assert [(a.dimension, a.prefer[0][1]) for a in row.aspects] == [("style", 0.0)]


def test_a_known_pair_without_votes_survives_a_merge() -> None:
    media = [Medium("image/png", name.encode()) for name in "xyz"]

    def row(a: int, b: int, p: float, votes: float) -> Preference:
        return Preference("p", (media[a], media[b]), [[NAN, p], [1 - p, NAN]], votes=[[0, votes], [votes, 0]])  # type: ignore[arg-type]

    (made,) = views.merged([row(0, 1, 1.0, 0), row(0, 1, 0.5, 0), row(1, 2, 1.0, 2), row(1, 2, 0.0, 0)])
    np.testing.assert_equal(made.prefer, [[NAN, 0.75, NAN], [0.25, NAN, 1.0], [NAN, 0.0, NAN]])
    assert made.votes == ((0, 0, 0), (0, 0, 2), (0, 2, 0))
