"""The guard: fires where rewards rise and a judge held out falls, hardly ever else; a run stops at its best weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from palate.config import ConfigError, Recipe
from palate.doors.guarding import Guarding
from palate.evaluation import guard
from palate.evaluation.compare import Arm
from tests.training import tiny

PROMPTS = [f"p{i // 2}" for i in range(64)]


def course(rng, steps, reward, taste, spread=1.0):
    """Arms of a run's looks: both scores of 32 prompts, two each, in noise that the looks share for the most part."""
    level = np.repeat(rng.normal(0, 1, 32), 2) + rng.normal(0, 0.5, 64)
    noise = rng.integers(0, 255, (64, 4, 4, 3))
    for step in range(steps):
        tint = np.full((64, 4, 4, 3), 128)
        pictures = (spread**step * noise + (1 - spread**step) * tint).astype(np.uint8)
        scores = {
            "reward": 5 + level + reward(step) + rng.normal(0, 0.5, 64),
            "taste": 5 + level + taste(step) + rng.normal(0, 0.5, 64),
        }
        yield Arm(PROMPTS, [Image.fromarray(picture) for picture in pictures], scores)


def fired(folder, rng, steps=11, **how):
    """The first look that raises an alarm, None if none does."""
    looked = Guarding(folder, lambda name: name == "reward", steps)
    for step, arm in enumerate(course(rng, steps, **how)):
        if looked.look(step, arm)["guard/alarm"]:
            return step
    return None


def test_a_gamed_reward_raises_the_alarm_before_the_held_out_score_is_down_by_a_tenth(tmp_path, capsys):
    """The held-out score rises at first, then falls by .15 a look from 5.45: a tenth of it is lost after 4 looks."""
    rng = np.random.default_rng(0)
    for run in range(10):
        found = fired(
            tmp_path / str(run), rng, reward=lambda s: 0.3 * s, taste=lambda s: 0.15 * min(s, 3) - 0.15 * max(s - 3, 0)
        )
        assert found is not None and 3 < found <= 3 + 4
    assert "reward rose while taste fell" in capsys.readouterr().out


def test_honest_runs_raise_none(tmp_path):
    rng = np.random.default_rng(1)
    for run in range(10):
        assert fired(tmp_path / str(run), rng, reward=lambda s: 0.3 * s, taste=lambda s: 0.05 * s) is None
        assert fired(tmp_path / f"flat {run}", rng, reward=lambda s: 0.3 * s, taste=lambda s: 0.0) is None
        assert fired(tmp_path / f"worse {run}", rng, reward=lambda s: 0.0, taste=lambda s: -0.02 * s) is None


def test_lost_diversity_raises_the_alarm(tmp_path):
    rng = np.random.default_rng(2)
    assert fired(tmp_path, rng, reward=lambda s: 0.3 * s, taste=lambda s: 0.1 * s, spread=0.9) is not None


def test_a_resumed_run_goes_on_with_what_it_saw_and_forgets_what_never_was(tmp_path):
    arms = list(course(np.random.default_rng(3), 5, reward=lambda s: 0.3 * s, taste=lambda s: -0.3 * s))
    straight = Guarding(tmp_path / "a", lambda name: name == "reward", 5)
    found = [straight.look(step, arm) for step, arm in enumerate(arms)]
    for step in (0, 1, 2, 3):
        cut = Guarding(tmp_path / "b", lambda name: name == "reward", 5)
        cut.look(step, arms[step])
    again = [Guarding(tmp_path / "b", lambda name: name == "reward", 5).look(s, arms[s]) for s in (2, 3, 4)]
    assert again == found[2:]
    assert [look["guard/alarm"] for look in found][-1] == 1.0 and found[0]["guard/loss"] == 0.0


def test_a_judge_that_was_constant_at_the_start_does_not_decide_alone(tmp_path):
    """It dips by a hair at the second look, where the other judge is clearly best; that look's weights are kept."""
    rng = np.random.default_rng(0)
    taste, safe = np.repeat(rng.normal(size=32), 2), np.ones(64)
    hair = safe.copy()
    hair[:2] -= 1e-3
    looked = Guarding(tmp_path, lambda name: name == "reward", 3)
    arms = [Arm(PROMPTS, [None] * 64, {"taste": t, "safe": s}) for t, s in ((taste, safe), (taste + 1, hair))]
    losses = [looked.look(step, arm)["guard/loss"] for step, arm in enumerate(arms)]
    assert losses[1] < losses[0] == 0.0
    fallen = Arm(PROMPTS, [None] * 64, {"taste": taste, "safe": 0 * safe})
    assert looked.look(2, fallen)["guard/loss"] == pytest.approx(3.0)  # all fell alike: no spread at all


def test_few_prompts_that_changed_alike_show_nothing():
    ends = [guard.change("x", [1.0] * n, [0.0] * n, list(range(n)), level=0.01) for n in (2, 6, 7)]
    assert [np.isinf(found.high) for found in ends] == [True, True, False]


def test_the_look_by_hand():
    prompts = list("pqrstuvw")
    zeros, up, down = [0.0] * 8, [1.0, 1.2] * 4, [-1.0, -1.2] * 4
    got = guard.look({"r": (zeros, up)}, {"h": (zeros, down), "r": (zeros, down)}, prompts)
    assert got.alarm and got.fallen == ("h",) and got.rewards[0].mean == pytest.approx(1.1)
    assert not guard.look({"r": (zeros, down)}, {"h": (zeros, down)}, prompts).alarm  # nothing rose: no hacking
    assert guard.look({}, {"h": (zeros, down)}, prompts).alarm  # what is trained on is no score
    assert not guard.look({"r": ([0.0], [1.0])}, {"h": ([0.0], [-9.0])}, ["p"]).alarm  # one prompt shows nothing
    kept = guard.look({"r": (zeros, up)}, {}, prompts, diversity=([1.0] * 8, [0.95, 0.93] * 4))
    lost = guard.look({"r": (zeros, up)}, {}, prompts, diversity=([1.0] * 8, [0.7, 0.75] * 4))
    assert not kept.alarm and lost.fallen == ("diversity",)
    unknown = guard.look({"r": (zeros, up)}, {"h": ([float("nan")] * 8, zeros)}, prompts)
    assert not unknown.alarm and unknown.held_out[0].n_prompts == 0


class Watching:
    """An evaluation whose judge likes the third step best, and whose guard stops the run after the fifth."""

    keeps_best = True

    def __init__(self, run):
        self.run, self.seen = run, {}

    def __call__(self, step):
        self.seen[step] = torch.cat([w.detach().flatten() for w in self.run.parameters.values()])
        return {"guard/loss": float((step - 3) ** 2), "guard/alarm": float(step >= 5)}


def test_training_stops_at_an_alarm_and_exports_the_best_held_out_weights(tmp_path):
    run = tiny.offline(tmp_path, max_steps=9, evaluate_every=1)
    again = type(run)(
        run.policy, run._algorithm, run._config, run.source, run.settings, tmp_path,
        evaluate=(watching := Watching(None)), progress=False, tensorboard=False, reference=run.reference,
    )  # fmt: skip
    watching.run = again
    result = again.run()
    assert (result.reason, result.step, result.exported, result.exported_step) == ("guard", 5, "best", 3)
    now = torch.cat([w.detach().flatten() for w in again.parameters.values()])
    assert torch.equal(now, watching.seen[3]) and not torch.equal(now, watching.seen[5])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["guard/alarm"] == 1.0


def test_stopping_needs_a_judge_that_was_not_trained_on():
    recipe = {
        "model": {"name": "m"},
        "algorithm": {"name": "ddpo"},
        "rollout": {"prompts": ["a"], "scorers": {"jpeg_size": 1}},
        "evaluation": {"prompts": ["b"], "scorers": {"jpeg_size": 1}, "guard": "stop"},
        "output": "x",
    }
    with pytest.raises((ValueError, ConfigError), match="needs a judge held out"):
        Recipe.model_validate(recipe)
    recipe["evaluation"]["scorers"] = {"jpeg_size": 1, "pickscore": 1}
    assert Recipe.model_validate(recipe).evaluation.guard == "stop"
