"""Judges that compare the candidates of a prompt: a prompt is judged whole, in one call, or not at all."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from palate.doors import giving, judging, projects
from palate.doors.hands import KNOWN
from palate.records import Medium, Score
from palate.scorers.vlm_judge import VlmJudge
from palate.store import Store
from tests.store.make import TIME, sample


class Brightest:
    """The share of a prompt's other candidates in the call that are darker, and NaN for one that has none."""

    groupwise = True

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts, media):
        self.calls.append(list(prompts))
        light = [np.asarray(picture, float).mean() for picture in media]
        shares = []
        for i, prompt in enumerate(prompts):
            others = [light[i] > light[j] for j, other in enumerate(prompts) if other == prompt and j != i]
            shares.append(np.mean(others) if others else np.nan)
        return {"brightest": np.array(shares)}


class Sizes(Brightest):
    groupwise = False

    def __call__(self, prompts, media):
        self.calls.append(list(prompts))
        return {"size": np.arange(len(prompts), dtype=float)}


@pytest.fixture
def judge(monkeypatch) -> Brightest:
    it = Brightest()
    use(monkeypatch, it)
    return it


def use(monkeypatch, it) -> None:
    monkeypatch.setattr(projects.lookup, "find_scorer", lambda name: it)
    monkeypatch.setattr(projects.matching, "judged_by", lambda name: ())


def add(folder: Path, *prompts: str, first: int = 0, **changes) -> None:
    """Samples of these prompts, each brighter than those before."""
    with Store.open(folder, create=True) as store:
        store.add_samples(sample(first + i, prompt=prompt, **changes) for i, prompt in enumerate(prompts))


def scores(folder: Path) -> dict[str, float]:
    """The latest of each sample, in order of the samples."""
    with Store.open(folder, write=False) as store:
        found = {score.sample: score.value for score in store.scores(source="judge")}
    return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))


def test_a_prompt_is_never_in_two_calls(tmp_path, judge):
    add(tmp_path / "p", *["x"] * 3, *["y"] * 3, *["z"] * 3)
    projects.score(tmp_path / "p", ["judge"], batch_size=8)
    assert judge.calls == [["x"] * 3 + ["y"] * 3, ["z"] * 3]
    assert list(scores(tmp_path / "p").values()) == [0.0, 0.5, 1.0] * 3


def test_candidates_that_come_in_turn_are_brought_together(tmp_path, judge):
    add(tmp_path / "p", *["x", "y"] * 3)
    projects.score(tmp_path / "p", ["judge"], batch_size=2)  # less than a prompt has
    assert judge.calls == [["x"] * 3, ["y"] * 3]
    assert list(scores(tmp_path / "p").values()) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_a_new_candidate_is_compared_with_those_of_before(tmp_path, judge, capsys):
    add(tmp_path / "p", "x", "x", "y", "y")
    projects.score(tmp_path / "p", ["judge"])
    add(tmp_path / "p", "x", first=10)
    projects.score(tmp_path / "p", ["judge"])
    assert judge.calls[1:] == [["x"] * 3]  # nothing new is asked of the other prompt
    assert scores(tmp_path / "p") == {"s0": 0.0, "s1": 0.5, "s2": 0.0, "s3": 1.0, "s10": 1.0}
    assert "5 samples" in (said := capsys.readouterr().out) and "(1 new, 2 compared again)" in said
    projects.score(tmp_path / "p", ["judge"])
    assert len(judge.calls) == 2 and "5 samples" in (said := capsys.readouterr().out) and "(0 new)" in said
    with Store.open(tmp_path / "p", write=False) as store:
        assert len(list(store.scores())) == 7  # nothing is overwritten
    giving.export(tmp_path / "p", tmp_path / "data", giving.How(by="scores", dimension="brightest"))
    rows = {row.prompt: row for row in giving.parquet.read(tmp_path / "data")}
    assert rows["x"].scores == ((0.0,), (0.5,), (1.0,)) and rows["y"].scores == ((0.0,), (1.0,))


def test_a_candidate_alone_is_told_and_waits_for_another(tmp_path, judge, capsys):
    add(tmp_path / "p", "x", "x", "alone", "alone too")
    projects.score(tmp_path / "p", ["judge"])
    assert judge.calls == [["x"] * 2] and list(scores(tmp_path / "p")) == ["s0", "s1"]
    assert "2 prompts with one candidate alone are left out" in capsys.readouterr().out
    add(tmp_path / "p", "alone", first=10)
    projects.score(tmp_path / "p", ["judge"])
    assert judge.calls[1:] == [["alone"] * 2] and scores(tmp_path / "p")["s2"] == 0.0
    assert "1 prompt with one candidate alone is left out" in capsys.readouterr().out


def test_a_prompt_that_was_torn_apart_is_compared_anew(tmp_path, judge):
    """As it was once scored, by batches: two of a prompt together, and the third alone."""
    add(tmp_path / "p", "x", "x", "x", "y", "y")
    with Store.open(tmp_path / "p") as store:
        store.add_scores(Score(f"s{i}", "brightest", float(i), "judge", TIME) for i in range(2))
        store.add_scores([Score("s2", "brightest", np.nan, "judge", TIME.replace("12:", "13:"))])
    projects.score(tmp_path / "p", ["judge"])
    assert judge.calls == [["x"] * 3 + ["y"] * 2] and list(scores(tmp_path / "p").values())[:3] == [0.0, 0.5, 1.0]


def test_files_of_known_pairs_are_no_candidates(tmp_path, judge):
    add(tmp_path / "p", "x", "x", "y", "y")
    add(tmp_path / "p", "x", first=20, source=KNOWN)
    projects.score(tmp_path / "p", ["judge"])
    assert judge.calls == [["x"] * 2 + ["y"] * 2]
    projects.score(tmp_path / "p", ["judge"])
    assert len(judge.calls) == 1


def test_other_scorers_are_asked_in_order_of_arrival(tmp_path, monkeypatch, capsys):
    it = Sizes()
    use(monkeypatch, it)
    add(tmp_path / "p", "x", "y", "x", "z")
    projects.score(tmp_path / "p", ["judge"], batch_size=3)
    assert it.calls == [["x", "y", "x"], ["z"]] and "alone" not in capsys.readouterr().out
    add(tmp_path / "p", "x", first=10)
    projects.score(tmp_path / "p", ["judge"], batch_size=3)
    assert it.calls[2:] == [["x"]]


def test_media_that_a_scorer_does_not_judge_are_left_out_each_time(tmp_path, monkeypatch, capsys):
    it = Sizes()
    use(monkeypatch, it)
    monkeypatch.setattr(projects.matching, "judged_by", lambda name: ("pictures",))
    add(tmp_path / "p", "x", "x")
    add(tmp_path / "p", "x", first=10, medium=Medium("text/plain", b"a text"))
    for _ in range(2):
        projects.score(tmp_path / "p", ["judge"])
    assert it.calls == [["x", "x"]] and capsys.readouterr().out.count("1 other samples are left out") == 2


def test_calls_hold_whole_prompts_and_every_row_once():
    rng = np.random.default_rng(0)
    for _ in range(100):
        prompts, most = [str(n) for n in rng.integers(0, 6, 20)], int(rng.integers(1, 25))
        calls = list(judging.whole_prompts(prompts, most))
        assert sorted(itertools.chain(*calls)) == list(range(20))
        held = [{prompts[row] for row in call} for call in calls]
        assert sum(map(len, held)) == len(set(prompts))
        assert all(len(call) <= most or len(one) == 1 for call, one in zip(calls, held, strict=True))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("a", "4 were decided by the order alone, 0 by no answer; 100.0% of 8 answers were for the candidate shown"),
        (None, "0 were decided by the order alone, 4 by no answer"),
    ],
)
def test_a_judge_that_favours_a_place_is_told_of(tmp_path, monkeypatch, capsys, answer, told):
    class Biased(VlmJudge):
        def _ask(self, prompt, first, second):
            return answer

    it = Biased(None, "model")
    it("xx", ["a", "b"])  # in this process, before: no part of what this command asked
    use(monkeypatch, it)
    add(tmp_path / "p", "x", "x", "x", "y", "y")
    for _ in range(2):
        projects.score(tmp_path / "p", ["judge"])
    said = capsys.readouterr().out
    assert f"of 4 pairs shown both ways round {told}" in said and said.count("both ways round") == 1
