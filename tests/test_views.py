"""Views of facts, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from palate import views
from palate.records import Choice, Medium, Sample, Score, Vote

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
    assert views.both_bad(["x", "y", "z"], [*VOTES, VOTES[5]]).tolist() == [0, 1, 1]


def test_scores() -> None:
    np.testing.assert_equal(
        views.prefer_from_scores([2.0, 1.0, 2.0, NAN]),
        [[NAN, 1, 0.5, NAN], [0, NAN, 0, NAN], [0.5, 1, NAN, NAN], [NAN] * 4],
    )


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


def test_best_and_worst() -> None:
    assert views.best_and_worst([1.0, NAN, 3.0, 0.5, 3.0]) == (2, 3)
    assert views.best_and_worst([1.0, 1.0, NAN]) is None  # a label by chance is no label
    assert views.best_and_worst([1.0, NAN]) is None and views.best_and_worst([]) is None
    np.testing.assert_equal(
        views.only(views.prefer_from_scores([3.0, 2.0, 1.0]), 0, 2),
        [[NAN, NAN, 1], [NAN] * 3, [0, NAN, NAN]],
    )


def test_split_by_prompt() -> None:
    rows = [SimpleNamespace(prompt=f"prompt {i % 500}") for i in range(2000)]
    train, held = views.split(rows, 0.2)
    assert len(train) + len(held) == 2000
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    assert 0.14 < len(held) / 2000 < 0.26
    assert views.split(rows[::-1], 0.2)[1] == held[::-1]  # order does not matter
    early = views.split(rows[:100], 0.2)[1]  # rows added later move none
    assert early == held[: len(early)]
    assert {r.prompt for r in views.split(rows, 0.4)[1]} >= {r.prompt for r in held}  # shares grow, nothing moves out
    assert {r.prompt for r in views.split(rows, 0.2, seed=1)[1]} != {r.prompt for r in held}
    assert views.held_out("A  red star ", 0.5) == views.held_out("a red Star", 0.5)
    assert not views.split(rows, 0.0)[1] and not views.split(rows, 1.0)[0]
    assert views.held_out("prompt 3", 0.2) is False  # pinned: a release must not move prompts between parts
    with pytest.raises(ValueError, match="share"):
        views.held_out("p", 1.5)


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


def test_preferences_from_scores() -> None:
    (row,) = views.preferences(SAMPLES, scores=SCORES, by="scores", dimension="style")
    assert row.prefer[1][0] == 1 and math.isnan(row.prefer[0][2]) and row.votes[0][1] == 1 and row.votes[0][2] == 0
    (row,) = views.preferences(SAMPLES, scores=SCORES, by="pareto", dimensions=["match", "style"])
    assert row.prefer[1][0] == 1 and row.dimensions == ("match", "style")
