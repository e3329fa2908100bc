"""Videos and sounds through every command: sampled, into projects, scored, compared, by people too, learnt from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palate import kinds
from palate.cli import main
from palate.doors import drawing, projects
from palate.store import Store
from tests.moving import FRAME_RATE, run_of

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


loud, bright = Loud(), Bright()
LOUD, BRIGHT = "tests.test_moving:loud", "tests.test_moving:bright"


def run(arguments: list[str]) -> int:
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
    assert run(["sample", video, str(prompts), *how, "--call", "frame_rate=4"]) == 0
    line = json.loads((tmp_path / "slow" / "samples.jsonl").read_text().splitlines()[0])
    assert line["frame_rate"] == 4
    with pytest.raises(ValueError, match=r"holds other samples: call: \(absent\) -> "):
        drawing.sample(video, prompts, k=1, out=tmp_path / "out", seed=0, call={"frame_rate": 4}, **HOW)


@pytest.mark.parametrize("given", ["frames", "a b=1", "=1", "n=[1]", "n=null", "n={"])
def test_an_argument_that_is_none_is_named(given, prompts, video, capsys):
    assert run(["sample", video, str(prompts), "--call", given]) == 1
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
