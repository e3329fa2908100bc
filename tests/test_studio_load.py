"""The load benchmark on a small scale: kills and dropped replies lose nothing and count nothing twice."""

from __future__ import annotations

import pytest

from benchmarks import studio_crowd, studio_load
from palate import project


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_votes_are_kept_under_kills(kind, tmp_path, monkeypatch):
    monkeypatch.delenv(project.DATABASE, raising=False)
    monkeypatch.setattr(studio_crowd, "DROP_EVERY", 3)
    with studio_load.databases(kind) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        size = {"raters": 6, "votes": 10, "overlap": 3, "kills": 2}
        found = studio_load.measure(tmp_path / "p", think=0.0, **size, **environment)
    assert found["acked"] == found["wanted"] == 60 and found["late"] == 0
    assert (found["acked_lost"], found["duplicates"], found["raters_out_of_order"]) == (0, 0, 0)
    assert found["pairs_with_exactly_k"] == found["pairs"] == 20
    assert found["replies_dropped"] > 0 and found["retries"] > 0
    assert found["media"] == 120 and len(found["start_cpu_s"]) == 3


def test_what_does_not_hold_is_said():
    figures = {"acked_lost": 1, "duplicates": 0, "pairs": 2, "pairs_with_exactly_k": 2, "raters_out_of_order": 0}
    figures |= {"answer_ms": {"p95": 250.0}, "votes_per_s": 90.0, "restart_to_first_vote_s": [1.0, 6.0]}
    figures |= {"late": 0, "replies_dropped": 3}
    said = studio_load.failures(1.0, figures)
    assert [words.split()[0] for words in said] == ["acknowledged", "p95", "first"]
    assert any("votes a second" in words for words in studio_load.failures(0.0, figures))
    assert any("too late" in words for words in studio_load.failures(1.0, figures | {"late": 1}))
    assert any("no reply was dropped" in words for words in studio_load.failures(1.0, figures | {"replies_dropped": 0}))
    unkilled = figures | {"replies_dropped": 0, "restart_to_first_vote_s": []}
    assert not any("no reply was dropped" in words for words in studio_load.failures(1.0, unkilled))
