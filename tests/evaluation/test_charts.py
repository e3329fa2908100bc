"""Charts of any numbers that a run may log."""

from __future__ import annotations

import math

import pytest

from palate.evaluation import charts


@pytest.mark.parametrize(
    "values",
    [
        [0.6931471805599453, math.nextafter(0.6931471805599453, 1)],  # a loss that hardly leaves its start
        [0.0, 0.0],
        [1e-17, -1e-17],
        [5.0, 5.0 + 1e-12],
        [1e-30, 2e-30],
        [1e12, -1e12],
    ],
)
def test_a_line_of_any_spread_is_drawn(values):
    line = list(enumerate(values))
    drawn = charts.svg(charts.Chart("loss", {"loss": line}))
    assert "nan" not in drawn and "<svg" in drawn


def test_ticks_of_what_rounding_cannot_tell_apart_are_apart():
    found = charts.ticks(0.6931471805599453, math.nextafter(0.6931471805599453, 1), 5)
    assert len(set(charts.labels(found))) == len(found) > 1
