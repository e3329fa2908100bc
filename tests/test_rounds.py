"""Rounds: draw, ask, learn, and again; stopped anywhere they go on to the same weights."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from palate.config import ConfigError, RoundsRecipe, load
from palate.doors import asking, assembly, awaited, blind, rounds
from palate.project import ProjectSettings, create
from palate.records import Comparison, Ranking, Retraction, Vote, now
from palate.store import Store
from tests import zoo

PROMPTS = ["a red cat", "a blue dog", "a green bird", "a hat", "a tree"]


def redness(prompts, media):
    """A taste: the mean of red, by which no two pictures tie."""
    return {"red": [float(np.asarray(medium)[..., 0].mean()) for medium in media]}


def flat(prompts, media):
    return {"flat": [0.0] * len(media)}


flat.golden = None  # no taste at all, on purpose


class Stopped(Exception):
    """Someone pulled the plug."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


def recipe(place: Path, model: Path, method: str = "diffusion_dpo", **changes) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    about = {
        "project": str(place / "project"), "prompts": PROMPTS, "n": 2, "prompts_per_round": 3, "k": 2, "votes": 2,
        "people": "simulated", "scorers": {"tests.test_rounds:redness": 1}, "temperature": 0.1,
        "num_inference_steps": 2,
    }  # fmt: skip
    sections = {
        "model": {"name": str(model), "device": "cpu", "lora": {"rank": 2}},
        "algorithm": {"name": method},
        "rounds": about | changes,
        "training": {"max_steps": 2 if method == "diffusion_dpo" else 20, "batch_size": 4, "learning_rate": 1e-3},
        "output": str(place / "run"),
    }
    path = place / "rounds.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def weights(place: Path) -> dict[str, np.ndarray]:
    (found,) = (place / "run" / "adapter").glob("*.safetensors")
    return {name: value.numpy() for name, value in load_file(found).items()}


def batch(place: Path, part: str) -> str:
    """The name of a round's comparisons, or of the verdict's."""
    return f"{json.loads((place / 'run' / 'rounds' / 'name.json').read_text())['name']}/{part}"


def stopping_at(monkeypatch, what: str, time: int, first: bool = False):
    """Has a part of the rounds fail when it is called for the n-th time: after its work, or before."""
    owner, name = {
        "draw": (asking, "show"),
        "ask": (asking.Simulated, "__call__"),
        "learn": (assembly, "fit"),
    }[what]
    honest, calls = getattr(owner, name), []

    def failing(*args, **how):
        calls.append(1)
        if len(calls) == time and first:
            raise Stopped
        out = honest(*args, **how)
        if len(calls) == time:
            raise Stopped
        return out

    monkeypatch.setattr(owner, name, failing)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Runs that nothing stopped, by method."""
    made: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in made:
            place = tmp_path_factory.mktemp(method)
            rounds.rounds(recipe(place, model, method))
            made[method] = place
        return made[method]

    return run


@pytest.mark.parametrize("method", ["diffusion_dpo", "d3po"])
@pytest.mark.parametrize(("what", "time", "first"), [("draw", 2, False), ("ask", 2, True), ("ask", 2, False)])
def test_stopped_anywhere_the_same_command_ends_with_the_same_weights(
    method, what, time, first, whole, model, tmp_path, monkeypatch
):
    path = recipe(tmp_path, model, method)
    with monkeypatch.context() as patch:
        stopping_at(patch, what, time, first)
        with pytest.raises(Stopped):
            rounds.rounds(path)
    rounds.rounds(path)
    expected, found = weights(whole(method)), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    with Store.open(tmp_path / "project", write=False) as store:
        assert len(list(store.votes())) == 2 * 3 * 2  # rounds, pairs, votes: none twice


def test_a_round_that_learnt_is_not_learnt_again(whole, model, tmp_path, monkeypatch):
    path = recipe(tmp_path, model)
    with monkeypatch.context() as patch:
        stopping_at(patch, "learn", 2, first=True)
        with pytest.raises(Stopped):
            rounds.rounds(path)
    assert (tmp_path / "run" / "rounds" / "000" / "round.json").is_file()
    rounds.rounds(path)
    found = weights(tmp_path)
    assert all(np.array_equal(value, found[name]) for name, value in weights(whole("diffusion_dpo")).items())


@pytest.mark.parametrize("method", ["diffusion_dpo", "d3po"])
def test_raters_are_told_that_more_is_to_come_until_the_last(method, model, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(rounds, "_nobody_reads", told.append)
    rounds.rounds(recipe(tmp_path, model, method, verdict=1, prompts_per_round=2))
    assert [note.partition(";")[0].partition(",")[0].partition(":")[0] for note in told] == [
        "Round 1 of 2 is being drawn", "Round 1 of 2", "Round 1 of 2 is being learnt",
        "Round 2 of 2 is being drawn", "Round 2 of 2", "Round 2 of 2 is being learnt",
        "The last pictures are being drawn", "",
    ]  # fmt: skip
    assert all(note.endswith("come by themselves. Keep this page open.") for note in told[:-1])


def test_after_the_last_round_no_more_is_promised(model, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(rounds, "_nobody_reads", told.append)
    rounds.rounds(recipe(tmp_path, model, n=1, votes=1))
    assert told[0].startswith("Round 1 of 1 is being drawn") and told[1:] == ["", ""]


def test_with_people_the_plan_and_the_link_to_open_are_told(model, tmp_path, capsys):
    """And SIGTERM ends it as Ctrl-C does."""
    wanted = load(recipe(tmp_path, model, people="studio", scorers=None, port=0, k=3, verdict=2), [], RoundsRecipe)
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt),
        Store.open(tmp_path / "project", create=True) as store,
        rounds._asker(wanted, store),
    ):
        said = capsys.readouterr().out.splitlines()
        signal.raise_signal(signal.SIGTERM)
    assert said[0] == "2 rounds of 18 votes, then 4 that judge the outcome; Ctrl-C stops, the same command goes on."
    assert "Your link: http://127.0.0.1:" in said[2] and "your link" in said[-1]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_said_is_kept_and_told(whole, capsys):
    place = whole("diffusion_dpo")
    result = json.loads((place / "run" / "result.json").read_text())
    assert (result["rounds"], result["votes"]) == (2, 12)
    assert result["trained_on"]["rows"] == 5 and result["local"] == ["model.name"]
    page = (place / "run" / "report.html").read_text()
    assert re.search(r"2 rounds, 12 votes of [2-5] people", page) and "optimiser steps" not in page
    rounds.rounds(place / "rounds.yaml")
    assert "is finished" in capsys.readouterr().out


def test_no_prompt_comes_twice_before_all_have_come(whole):
    place = whole("diffusion_dpo")
    with Store.open(place / "project", write=False) as store:
        first, second = ({c.prompt for c in store.comparisons(batch=batch(place, f"{i:03d}"))} for i in (0, 1))
    assert len(first) == len(second) == 3
    assert len(first | second) == len(PROMPTS)


def test_another_recipe_in_the_folder_is_refused(whole):
    with pytest.raises(ConfigError, match=r"begun with another recipe: rounds\.k"):
        rounds.rounds(whole("diffusion_dpo") / "rounds.yaml", ["rounds.k=3"])


def test_held_to_the_policy_that_drew_each_round_starts_anew(model, tmp_path):
    rounds.rounds(recipe(tmp_path, model, reference="previous", learn_from="last"))
    for index in ("000", "001"):
        rows = (tmp_path / "run" / "rounds" / index / "training" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[0])["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["diffusion_dpo", "d3po"])
def test_people_compare_base_and_tuned_in_the_end(method, model, tmp_path, monkeypatch):
    path = recipe(tmp_path, model, method, n=1, verdict=2)
    with monkeypatch.context() as patch:  # the power fails while they are asked: they are asked about the same pairs
        stopping_at(patch, "ask", 2, first=True)
        with pytest.raises(Stopped):
            rounds.rounds(path)
    with monkeypatch.context() as patch:
        patch.setattr(blind.sampling, "sample", lambda *a, **k: pytest.fail("drawn again"))
        rounds.rounds(path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    verdict = result["wins"]["people"]
    assert (verdict["n"], verdict["n_prompts"]) == (4, 2)  # two people on each pair
    assert len(result["pairs"]) == 2 and result["votes"] == 6  # those of the verdict are not learnt from
    with Store.open(tmp_path / "project", write=False) as store:
        verdicts = {c.id: c.prompt for c in store.comparisons(batch=batch(tmp_path, "verdict"))}
        assert not set(verdicts.values()) & {c.prompt for c in store.comparisons(batch=batch(tmp_path, "000"))}
        of = {sample.id: sample.source for sample in store.samples()}
        redder = {"a": 1.0, "b": 0.0, "tie": 0.5}
        won = [
            redder[vote.choice] if of[vote.a].endswith("tuned") else 1 - redder[vote.choice]
            for vote in store.votes()
            if vote.comparison in verdicts
        ]
    assert verdict["rate"] == pytest.approx(np.mean(won))


def test_scorers_can_vote(model, tmp_path):
    rounds.rounds(recipe(tmp_path, model, people="scorers", n=1, votes=1))
    with Store.open(tmp_path / "project", write=False) as store:
        assert {vote.source for vote in store.votes()} == {"scorers"}


def test_a_round_of_ties_teaches_nothing_and_the_next_one_comes(model, tmp_path, capsys):
    rounds.rounds(recipe(tmp_path, model, scorers={"tests.test_rounds:flat": 1}, temperature=0.0))
    assert capsys.readouterr().out.count("nothing is learnt") == 2
    assert (tmp_path / "run" / "result.json").is_file()


def all_bad(store, batch):
    """People who like nothing."""
    store.add_votes(
        Vote(f"{c.id}#me", *c.samples, "both_bad", "me", now(), awaited.question(store), comparison=c.id)
        for c, _ in awaited.missing(store, batch)
    )


def test_a_round_that_nobody_likes_teaches_nothing_and_the_next_one_comes(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "Simulated", lambda *_: all_bad)
    rounds.rounds(recipe(tmp_path, model, votes=1))
    assert capsys.readouterr().out.count("nothing is learnt") == 2


def test_the_first_question_is_learnt_and_the_others_are_kept_beside(model, tmp_path):
    questions = {"appeal": "Which is nicer?", "alignment": "Which fits?"}
    create(tmp_path / "project", ProjectSettings(questions=questions))
    rounds.rounds(recipe(tmp_path, model, n=1, votes=1, verdict=1))
    with Store.open(tmp_path / "project", write=False) as store:
        assert {vote.dimension for vote in store.votes()} == {"appeal"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["wins"]["people"]["n"] == 1


def ranks(store, batch):
    """Raters of a project of rankings: the redder picture first, as red ones in one place."""
    made = {sample.id: sample for sample in store.samples()}
    for c, _ in awaited.missing(store, batch):
        _, media = asking.kept(store, c.samples)
        red = dict(zip(c.samples, redness([made[name].prompt for name in c.samples], media)["red"], strict=True))
        order = [[name for name in c.samples if red[name] == value] for value in sorted(set(red.values()))[::-1]]
        store.add_rankings(
            Ranking(f"{c.id}#{n}", order, f"person {n}", now(), comparison=c.id) for n in range(c.wanted)
        )


@pytest.mark.parametrize("method", ["diffusion_dpo", "d3po"])
def test_rankings_teach_as_the_pairs_they_say(method, model, tmp_path, monkeypatch, capsys):
    """The same judgements as votes leave the same weights."""
    about = {"n": 1, "votes": 1, "verdict": 1}
    rounds.rounds(recipe(tmp_path / "votes", model, method, **about, people="scorers"))
    monkeypatch.setattr(asking, "Simulated", lambda *_: ranks)
    create(tmp_path / "rankings" / "project", ProjectSettings(kind="ranking"))
    rounds.rounds(recipe(tmp_path / "rankings", model, method, **about))
    assert "nothing is learnt" not in capsys.readouterr().out
    by_votes, by_rankings = (
        json.loads((tmp_path / name / "run" / "result.json").read_text()) for name in ("votes", "rankings")
    )
    assert (by_rankings["votes"], by_rankings["people"]) == (3, "1 person")
    assert by_rankings["wins"]["people"] == by_votes["wins"]["people"]
    expected, found = weights(tmp_path / "votes"), weights(tmp_path / "rankings")
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_runs_of_one_name_in_one_project_do_not_mix(model, tmp_path):
    shared = str(tmp_path / "project")
    for place in ("a", "b"):
        rounds.rounds(recipe(tmp_path / place, model, n=1, votes=1, verdict=1, project=shared))
    with Store.open(shared, write=False) as store:
        batches = {comparison.batch for comparison in store.comparisons()}
    assert len(batches) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"people": "studio"}, "scorers"),
        ({"people": "scorers"}, "scorers vote as one"),
        ({"prompts_per_round": 9}, "different prompts"),
        ({"scorers": {"jpeg_siz": 1}}, "jpeg_size"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(changes, said, model, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds.lookup, "load_policy", lambda *a: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=said):
        rounds.rounds(recipe(tmp_path, model, **changes))


def test_missing_counts_different_people_and_no_skips(tmp_path):
    from PIL import Image

    with Store.open(tmp_path / "project", create=True) as store:
        pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
        ids = asking.add(store, ["a"] * 3, pictures, "m", 0)
        assert asking.add(store, ["a"] * 3, pictures, "m", 0) == ids
        for _ in range(2):
            asking.show(store, ["a"] * 3, ids, "b", wanted=2)
        lacking = awaited.missing(store, "b")
        assert [n for _, n in lacking] == [2, 2, 2]
        comparison = lacking[0][0]
        a, b = comparison.samples

        def vote(name, choice, source):
            return Vote(name, a, b, choice, source, now(), comparison=comparison.id, left=a)

        store.add_votes([vote("1", "a", "x")])
        assert {c.id: n for c, n in awaited.missing(store, "b")}[comparison.id] == 1
        store.add_votes([vote("2", "skip", "y")])  # who skips is not asked again, and is not waited for
        assert comparison.id not in {c.id for c, _ in awaited.missing(store, "b")}
        store.add_votes([vote("3", "tie", "z")])
        shares = dict(zip(ids, asking.win_shares(store, "b", ids), strict=True))
        assert (shares[a], shares[b]) == (0.75, 0.25)
        assert sum(np.isnan(list(shares.values()))) == 1


def test_rankings_are_counted_once_as_their_pairs(tmp_path):
    """Ties within a group are ties; of another question, of repeats and of what was taken back nothing counts."""
    from PIL import Image

    create(tmp_path / "project", ProjectSettings(kind="ranking", questions={"look": "?", "fit": "?"}))
    with Store.open(tmp_path / "project") as store:
        pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
        ids = asking.add(store, ["a"] * 3, pictures, "m", 0)
        store.add_comparisons([Comparison("c", "a", tuple(ids), 4, batch="b")])

        def ranking(name, groups, source, **more):
            return Ranking(name, groups, source, now(), **({"dimension": "look", "comparison": "c"} | more))

        worst_last, worst_first = [ids[:2], ids[2:]], [[name] for name in reversed(ids)]
        store.add_rankings([
            ranking("1", worst_last, "x"),
            ranking("2", worst_first, "x", repeat=True),
            ranking("3", worst_first, "y", dimension="fit"),
            ranking("4", worst_first, "z"),
            ranking("5", worst_first, "w", comparison="of another batch"),
        ])  # fmt: skip
        store.add_retractions([Retraction("r", "4", "z", now())])
        assert awaited.lacking(store, "b") == 3
        said = {(vote.a, vote.b): share for vote, share in awaited.votes_of(store, "b")}
        assert said == {(ids[0], ids[1]): 0.5, (ids[0], ids[2]): 1.0, (ids[1], ids[2]): 1.0}
        assert asking.win_shares(store, "b", ids).tolist() == [0.75, 0.75, 0.0]
        (row,) = awaited.preferences(store, ["b"])
        assert np.asarray(row.prefer)[0].tolist()[1:] == [0.5, 1.0] and np.asarray(row.votes).sum() == 6
        assert [aspect.dimension for aspect in row.aspects] == ["fit"]


def test_a_recipe_of_rounds_is_checked(model, tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        load(recipe(tmp_path, model), ["rounds.prompts_per_rond=3"], RoundsRecipe)
