"""Ranked preferences that models judge: what phi is, that a kill costs nothing, that Ray makes the same files."""

from __future__ import annotations

import gc
import json
import os
import signal
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palate import durable, media
from palate.config import ConfigError
from palate.datasets import parquet
from palate.doors import lookup, synthesis
from palate.scorers.jpeg_size import JpegSize
from palate.scorers.vlm_judge import VlmJudge
from tests.training import forks

PROMPTS = [f"prompt {number}" for number in range(5)]
HOW = {"k": 2, "seed": 7, "per_shard": 2, "batch_size": 3}


class Painter:
    """A model that paints the noise it is given, darker or brighter by its name."""

    def __init__(self, name: str) -> None:
        self.default_settings = {"num_inference_steps": 1, "guidance_scale": 1.0}
        self.top = {"dark": 100, "bright": 250}[name]

    def generate(self, prompts, sources, **how):
        return [
            Image.fromarray((torch.rand(8, 8, 3, generator=source) * self.top).byte().numpy()) for source in sources
        ], None


class Judge:
    """brightness, and for the first prompt's candidates nothing."""

    dimensions = ("brightness",)

    def __call__(self, prompts, pictures):
        light = [np.asarray(picture, float).mean() for picture in pictures]
        return {"brightness": [np.nan if p == PROMPTS[0] else x for p, x in zip(prompts, light, strict=True)]}

    def check(self, prompts):
        if "unknown" in prompts:
            raise ValueError("no such thing")


@pytest.fixture
def painters(monkeypatch):
    loaded = []
    monkeypatch.setattr(lookup, "load_arm", lambda name: loaded.append(name) or Painter(name))
    monkeypatch.setattr(lookup, "check_arm", lambda name: None)
    monkeypatch.setattr(gc, "collect", lambda: None)  # a second each, with all that tests import
    scorers = {"jpeg_size": JpegSize(), "judge": Judge()}
    monkeypatch.setattr(lookup, "find_scorer", scorers.__getitem__)
    return loaded


def run(out: Path, **how) -> Path:
    options = {"models": ["dark", "bright"], "scorers": ["judge", "jpeg_size=-1"], **HOW, **how}
    return synthesis.synthesize(PROMPTS, out, options.pop("models"), options.pop("scorers"), **options)


def files(out: Path) -> dict[str, bytes]:
    """All that is promised to be the same."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".parquet" or "manif" in path.name}


def test_phi_is_the_share_of_comparisons_won():
    rng = np.random.default_rng(0)
    for scores in (rng.normal(size=(4, 5)), rng.integers(0, 2, (4, 3)).astype(float)):
        wins = np.zeros(4)
        for d in range(scores.shape[1]):
            for i, j in combinations(range(4), 2):
                wins[i] += scores[i, d] > scores[j, d]
                wins[j] += scores[j, d] > scores[i, d]
        phi = wins / (scores.shape[1] * 3)
        found = synthesis.ranked(scores)
        for i, j in combinations(range(4), 2):
            assert found["prefer"][i][j] == (0.5 if phi[i] == phi[j] else float(phi[i] > phi[j]))
            assert found["votes"][i][j] == scores.shape[1]


def test_what_no_scorer_knows_is_unknown():
    found = synthesis.ranked(np.array([[1.0, np.nan], [2.0, np.inf], [np.nan, np.nan]]))
    assert found["prefer"][0][1] == 0.0 and found["votes"][0][1] == 1
    assert np.isnan(found["prefer"][0][2]) and found["votes"][0][2] == 0
    assert np.isnan(found["scores"][1][1])


def test_every_model_draws_and_every_scorer_judges(painters, tmp_path, capsys):
    rows = list(parquet.read(run(tmp_path / "out")))
    said = capsys.readouterr().out
    assert [row.prompt for row in rows] == PROMPTS
    for row in rows:
        assert row.sources == ("dark", "dark", "bright", "bright") and row.seeds == (7,) * 4
        assert row.dimensions == ("brightness", "jpeg_size")
        pictures = [media.decode(medium) for medium in row.media]
        light = np.array([np.asarray(picture, float).mean() for picture in pictures])
        size = JpegSize()([row.prompt] * 4, pictures)["jpeg_size"]
        scores = np.array(row.scores)
        np.testing.assert_array_equal(scores[:, 1], -size)  # less was to be better
        if row.prompt == PROMPTS[0]:
            assert np.isnan(scores[:, 0]).all() and np.array(row.votes).max() == 1
        else:
            np.testing.assert_array_equal(scores[:, 0], light)
            np.testing.assert_array_equal(row.prefer, synthesis.ranked(scores)["prefer"])
    assert len({medium.bytes for row in rows for medium in row.media}) == 20
    assert "model dark: 10 pictures" in said and "scorer judge: 5 calls, 20 pictures" in said
    assert "4 scores unknown" in said and "5 ranked prompts" in said
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert cost["model bright"]["pictures"] == 10 and cost["scorer jpeg_size"]["calls"] == 5


def test_a_judge_that_favours_a_place_is_told_of(painters, tmp_path, monkeypatch, capsys):
    class Biased(VlmJudge):
        def __init__(self):
            super().__init__(None, "model")

        def _ask(self, prompt, first, second):
            return "a"

    monkeypatch.setattr(lookup, "find_scorer", {"jpeg_size": JpegSize(), "judge": Biased()}.__getitem__)
    rows = list(parquet.read(run(tmp_path / "out", scorers=["judge"])))
    assert all(set(row.scores) == {(0.5,)} for row in rows)  # ties, all of them
    assert "of 30 pairs shown both ways round 30 were decided by the order alone" in capsys.readouterr().out


def test_a_picture_depends_on_seed_prompt_and_number_alone(painters, tmp_path):
    first = {row.prompt: row.media for row in parquet.read(run(tmp_path / "a"))}
    other = {row.prompt: row.media for row in parquet.read(run(tmp_path / "b", per_shard=3, batch_size=8, in_memory=2))}
    assert first == other
    again = {row.prompt: row.media for row in parquet.read(run(tmp_path / "c", seed=8))}
    assert not any(set(again[prompt]) & set(first[prompt]) for prompt in PROMPTS)


def test_models_are_held_as_told(painters, tmp_path):
    run(tmp_path / "a")
    assert painters == ["dark", "bright"] * 3
    painters.clear()
    run(tmp_path / "b", in_memory=2)
    assert painters == ["dark", "bright"]


def test_again_makes_nothing_and_another_job_is_refused(painters, tmp_path, capsys):
    run(tmp_path / "out")
    before, said = files(tmp_path / "out"), capsys.readouterr().out
    painters.clear()
    run(tmp_path / "out")
    assert not painters and files(tmp_path / "out") == before and capsys.readouterr().out == said
    with pytest.raises(ConfigError, match="seed"):
        run(tmp_path / "out", seed=8)


POINTS = {
    "sampling": lambda patch, hit: _around(patch, synthesis.sampling, "sample", hit),
    "a shard's rows written": lambda patch, hit: _around(patch, parquet, "write", hit),
    "a shard in place": lambda patch, hit: _around(patch, durable, "replace_folder", hit),
    "joining": lambda patch, hit: _around(patch, os, "link", hit),
    "joined": lambda patch, hit: _around(patch, parquet, "_finished", hit),
    "tidying": lambda patch, hit: _around(patch, synthesis.shutil, "rmtree", hit),
}


def _around(patch, place, name, hit):
    real = getattr(place, name)
    patch.setattr(place, name, lambda *args, **how: (hit(), real(*args, **how), hit())[1])


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again_makes_the_same_files(point, painters, tmp_path):
    run(tmp_path / "straight")

    def killed(number: int) -> int:
        left = number

        def hit() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            with pytest.MonkeyPatch.context() as patch:
                POINTS[point](patch, hit)
                run(tmp_path / "out")

        return forks.in_child(work)

    statuses = [killed(number) for number in (1, 2, 3)]
    assert statuses[0] == -signal.SIGKILL
    run(tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "straight")
    assert not (tmp_path / "out" / "work").exists()


def test_what_is_made_is_not_made_again(painters, tmp_path, monkeypatch):
    real, made = synthesis.make_shard, []

    def stops(job, number, *args):
        if number == 2:
            raise KeyboardInterrupt
        made.append(number)
        real(job, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "make_shard", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    assert made == [0, 1] and not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(
        synthesis, "make_shard", lambda job, number, *args: made.append(number) or real(job, number, *args)
    )
    run(tmp_path / "out")
    assert made == [0, 1, 2]


def test_a_slip_does_not_claim_the_folder(painters, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no score 'sharpness'"):
        run(tmp_path / "out", scorers=["judge/sharpness"])
    with monkeypatch.context() as patch:

        def absent(name):
            raise ConfigError(f"there is no model {name}")

        patch.setattr(lookup, "check_arm", absent)
        with pytest.raises(ConfigError, match="no model brigth"):
            run(tmp_path / "out", models=["brigth", "dark"])
    run(tmp_path / "out")
    assert len(list(parquet.read(tmp_path / "out"))) == len(PROMPTS)


def test_a_data_set_of_others_is_not_taken_over(painters, tmp_path):
    run(tmp_path / "out")
    (tmp_path / "out" / "synthesis.json").unlink()
    with pytest.raises(ConfigError, match="another data set; choose another --out"):
        run(tmp_path / "out")
    assert not (tmp_path / "out" / "synthesis.json").exists()


def test_after_a_full_device_a_smaller_batch_goes_on(painters, tmp_path, monkeypatch):
    real, made = synthesis.make_shard, []

    def make_shard(job, number, *args):
        if number == 1 and job.batch_size > 1:
            raise torch.OutOfMemoryError("full")
        made.append(number)
        real(job, number, *args)

    monkeypatch.setattr(synthesis, "make_shard", make_shard)
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path / "out")
    run(tmp_path / "out", batch_size=1)
    assert made == [0, 1, 2]
    run(tmp_path / "straight", batch_size=1)
    assert files(tmp_path / "out") == files(tmp_path / "straight")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"models": ["dark", "dark"]}, "each model once"),
        ({"models": ["dark"], "k": 1}, "raise -k"),
        ({"scorers": ["judge", "judge=-1"]}, "given twice"),
        ({"scorers": ["judge=0.5"]}, "only the order"),
        ({"scorers": ["judge/sharpness"]}, "no score 'sharpness'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(painters, tmp_path, how, said):
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "out", **how)
    assert not painters


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_makes_the_same_files(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else its workers wait for whatever else runs
    from tests import zoo

    model = tmp_path / "model"
    zoo.build("sd15").save_pretrained(model)
    prompts = ["a red cat", "a blue dog", "a green bird", "a hat", "a hat on a cat"]
    how = {"k": 2, "seed": 3, "per_shard": 2, "num_inference_steps": 2}
    synthesis.synthesize(prompts, tmp_path / "here", [str(model)], ["jpeg_size"], **how)
    try:
        synthesis.synthesize(prompts, tmp_path / "there", [str(model)], ["jpeg_size"], **how, ray=True, workers=2)
    finally:
        ray.shutdown()
    assert files(tmp_path / "here") == files(tmp_path / "there")
