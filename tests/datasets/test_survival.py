"""Whatever a format says survives import into Palate's own; merging and masking say no more and no less."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate import datasets, views
from palate.doors import data
from palate.media import medium_bytes
from palate.records import Aspect, Medium, Preference
from tests.datasets.make import NAN, known, png
from tests.datasets.test_page import lay_out


def said(row: Preference, root=None) -> str:
    """All of a row but where it stood and its id, media by content; as text, since NaN is not itself."""
    fields = asdict(row)
    fields["media"] = [m and (m.type, medium_bytes(m, root)) for m in row.media]
    return repr({name: value for name, value in fields.items() if name not in ("where", "id")})


FOREIGN = {
    "pickapic": "pickapic",
    "hpdv2": "hpdv2",
    "hpdv3/train.json": "hpdv3",
    "imagereward/train_1": "imagerewarddb",
    "d3po": "d3po_json",
    "folders": "folders",
    "suffixes": "folders",
    "table/votes.csv": "table",
    "videogen": "videogen_rewardbench",
    "trl": "trl",
}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    lay_out(folder)
    return folder


@pytest.mark.parametrize(("path", "format"), FOREIGN.items(), ids=list(FOREIGN))
def test_import_keeps_all_that_a_format_says(laid_out, tmp_path, path, format):
    reader = datasets.open(laid_out / path)
    given = [said(row, reader.root) for row in reader]
    assert reader.format == format and given and not reader.flaws.total
    data.convert(str(laid_out / path), tmp_path / "own")
    assert [said(row) for row in datasets.open(tmp_path / "own")] == given


@st.composite
def preferences(draw) -> Preference:
    k = draw(st.integers(1, 4))
    mask = [True, *draw(st.lists(st.booleans(), min_size=k - 1, max_size=k - 1))]

    def judged():
        prefer = [[NAN] * k for _ in range(k)]
        votes = [[0.0] * k for _ in range(k)]
        for i in range(k):
            for j in range(i):
                p = draw(st.sampled_from([NAN, 0.0, 0.5, 1.0]) | st.floats(0, 1))
                if mask[i] and mask[j] and not math.isnan(p):
                    prefer[i][j], prefer[j][i] = p, 1 - p
                    votes[i][j] = votes[j][i] = float(draw(st.integers(1, 9)))
        return prefer, votes

    prefer, votes = judged()
    numbers = st.floats(allow_nan=True, allow_infinity=False, width=32)
    return Preference(
        draw(st.text(max_size=8)),
        tuple(png(draw(st.integers(0, 9))) if there else None for there in mask),
        prefer,
        mask=mask,
        votes=votes,
        scores=draw(st.lists(st.tuples(numbers, numbers), min_size=k, max_size=k)),
        dimensions=("style", "match"),
        weight=draw(st.floats(0, 9)),
        sources=draw(st.lists(st.sampled_from(["", "sdxl", "ü"]), min_size=k, max_size=k)),
        seeds=draw(st.lists(st.none() | st.integers(0, 2**63 - 1), min_size=k, max_size=k)),
        aspects=tuple(Aspect(name, *judged()) for name in draw(st.sets(st.sampled_from(["TA", "VQ"])))),
    )


@settings(max_examples=25, deadline=None, database=None)
@given(st.lists(preferences(), min_size=1, max_size=5))
def test_our_own_format_keeps_everything(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("own")
    datasets.write(folder, rows, "parquet")
    again = list(datasets.open(folder))
    assert [said(row) for row in again] == [said(row) for row in rows]
    assert [row.id for row in again] == [row.id for row in rows]


def pair(prompt: str, a: int, b: int, p: float, votes: float = 1.0, **more) -> Preference:
    judged = {"prefer": [[NAN, p], [1 - p, NAN]], "votes": [[0, votes], [votes, 0]]}
    return Preference(prompt, (png(a), png(b)), **{**judged, **more})


def test_pairs_of_a_prompt_become_one_row():
    aspect = [Aspect("TA", [[NAN, 1], [0, NAN]], [[0, 2], [2, 0]])]
    rows = [
        pair("p", 0, 1, 1.0, sources=("x", "y"), seeds=(1, 2), aspects=aspect),
        pair("p", 2, 0, 0.0, 3, sources=("z", "")),
        pair("p", 1, 0, 1.0, 3),
        pair("q", 0, 1, 0.5),
        pair("q", 0, 1, 0.5, weight=2.0),
        pair("p", 4, 5, 1.0),
    ]
    made = list(views.merged(rows))
    assert [(row.prompt, len(row)) for row in made] == [("p", 3), ("q", 2), ("q", 2), ("p", 2)]
    assert made[0].media == (png(0), png(1), png(2)) and made[0].sources == ("x", "y", "z")
    assert known(made[0]) == {(0, 1): 0.25, (0, 2): 1.0} and made[0].votes[0] == (0, 4, 3)
    assert (
        made[0].seeds == (1, 2, None) and made[0].aspects[0].prefer[0][1] == 1 and made[0].aspects[0].votes[1][0] == 2
    )
    assert made[1] is rows[3]
    assert [len(row) for row in views.merged(rows[:3], most=4)] == [3, 2]


def test_a_picture_twice_in_a_row_is_one_candidate():
    (made,) = views.merged([pair("p", 0, 0, 1.0), pair("p", 0, 1, 1.0)])
    assert len(made) == 2 and known(made) == {(0, 1): 1.0}


def test_masked_candidates_say_nothing():
    row = Preference(
        "p",
        (png(0), png(1), png(2)),
        [[NAN, 1, 0.5], [0, NAN, 1], [0.5, 0, NAN]],
        scores=[[1], [2], [3]],
        dimensions=["s"],
        aspects=[Aspect("TA", [[NAN, 1, NAN], [0, NAN, NAN], [NAN] * 3])],
    )
    cut = views.without(row, [False, True, False])
    assert cut.mask == (True, False, True) and cut.media[1] is None and known(cut) == {(0, 2): 0.5}
    assert cut.votes[0] == (0, 0, 1) and math.isnan(cut.scores[1][0]) and cut.scores[2] == (3,)
    assert not views.says_something(views.without(pair("p", 0, 1, 1.0), [True, False]))
    scored = Preference("p", (Medium("text/plain", b"x"),), [[NAN]], scores=[[1]], dimensions=["s"])
    assert views.says_something(cut) and views.says_something(scored)
