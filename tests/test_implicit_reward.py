"""The reward a tuned model stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from palate import likelihood
from palate.doors import lookup
from palate.implicit_reward import ImplicitReward
from palate.randomness import generator
from palate.training import adapters
from palate.training.sources import Drawing
from tests.algorithms.test_preference import moved
from tests.toys import SHAPE, ToyDenoiser
from tests.training import tiny

PROMPTS = ["a", "b", "a", "a"]
MEDIA = list(torch.randn(4, *SHAPE, generator=generator("media")))


def test_it_is_the_mean_gap_over_draws_shared_by_a_prompt():
    policy = ToyDenoiser()
    trained = moved(policy)
    got = ImplicitReward(trained, policy, beta=7.0, draws=3, seed=5)(PROMPTS, MEDIA)["implicit_reward"]
    for row in range(4):
        total = 0.0
        for visit in range(3):
            draw = Drawing(5, policy.path)([PROMPTS[row]], [visit], (1, *SHAPE))
            one, cond = MEDIA[row][None, None], policy.condition([PROMPTS[row]])
            pair = [likelihood.denoising(model, one, cond, draw).item() for model in (trained, policy)]
            total += pair[0] - pair[1]
        assert got[row] == pytest.approx(7.0 * total / 3, rel=1e-4, abs=1e-6)


def test_times_are_those_that_training_drew():
    """A student of few steps was told nothing elsewhere: a model that differs elsewhere alone has no reward."""
    policy, asked = ToyDenoiser(), []

    def times(n, source):
        asked.append(n)
        return torch.full((n,), 7)

    for draws in (2, 5):
        got = ImplicitReward(moved(policy), policy, draws=draws, times=times)(PROMPTS, MEDIA)["implicit_reward"]
        draw = Drawing(0, policy.path, times=times)(["a"], [0], (1, *SHAPE))
        assert draw.t.tolist() == [7] and np.isfinite(got).all()
    assert len(asked) == 2 * (2 + 5) + 2


def config(**held):
    return yaml.safe_dump({"model": {"name": "world:shapes"}, **held})


@pytest.mark.parametrize("held", [
    {"algorithm": {"name": "diffusion_dpo", "timesteps": [249, 999]}},
    {"method": "diffusion_dpo", "plan": {"options": {"timesteps": [249, 999]}}},
])  # fmt: skip
def test_a_runs_folder_says_how_its_times_were_drawn(tmp_path, held, monkeypatch):
    (tmp_path / "config.yaml").write_text(config(**held))
    (tmp_path / "adapter").mkdir()
    policy = tiny.policy_with_adapter()
    monkeypatch.setattr(lookup, "load_arm", lambda _: policy)
    reward = lookup.implicit_reward(str(tmp_path))
    drawn = reward._drawing(["a"] * 40, range(40), (1, *SHAPE)).t
    assert set(drawn.tolist()) == {249, 999}


def test_a_run_by_nobody_knows_what_is_told(tmp_path):
    (tmp_path / "config.yaml").write_text(config())
    with pytest.raises(ValueError, match="does not say by which algorithm"):
        lookup.implicit_reward(str(tmp_path))
    (tmp_path / "config.yaml").write_text(config(algorithm={"name": "diffusion_dpo", "betta": 1}))
    with pytest.raises(ValueError, match="betta"):
        lookup.implicit_reward(str(tmp_path))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_does_not_depend_on_batches_or_on_the_others(batch_size):
    policy = ToyDenoiser()
    score = ImplicitReward(moved(policy), policy, batch_size=batch_size)
    whole = ImplicitReward(moved(policy), policy)(PROMPTS, MEDIA)["implicit_reward"]
    np.testing.assert_allclose(score(PROMPTS, MEDIA)["implicit_reward"], whole, rtol=1e-4)
    np.testing.assert_allclose(score(PROMPTS[2:3], MEDIA[2:3])["implicit_reward"], whole[2], rtol=1e-4)
    assert score([], [])["implicit_reward"].shape == (0,)


def test_the_reference_is_0_and_an_adapter_is_its_own_reference():
    policy = tiny.policy_with_adapter()
    score = ImplicitReward(policy)
    assert score(PROMPTS, MEDIA)["implicit_reward"].tolist() == [0.0] * 4
    with torch.no_grad():
        for weight in adapters.trainable(policy).values():
            weight.add_(0.1)
    assert np.abs(score(PROMPTS, MEDIA)["implicit_reward"]).min() > 0


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="adapter to switch off"):
        ImplicitReward(ToyDenoiser())
    with pytest.raises(ValueError, match="draws"):
        ImplicitReward(ToyDenoiser(), ToyDenoiser(), draws=0)
    with pytest.raises(ValueError, match="is no run's folder"):
        lookup.weighted({f"implicit:{tmp_path}": 1.0})
