"""The flow model's own: an MM-DiT that predicts the velocity, told by two text models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from palate.worlds.shapes import flow
from palate.worlds.shapes.flow import build
from palate.worlds.shapes.pretrain.course import Plan
from palate.worlds.shapes.pretrain.denoiser import Kind
from palate.worlds.shapes.pretrain.text import Layout

TEXT_PLAN = Plan(steps=1_000, minutes=4, batch=128, peak_rate=1e-3, pictures=0, seed=13)
PLAN = Plan(steps=100_000, minutes=87, batch=32, peak_rate=1e-3, pictures=60_000, seed=14)
SAMPLING = {"num_inference_steps": 9, "eta": 0.5, "guidance_scale": 1.0}

TIME_MEAN, TIME_SPREAD = 0.6, 1.2  # of the logit of t: more of the noisy times, in which places are decided
PADDED_SHARE, PADDED_ROWS = 1 / 32, 8  # batches that are shown the pipeline's own padding, and how many rows of them
PADDING = 256  # zero tokens: what the pipeline pads the context with if it is not told otherwise


def read(text: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States [n, 18, 160] and pooled vectors [n, 160] of token ids [n, 18]."""
    return text(ids)


def build_reader() -> Layout:
    torch.manual_seed(TEXT_PLAN.seed)
    return Layout(build.Reader(), build.CONTEXT, read, pooled=True)


def loss(transformer: nn.Module, given: tuple[Tensor, ...], latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity (SD3, 2403.03206, section 3.1) at times of logit-normal density."""
    states, pooled = given
    if rng.random() < PADDED_SHARE:
        states, pooled, latents = states[:PADDED_ROWS], pooled[:PADDED_ROWS], latents[:PADDED_ROWS]
        states = torch.cat([states, states.new_zeros(len(states), PADDING, states.shape[-1])], dim=1)
    t = (TIME_MEAN + TIME_SPREAD * torch.randn(len(latents))).sigmoid()
    noise = torch.randn_like(latents)
    level = t[:, None, None, None]
    noisy = (1 - level) * latents + level * noise
    # On a processor the fused attention's backward pass in bfloat16 takes longer than all the rest of the step.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        velocity = transformer(noisy, states, pooled, 1000 * t).sample
    return (velocity.float() - (noise - latents)).square().mean()


def pipeline(vae: Any, transformer: nn.Module, text: Any) -> build.StableDiffusion3Pipeline:
    vae.register_to_config(shift_factor=0.0)  # this pipeline adds it, and cannot do without
    return build.build_pipeline(vae, transformer, text, build.build_tokenizer())


KIND = Kind(
    name="transformer",
    tokens=build.TOKENS,
    text_plan=TEXT_PLAN,
    plan=PLAN,
    reader=build_reader,
    read=read,
    network=build.build_transformer,
    loss=loss,
    pipeline=pipeline,
    sampling=SAMPLING,
    call=flow.call_defaults(),
)
