"""Videos and sounds through every command: sampled, into projects, scored, compared, by people too, learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from palate import kinds
from palate.cli import main
from palate.doors import comparing, drawing, drawn, judging, lookup, matching, polling, projects, rounds
from palate.records import Medium
from palate.store import Store
from tests.moving import FRAME_RATE, run_of
from tests.test_clips import encoded

PROMPTS = ["a red cat", "a blue dog", "a green bird"]
HOW = {"num_inference_steps": 2, "guidance_scale": 1.0}


class Loud:
    """A judge of sounds: how loud they are."""

    judges = ("sounds",)
    golden = None

    def __call__(self, prompts, media):
        assert all(sound.rate == 16_000 for sound in media)
        return {"loud": [float(np.abs(sound).mean()) for sound in media]}


class Bright:
    """A judge of videos: how bright they are."""

    judges = ("videos",)
    golden = None

    def __call__(self, prompts, media):
        assert all(isinstance(video, kinds.Video) and video.rate == FRAME_RATE for video in media)
        return {"bright": [float(np.mean([np.asarray(frame) for frame in video])) for video in media]}


def anything(prompts, media):
    return {"anything": [0.0] * len(media)}


anything.golden = None
loud, bright = Loud(), Bright()
LOUD, BRIGHT = "tests.test_moving:loud", "tests.test_moving:bright"


def run_command(arguments: list[str]) -> int:
    """A command's exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return run_of("CogVideoXPipeline", tmp_path_factory.mktemp("models") / "video", frame_rate=FRAME_RATE)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> str:
    return run_of("AudioLDM2Pipeline", tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\na blue dog\n")
    return path


def test_videos_are_written_at_their_rate(video, prompts, tmp_path, capsys):
    out = drawing.sample(video, prompts, k=2, out=tmp_path / "out", seed=0, **HOW)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["00000-0.webm", "00000-1.webm", "00001-0.webm", "00001-1.webm"]
    assert {(line["frames"], line["frame_rate"], line["width"]) for line in lines} == {(8, FRAME_RATE, 16)}
    assert "4 videos in" in capsys.readouterr().out
    how = ["--steps", "2", "--guidance", "1", "--out", str(tmp_path / "slow"), "-k", "1"]
    assert run_command(["sample", video, str(prompts), *how, "--call", "frame_rate=4"]) == 0
    line = json.loads((tmp_path / "slow" / "samples.jsonl").read_text().splitlines()[0])
    assert line["frame_rate"] == 4
    with pytest.raises(ValueError, match=r"holds other samples: call: \(absent\) -> "):
        drawing.sample(video, prompts, k=1, out=tmp_path / "out", seed=0, call={"frame_rate": 4}, **HOW)


@pytest.mark.parametrize("given", ["frames", "a b=1", "=1", "n=[1]", "n=null", "n={"])
def test_an_argument_that_is_none_is_named(given, prompts, video, capsys):
    assert run_command(["sample", video, str(prompts), "--call", given]) == 1
    assert f"--call {given}: write NAME=VALUE" in capsys.readouterr().err


def test_sounds_go_into_a_project_and_are_scored(sound, prompts, tmp_path, capsys):
    projects.sample(sound, prompts, folder=tmp_path / "p", k=2, seed=0, **HOW)
    with Store.open(tmp_path / "p") as store:
        media = [made.medium for made in store.samples()]
        assert {medium.type for medium in media} == {"audio/wav"} and len(media) == 4
        assert kinds.read(media[0], store.folder).rate == 16_000
    with pytest.raises(ValueError, match=r"pickscore judges pictures and videos, and .*p holds sounds: choose"):
        projects.score(tmp_path / "p", ["pickscore"])
    projects.score(tmp_path / "p", [LOUD], batch_size=3)
    assert "(4 new)" in capsys.readouterr().out
    with Store.open(tmp_path / "p") as store:
        assert len({score.value for score in store.scores()}) == 4


def test_videos_go_into_a_project_beside_pictures_and_are_scored(video, prompts, tmp_path, capsys):
    projects.sample(video, prompts, folder=tmp_path / "p", k=1, seed=0, **HOW)
    projects.sample("world:shapes", prompts, folder=tmp_path / "p", k=1, seed=0, num_inference_steps=1)
    projects.score(tmp_path / "p", [BRIGHT, "jpeg_size"])
    said = capsys.readouterr().out
    assert "judges videos: 2 other samples are left out" in said and "jpeg_size judges pictures: 2 other" in said
    with Store.open(tmp_path / "p") as store:
        assert {score.dimension for score in store.scores()} == {"bright", "jpeg_size"}


# --- compared ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_video(tmp_path_factory) -> str:
    return run_of("CogVideoXPipeline", tmp_path_factory.mktemp("models") / "other", seed=3, frame_rate=FRAME_RATE)


@pytest.fixture(scope="module")
def other_sound(tmp_path_factory) -> str:
    return run_of("AudioLDM2Pipeline", tmp_path_factory.mktemp("models") / "other", seed=3)


def compared(models, prompts, out, **how) -> dict:
    comparing.compare(models, prompts=prompts, n=2, out=out, seed=0, batch_size=2, **how, **HOW)
    return json.loads((out / "result.json").read_text())


def test_videos_are_compared_and_played_from_the_page(video, other_video, prompts, tmp_path):
    facts = compared([video, other_video], prompts, tmp_path / "out", scorers=[BRIGHT])
    (found,) = facts["verdicts"]
    assert found["judge"] == "bright" and found["n"] == 4
    assert facts["shown"][1]["files"] == ["base_001.webm", "tuned_001.webm"]
    assert facts["against_first"][0]["diversity"]["drift"]["mean"] > 0  # of the mean frame, as of pictures
    for path in (tmp_path / "out").rglob(drawn.SCORES):  # what was judged is what people would see, lossy as it is
        for line in map(json.loads, path.read_text().splitlines()):
            shown = [kinds.read(Medium("video/webm", path=name), path.parent) for name in line["files"]]
            assert line["scores"]["bright"] == bright([], shown)["bright"]
            found["n"] -= len(shown) / 2
    assert found["n"] == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('<video src="samples/') == 4 and 'width="16" height="16" controls loop muted' in html
    assert "<img" not in html and "Side by side" in html
    (tmp_path / "elsewhere").mkdir()
    judging.write_report(tmp_path / "out", tmp_path / "elsewhere" / "page.html")
    assert 'src="../out/samples/tuned_000.webm"' in (tmp_path / "elsewhere" / "page.html").read_text()
    (tmp_path / "out" / "samples" / "tuned_000.webm").unlink()
    with pytest.raises(ValueError, match=r"tuned_000\.webm is missing"):
        judging.write_report(tmp_path / "out", tmp_path / "again.html")


def test_sounds_are_compared_and_played_from_the_page(sound, other_sound, prompts, tmp_path):
    facts = compared([sound, other_sound], prompts, tmp_path / "out", scorers=[LOUD])
    assert facts["verdicts"][0]["judge"] == "loud" and "diversity" not in facts["against_first"][0]
    assert facts["shown"][0]["files"] == ["base_000.wav", "tuned_000.wav"]
    assert (tmp_path / "out" / "report.html").read_text().count('<audio src="samples/') == 4


def test_other_kinds_of_media_are_refused_before_anything_is_loaded(video, sound, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(lookup, "find_scorer", lambda _: pytest.fail("a scorer was loaded"))
    with pytest.raises(ValueError, match="of one kind can be compared"):
        compared([video, sound], prompts, tmp_path / "out", scorers=["pickscore"])
    with pytest.raises(ValueError, match=r"clap judges sounds, and .*video makes videos: choose"):
        compared([video, video], prompts, tmp_path / "out", scorers=["pickscore"], held_out=["clap"])
    with pytest.raises(ValueError, match="of one kind can be compared"):
        how = {"project": tmp_path / "p", "out": tmp_path / "out", "n": 1, "seed": 0}
        polling.compare([video, sound], prompts=prompts, **how)
    assert not list((tmp_path / "out").glob("*.json")) and not (tmp_path / "p").exists()


@pytest.mark.slow
def test_a_model_whose_class_does_not_tell_is_found_out_by_what_it_makes(
    video, other_video, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr(matching, "made_by", lambda _: None)
    with pytest.raises(ValueError, match=r"jpeg_size judges pictures, and .*video makes videos"):
        compared([video, other_video], prompts, tmp_path / "out", scorers=["jpeg_size"])
    with pytest.raises(ValueError, match=r"world:shapes makes pictures, and not videos"):
        compared([video, "world:shapes"], prompts, tmp_path / "two", scorers=["tests.test_moving:anything"])


def test_people_compare_videos(video, other_video, prompts, tmp_path, capsys):
    models, how = [video, other_video], {"project": tmp_path / "p", "out": tmp_path / "out", "n": 1, "seed": 0, **HOW}
    polling.compare(models, prompts=prompts, **how)
    with Store.open(tmp_path / "p") as store:
        assert {made.medium.type for made in store.samples()} == {"video/webm"}
        person, _ = store.add_rater("Ada")
        while leases := store.lease(person, n=1):
            store.answer(person, leases[0].id, leases[0].id, {"overall": "left"}, seconds=2.0)
    polling.compare(models, prompts=prompts, **how)
    assert "2 of 10 votes wanted" in capsys.readouterr().out
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('<video src="samples/model_') == 4 and "The people" in html


# --- learnt from ------------------------------------------------------------------------------------------------------


def call_of(model: str) -> dict:
    return yaml.safe_load((Path(model) / "config.yaml").read_text())["model"]["call"]


def rounds_of(model: str, place, method: str, scorer: str, **changes):
    """Two rounds on a model of a run's folder, with simulated people around a scorer."""
    place.mkdir(parents=True, exist_ok=True)
    about = {
        "project": str(place / "project"), "prompts": PROMPTS, "n": 2, "prompts_per_round": 2, "verdict": 1, "votes": 1,
        "people": "simulated", "scorers": {scorer: 1}, "temperature": 0.0, "num_inference_steps": 2,
        "guidance_scale": 1.0,
    }  # fmt: skip
    recipe = {
        "model": {"name": f"{model}/model", "device": "cpu", "lora": {"rank": 2}, "call": call_of(model)},
        "algorithm": {"name": method},
        "rounds": about | changes,
        "training": {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2}
        | ({"evaluate_every": 1} if method == "d3po" else {}),
        "evaluation": {"prompts": PROMPTS[:2], "scorers": {scorer: 1}, "num_inference_steps": 2, "guidance_scale": 1.0},
        "output": str(place / "run"),
    }
    (place / "rounds.yaml").write_text(yaml.safe_dump(recipe))
    return rounds.rounds(place / "rounds.yaml")


@pytest.mark.parametrize(
    ("method", "kind"), [("diffusion_dpo", "video"), pytest.param("d3po", "sound", marks=pytest.mark.slow)]
)
def test_rounds_on_videos_and_on_sounds(method, kind, request, tmp_path):
    model, scorer = request.getfixturevalue(kind), {"video": BRIGHT, "sound": LOUD}[kind]
    run = rounds_of(model, tmp_path, method, scorer)
    facts = json.loads((run / "result.json").read_text())
    assert facts["votes"] == 4 and list((run / "adapter").glob("*.safetensors"))
    assert "people" in facts["wins"] and len(facts["wins"]) == 2
    ending, element = {"video": ("webm", "<video"), "sound": ("wav", "<audio")}[kind]
    assert facts["pairs"][0]["tuned"] == f"tuned_000.{ending}" and element in (run / "report.html").read_text()
    assert list((run / "samples").glob("step_*.png"))  # stills, or spectrograms, of each evaluation


def test_a_method_that_cannot_learn_from_a_models_media_says_so_before_anybody_is_asked(sound, tmp_path):
    with pytest.raises(ValueError, match=r"diffusion_dpo learns from stored media, but .*vocoder.* an online method"):
        rounds_of(sound, tmp_path, "diffusion_dpo", LOUD)
    with Store.open(tmp_path / "project") as store:
        assert not list(store.samples())
    with pytest.raises(ValueError, match=r"judges videos, and .*sound/model makes sounds"):
        rounds_of(sound, tmp_path / "other", "d3po", BRIGHT)


@pytest.mark.slow
def test_preferences_between_videos_are_exported_and_trained_on(video, prompts, tmp_path):
    project, data, run = tmp_path / "p", tmp_path / "data", tmp_path / "run"
    projects.sample(video, prompts, folder=project, k=2, seed=0, **HOW)
    projects.score(project, [BRIGHT])
    assert run_command(["dataset", "export", str(project), str(data), "--by", "scores", "--dimension", "bright"]) == 0
    recipe = {
        "model": {"name": f"{video}/model", "device": "cpu", "lora": {"rank": 2}, "call": call_of(video)},
        "algorithm": {"name": "diffusion_dpo"},
        "data": {"path": str(data), "cache": str(tmp_path / "cache")},
        "training": {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2},
        "evaluation": {"prompts": PROMPTS[:2], "scorers": {BRIGHT: 1}, "n": 1, "num_inference_steps": 2},
        "output": str(run),
    }
    recipe["evaluation"]["guidance_scale"] = 1.0
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert run_command(["train", str(tmp_path / "mine.yaml")]) == 0
    assert json.loads((run / "result.json").read_text())["pairs"][0]["tuned"] == "tuned_000.webm"
    recipe["evaluation"]["scorers"], recipe["output"] = {"clap": 1}, str(tmp_path / "other")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert run_command(["train", str(tmp_path / "mine.yaml")]) == 1  # refused before CLAP is looked for


def test_pairs_of_mp4_files_are_trained_on(video, tmp_path, capsys):
    """Of other sizes, rates and lengths than the model draws; one is too short."""
    lengths = {"a": 12, "b": 30, "c": 16, "d": 2}
    for name, frames in lengths.items():
        (tmp_path / f"{name}.mp4").write_bytes(encoded(frames=frames, rate=24))
    rows = [
        {"prompt": PROMPTS[i], "chosen": f"{a}.mp4", "rejected": f"{b}.mp4"} for i, (a, b) in enumerate(["ab", "cd"])
    ]
    data = tmp_path / "pairs.csv"
    data.write_text("prompt,chosen,rejected\n" + "".join(f"{','.join(row.values())}\n" for row in rows))
    recipe = {
        "model": {"name": f"{video}/model", "device": "cpu", "lora": {"rank": 2}, "call": call_of(video)},
        "algorithm": {"name": "diffusion_dpo"},
        "data": {"path": str(data), "cache": str(tmp_path / "cache"), "max_bad_fraction": 0.3, "held_out": 0},
        "training": {"max_steps": 1, "batch_size": 2, "learning_rate": 1e-2},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert run_command(["train", str(tmp_path / "mine.yaml")]) == 0
    out = capsys.readouterr().out
    assert "3 videos were brought to" in out and "d.mp4): a video of 2 frames at 24 a second is shorter" in out
