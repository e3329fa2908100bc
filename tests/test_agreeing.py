"""`palate project judges`: which scorers may stand in for people."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palate import project
from palate.config import ConfigError
from palate.doors import agreeing
from palate.project import ProjectSettings
from palate.records import Ranking, Score, Vote
from palate.store import Store
from tests.store.make import TIME, filled


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(project.DATABASE, raising=False)
    place = tmp_path / "p"
    project.create(place, ProjectSettings(questions={"overall": "Better?", "style": "Nicer?"}))
    return place


def vote(pair, rater, choice, **more):
    """turned: the pair stored the other way round."""
    a, b = sorted(pair.samples)
    a, b, choice = (b, a, {"a": "b", "b": "a"}.get(choice, choice)) if more.pop("turned", False) else (a, b, choice)
    return Vote(f"{pair.id}/{rater}", a, b, choice, rater, TIME, comparison=pair.id, **more)


def test_scores_are_held_against_most_people_and_people_against_each_other(folder):
    rng = np.random.default_rng(0)
    with Store.open(folder) as store:
        filled(store, 60)
        pairs, votes, scores = list(store.comparisons()), [], []
        for number, pair in enumerate(pairs):
            first_is_better = rng.random() < 0.5
            for rater in "xyz":
                right = (rng.random() < 0.9) == first_is_better
                votes.append(vote(pair, rater, "a" if right else "b", turned=number % 2 == 0))
            for place, name in enumerate(sorted(pair.samples)):
                level = float((place == 0) == first_is_better) + rng.normal(0, 0.3)
                scores += [Score(name, "good", level, "good", TIME), Score(name, "overall", -level, "bad", TIME)]
        store.add_votes(votes)
        store.add_scores(scores)
        person, good, bad = agreeing.agreements(store, "overall")
    assert [one.judge for one in (person, good, bad)] == [agreeing.PERSON, "good", "bad overall"]
    assert 0.75 < person.accuracy.without_ties.mean < 0.95 and person.pairs == 60
    assert 0.85 < good.accuracy.without_ties.mean <= 1
    assert bad.accuracy.without_ties.mean == pytest.approx(1 - good.accuracy.without_ties.mean)
    assert good.tau > 0.5 and bad.tau == pytest.approx(-good.tau)


def test_by_hand_with_ties_and_rankings(folder, capsys):
    with Store.open(folder) as store:
        filled(store, 3)
        first, second, third = store.comparisons()
        store.add_votes(
            [
                vote(first, "x", "a"), vote(first, "y", "a"), vote(first, "z", "both_bad"), vote(second, "x", "tie"),
                vote(third, "x", "skip"), vote(third, "x2", "a", dimension="style"),
            ]
        )  # fmt: skip
        worse, better = sorted(third.samples)
        store.add_rankings([Ranking("r", ((better,), (worse,)), "q", TIME)])
        values = [2.0, 1.0, 5.0, 5.5, math.nan, 3.0]
        names = [name for pair in (first, second, third) for name in sorted(pair.samples)]
        store.add_scores(Score(name, "s", value, "s", TIME) for name, value in zip(names, values, strict=True))
        person, found = agreeing.agreements(store, "overall")
    # x and y against {y, z} and {x, z}: a; z says tie against a
    assert person.pairs == 1 and person.accuracy.with_ties.mean == pytest.approx(2 / 3)
    assert found.pairs == 2 and found.accuracy.without_ties.mean == 1  # the ranked pair has no score
    agreeing.table(folder)
    assert "one person, against the others" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="asks no question 'beauty'; it asks overall, style"):
        agreeing.table(folder, "beauty")
    with pytest.raises(ConfigError, match="`palate score --project"):
        agreeing.table(folder, "style")
