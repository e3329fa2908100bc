"""`palate compare` on tiny pipeline folders: judged, told, shown, resumed, refused; and the verdict's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from palate import kinds
from palate.config import EvaluationSettings
from palate.doors import comparing, judging, polling
from palate.evaluation import people, verdict
from palate.evaluation.compare import Arm
from palate.project import ProjectSettings, create
from palate.prompts import Prompt
from palate.records import Comparison, Sample, Vote, now
from palate.scorers import http, pickscore
from palate.store import Amendment, Store
from tests import zoo


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


@pytest.fixture
def comparison(tmp_path, model):
    """Compares the model with itself on two captions of the world."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle on white\na small blue star on grey\n")
    keep = {"prompts": prompts, "scorers": ["jpeg_size"], "n": 2, "seed": 0, "num_inference_steps": 2}

    def compare(**changes) -> dict:
        folder = comparing.compare([str(model), str(model)], **{"out": tmp_path / "same", **keep, **changes})
        return json.loads((folder / "result.json").read_text())

    return compare


def test_a_model_ties_with_itself(comparison, capsys):
    result = comparison()
    assert result["win_rate"] == 0.5 and result["ties"] == 1.0 and result["prompts_judged"] == 2
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("jpeg_size"))
    assert row.split() == ["jpeg_size", "50.0%", "9.5%", "to", "90.5%", "100%", "1.000", "4"]  # Wilson's of 2 prompts


def test_scores_of_several_kinds_are_not_added_up_unasked(comparison, tmp_path, capsys):
    result = comparison(scorers=["jpeg_size", "world:shapes"])
    names = ["jpeg_size", "alignment", "wholeness", "safety", "style"]
    assert "win_rate" not in result and list(result["dimensions"]) == list(result["wins"]) == names
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "100%" in line]
    assert [line[0] for line in lines] == names
    assert "alignment" in (tmp_path / "same" / "report.html").read_text()


def test_scores_are_added_up_by_the_weights_asked_for(comparison, capsys):
    result = comparison(scorers=["jpeg_size=-0.1", "world:shapes/safety=1"])
    assert result["win_rate"] == 0.5 and list(result["wins"]) == ["reward"]
    assert list(result["dimensions"]) == ["reward", "jpeg_size", "safety"]
    assert "-0.1 x jpeg_size + 1 x world:shapes/safety" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scorers", "said"),
    [
        (["jpeg_size=1", "world:shapes"], "give each scorer a weight or none"),
        (["jpeg_size=much"], "'much' is not a number"),
        (["jpeg_size=nan"], "'nan' is not a number"),
        (["jpeg_size", "jpeg_size"], "jpeg_size is given twice"),
    ],
)
def test_weights_that_cannot_be_are_refused(comparison, scorers, said):
    with pytest.raises(ValueError, match=said):
        comparison(scorers=scorers)


def test_a_comparison_is_not_written_over(comparison, tmp_path, capsys, monkeypatch):
    first = comparison()
    said = capsys.readouterr().out
    monkeypatch.setattr(comparing.lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    assert comparison(batch_size=3) == first  # speed only
    assert said.splitlines()[-1] in (again := capsys.readouterr().out) and "is finished" in again
    with pytest.raises(ValueError, match=r"same holds other comparisons: seed: 0 -> 1; choose another --out"):
        comparison(seed=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run holds another result; choose another --out"):
        comparison(out=tmp_path / "run")


def test_prompts_that_cannot_be_judged_are_found_before_a_model_is_loaded(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing.lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    free = tmp_path / "free.txt"
    free.write_text("a cat\n")
    with pytest.raises(ValueError, match=r"world:shapes cannot judge .*'a cat'"):
        comparison(prompts=free, scorers=["world:shapes/alignment"])
    prompts = tmp_path / "prompts.txt"
    with pytest.raises(OSError, match=r"absent: no such folder"):
        comparing.compare(["world:shapes", str(tmp_path / "absent")], prompts=prompts, scorers=["jpeg_size"], n=1,
                          out=tmp_path / "same", seed=0)  # fmt: skip
    assert not (tmp_path / "same" / comparing.COMPARISON).exists()


def test_several_models_a_held_out_judge_and_what_was_trained_on(comparison, model, tmp_path, capsys):
    """Three models: the tiny one, one of other weights, and a run that was rewarded by a judge."""
    pipeline = zoo.build("sd15")
    torch.manual_seed(1)
    for weight in pipeline.unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    other = tmp_path / "other"
    pipeline.save_pretrained(other)
    run = tmp_path / "trained"
    pipeline.save_pretrained(run / "model")
    recipe = {"model": {"name": str(model)}, "rollout": {"scorers": {"world:shapes/style": 1, "jpeg_size": 2}}}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(
        "prompt,category\na large red circle on white,one\na small blue star on grey,one\n"
        "a small red circle left of a large blue star on white,two\n"
    )
    models = [str(model), str(other), str(run)]
    out = comparing.compare(
        models, prompts=prompts, scorers=["world:shapes"], held_out=["jpeg_size"], n=2, out=tmp_path / "three",
        seed=0, num_inference_steps=2,
    )  # fmt: skip
    facts = json.loads((out / "result.json").read_text())
    roles = {judge["name"]: judge["role"] for judge in facts["judges"]}
    assert roles["style"] == roles["jpeg_size"] == "training reward" and roles["alignment"] == "judge"
    assert "trained on jpeg_size, which is therefore no judge held out" in facts["warnings"][0]
    of_size = [(v["a"], v["b"]) for v in facts["verdicts"] if v["judge"] == "jpeg_size"]
    assert of_size == [(models[0], models[1]), (models[0], models[2]), (models[1], models[2])]
    same = [v for v in facts["verdicts"] if (v["a"], v["b"]) == (models[1], models[2])]
    assert all(v["rate"] == 0.5 and v["ties"] == 1 for v in same)  # other and run are the same weights
    assert [s["model"] for s in facts["strengths"]["jpeg_size"]] == models
    assert {c["category"] for c in facts["categories"]} == {"one", "two"}
    assert len(facts["shown"]) == 3 and all((out / "samples" / f).is_file() for s in facts["shown"] for f in s["files"])
    assert [entry["model"] for entry in facts["against_first"]] == models[1:]
    assert facts["against_first"][0]["guard"] is None and facts["against_first"][1]["guard"] is not None
    assert facts["against_first"][0]["diversity"]["ratio"] > 0 and facts["against_first"][0]["best_of_n"]["jpeg_size"]
    said = capsys.readouterr().out
    assert "warning: " in said and "jpeg_size (training reward)" in said
    with pytest.raises(ValueError, match="two models or more, each once"):
        comparing.compare([models[0]], prompts=prompts, scorers=["jpeg_size"], n=1, out=out, seed=0)


@pytest.mark.parametrize(
    ("scorers", "held_out", "says"),
    [
        (["jpeg_size"], ["jpeg_size"], "given as --scorer and as --held-out-scorer"),
        (["world:shapes"], ["jpeg_size=2"], "no weights"),
    ],
)
def test_judges_that_cannot_be_held_out(scorers, held_out, says):
    with pytest.raises(ValueError, match=says):
        comparing.Judges(scorers, held_out)


class Groupwise:
    """Says only which candidates of a call are better."""

    groupwise, golden, dimensions = True, None, ("share",)

    def __call__(self, prompts, media):
        raise AssertionError("asked")


class Both:
    """Calls one of its scores as the weighted sum is called, and knows nothing by another."""

    golden, dimensions = None, ("reward", "mute")

    def __call__(self, prompts, media):
        return {"reward": np.arange(len(media), dtype=float), "mute": np.full(len(media), np.nan)}


groupwise, both = Groupwise(), Both()


def test_a_judge_that_compares_within_a_call_is_refused_before_any_sampling(comparison, monkeypatch):
    monkeypatch.setattr(comparing.lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"groupwise scores candidates of one call .*dataset synthesize"):
        comparison(scorers=[f"{__name__}:groupwise"])
    wanted = EvaluationSettings(prompts=["a"], scorers={f"{__name__}:groupwise": 1.0})
    for refused in (
        lambda: judging.check(wanted, None, []),
        lambda: judging.judge(None, "m", wanted, None, []),
        lambda: judging.watch(None, "m", wanted, None),
    ):
        with pytest.raises(ValueError, match="each model is scored by itself"):
            refused()


def test_a_judge_behind_an_address_says_that_it_compares_within_a_call():
    class Service:
        name = "the scorer"

        def __init__(self, **said):
            self.said = {"protocol": http.PROTOCOL, "fingerprint": "f", "dimensions": ["d"], **said}

        def call(self, method, path):
            return self.said

    assert http.HttpScorer(Service(groupwise=True)).groupwise
    assert not http.HttpScorer(Service()).groupwise  # a server that says nothing of it


def test_a_judge_is_one_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    same = [
        ("pickscore", f"pickscore:{pickscore.MODEL}"),
        ("pickscore:weights", f"pickscore:{tmp_path}/weights,dtype:bfloat16"),
        ("implicit:weights", f"implicit:{tmp_path}/weights"),
        ("http:127.0.0.1:8765", "http:http://127.0.0.1:8765/#1f2e3d4c"),
    ]
    assert all(judging.identity(one) == judging.identity(other) for one, other in same)
    assert (
        len({judging.identity(name) for name in ("pickscore", "pickscore:weights", "clip_score", "world:shapes")}) == 4
    )
    assert judging.among(("pickscore", "pickscore"), [(f"pickscore:{pickscore.MODEL}", "")])
    with pytest.raises(ValueError, match="given as --scorer and as --held-out-scorer"):
        comparing.Judges(["world:shapes/style"], ["world:shapes"])
    comparing.Judges(["world:shapes"], ["world:shapes/style"])  # all but one


def test_a_guard_that_stops_needs_a_score_held_out_however_judges_are_written():
    def asked(*scorers):
        return EvaluationSettings(prompts=["world:shapes:eval"], scorers=dict.fromkeys(scorers, 1.0), guard="stop")

    with pytest.raises(ValueError, match="all of world:shapes/style is trained on"):
        judging.watch(None, "m", asked("world:shapes/style"), None, rewards=["world:shapes"])
    parts = [f"world:shapes/{name}" for name in ("alignment", "wholeness", "safety", "style")]
    with pytest.raises(ValueError, match="trained on: add another"):
        judging.check(asked("world:shapes"), None, parts)
    assert judging._held_out(["world:shapes"], parts[:3]) and judging._held_out(["jpeg_size"], parts)


def test_a_score_called_reward_is_not_the_sum(comparison):
    result = comparison(scorers=[f"{__name__}:both/reward=2", "jpeg_size=1"])
    assert list(result["dimensions"]) == ["reward", f"{__name__}:both.reward", "jpeg_size"]
    of = {name: entry["a"]["mean"] for name, entry in result["dimensions"].items()}
    assert of["reward"] == pytest.approx(of[f"{__name__}:both.reward"] + of["jpeg_size"])


def test_a_judge_that_knows_nothing_of_a_model_loses_no_comparison(comparison, tmp_path):
    result = comparison(scorers=[f"{__name__}:both/mute", "jpeg_size"])
    assert result["means"]["mute"] == [None, None] and len(result["means"]["jpeg_size"]) == 2
    assert list(result["wins"]) == list(result["dimensions"]) == ["jpeg_size"] and result["win_rate"] == 0.5
    assert all("mute could judge nothing that" in warning for warning in result["warnings"])
    assert "ute could judge nothing" in (tmp_path / "same" / "report.html").read_text()
    nothing = comparison(scorers=[f"{__name__}:both/mute=1", "jpeg_size=1"], out=tmp_path / "summed")
    assert nothing["means"]["reward"] == [None, None] and nothing["verdicts"] == []


def test_one_model_is_held_at_a_time(comparison, monkeypatch):
    import gc
    import weakref

    held, load = [], comparing.lookup.load_arm

    def loaded(model, call):
        gc.collect()
        assert not [reference for reference in held if reference() is not None]
        policy = load(model, call)
        held.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(comparing.lookup, "load_arm", loaded)
    comparison(n=1)
    assert len(held) == 2


# --- by people --------------------------------------------------------------------------------------------------------


def test_people_judge_in_a_project_and_the_same_command_counts(model, tmp_path, capsys):
    """Five raters prefer the other model's picture, but for one who ties throughout; one pair is skipped by one."""
    pipeline = zoo.build("sd15")
    torch.manual_seed(2)
    for weight in pipeline.unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    other = tmp_path / "other"
    pipeline.save_pretrained(other)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na blue dog\na green hat\n")
    models, project = [str(model), str(other)], tmp_path / "project"

    def again():
        how = {"n": 1, "seed": 0, "num_inference_steps": 2}
        out = polling.compare(models, prompts=prompts, project=project, out=tmp_path / "out", **how)
        return json.loads((out / "result.json").read_text())

    facts = again()
    assert facts["verdicts"] == [] and facts["people"]["wanted"] == 15
    assert "0 of 15 votes wanted" in capsys.readouterr().out
    with Store.open(project) as store:
        held = list(store.comparisons())
        assert [c.wanted for c in held] == [5] * 3 and not any(name in str(held) for name in models)
        crowd = [store.add_rater(f"rater {i}")[0] for i in range(6)]
        for person in crowd:
            while leases := store.lease(person, n=1):
                left = leases[0].samples[0].source == models[1]
                choice = "tie" if person == crowd[0] else "left" if left else "right"
                if person == crowd[1] and leases[0].comparison.id == held[0].id:
                    choice = "skip"
                store.answer(person, leases[0].id, f"{person}/{leases[0].id}", {"overall": choice}, seconds=2.0)
    facts = again()
    (verdict_of,) = facts["verdicts"]
    assert verdict_of["rate"] == 1.0 and verdict_of["n"] == 3 and verdict_of["b"] == models[1]
    (single,) = facts["people"]["each_vote"]
    assert single["rate"] == pytest.approx((12 + 1.5) / 15) and single["n"] == 15
    assert facts["people"]["votes"] == 15 and len(facts["people"]["raters"]) == 6
    said = capsys.readouterr().out
    assert "each vote by itself, people" in said and "15 of 15 votes" in said
    html = (tmp_path / "out" / "report.html").read_text()
    assert "The people" in html and html.count("data:image/png") == 6
    with Store.open(project) as store:  # what tests raters says nothing of models any more
        store.amend([Amendment(held[0].id, expected=held[0].samples[1])], "me")
    facts = again()
    assert facts["verdicts"][0]["n"] == 2 and facts["people"]["wanted"] == 10
    assert sum(rater["known"]["n"] for rater in facts["people"]["raters"]) == 5  # one skipped it; in no order of theirs


def judged_by_people(folder, kind, seconds=(2.0, 2.0, 0.1)):
    """What is counted where three people like the second of two models better, but for one who ties on the first of 12
    pairs; the third is quick. The last pair becomes a known one. No question is `overall`."""
    rows, models, batch = [Prompt(f"prompt {n}") for n in range(12)], ["base", "tuned"], "compare-x"
    create(folder, ProjectSettings(kind=kind, questions={"VQ": "Which looks better?", "MQ": "Which moves better?"}))
    shown = polling._shown(models, rows, 1, batch)
    with Store.open(folder) as store:
        store.add_samples(
            [
                Sample(polling._id(batch, i, r, 0), row.text, kinds.written(Image.new("RGB", (8, 8), (r, i, 0))), model,
                       now(), 0)
                for r, row in enumerate(rows) for i, model in enumerate(models)
            ],
            batch=batch,
        )  # fmt: skip
        polling._ask(store, shown, batch, 3)
        for number, pace in enumerate(seconds):
            person = store.add_rater(f"rater {number}")[0]
            while leases := store.lease(person, n=1):
                left = leases[0].samples[0].source == "tuned"
                said = "left" if left else "right"
                order = [[0], [1]] if left else [[1], [0]]
                if number == 0 and leases[0].comparison.prompt == "prompt 0":
                    said, order = "tie", [[0, 1]]
                answer = dict.fromkeys(("VQ", "MQ"), said if kind == "pair" else order)
                store.answer(person, leases[0].id, leases[0].id, answer, seconds=pace)
        test = next(comparison for comparison in store.comparisons() if comparison.prompt == "prompt 11")
        store.amend([Amendment(test.id, expected=shown[11].samples[1], dimension="VQ")], "me")
    with Store.open(folder, write=False) as store:
        return polling._counted(store, models, rows, shown, batch, 1, folder / "out")


@pytest.mark.parametrize("kind", ["pair", "ranking"])
def test_what_people_said_is_counted_whatever_the_questions_and_the_kind(kind, tmp_path):
    facts = judged_by_people(tmp_path / "project", kind)
    people_said = facts["people"]
    assert facts["warnings"] == [] and [judge["name"] for judge in facts["judges"]] == ["people: VQ", "people: MQ"]
    assert [(v["b"], v["rate"], v["n"]) for v in facts["verdicts"]] == [("tuned", 1.0, 11)] * 2
    assert (people_said["votes"], people_said["wanted"], people_said["pairs"]) == (33, 33, 11)
    assert [(of["n"], of["raters"]) for of in people_said["each_vote"]] == [(33, 3)] * 2
    assert [of["rate"] for of in people_said["each_vote"]] == [pytest.approx(32.5 / 33)] * 2
    assert list(people_said["alphas"]) == ["VQ", "MQ"]
    assert people_said["alphas"]["VQ"]["ratings"] == 33 and 0.8 < people_said["alphas"]["VQ"]["alpha"] < 1
    assert [rater["known"]["k"] for rater in people_said["raters"]] == [1, 1, 1]
    assert [rater["votes"] for rater in people_said["raters"]] == [12, 12, 12]
    assert sum("too fast" in " ".join(rater["flags"]) for rater in people_said["raters"]) == 1


def test_votes_that_bring_a_pair_no_nearer_are_no_progress():
    def vote(number, who, choice="a", **more):
        time = "2026-11-21T10:00:00+00:00"
        return Vote(str(number), "a", "b", choice, who, time, **{"comparison": "c", **more})

    asked = [Comparison("c", "p", ("a", "b"), 2), Comparison("d", "p", ("a", "b"), 2)]
    votes = [vote(1, "x"), vote(2, "x", dimension="motion"), vote(3, "x", repeat=True), vote(4, "y", "skip")]
    assert polling._given(asked, votes) == {"c": 1}
    assert polling._given(asked, [*votes, *(vote(who, who) for who in "yz")]) == {"c": 2}


def test_a_model_that_is_not_there_leaves_no_trace_of_a_comparison(model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    with pytest.raises(OSError, match="no such folder"):
        polling.compare([str(model), str(tmp_path / "absent")], prompts=prompts, project=tmp_path / "project", n=1,
                        out=tmp_path / "out", seed=0)  # fmt: skip
    assert not (tmp_path / "out" / comparing.COMPARISON).exists() and not (tmp_path / "project").exists()


def test_majorities_and_single_votes_by_hand():
    time = "2026-11-21T10:00:00+00:00"
    shown = [people.Shown(0, 1, (f"a{k}", f"b{k}"), f"p{k}") for k in range(4)]

    def vote(k, who, choice, turned=False, **more):
        a, b = (f"b{k}", f"a{k}") if turned else (f"a{k}", f"b{k}")
        return Vote(f"{k}{who}{len(more)}", a, b, choice, who, time, **more)

    votes = [
        vote(0, "x", "b"), vote(0, "y", "a", turned=True), vote(0, "z", "a"),  # two of three for b
        vote(1, "x", "tie"), vote(1, "y", "a"), vote(1, "z", "b", turned=True),  # for a
        vote(2, "x", "a"), vote(2, "y", "b"), vote(2, "z", "tie"),  # neither has more
        vote(3, "x", "both_bad"), vote(3, "y", "skip"),  # compared by nobody
        vote(0, "x", "a", repeat=True), vote(0, "y", "a", dimension="motion"),
    ]  # fmt: skip
    found = people.majorities(shown, votes)[0, 1]
    np.testing.assert_equal(found.won, [1, 0, 0.5, np.nan])
    (single,) = people.each_vote(shown, votes, ["base", "tuned"])
    assert (single["n"], single["raters"], single["b"]) == (9, 3, "tuned")
    assert single["rate"] == pytest.approx((2 + 0.5 + 0 + 1.5) / 9)


# --- the numbers ------------------------------------------------------------------------------------------------------


def arm(scores, prompts, shade):
    rng = np.random.default_rng(shade)
    media = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in prompts]
    return Arm(list(prompts), media, {name: np.asarray(values, float) for name, values in scores.items()})


def test_the_numbers_of_a_verdict():
    prompts = [f"p{i // 2}" for i in range(24)]
    base, better = np.zeros(24), np.ones(24)
    better[:2] = -1
    arms = [arm({"x": base}, prompts, 0), arm({"x": better}, prompts, 1), arm({"x": better + 1}, prompts, 2)]
    judged = verdict.by_scores(arms, ["x"], ["odd" if i % 4 < 2 else "even" for i in range(24)])
    found = verdict.numbers(["a", "b", "c"], judged, {})
    rates = {(v["a"], v["b"]): v["rate"] for v in found["verdicts"]}
    assert rates == {("a", "b"): 22 / 24, ("a", "c"): 23 / 24, ("b", "c"): 1.0}
    assert all(v["p_holm"] >= v["p"] for v in found["verdicts"])
    order = [s["strength"] for s in found["strengths"]["x"]]
    assert order == sorted(order) and order[0] == 0
    assert [(c["b"], c["category"], c["rate"]) for c in found["categories"][:2]] == [
        ("b", "odd", pytest.approx(10 / 12)),
        ("b", "even", 1.0),
    ]
    assert "strengths" not in verdict.numbers(["a", "b"], {"x": {(0, 1): judged["x"][0, 1]}}, {})


def test_the_guard_and_the_rest_beside_winning():
    prompts = [f"p{i // 2}" for i in range(40)]
    rng = np.random.default_rng(0)
    base = arm({"reward": rng.normal(0, 0.1, 40), "taste": rng.normal(0, 0.1, 40)}, prompts, 0)
    hacked = arm({"reward": base.scores["reward"] + 1, "taste": base.scores["taste"] - 1}, prompts, 1)
    hacked.media[:] = [hacked.media[0]] * 40
    (entry,) = verdict.beside(["a", "b"], [base, hacked], {"b": {"reward": "training reward"}})["against_first"]
    assert entry["guard"]["alarm"] and entry["guard"]["fallen"] == ("taste", "diversity")
    assert entry["diversity"]["ratio"] == 0 and entry["best_of_n"]["reward"]["wins"] == 1.0
    (entry,) = verdict.beside(["a", "b"], [base, hacked], {}, embed=None)["against_first"]
    assert entry["guard"] is None and "diversity" not in entry
    sounds = [Arm(prompts, [np.zeros(4)] * 40, each.scores) for each in (base, hacked)]
    assert "diversity" not in verdict.beside(["a", "b"], sounds, {})["against_first"][0]
