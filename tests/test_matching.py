"""Which kinds of media models make and scorers judge, before any weights are looked at."""

from __future__ import annotations

import json

import pytest
import yaml

from palate.config import ConfigError
from palate.doors import lookup, matching

WEIGHTLESS = {"video": "WanPipeline", "sound": "StableAudioPipeline", "picture": "StableDiffusionPipeline"}


@pytest.fixture
def models(tmp_path):
    """Folders of pipelines without any weights, and a run's."""
    for name, kind in WEIGHTLESS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model": {"name": str(tmp_path / "video")}}))
    return {name: str(tmp_path / name) for name in (*WEIGHTLESS, "run")}


class Sharp:
    judges = ("videos",)


def anything(prompts, media): ...


def test_what_models_make(models):
    made = {name: matching.made_by(model) for name, model in models.items()}
    assert made == {"video": "videos", "sound": "sounds", "picture": "pictures", "run": "videos"}
    assert matching.made_by("world:shapes") == matching.made_by("world:shapes-flow") == "pictures"


def test_a_model_of_a_class_that_is_not_there_tells_nothing(models, tmp_path):
    (tmp_path / "video" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    assert matching.made_by(models["video"]) is None
    (tmp_path / "video" / "model_index.json").write_text("no json")
    assert matching.made_by(models["video"]) is None


@pytest.mark.parametrize(
    ("scorer", "kinds"),
    [
        ("jpeg_size", ("pictures",)),
        ("clap", ("sounds",)),
        ("pickscore:/nowhere,dtype:bfloat16", ("pictures", "videos")),
        ("vlm_judge", ("pictures", "videos", "texts")),
        ("world:shapes/style", ("pictures",)),
        ("tests.test_matching:anything", ()),
        ("implicit:absent", ()),
    ],
)
def test_what_scorers_judge(scorer, kinds):
    assert matching.judged_by(scorer) == kinds


def test_what_does_not_fit_is_refused_before_it_is_loaded(models, monkeypatch):
    monkeypatch.setattr(lookup, "find_scorer", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(ConfigError, match=r"clap judges sounds, and .*video makes videos: choose a scorer of videos"):
        matching.check_models(["pickscore", "clap"], [models["video"], models["run"]])
    with pytest.raises(ConfigError, match=r"pickscore judges pictures and videos, and .* sounds"):
        matching.check_models(["tests.test_matching:anything", "pickscore"], [models["sound"]])
    with pytest.raises(ConfigError, match=r"of one kind can be compared: .*video makes videos, .*sound makes sounds"):
        matching.check_models([], [models["video"], models["sound"]])
    assert matching.check_models(["pickscore", f"implicit:{models['run']}"], [models["run"]]) == "videos"
    with pytest.raises(ConfigError, match=r"implicit:.* judges videos, and .*picture makes pictures"):
        matching.check_models([f"implicit:{models['run']}"], [models["picture"]])


def test_a_server_is_asked_what_it_judges(monkeypatch):
    monkeypatch.setattr(lookup, "find_scorer", lambda name: Sharp())
    assert matching.judged_by("http:127.0.0.1:1") == ("videos",)
