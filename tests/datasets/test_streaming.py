"""Reading does not hold the data: what `benchmarks.streaming` measures, in small."""

from __future__ import annotations

import pytest

from benchmarks import streaming


def test_memory_does_not_grow_with_the_data(tmp_path):
    size = streaming.write(tmp_path, rows=2400, kilobytes=32, group_rows=100)
    found = streaming.apart("read", tmp_path)
    assert size > 150e6 and found["rows"] == 2400
    assert found["growth_mb"] < 90 and found["first_batch_s"] < 10


@pytest.mark.slow
def test_nor_does_that_of_a_check(tmp_path):
    streaming.write(tmp_path, rows=2400, kilobytes=32, group_rows=100)
    assert streaming.apart("check", tmp_path)["check_growth_mb"] < 90
