"""AI feedback: preferences of a scorer in the place of what was known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from palate.records import Aspect, Medium, Preference
from palate.relabel import Relabel, preferred


def row(k: int = 3) -> Preference:
    known = [[math.nan if i == j else float(i > j) for j in range(k)] for i in range(k)]
    media = tuple(Medium("image/png", bytes=bytes([i])) for i in range(k))
    return Preference(prompt="a cat", media=media, prefer=known, scores=[[9.0]] * k, dimensions=("old",), id="mine")


def scorer(prompts, media):
    assert prompts == ["a cat"] * len(media)
    return {"size": [float(m) for m in media], "looks": [0.5 * (m == 2) for m in media]}


def test_the_greater_sum_is_preferred_and_equals_tie():
    changed = Relabel(scorer)(row(), [1, 2, 2.5])
    assert changed.dimensions == ("size", "looks") and changed.scores == ((1, 0), (2, 0.5), (2.5, 0))
    assert changed.prefer[1][0] == 1 and changed.prefer[0][1] == 0 and changed.prefer[1][2] == 0.5
    assert changed.id == "mine" and changed.votes[0][1] == 1 and math.isnan(changed.prefer[0][0])


def test_nothing_of_before_speaks_against_the_new_labels():
    motion = Aspect("motion", row().prefer)
    changed = Relabel(scorer)(replace(row(), aspects=(motion,)), [1, 2, 2.5])
    assert changed.aspects == () and changed.weight == 1.0 and changed.media == row().media


def test_a_temperature_makes_soft_labels():
    changed = Relabel(scorer, temperature=0.5)(row(), [1, 1.5, 4])
    assert changed.prefer[1][0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert changed.prefer[2][0] == pytest.approx(1 / (1 + math.exp(-6)))
    with pytest.raises(ValueError, match="positive"):
        Relabel(scorer, temperature=0.0)


def test_what_cannot_be_judged_is_compared_with_none():
    changed = Relabel(lambda prompts, media: {"size": [1.0, math.nan]})(row(), [1, None, 3])
    assert all(math.isnan(p) for line in changed.prefer for p in line)
    changed = Relabel(scorer)(row(), [3, None, 1])
    assert changed.prefer[0][2] == 1 and math.isnan(changed.prefer[0][1]) and math.isnan(changed.scores[1][0])


@pytest.mark.parametrize("temperature", [None, 1e-6, 0.3, 1e6])
def test_preferences_add_up_to_one_at_any_temperature(temperature):
    scores = np.array([0.0, 1000.0, -1000.0, 0.0, np.nan])
    prefer = preferred(scores, temperature)
    known = ~np.isnan(prefer)
    assert known.sum() == 12 and np.allclose((prefer + prefer.T)[known], 1.0, atol=0, rtol=1e-12)
    assert prefer[0, 3] == 0.5 and prefer[1, 0] > 0.5
