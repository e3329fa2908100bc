"""SDXL's size ids: those of the pipeline's own call for every row, as in Diffusion-DPO's code, or as the call says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palate import likelihood
from palate.models.diffusion import DiffusionPolicy
from palate.randomness import generator
from palate.training.sources import Drawing
from tests import zoo

IDS = "cond/added_cond_kwargs.time_ids"


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy(zoo.build("sdxl"))


def test_size_ids_are_rows_of_the_condition_and_follow_the_call(policy):
    side = policy.latent_shape[-1] * policy.pipeline.vae_scale_factor
    cond = policy.condition(["a cat", "a dog on a mat"])
    assert cond.rows[IDS].tolist() == [[side, side, 0, 0, side, side]] * 2
    cropped = {"original_size": (100, 50), "crops_coords_top_left": (3, 4)}
    told = DiffusionPolicy(zoo.build("sdxl"), call=cropped).condition(["a cat"])
    assert told.rows[IDS].tolist() == [[100, 50, 3, 4, side, side]]


def test_size_ids_are_part_of_the_likelihood(policy):
    """Rows of other sizes stack, and each is judged under its own."""
    cond = policy.condition(["a cat", "a cat"])
    sizes = cond.rows[IDS].clone()
    sizes[1, :2] = torch.tensor([100.0, 50.0])
    cond = replace(cond, rows={**cond.rows, IDS: sizes})
    x0 = torch.randn(1, 1, *policy.latent_shape, generator=generator("x0")).expand(2, -1, -1, -1, -1)
    draw = Drawing(0, policy.path)(["same", "same"], [0, 0], x0.shape[1:])
    with torch.no_grad():
        logps = likelihood.denoising(policy, x0, cond, draw)
        alone = likelihood.denoising(policy, x0[1:], cond[1], Drawing(0, policy.path)(["same"], [0], x0.shape[1:]))
    assert logps[0] != logps[1]
    torch.testing.assert_close(logps[1:], alone, rtol=1e-4, atol=1e-5)
