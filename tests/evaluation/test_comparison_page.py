"""A comparison's page: pictures first, then numbers; several models; loads nothing and trusts no text."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from palate.agreement import alpha, raters
from palate.doors import judging
from palate.evaluation import comparison, verdict, win_rate
from palate.evaluation.compare import Arm
from palate.evaluation.report import ReportError
from palate.records import Vote
from tests.evaluation.test_report import NASTY, Page


def arm(prompts, shift, seed):
    rng = np.random.default_rng(seed)
    media = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in prompts]
    return Arm(prompts, media, {NASTY: rng.normal(shift, 1, len(prompts)), "size": rng.normal(0, 1, len(prompts))})


def folder_of(path, models):
    """A comparison's folder of made-up arms: 20 prompts of two categories, two seeds each."""
    prompts = [f"{NASTY} {i // 2}" for i in range(40)]
    arms = [arm(prompts, shift, shift) for shift in range(len(models))]
    roles = {model: {"size": verdict.REWARD} for model in models[1:]}
    categories = [f"kind {i // 20} {NASTY}" for i in range(40)]
    judged = verdict.by_scores(arms, [NASTY, "size"], categories)
    facts = verdict.numbers(models, judged, {"size": verdict.REWARD}) | verdict.beside(models, arms, roles)
    facts |= {"title": NASTY, "models": models, "warnings": [NASTY], "data": {"prompts": NASTY, NASTY: NASTY}}
    facts |= {"sampling": {"eta": 1}, "versions": {"palate": "0"}}
    facts["judges"] = [{"name": NASTY, "role": verdict.HELD_OUT}, {"name": "size", "role": verdict.REWARD}]
    facts["means"] = {"size": [asdict(win_rate.mean(a.scores["size"], prompts)) for a in arms]}
    votes = [Vote(f"{r}{i}", f"a{i}", f"b{i}", "a", NASTY + r, "2026-11-21T10:00:00+00:00") for r in "xy" for i in "12"]
    said = alpha(votes)
    assert said is not None
    people = [asdict(r) for r in raters(votes)]
    facts["people"] = {
        "votes": 4,
        "pairs": 2,
        "raters": people,
        "each_vote": [],
        "alphas": {"overall": asdict(said), "style": None},
    }
    (path / "samples").mkdir(parents=True)
    facts["shown"] = []
    for number in range(14):
        files = [f"model_{i}_{number:03d}.png" for i in range(len(models))]
        for file, each in zip(files, arms, strict=True):
            each.media[2 * number].save(path / "samples" / file)
        facts["shown"].append({"prompt": prompts[2 * number], "category": "kind", "files": files})
    judging.write_json(path / "result.json", facts)
    return path


@pytest.mark.parametrize("models", [["base", "runs/a"], [NASTY, "runs/a", "other/a", "c", "d", "e"]])
def test_the_page_is_whole_loads_nothing_and_text_stays_text(tmp_path, models):
    folder = folder_of(tmp_path / "x", models)
    judging.write_report(folder, folder / "report.html")
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "form")]
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 14 * len(models) and all(src.startswith("data:image/") for src in pictures)
    assert "http" not in html and "url(" not in html and "onerror=alert(1)>" not in html
    assert html.index("Side by side") < html.index("Who wins") < html.index("By category")
    assert ("On one scale" in html) == (len(models) > 2)
    assert "2 more prompts" in page.text and "trained on" in page.text and "held out" in page.text
    assert "4 votes of 2 raters on 2 pairs" in page.text
    assert page.text.count("guard against reward hacking:") + page.text.count("Guard:") == len(models) - 1


def test_only_what_holds_among_all_comparisons_is_coloured():
    entry = {"a": "x", "b": "y", "ci95": [0.55, 0.9], "ties": 0.0}
    tones = [comparison._told(entry | {"p_holm": p}, {"x": "x", "y": "y"})["tone"] for p in (0.01, 0.2, None)]
    assert tones == ["better", "open", "open"]


def test_names_are_as_short_as_they_may_be():
    assert comparison.short_names(["a/x", "b/y"]) == ["x", "y"]
    assert comparison.short_names(["a/x", "b/x", "z"]) == ["a/x", "b/x", "z"]
    assert comparison.short_names(["m", "m"]) == ["m (1)", "m (2)"]


def test_a_folder_of_another_version_or_outside_pictures_is_refused(tmp_path):
    folder = folder_of(tmp_path / "x", ["a", "b"])
    facts = json.loads((folder / "result.json").read_text())
    facts["shown"][0]["files"][0] = "../../secret.png"
    (folder / "result.json").write_text(json.dumps(facts))
    with pytest.raises(ReportError, match=r"samples/secret\.png"):
        comparison.write(folder, folder / "report.html")
    (folder / "result.json").write_text(json.dumps({"verdicts": [{}], "models": ["a"]}))
    with pytest.raises(ReportError, match="not of this version"):
        comparison.write(folder, folder / "report.html")
