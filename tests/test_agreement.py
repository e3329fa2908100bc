"""Agreement against evalica and by hand; raters who invert, guess, repeat a side or rush are flagged, others not."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pandas as pd
import pytest

from palate.agreement import alpha, raters, rating
from palate.records import Comparison, Ranking, Vote

TIME = "2026-11-21T10:00:00+00:00"


def vote(rater, pair, choice, **more):
    """pair: "xy"; choice: the sample preferred, or tie, both_bad, skip."""
    a, b = (f"{side}{pair[1:]}" for side in pair[0].split("/")) if "/" in pair else (pair[0], pair[1])
    named = {a: "a", b: "b"}.get(choice, choice)
    number = more.pop("number", 0)
    return Vote(f"{rater}/{pair}/{more.get('comparison', '')}/{number}", a, b, named, rater, TIME, **more)


def simulated(rng, people, pairs, agree=0.8, tie=0.1):
    """Votes of people who see a pair's truth with chance `agree` and guess else; the way round is random."""
    votes = []
    for pair in range(pairs):
        names = f"m{pair}", f"n{pair}"
        truth = names[rng.integers(2)]
        for person in range(people):
            said = truth if rng.random() < agree else names[rng.integers(2)]
            a, b = names if rng.random() < 0.5 else names[::-1]
            choice = "tie" if rng.random() < tie else "a" if said == a else "b"
            votes.append(Vote(f"{pair}/{person}", a, b, choice, f"rater {person}", TIME))
    return votes


def theirs(votes):
    """evalica's alpha of the same votes, each pair twice: once either way round."""
    turned = {"first": "second", "second": "first"}
    cells: dict[str, dict[str, str]] = {}
    for v in votes:
        said = rating(v)
        if said is not None:
            pair = "|".join(sorted((v.a, v.b)))
            cells.setdefault(v.source, {})[pair] = said
            cells[v.source][pair + " turned"] = turned.get(said, said)
    return evalica.alpha(pd.DataFrame.from_dict(cells, orient="index"), "nominal").alpha


def test_alpha_by_hand():
    votes = [vote("x", "ab", "a"), vote("y", "ba", "a"), vote("x", "cd", "c"), vote("y", "cd", "d")]
    # both ways round 4 ratings of each kind of 8: observed disagreement 1/2, expected 2 * 4 * 4 / (8 * 7) = 4/7
    got = alpha(votes)
    assert got is not None and got.alpha == pytest.approx(1 - (1 / 2) / (4 / 7))
    assert (got.pairs, got.raters, got.ratings) == (2, 2, 4)


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_evalicas(seed):
    rng = np.random.default_rng(seed)
    votes = [v for v in simulated(rng, 5, 40) if rng.random() < 0.7]  # not everyone judged everything
    got = alpha(votes)
    assert got is not None and got.alpha == pytest.approx(theirs(votes), abs=1e-9)


def test_alpha_does_not_see_sides_repeats_skips_and_other_questions():
    votes = simulated(np.random.default_rng(0), 4, 30)
    turned = {"a": "b", "b": "a"}
    sides = [Vote(v.id, v.b, v.a, turned.get(v.choice, v.choice), v.source, v.time) for v in votes]
    other = [
        Vote("s", "m0", "n0", "skip", "new", TIME),
        Vote("d", "m0", "n0", "a", "rater 0", TIME, dimension="motion"),
        Vote("r", "m1", "n1", "both_bad", "rater 0", TIME, repeat=True),
    ]
    assert alpha(votes) == alpha(sides) == alpha([*votes, *other])
    assert alpha([vote("x", "ab", "a"), vote("y", "cd", "c")]) is None
    known = Comparison("k", "p", ("g", "h"), 3, expected="g", time=TIME)
    easy = [vote(f"rater {i}", "gh", "g", comparison="k") for i in range(4)]
    assert alpha([*votes, *easy], comparisons=[known]) == alpha(votes) != alpha([*votes, *easy])


def test_how_often_others_say_the_same():
    votes = [vote("x", "ab", "a"), vote("y", "ba", "a"), vote("z", "ab", "b"), vote("x", "cd", "tie")]
    shares = {r.id: (r.others.k, r.others.n) for r in raters(votes)}
    assert shares == {"x": (1, 2), "y": (1, 2), "z": (0, 2)}


def test_all_agreeing_and_prompts_as_clusters():
    same = [vote(r, p, p[0]) for r in "xy" for p in ("ab", "cd", "ef")]
    got = alpha(same)
    assert got is not None and got.alpha == 1 and got.ci95 == (1, 1)
    votes = simulated(np.random.default_rng(0), 4, 60)
    names = {v.a: f"prompt {int(v.a[1:]) // 30}" for v in votes} | {v.b: f"prompt {int(v.b[1:]) // 30}" for v in votes}
    by_pair, by_prompt = alpha(votes), alpha(votes, prompt_of=names)
    assert by_pair is not None and by_prompt is not None and by_pair.alpha == by_prompt.alpha
    assert by_pair.ci95 != by_prompt.ci95
    one = alpha(votes, prompt_of=dict.fromkeys(names, "all"))
    assert one is not None and math.isnan(one.ci95[0])


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [15, 100])
def test_the_interval_of_alpha_covers(pairs):
    """The truth: of a very long run of the same people."""
    rng = np.random.default_rng(3)
    long = alpha(simulated(rng, 4, 20000))
    assert long is not None
    inside = 0
    for seed in range(200):
        got = alpha(simulated(rng, 4, pairs), seed=seed)
        inside += got is not None and got.ci95[0] <= long.alpha <= got.ci95[1]
    assert 0.91 <= inside / 200 <= 0.985


# --- raters -----------------------------------------------------------------------------------------------------------


def worker(rng, name, *, right=0.95, left=None, same=0.9, pairs=60, seconds=3.0):
    """Votes on known pairs, each asked again: with a chance of being right, of taking the left, of saying the same."""
    votes, known = [], []
    for k in range(pairs):
        good, bad, key = f"g{k}", f"b{k}", f"c{k}"
        known.append(Comparison(key, "p", (good, bad), 3, expected=good, time=TIME))
        for again in (False, True):
            shown = good if rng.random() < 0.5 else bad
            if left is not None:
                choice = "a" if (shown == good) == (rng.random() < left) else "b"
            elif again and rng.random() < same:
                choice = votes[-1].choice
            else:
                choice = "a" if rng.random() < right else "b"
            more = {"comparison": key, "left": shown, "seconds": seconds, "repeat": again}
            votes.append(Vote(f"{name}/{k}/{again}", good, bad, choice, name, TIME, **more))
    return votes, known


def test_each_kind_of_bad_work_is_flagged_with_its_reason():
    rng = np.random.default_rng(0)
    people = {
        "good": {},
        "inverted": {"right": 0.05},
        "lefty": {"left": 0.97},
        "fickle": {"right": 0.5, "same": 0.0},
        "fast": {"seconds": 0.3},
    }
    made = {name: worker(rng, name, **how) for name, how in people.items()}
    found = {r.id: r for r in raters([v for votes, _ in made.values() for v in votes], made["good"][1])}
    assert list(found) == sorted(people)
    assert found["good"].flags == ()
    assert "known pairs right" in found["inverted"].flags[0] and len(found["inverted"].flags) == 1
    assert any("left side" in flag for flag in found["lefty"].flags)
    assert any("known pairs" in flag for flag in found["fickle"].flags)
    assert "0.3 s a judgement" in found["fast"].flags[0] and len(found["fast"].flags) == 1
    good = found["good"]
    assert good.votes == good.known.n == good.repeats.n == 60 and good.left.n == 120
    assert good.known.ci95[0] < good.known.share < good.known.ci95[1] <= 1
    assert good.seconds == 3.0 and good.left_p > 0.001
    assert good.others.n == 0  # known pairs are left out


def test_an_inverted_rater_is_flagged_soon_and_honest_ones_hardly_ever():
    rng = np.random.default_rng(1)
    first = [next((n for n in range(1, 31) if flagged(rng, n, 0.1)), 99) for _ in range(20)]
    assert max(first) <= 30
    false = sum(any(flagged(rng, n, 0.92) for n in (10, 20, 30)) for _ in range(60))
    assert false / 60 < 0.05


def flagged(rng, n, right):
    votes, known = worker(rng, "one", right=right, pairs=n, same=1.0)
    return bool(raters(votes, known)[0].flags)


def test_repeats_are_judged_against_the_first_answer_and_known_pairs_by_comparison():
    votes = [
        vote("x", "ab", "a", comparison="1"),
        vote("x", "ba", "a", comparison="1", repeat=True, number=1),
        vote("x", "cd", "c", comparison="2"),
        vote("x", "dc", "d", comparison="2", repeat=True, number=1),
        vote("x", "ef", "skip", comparison="3"),
        vote("x", "ef", "e", comparison="3", repeat=True, number=1),
    ]
    known = [
        Comparison("1", "p", ("a", "b"), 3, expected="b", time=TIME),
        Comparison("3", "p", ("e", "f"), 3, expected="e", time=TIME),
    ]
    (x,) = raters(votes, known)
    assert (x.repeats.k, x.repeats.n) == (1, 2)
    assert (x.known.k, x.known.n) == (0, 1)  # the skipped pair was not answered
    assert (x.votes, x.skips) == (3, 1) and x.seconds is None and math.isnan(x.left.share)
    assert raters([]) == []


def test_known_pairs_of_any_question_and_of_rankings():
    votes = [
        vote("x", "ab", "a", comparison="1"),
        vote("x", "ab", "b", comparison="1", dimension="style", number=1),
        vote("y", "ab", "a", comparison="1", number=2),
        vote("x", "cd", "c", comparison="2", number=3),
        vote("y", "cd", "c", comparison="2", number=4),
        vote("z", "ab", "a", comparison="1", dimension="style", number=5),
    ]
    known = [
        Comparison("1", "p", ("a", "b"), 3, expected="b", dimension="style", time=TIME),
        Comparison("3", "p", ("a", "b", "c"), 3, expected="b", dimension="style", time=TIME),
    ]
    votes += [vote("z", pair, "both_bad", comparison="3", dimension="style", number=6) for pair in ("ab", "ac", "bc")]
    ranked = [
        Ranking("r", (("b",), ("a", "c")), "x", TIME, "style", comparison="3", seconds=4.0),
        Ranking("s", (("b", "a"),), "y", TIME, "style", comparison="1"),
        Ranking("t", (("b",), ("a",)), "y", TIME, "style", comparison="1", repeat=True),
    ]
    found = {r.id: r for r in raters(votes, known, rankings=ranked)}
    assert {name: (r.known.k, r.known.n) for name, r in found.items()} == {"x": (2, 2), "y": (0, 1), "z": (0, 2)}
    assert {name: r.votes for name, r in found.items()} == {"x": 2, "y": 2, "z": 0}
    assert found["x"].others.n == 1  # what was said of a known pair counts nowhere else, whatever was asked
    style = {r.id: r for r in raters(votes, known, "style", rankings=ranked)}
    assert style["x"].votes == 2 and style["x"].seconds == 4.0 and style["y"].votes == 1
    assert style["z"].votes == 2  # that none of three is any good is one judgement
