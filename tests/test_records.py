"""Records that cannot be are refused, and the refusal names the field and the row."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest

from palate.records import (
    Aspect,
    Comparison,
    Medium,
    Preference,
    Ranking,
    RecordError,
    Retraction,
    Sample,
    Score,
    Vote,
    content_id,
    now,
)

NAN = math.nan
PICTURE = Medium("image/png", b"x")
OTHER = Medium("image/png", b"y")
TIME = "2026-01-31T12:00:00+00:00"


def row(**changes: Any) -> Preference:
    return Preference(**{"prompt": "a red star", "media": [PICTURE, OTHER], "prefer": [[NAN, 1], [0, NAN]], **changes})


def test_what_is_left_out_is_filled() -> None:
    made = row()
    assert made.mask == (True, True) and made.votes == ((0, 1), (1, 0)) and made.scores == ((), ())
    assert made.sources == ("", "") and made.seeds == (None, None) and made.weight == 1 and len(made) == 2
    assert made.id == content_id("a red star", [PICTURE, OTHER]) == row(weight=2.0).id
    assert made.id != row(media=[OTHER, PICTURE]).id != row(prompt="a star").id
    unscored = row(dimensions=["style"])
    assert math.isnan(unscored.scores[0][0]) and unscored.dimensions == ("style",)
    assert row(id="mine").id == "mine"


def test_lists_become_tuples_and_null_becomes_nan() -> None:
    made = row(prefer=[[None, 0.5], [0.5, None]], scores=[[1], [None]], dimensions=["a"], seeds=[3, None])
    assert made.prefer[0][1] == 0.5 and math.isnan(made.prefer[0][0]) and math.isnan(made.scores[1][0])
    assert isinstance(made.prefer[0], tuple) and made.seeds == (3, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.weight = 2.0  # type: ignore[misc]


def test_a_candidate_may_be_absent() -> None:
    made = row(media=[PICTURE, None], mask=[True, False], prefer=[[NAN, NAN], [NAN, NAN]])
    assert made.media[1] is None


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("prompt", {"prompt": None}),
        ("media", {"media": []}),
        ("media", {"media": [PICTURE, None]}),
        ("mask", {"mask": [True]}),
        ("mask", {"mask": [1, 0]}),
        ("prefer", {"prefer": [[NAN, 1]]}),
        ("prefer", {"prefer": [[NAN, 1, 0], [0, NAN, 1]]}),
        ("prefer", {"prefer": [[NAN, 1.5], [-0.5, NAN]]}),
        ("prefer", {"prefer": [[NAN, 1], [1, NAN]]}),
        ("prefer", {"prefer": [[NAN, 1], [NAN, NAN]]}),
        ("prefer", {"prefer": [[NAN, NAN], [1, NAN]]}),
        ("prefer", {"prefer": [[1, 1], [0, NAN]]}),
        ("prefer", {"prefer": [[NAN, "A"], ["B", NAN]]}),
        ("prefer", {"prefer": [1, 0]}),
        ("prefer", {"mask": [True, False]}),
        ("votes", {"votes": [[0, 2], [1, 0]]}),
        ("aspects", {"aspects": [Aspect("TA", [[NAN, 1], [1, NAN]])]}),
        ("aspects", {"aspects": [Aspect("TA", [[NAN, 1], [0, NAN]], [[0, -1], [-1, 0]])]}),
        ("aspects", {"aspects": [Aspect("TA", [[NAN, 1], [0, NAN]])] * 2}),
        ("aspects", {"aspects": [Aspect("overall", [[NAN, 1], [0, NAN]])]}),
        ("votes", {"votes": [[0, -1], [-1, 0]]}),
        ("scores", {"scores": [[1.0], [2.0]]}),
        ("dimensions", {"dimensions": ["a", "a"]}),
        ("weight", {"weight": -1.0}),
        ("weight", {"weight": NAN}),
        ("weight", {"weight": "1"}),
        ("sources", {"sources": ["sdxl"]}),
        ("sources", {"sources": ["sdxl", None]}),
        ("seeds", {"seeds": [1.5, 2]}),
        ("seeds", {"seeds": [-1, 2]}),
        ("seeds", {"seeds": [True, 2]}),
    ],
)
def test_wrong_rows_are_refused(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError) as caught:
        row(where="part-00003.parquet row 7", **changes)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"part-00003.parquet row 7: field `{field}`")


def test_media_hold_bytes_or_a_path() -> None:
    assert Medium("image/png", path="a.png").bytes is None
    for wrong in (
        {"type": "image/png"},
        {"type": "image/png", "bytes": b"", "path": "a"},
        {"type": "png", "path": "a"},
    ):
        with pytest.raises(RecordError, match="media"):
            Medium(**wrong)
    assert "secret" not in repr(Medium("image/png", b"secret"))


def test_facts() -> None:
    Sample("s1", "a red star", PICTURE, "world:shapes", now(), 7)
    Score("s1", "style", NAN, "oracle", TIME)
    Vote("v1", "s1", "s2", "both_bad", "ada", TIME)
    for field, make in {
        "time": lambda: Score("s1", "style", 1.0, "oracle", "yesterday"),
        "source": lambda: Sample("s1", "", PICTURE, "", TIME),
        "choice": lambda: Vote("v1", "s1", "s2", "left", "ada", TIME),  # type: ignore[arg-type]
        "b": lambda: Vote("v1", "s1", "s1", "a", "ada", TIME),
        "id": lambda: Vote("", "s1", "s2", "a", "ada", TIME),
    }.items():
        with pytest.raises(RecordError) as caught:
            make()
        assert caught.value.field == field
    with pytest.raises(RecordError, match="offset"):
        Vote("v1", "s1", "s2", "a", "ada", "2026-01-31T12:00:00")


def test_no_torch_on_the_lowest_floor() -> None:
    code = "import sys, palate.records, palate.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_judgements_and_what_is_shown() -> None:
    assert Ranking("r", [["x"], ["y", "z"]], "ada", TIME).groups == (("x",), ("y", "z"))  # type: ignore[arg-type]
    Comparison("c", "p", ("x", "y"), 3, expected="x")
    for field, make in {
        "groups": lambda: Ranking("r", (("x", "y"), ("x",)), "ada", TIME),
        "shown": lambda: Ranking("r", (("x",), ("y",)), "ada", TIME, shown=("x", "z")),
        "seconds": lambda: Ranking("r", (("x",), ("y",)), "ada", TIME, seconds=-1.0),
        "left": lambda: Vote("v", "x", "y", "a", "ada", TIME, left="z"),
        "of": lambda: Retraction("r", "", "ada", TIME),
        "samples": lambda: Comparison("c", "p", ("x",), 3),
        "wanted": lambda: Comparison("c", "p", ("x", "y"), 0),
        "expected": lambda: Comparison("c", "p", ("x", "y"), 3, expected="z"),
    }.items():
        with pytest.raises(RecordError) as caught:
            make()
        assert caught.value.field == field
    with pytest.raises(RecordError, match="in each group"):
        Ranking("r", (("x", "y"), ()), "ada", TIME)
