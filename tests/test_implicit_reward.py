"""The reward a tuned model stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
