"""Padding is left out of what is kept only where the model does not look at it, and comes back as zeros."""

from __future__ import annotations

import pytest
import torch

from palate.models import trimming
from palate.models.diffusion import DiffusionPolicy
from palate.training.cache import TensorCache
from palate.training.stored import load_condition, save_condition
from tests import zoo
from tests.pipelines import build

PROMPTS = ["a red fish", "a large red fish in a blue sea"]


@pytest.fixture(scope="module")
def masked():
    pipeline, call = build("PixArtAlphaPipeline")
    return DiffusionPolicy(pipeline, call=call)


def test_what_a_mask_hides_is_left_out_where_it_is_not_looked_at(masked, tmp_path):
    pairs = trimming.learned(masked, PROMPTS)
    assert pairs == {"cond/encoder_hidden_states": "cond/encoder_attention_mask"}
    with TensorCache(tmp_path, memory=0) as cache:
        for number, prompt in enumerate(PROMPTS):
            cond = masked.condition([prompt])
            save_condition(cache, f"{number:064x}", cond, pairs)
            held = cache.get(f"{number:064x}")["rows.cond/encoder_hidden_states"]
            assert held.shape[1] == int(cond.rows["cond/encoder_attention_mask"].sum())
            found = load_condition(cache, f"{number:064x}")
            assert found.key == cond.key
            x_t, t = torch.randn(1, *masked.latent_shape), masked.path.sample_t(1, torch.Generator().manual_seed(3))
            assert torch.equal(masked.predict(x_t, t, found), masked.predict(x_t, t, cond))


def test_a_model_that_looks_at_its_padding_keeps_it():
    assert trimming.learned(DiffusionPolicy(zoo.build("sd15")), PROMPTS) == {}


def test_only_the_users_own_prompts_are_said_to_be_too_long(caplog):
    policy = DiffusionPolicy(zoo.build("sd15"))
    long = " and ".join(PROMPTS * 8)
    trimming.learned(policy, ["a red fish", long])
    assert "truncated" not in caplog.text
    policy.condition([f"{long} too"])
    assert "truncated" in caplog.text


def test_a_mask_may_be_ones_or_large_negative_numbers():
    assert trimming.kept(torch.tensor([[1, 1, 0]])).tolist() == [True, True, False]
    assert trimming.kept(torch.tensor([[[-1e4, 0.0, 0.0]]])).tolist() == [False, True, True]
